#pragma once

#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/attention_step_kernels.h"

// What the kernels share that answer one query over a cache of keys and values; ops/attention_step_kernels.h
// has the mathematics. A block takes a split of kCacheSplit rows, of one head or of a run of channels, and
// leaves its sums, relative to the largest weight among them. A second kernel combines the splits' sums.

namespace elwise::cuda::attention_step {

inline constexpr int kSplit = static_cast<int>(kCacheSplit);
inline constexpr int kBlock = 128;

template <class T>
struct Cache {
  const T* k;
  const T* v;
  const int64_t* lengths;
  int64_t capacity;
  int64_t channels;
  int64_t splits;

  explicit Cache(const CachePointers& cache)
      : k(static_cast<const T*>(cache.k)),
        v(static_cast<const T*>(cache.v)),
        lengths(cache.lengths),
        capacity(cache.capacity),
        channels(cache.channels),
        splits(cache_splits(cache.longest)) {}

  /// Rows of a split.
  __device__ __forceinline__ int rows(int64_t batch, int64_t split) const {
    const int64_t left = lengths[batch] - split * kSplit;
    return left >= kSplit ? kSplit : left > 0 ? static_cast<int>(left) : 0;
  }
  /// Splits with rows.
  __device__ __forceinline__ int64_t used_splits(int64_t batch) const {
    return (lengths[batch] + kSplit - 1) / kSplit;
  }
  __device__ __forceinline__ int64_t offset(int64_t batch, int64_t split, int64_t channel) const {
    return (batch * capacity + split * kSplit) * channels + channel;
  }
};

/// Calls function.operator()<T, N>() where rows are read N elements at a time: 16 bytes if all pointers and
/// runs of `width` elements allow it, else one.
template <class Function, class... Pointers>
void dispatch_width(DType dtype, const char* kernel, int64_t width, const Function& function,
                    const Pointers*... pointers) {
  dispatch_floating(dtype, kernel, [&]<class T>() {
    if (width % kVectorWidth<T> == 0 && is_aligned(pointers...)) {
      function.template operator()<T, kVectorWidth<T>>();
    } else {
      function.template operator()<T, 1>();
    }
  });
}

}  // namespace elwise::cuda::attention_step
