// What CUDA refuses, and what makes the host wait for the card, by the names of operations.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <algorithm>
#include "memory.h"

namespace card {
using Arguments = c10::ArrayRef<c10::IValue>;

// Operations by name, without "aten::", overload and the underscore of in-place variants; "linalg_*" stands for all that begin so.
class Names {
 public:
  Names(std::initializer_list<const char*> names) {
    for (std::string name : names)
      if (name.back() == '*') heads_.push_back(name.substr(0, name.size() - 1));
      else names_.insert(name);
  }

  bool has(std::string name) const {
    if (name.size() > 1 && name.back() == '_') name.pop_back();
    if (names_.count(name)) return true;
    for (const auto& head : heads_)
      if (name.compare(0, head.size(), head) == 0) return true;
    return false;
  }

 private:
  std::set<std::string> names_;
  std::vector<std::string> heads_;
};

// Their result is a number for the host, or has a size that only the card knows.
inline const Names kWaiting{"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique", "_unique2", "unique_dim",
                            "unique_consecutive", "unique_dim_consecutive", "bincount", "histogram*", "_linalg_check_errors"};
inline const Names kIndexing{"index", "_unsafe_index", "_index_put_impl", "index_put", "_unsafe_index_put"};
inline const Names kMatrixProducts{"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "_addmm_activation"};
// They take no number of the CPU in a tensor's place, as pointwise operations do.
inline const Names kOnTheCardAlone{
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "_addmm_activation", "gather", "take", "index_select", "embedding*",
    "scatter*", "index_add", "index_copy", "native_*", "convolution*", "_softmax*", "_log_softmax*", "nll_loss*", "_scaled_dot_*",
    "_fused_*", "_amp_*", "linalg_*", "_linalg_*", "_cdist*", "searchsorted", "bucketize"};
inline const Names kNotDeterministic{
    "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_linear1d_backward", "upsample_trilinear3d_backward",
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward",
    "max_pool3d_with_indices_backward", "max_unpool2d", "fractional_max_pool2d_backward", "reflection_pad*_backward",
    "replication_pad*_backward", "grid_sampler*_backward", "kthvalue", "histc", "bincount", "nll_loss2d*", "put", "_ctc_loss_backward"};

template <class F>
void for_each_tensor(const c10::IValue& value, F call) {
  if (value.isTensor() && value.toTensor().defined()) call(value.toTensor());
  if (value.isList())
    for (const c10::IValue& each : value.toListRef())
      if (each.isTensor() && each.toTensor().defined()) call(each.toTensor());
}

inline void check_device(const c10::OperatorHandle& op, const std::string& name, const c10::Argument& formal, const c10::IValue& value) {
  if (value.isGenerator()) {
    const auto device = value.toGenerator().device();
    TORCH_CHECK(device.is_cuda(), "Expected a 'cuda' device type for generator but found '", device.type(), "'");
  }
  const bool written = formal.alias_info() && formal.alias_info()->isWrite();
  const bool takes_numbers = !written && !value.isList() && !kOnTheCardAlone.has(name);
  for_each_tensor(value, [&](const Tensor& tensor) {
    TORCH_CHECK(tensor.is_cuda() || (takes_numbers && tensor.dim() == 0),
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (argument '",
                formal.name(), "' of ", op.operator_name(), " on the simulated card)");
  });
}

inline void check_types(const std::string& name, Arguments arguments) {
  const bool product = kMatrixProducts.has(name);
  if (!product && name != "native_layer_norm") return;
  std::set<at::ScalarType> types;
  for (const auto& value : arguments) for_each_tensor(value, [&](const Tensor& tensor) { types.insert(tensor.scalar_type()); });
  const auto least = *types.begin();
  TORCH_CHECK(!product || !at::isIntegralType(least, true), "\"", name, "_cuda\" not implemented for '", least, "'");
  TORCH_CHECK(product || types.size() == 1, "expected scalar type ", least, " but found ", *types.rbegin());
}

inline void check_determinism(const std::string& name, Arguments arguments) {
  if (!at::globalContext().deterministicAlgorithms()) return;
  bool different = kNotDeterministic.has(name);
  if (name == "cumsum") different = arguments[0].toTensor().is_floating_point();
  TORCH_CHECK(!different, name, " on CUDA does not have a deterministic implementation, but you set ",
              "'torch.use_deterministic_algorithms(True)'.");
  const char* workspace = std::getenv("CUBLAS_WORKSPACE_CONFIG");
  TORCH_CHECK(!kMatrixProducts.has(name) || workspace, "Deterministic behavior was enabled, but this operation is not deterministic ",
              "because it uses CuBLAS. Set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the program starts.");
}

inline void note_waits(const std::string& name, const std::string& overload, Arguments arguments) {
  if (kWaiting.has(name)) host_waits(name);
  if (name == "repeat_interleave" && overload == "Tensor" && arguments[1].isNone()) host_waits(name);
  if (!kIndexing.has(name)) return;
  bool mask = false, from_host = false;
  for_each_tensor(arguments[1], [&](const Tensor& index) {
    mask |= index.scalar_type() == at::kBool || index.scalar_type() == at::kByte;
    from_host |= index.is_cpu();
  });
  if (mask) host_waits("index by a mask");
  if (from_host) host_waits("index from the CPU");
}

// Apply the rules to an operation that is about to run.
inline void obey(const c10::OperatorHandle& op, Arguments arguments) {
  const auto& schema = op.schema();
  const std::string name = schema.name().substr(schema.name().find("::") + 2);
  const bool any_device = name == "set_" || name == "is_set_to";
  for (size_t i = 0; i < arguments.size(); ++i)
    if (!any_device && !(i == 1 && kIndexing.has(name))) check_device(op, name, schema.arguments()[i], arguments[i]);
  check_types(name, arguments);
  check_determinism(name, arguments);
  note_waits(name, schema.overload_name(), arguments);
}

// Whether it starts work on the card, unlike a view or an allocation.
inline bool launches(const c10::FunctionSchema& schema) {
  static const Names without{"aten::empty*", "aten::resize*", "aten::set", "aten::is_set_to", "aten::_fused_sdp_choice",
                             "aten::_resize_output", "aten::record_stream", "aten::new_empty*"};
  if (without.has(schema.name())) return false;
  const auto is_view = [](const c10::Argument& result) { return result.alias_info() && !result.alias_info()->isWrite(); };
  const auto& results = schema.returns();  // none: an operation on lists, in place
  return results.empty() || !std::all_of(results.begin(), results.end(), is_view);
}
}  // namespace card
