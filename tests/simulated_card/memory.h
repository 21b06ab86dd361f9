// Memory of the simulated card: storages whose device is cuda:0 and whose bytes are the CPU's; and page-locked memory of the CPU.
#pragma once
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>
#include <atomic>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace card {
using at::Tensor;
const c10::Device kCard(c10::kCUDA, 0), kHost(c10::kCPU);

// ---------------------------------------------------------------------------------------------------------------- what is counted

inline std::atomic<long> kernels{0};                 // launches: kernels, and copies to, from and on the card
inline void (*on_wait)(const char* kind) = nullptr;  // Python's function that notes the line of the program

inline void host_waits(const std::string& kind) {
  if (on_wait) on_wait(kind.c_str());
}

// -------------------------------------------------------------------------------------------------------------------- page-locked

inline std::mutex pinned_lock;
inline std::set<const void*> pinned_blocks;  // where they start

inline bool is_pinned(const void* start) {
  std::lock_guard<std::mutex> guard(pinned_lock);
  return pinned_blocks.count(start) > 0;
}

// --------------------------------------------------------------------------------------------------------------------- allocators

// The CPU's allocator under the name of another device, or of memory that counts as pinned.
class Allocator final : public c10::Allocator {
 public:
  Allocator(c10::Device device, bool pins) : device_(device), pins_(pins) {}

  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new c10::DataPtr(c10::GetCPUAllocator()->allocate(bytes));
    void* start = block->get();
    if (pins_) {
      std::lock_guard<std::mutex> guard(pinned_lock);
      pinned_blocks.insert(start);
    }
    return {start, block, pins_ ? &free_pinned : &free_block, device_};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void free_block(void* block) { delete static_cast<c10::DataPtr*>(block); }
  static void free_pinned(void* block) {
    {
      std::lock_guard<std::mutex> guard(pinned_lock);
      pinned_blocks.erase(static_cast<c10::DataPtr*>(block)->get());
    }
    free_block(block);
  }

  c10::Device device_;
  bool pins_;
};

inline Allocator on_card(kCard, false), page_locked(kHost, true);

// ------------------------------------------------------------------------------------------------- the same bytes on two devices

inline c10::DataPtr shared_bytes(const c10::Storage& owner, c10::Device device) {
  return {owner.mutable_data(), new c10::Storage(owner), [](void* s) { delete static_cast<c10::Storage*>(s); }, device};
}

inline c10::Storage twin(const c10::Storage& storage, c10::Device device) {
  c10::Allocator* allocator = device.is_cuda() ? static_cast<c10::Allocator*>(&on_card) : c10::GetCPUAllocator();
  return {c10::Storage::use_byte_size_t(), storage.nbytes(), shared_bytes(storage, device), allocator, /*resizable=*/true};
}

inline Tensor twin(const Tensor& tensor, c10::Storage storage) {
  c10::InferenceMode same_mode(tensor.is_inference());
  const auto key = storage.device().is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  auto result = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), tensor.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (tensor.is_conj()) impl->_set_conj(true);
  if (tensor.is_neg()) impl->_set_neg(true);
  return result;
}

// The tensors of one operation. Going down, each tensor of the card gets a twin on the CPU, and tensors that share memory get twins
// that do; coming up, a result that shares memory with an argument becomes a view of it, and an argument itself stays itself.
class Twins {
 public:
  Tensor down(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    for (const auto& pair : tensors_)
      if (pair.card.is_same(tensor)) return pair.cpu;
    tensors_.push_back({tensor, twin(tensor, down(tensor.storage()))});
    return tensors_.back().cpu;
  }

  c10::Storage down(const c10::Storage& storage) {
    for (const auto& pair : storages_)
      if (same(pair.card, storage)) return pair.cpu;
    storages_.push_back({storage, twin(storage, kHost)});
    return storages_.back().cpu;
  }

  Tensor up(const Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cuda()) return tensor;
    for (const auto& pair : tensors_)
      if (pair.cpu.is_same(tensor)) return pair.card;
    tensors_.push_back({twin(tensor, up(tensor.storage())), tensor});
    return tensors_.back().card;
  }

  // Give the arguments the shape and memory that the operation has given to their twins: `out=`, `resize_`, `set_`.
  void settle() {
    for (auto& pair : storages_) {
      if (pair.card.data() == pair.cpu.data() && pair.card.nbytes() == pair.cpu.nbytes()) continue;
      pair.card.set_data_ptr_noswap(shared_bytes(pair.cpu, kCard));
      pair.card.set_nbytes(pair.cpu.nbytes());
    }
    for (size_t i = 0; i < tensors_.size(); ++i) {
      auto [card, cpu] = tensors_[i];
      auto storage = up(cpu.storage());
      auto* impl = card.unsafeGetTensorImpl();
      if (!same(storage, card.storage())) impl->set_storage_keep_dtype(storage);
      if (card.sizes() != cpu.sizes() || card.strides() != cpu.strides() || card.storage_offset() != cpu.storage_offset())
        impl->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
    }
  }

 private:
  template <class T>
  struct Pair {
    T card, cpu;
  };

  static bool same(const c10::Storage& a, const c10::Storage& b) { return a.unsafeGetStorageImpl() == b.unsafeGetStorageImpl(); }

  c10::Storage up(const c10::Storage& storage) {
    for (const auto& pair : storages_)
      if (same(pair.cpu, storage)) return pair.card;
    storages_.push_back({twin(storage, kCard), storage});
    return storages_.back().card;
  }

  std::vector<Pair<Tensor>> tensors_;
  std::vector<Pair<c10::Storage>> storages_;
};
}  // namespace card
