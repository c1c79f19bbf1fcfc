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

/// The larger; a NaN only where both are.
struct LargerNumber {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return fmax(a, b);
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

/// `combine` over a one-dimensional block whose size is a multiple of 32, for each of K values; every thread
/// gets the results. All threads must call it; a second call may follow at once.
template <int K, class T, class Combine = Plus>
__device__ __forceinline__ void reduce_block(T (&values)[K], T identity, Combine combine = {}) {
  __shared__ T partial[K][32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll
  for (int k = 0; k < K; ++k) values[k] = reduce_warp(values[k], combine);
  __syncthreads();  // the last call's results have been read
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (lane == 0) partial[k][warp] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) values[k] = reduce_warp(lane < warps ? partial[k][lane] : identity, combine);
}

/// The same for one value, which it returns.
template <class T, class Combine = Plus>
__device__ __forceinline__ T reduce_block(T value, T identity, Combine combine = {}) {
  T values[] = {value};
  reduce_block(values, identity, combine);
  return values[0];
}

}  // namespace elwise::cuda
