#pragma once

#include "cuda/launch.cuh"

// Reductions over the lanes of a warp and the threads of a block, in an order that is always the same.

namespace elwise::cuda {

inline constexpr unsigned kAllLanes = 0xFFFF'FFFF;

struct Plus {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

/// The larger; a NaN is the largest.
struct Larger {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

/// `combine` over the `kLanes` neighbours that start at a multiple of it; every lane gets the result.
template <int kLanes = 32, class T, class Combine = Plus>
__device__ __forceinline__ T reduce_warp(T value, Combine combine = {}) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

/// `combine` over a one-dimensional block whose size is a multiple of 32; every thread gets the result. All
/// threads must call it; a second call may follow at once.
template <class T, class Combine = Plus>
__device__ __forceinline__ T reduce_block(T value, T identity, Combine combine = {}) {
  __shared__ T partial[32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  value = reduce_warp(value, combine);
  __syncthreads();  // the last call's results have been read
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return reduce_warp(lane < warps ? partial[lane] : identity, combine);
}

}  // namespace elwise::cuda
