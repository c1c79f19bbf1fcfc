#pragma once

#include <type_traits>

#include "core/cost.h"
#include "core/cuda_backend.h"
#include "core/device.h"
#include "core/profiler.h"

namespace elwise::detail {

template <class Arguments>
Arguments argument_of(void (*)(const Arguments&));

/// The dtype a kernel computes in; of a conversion, the one it reads.
template <class Arguments>
DType dtype_of_kernel(const Arguments& arguments) {
  if constexpr (requires { arguments.dtype; }) {
    return arguments.dtype;
  } else {
    return arguments.from;
  }
}

}  // namespace elwise::detail

/// Runs a kernel on `device`: ELWISE_DISPATCH(x.device(), softmax_forward, {.dtype = ..., .x = ...}).
/// The kernel is declared as `void softmax_forward(const SoftmaxForward&)` in elwise::cpu and elwise::cuda;
/// the braces initialise its argument struct. CPU calls cpu::, CUDA calls cuda:: (an error in a build without
/// it), meta runs nothing; all three add the struct's cost() to the totals and show the kernel to
/// the thread's profilers.
#define ELWISE_DISPATCH(device, kernel, ...)                                                              \
  [&](::elwise::Device dispatch_device, auto built_with_cuda) {                                           \
    using Arguments = decltype(::elwise::detail::argument_of(&::elwise::cpu::kernel));                    \
    const Arguments dispatch_arguments __VA_ARGS__;                                                       \
    const ::elwise::KernelCost dispatch_cost = dispatch_arguments.cost();                                 \
    ::elwise::record_cost(dispatch_cost);                                                                 \
    const ::elwise::KernelTimer dispatch_timer(                                                           \
        #kernel, ::elwise::detail::dtype_of_kernel(dispatch_arguments), dispatch_cost);                   \
    if (dispatch_device.type == ::elwise::DeviceType::cpu) {                                              \
      ::elwise::cpu::kernel(dispatch_arguments);                                                          \
    } else if (dispatch_device.type == ::elwise::DeviceType::cuda) {                                      \
      if constexpr (decltype(built_with_cuda)::value) {                                                   \
        ::elwise::cuda::set_device(dispatch_device.index);                                                \
        ::elwise::cuda::kernel(dispatch_arguments);                                                       \
        if (dispatch_timer.running()) ::elwise::cuda::synchronize(dispatch_device.index);                 \
      } else {                                                                                            \
        ::elwise::fail(#kernel, ": this library was built without CUDA (configure with ELWISE_CUDA=ON)"); \
      }                                                                                                   \
    }                                                                                                     \
  }(device, std::bool_constant<::elwise::kBuiltWithCuda>{})
