// Softmax attention of one query over a cache (eq. 17 of arXiv 2501.05730), head by head.

#include "cuda/attention_step.cuh"

#include <bit>

namespace elwise::cuda {
namespace attention_step {
namespace {

/// partials [batch, splits, heads, head + 2]: of a split with rows, the sum of weights times values, the sum
/// of weights, and the largest score. `lanes` neighbouring threads, a power of two, share a row. A block per
/// batch entry, split and head.
template <class T, int N>
__global__ void __launch_bounds__(kBlock, 1)
    head_sums_kernel(const T* __restrict__ q, Cache<T> cache, Compute<T>* __restrict__ partials, int heads,
                     int head, int lanes, Compute<T> scale) {
  using C = Compute<T>;
  constexpr int kAtOnce = 4;  // rows whose loads are under way
  __shared__ C weights[kSplit];
  __shared__ Vector<C, N> sums[kBlock];
  const int64_t item = blockIdx.x / heads, batch = item / cache.splits, split = item % cache.splits;
  const int64_t first = int64_t{blockIdx.x % heads} * head;
  const int rows = cache.rows(batch, split), thread = static_cast<int>(threadIdx.x);
  const int lane = thread % lanes, team = thread / lanes, teams = kBlock / lanes;
  if (rows == 0) return;
  const T* const query = q + batch * cache.channels + first;
  const T* const k = cache.k + cache.offset(batch, split, first);
  const T* const v = cache.v + cache.offset(batch, split, first);

  for (int start = 0; start < rows; start += teams * kAtOnce) {
    C scores[kAtOnce] = {};
    for (int at = lane * N; at < head; at += lanes * N) {
      const auto query_part = load_compute<N>(query + at);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int row = min(start + u * teams + team, rows - 1);
        const auto key_part = load_compute<N>(k + row * cache.channels + at);
#pragma unroll
        for (int i = 0; i < N; ++i) scores[u] = fma(query_part.at[i], key_part.at[i], scores[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      for (int offset = lanes / 2; offset > 0; offset /= 2) {
        scores[u] += __shfl_xor_sync(kAllLanes, scores[u], offset);
      }
      const int row = start + u * teams + team;
      if (lane == 0 && row < rows) weights[row] = scores[u] * scale;
    }
  }
  __syncthreads();
  C largest = -C(INFINITY);
  for (int row = thread; row < rows; row += kBlock) largest = Larger()(weights[row], largest);
  largest = reduce_block(largest, -C(INFINITY), Larger());
  C sum = 0;
  for (int row = thread; row < rows; row += kBlock) {
    weights[row] = exp(weights[row] - largest);
    sum += weights[row];
  }
  sum = reduce_block(sum, C(0));

  C* const to = partials + int64_t{blockIdx.x} * (head + 2);
  for (int start = 0; start < head; start += lanes * N) {
    const int at = start + lane * N;
    Vector<C, N> own{};
    if (at < head) {
#pragma unroll 4
      for (int row = team; row < rows; row += teams) {
        const auto value_part = load_compute<N>(v + row * cache.channels + at);
#pragma unroll
        for (int i = 0; i < N; ++i) own.at[i] = fma(weights[row], value_part.at[i], own.at[i]);
      }
    }
    sums[thread] = own;
    __syncthreads();
    if (team == 0 && at < head) {
      for (int other = 1; other < teams; ++other) {
#pragma unroll
        for (int i = 0; i < N; ++i) own.at[i] += sums[other * lanes + lane].at[i];
      }
#pragma unroll
      for (int i = 0; i < N; ++i) to[at + i] = own.at[i];
    }
    __syncthreads();
  }
  if (thread == 0) {
    to[head] = sum;
    to[head + 1] = largest;
  }
}

/// A block per batch entry and head.
template <class T>
__global__ void __launch_bounds__(kBlock, 1)
    combine_heads_kernel(const Compute<T>* __restrict__ partials, Cache<T> cache, T* __restrict__ y,
                         int heads, int head) {
  using C = Compute<T>;
  const int64_t batch = blockIdx.x / heads, of_batch = blockIdx.x % heads;
  const int64_t stride = int64_t{heads} * (head + 2);
  const C* const from = partials + batch * cache.splits * stride + of_batch * (head + 2);
  const int64_t splits = cache.used_splits(batch);
  C largest = -C(INFINITY), sum = 0;
  for (int64_t split = threadIdx.x; split < splits; split += kBlock) {
    largest = Larger()(from[split * stride + head + 1], largest);
  }
  largest = reduce_block(largest, -C(INFINITY), Larger());
  for (int64_t split = threadIdx.x; split < splits; split += kBlock) {
    sum += from[split * stride + head] * exp(from[split * stride + head + 1] - largest);
  }
  sum = reduce_block(sum, C(0));
  for (int element = static_cast<int>(threadIdx.x); element < head; element += kBlock) {
    C value = 0;
#pragma unroll 4
    for (int64_t split = 0; split < splits; ++split) {
      const C* const of_split = from + split * stride;
      value = fma(of_split[element], exp(of_split[head + 1] - largest), value);
    }
    y[batch * cache.channels + of_batch * head + element] = T(splits == 0 ? C(0) : value / sum);
  }
}

}  // namespace
}  // namespace attention_step

void softmax_attention_step(const SoftmaxAttentionStep& args) {
  const int64_t head = args.cache.channels / args.heads;
  attention_step::dispatch_width(
      args.dtype, "softmax_attention_step", head,
      [&]<class T, int N>() {
        using C = Compute<T>;
        const attention_step::Cache<T> cache(args.cache);
        const int64_t pairs = args.cache.batch * args.heads;
        const auto pieces = static_cast<uint64_t>(ceil_div(head, N));
        const int64_t lanes = pieces < 32 ? static_cast<int64_t>(std::bit_ceil(pieces)) : 32;
        launch<attention_step::head_sums_kernel<T, N>>(
            {.grid = static_cast<unsigned>(pairs * cache.splits), .block = attention_step::kBlock},
            static_cast<const T*>(args.q), cache, static_cast<C*>(args.partials), args.heads, head, lanes,
            args.scale);
        launch<attention_step::combine_heads_kernel<T>>(
            {.grid = static_cast<unsigned>(pairs), .block = attention_step::kBlock},
            static_cast<const C*>(args.partials), cache, static_cast<T*>(args.y), args.heads, head);
      },
      args.q, args.cache.k, args.cache.v);
}

}  // namespace elwise::cuda
