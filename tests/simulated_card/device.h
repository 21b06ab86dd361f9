// What PyTorch asks of a CUDA device outside of operations: its number, streams, random generators, pinned memory.
#pragma once
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include "memory.h"

namespace card {
// One device with one stream, on which everything has run as soon as it is launched.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kCard); }

  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Device getDevice() const override { return kCard; }
  c10::Device exchangeDevice(c10::Device) const override { return kCard; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}

  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream previous) const override { return previous; }

  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { host_waits("synchronize"); }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// A generator of the card over one of the CPU.
struct Generator final : c10::GeneratorImpl {
  explicit Generator(at::Generator of_cpu) : GeneratorImpl(kCard, c10::DispatchKeySet(c10::DispatchKey::CUDA)), cpu(std::move(of_cpu)) {}

  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }
  GeneratorImpl* clone_impl() const override { return new Generator(cpu.clone()); }

  at::Generator cpu;
};
}  // namespace card

namespace at {  // PyTorch looks for these hooks by their name
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}

  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }

  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  void deviceSynchronize(DeviceIndex) const override { card::host_waits("synchronize"); }

  Allocator* getCUDADeviceAllocator() const override { return &card::on_card; }
  Allocator* getPinnedMemoryAllocator() const override { return &card::page_locked; }
  bool isPinnedPtr(const void* start) const override { return card::is_pinned(start); }
  Device getDeviceFromPtr(void*) const override { return card::kCard; }

  // The default one is the CPU's, so that a run draws the same numbers on both.
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    static const Generator shared = make_generator<card::Generator>(detail::getDefaultCPUGenerator());
    return shared;
  }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<card::Generator>(detail::createCPUGenerator()); }
};

REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at
