#pragma once

#include <string_view>
#include <utility>

#include "core/error.h"
#include "cuda/runtime.h"

// The one way to run a kernel. Nothing here, and nothing in the kernels, knows whether nvcc or the emulation
// (tests/support/cuda) compiles it.

namespace elwise::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic
};

/// "elwise::cuda::fill_kernel<float>", for errors.
template <auto kKernel>
constexpr std::string_view kernel_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  text.remove_prefix(text.find("kKernel = ") + 10);
  return text.substr(0, text.find_first_of(";]"));
}

namespace detail {

inline constexpr size_t kSharedWithoutAsking = size_t{48} << 10;

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, const Arguments&... arguments) {
  if (shape.shared_bytes > kSharedWithoutAsking) {
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(shape.shared_bytes));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = current_stream();
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace detail

/// Runs `kKernel` on the current stream: launch<fill_kernel<float>>({.grid = 8, .block = 256}, y, count).
/// Throws Error, naming the kernel, where CUDA refuses it. An empty grid runs nothing.
template <auto kKernel, class... Arguments>
void launch(const LaunchShape& shape, const Arguments&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  const cudaError_t status = detail::launch(kKernel, shape, arguments...);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forget it
  fail("launch of ", kernel_name<kKernel>(), " failed: ", cudaGetErrorString(status), " (grid ", shape.grid.x,
       " x ", shape.grid.y, " x ", shape.grid.z, ", block ", shape.block.x, " x ", shape.block.y, " x ",
       shape.block.z, ", ", shape.shared_bytes, " bytes of shared memory)");
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Threads of a block where nothing else decides.
inline constexpr int kThreads = 256;

/// A kernel's loop over items: for (int64_t i = grid_thread(); i < items; i += grid_threads()).
__device__ __forceinline__ int64_t grid_thread() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t grid_threads() {
  return int64_t{gridDim.x} * blockDim.x;
}

/// Blocks for such a loop: enough to fill the device, and no more.
inline unsigned grid_for(int64_t items, int threads = kThreads) {
  constexpr int kBlocksPerMultiprocessor = 8;
  const int64_t most = int64_t{kBlocksPerMultiprocessor} * multiprocessors();
  const int64_t wanted = ceil_div(items, threads);
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

}  // namespace elwise::cuda
