// The simulated CUDA card: operations on tensors of cuda:0 run the CPU's kernels on the same bytes, under CUDA's rules.
//
// It sees where tensors are, types and random generators that CUDA refuses, launches, and waits of the host. It cannot see races of
// asynchronous work, the card's memory filling up, the numerics of cuBLAS and cuDNN, TF32, fused attention kernels, a second card,
// NCCL. Built and loaded by build.py; what torch.cuda asks in Python is in cuda.py.
#include <ATen/SDPBackend.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/scaled_dot_product_attention_native.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>
#include "device.h"
#include "rules.h"

namespace card {
using Stack = torch::jit::Stack;

template <class F>
void replace_tensors(c10::IValue& value, F call) {
  if (value.isTensor()) {
    value = call(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& each : value.toTensorVector()) list.push_back(call(each));
    value = list;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const auto& each : value.toOptionalTensorVector()) list.push_back(each ? std::optional<Tensor>(call(*each)) : each);
    value = list;
  }
}

void lower(c10::IValue& value, Twins& twins) {
  replace_tensors(value, [&](const Tensor& tensor) { return twins.down(tensor); });
  if (value.isStorage() && value.toStorage().device().is_cuda()) value = twins.down(value.toStorage());
  if (value.isDevice() && value.toDevice().is_cuda()) value = kHost;
  if (value.isGenerator()) value = static_cast<Generator*>(value.toGenerator().unsafeGetGeneratorImpl())->cpu;
}

// Softmax that reads halves and writes floats is a kernel of CUDA alone, and so is its gradient. On the CPU both are two steps.
std::optional<at::ScalarType> split_softmax(const c10::FunctionSchema& schema, c10::IValue* arguments) {
  const auto& name = schema.name();
  if (!schema.overload_name().empty()) return std::nullopt;
  if ((name == "aten::_softmax" || name == "aten::_log_softmax") && arguments[2].toBool()) {
    arguments[0] = arguments[0].toTensor().to(at::kFloat);
    arguments[2] = false;
  }
  if (name == "aten::_softmax_backward_data" || name == "aten::_log_softmax_backward_data") {
    const auto wanted = arguments[3].toScalarType(), given = arguments[0].toTensor().scalar_type();
    arguments[3] = given;
    if (wanted != given) return wanted;
  }
  return std::nullopt;
}

// Run any operation: check it, give its arguments twins on the CPU, run the CPU's kernel, and take the results up.
void run(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const auto& schema = op.schema();
  const size_t first = stack->size() - schema.arguments().size();
  obey(op, torch::jit::last(*stack, schema.arguments().size()));
  if (launches(schema)) ++kernels;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
  Twins twins;
  for (size_t i = first; i < stack->size(); ++i) lower((*stack)[i], twins);
  const auto type = split_softmax(schema, stack->data() + first);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  if (type) stack->back() = stack->back().toTensor().to(*type);
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    replace_tensors((*stack)[i], [&](const Tensor& tensor) { return twins.up(tensor); });
  twins.settle();
}

// ----------------------------------------------------------------------------------------------- operations with rules of their own

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  ++kernels;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (self.is_cpu() && !(non_blocking && is_pinned(self.storage().data())))
    host_waits("copy to the CPU");
  else if (source.is_cpu() && !is_pinned(source.storage().data()))
    host_waits("copy from pageable memory");
  else if (source.is_cpu() && !non_blocking)
    host_waits("copy from pinned memory, blocking");
  Twins twins;
  twins.down(self).copy_(twins.down(source));
  return self;
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "Only dense CPU tensors can be pinned");
  return at::detail::empty_generic(size, &on_card, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   type.value_or(c10::get_default_dtype_as_scalartype()), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &on_card, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           type.value_or(c10::get_default_dtype_as_scalartype()));
}

// Attention in one launch wherever the CPU has it, whose conditions are like those of CUDA's memory-efficient kernel.
Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask, double dropout,
                 bool causal, std::optional<double> scale, bool gqa) {
  const int64_t fused = static_cast<int64_t>(at::SDPBackend::flash_attention);
  if (at::_fused_sdp_choice(query, key, value, mask, dropout, causal, scale, gqa) != fused)
    return at::native::scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale, gqa);
  auto bias = mask;
  if (mask && mask->scalar_type() == at::kBool) {
    const auto zero = at::zeros({}, query.options());
    bias = at::where(*mask, zero, at::full_like(zero, -std::numeric_limits<double>::infinity()));
  }
  return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout, causal, bias, scale));
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", TORCH_FN(copy_));
  m.impl("scaled_dot_product_attention", TORCH_FN(attention));
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  // An operation that is one kernel on CUDA and has one of the CPU's is run as one, before PyTorch takes it apart for CUDA.
  const std::set<std::string> own{"aten::empty.memory_format", "aten::empty_strided", "aten::copy_"};
  const Names one_kernel{"aten::convolution", "aten::convolution_backward", "aten::_foreach_*"};
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto full = c10::toString(name);
    if (full.rfind("aten::", 0) != 0 || own.count(full)) continue;
    const auto op = dispatcher.findOp(name);
    if (op->hasKernelForDispatchKey(c10::DispatchKey::CPU) || one_kernel.has(name.name))
      m.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&run>());
  }
}

TORCH_LIBRARY_IMPL(aten, AutogradCUDA, m) { m.impl("scaled_dot_product_attention", TORCH_FN(attention)); }
}  // namespace card

extern "C" {
void card_on_wait(void (*call)(const char*)) { card::on_wait = call; }
long card_kernels() { return card::kernels.load(); }
}
