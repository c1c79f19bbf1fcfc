#pragma once

#include <algorithm>

#include "cuda/reduce.cuh"

// One number from many: sums in an order that depends on the number of terms only.

namespace elwise::cuda {

/// Blocks add chunks of the terms; their sums are the workspace's.
inline constexpr int64_t kMostSumChunks = 1024;
inline constexpr int64_t kLeastSumChunk = 8192;

/// terms.add(first, end) gives the sum of the kElements terms from `first` on that lie before `end`, as a
/// double. A grid of one block finishes at once; else `sums` gets those of the blocks.
template <class Terms, class Finish>
__global__ void sum_chunks_kernel(Terms terms, int64_t count, int64_t chunk, double* sums, Finish finish) {
  const int64_t begin = blockIdx.x * chunk, end = min(begin + chunk, count);
  double sum = 0;
#pragma unroll 4
  for (int64_t first = begin + int64_t{threadIdx.x} * Terms::kElements; first < end;
       first += kThreads * Terms::kElements) {
    sum += terms.add(first, end);
  }
  sum = reduce_block(sum, 0.0);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    finish(sum);
  } else {
    sums[blockIdx.x] = sum;
  }
}

template <class Finish>
__global__ void add_chunks_kernel(const double* sums, int64_t chunks, Finish finish) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) sum += sums[i];
  sum = reduce_block(sum, 0.0);
  if (threadIdx.x == 0) finish(sum);
}

/// Calls finish(the sum of `count` terms) on the device.
template <class Terms, class Finish>
void sum_in_order(int64_t count, const Terms& terms, const Finish& finish) {
  constexpr int64_t kStep = int64_t{kThreads} * Terms::kElements;
  const int64_t least = std::max(kLeastSumChunk, ceil_div(count, kMostSumChunks));
  const int64_t chunk = ceil_div(least, kStep) * kStep, chunks = std::max<int64_t>(1, ceil_div(count, chunk));
  auto* sums = static_cast<double*>(workspace(chunks * static_cast<int64_t>(sizeof(double))));
  launch<sum_chunks_kernel<Terms, Finish>>({.grid = static_cast<unsigned>(chunks), .block = kThreads}, terms,
                                           count, chunk, sums, finish);
  if (chunks > 1) launch<add_chunks_kernel<Finish>>({.grid = 1, .block = kThreads}, sums, chunks, finish);
}

}  // namespace elwise::cuda
