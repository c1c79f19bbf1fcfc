// Full element-wise attention and the Attention Free Transformer for one query over a cache: eq. 2 and 19 of
// arXiv 2501.05730, channel by channel.

#include "cuda/attention_step.cuh"

namespace elwise::cuda {
namespace attention_step {
namespace {

/// Threads beside each other along the channels; others take other rows.
inline constexpr int kLanes = 16;
inline constexpr int kParts = kBlock / kLanes;

/// EA: a key weighs exp(-d^2), d = |q - k|.
template <class T>
struct EaQuery {
  using C = Compute<T>;
  const T* q;

  __device__ __forceinline__ C distance(C query, C key, int64_t, int64_t) const { return fabs(query - key); }
  /// exp(near^2 - far^2): of differences, which keep their digits.
  __device__ __forceinline__ static C ratio(C near, C far) {
    return far < C(INFINITY) ? exp((near - far) * (near + far)) : far != far ? far : C(0);
  }
  __device__ __forceinline__ C gate(int64_t) const { return C(1); }
};

/// AFT: a key weighs exp(-d), d = -(k + bias of its row).
template <class T>
struct AftQuery {
  using C = Compute<T>;
  const T* q;
  const T* position_bias;
  int64_t positions;

  __device__ __forceinline__ C distance(C, C key, int64_t length, int64_t row) const {
    return -(key + static_cast<C>(position_bias[(length - 1) * positions + row]));
  }
  __device__ __forceinline__ static C ratio(C near, C far) {
    return far < C(INFINITY) ? exp(near - far) : far != far ? far : C(0);
  }
  __device__ __forceinline__ C gate(int64_t at) const { return C(1) / (C(1) + exp(-static_cast<C>(q[at]))); }
};

/// Sums of weights, and of weights times values, relative to the weight at distance `nearest`.
template <class C, class Query>
struct WeightedSums {
  C nearest = C(INFINITY);
  C weights = 0;
  C values = 0;

  __device__ __forceinline__ void add(C other_nearest, C other_weights, C other_values) {
    const bool closer = other_nearest < nearest;
    const C factor = closer ? Query::ratio(other_nearest, nearest) : Query::ratio(nearest, other_nearest);
    weights = closer ? fma(weights, factor, other_weights) : fma(other_weights, factor, weights);
    values = closer ? fma(values, factor, other_values) : fma(other_values, factor, values);
    nearest = closer ? other_nearest : nearest;
  }
};

/// partials [batch, splits, 3, channels]: of a split with rows, its WeightedSums. A thread takes N channels
/// and every kParts-th row. A block per batch entry, split, and kLanes N channels.
template <class T, int N, class Query>
__global__ void __launch_bounds__(kBlock, 1)
    channel_sums_kernel(Query query, Cache<T> cache, Compute<T>* __restrict__ partials, int runs) {
  using C = Compute<T>;
  using Sums = WeightedSums<C, Query>;
  constexpr int kChannels = kLanes * N;
  __shared__ C parts[3][kParts][kChannels];
  const int64_t item = blockIdx.x / runs, batch = item / cache.splits, split = item % cache.splits;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, part = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t first = int64_t{blockIdx.x % runs} * kChannels, channel = first + lane * N;
  const int64_t length = cache.lengths[batch];
  const int rows = cache.rows(batch, split);
  if (rows == 0) return;
  Sums sums[N];
  if (channel < cache.channels) {
    const T* const k = cache.k + cache.offset(batch, split, channel);
    const T* const v = cache.v + cache.offset(batch, split, channel);
    const auto queries = load_compute<N>(query.q + batch * cache.channels + channel);
#pragma unroll 4
    for (int row = part; row < rows; row += kParts) {
      const auto keys = load_compute<N>(k + row * cache.channels),
                 values = load_compute<N>(v + row * cache.channels);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const C distance = query.distance(queries.at[i], keys.at[i], length, split * kSplit + row);
        sums[i].add(distance, C(1), values.at[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    parts[0][part][lane * N + i] = sums[i].nearest;
    parts[1][part][lane * N + i] = sums[i].weights;
    parts[2][part][lane * N + i] = sums[i].values;
  }
  __syncthreads();
  C* const to = partials + item * 3 * cache.channels + first;
  for (int own = static_cast<int>(threadIdx.x); own < kChannels && first + own < cache.channels;
       own += kBlock) {
    Sums all;
    for (int other = 0; other < kParts; ++other) {
      all.add(parts[0][other][own], parts[1][other][own], parts[2][other][own]);
    }
    to[own] = all.nearest;
    to[cache.channels + own] = all.weights;
    to[2 * cache.channels + own] = all.values;
  }
}

/// A thread per batch entry and channel.
template <class T, class Query>
__global__ void __launch_bounds__(kBlock, 1)
    combine_channels_kernel(Query query, const Compute<T>* __restrict__ partials, Cache<T> cache,
                            T* __restrict__ y, int64_t count) {
  using C = Compute<T>;
  const int64_t at = grid_thread();
  if (at >= count) return;
  const int64_t batch = at / cache.channels, splits = cache.used_splits(batch);
  const C* const from = partials + batch * cache.splits * 3 * cache.channels + at % cache.channels;
  WeightedSums<C, Query> sums;
#pragma unroll 4
  for (int64_t split = 0; split < splits; ++split) {
    const C* const of_split = from + split * 3 * cache.channels;
    sums.add(of_split[0], of_split[cache.channels], of_split[2 * cache.channels]);
  }
  y[at] = T(splits == 0 ? C(0) : query.gate(at) * (sums.values / sums.weights));
}

template <class T, int N, class Query>
void run_channels(const Query& query, const CachePointers& pointers, void* partials, void* y) {
  const Cache<T> cache(pointers);
  auto* const sums = static_cast<Compute<T>*>(partials);
  const int64_t runs = ceil_div(cache.channels, kLanes * N), count = pointers.batch * cache.channels;
  launch<channel_sums_kernel<T, N, Query>>(
      {.grid = static_cast<unsigned>(pointers.batch * cache.splits * runs), .block = kBlock}, query, cache,
      sums, runs);
  launch<combine_channels_kernel<T, Query>>(
      {.grid = static_cast<unsigned>(ceil_div(count, kBlock)), .block = kBlock}, query, sums, cache,
      static_cast<T*>(y), count);
}

}  // namespace
}  // namespace attention_step

void ea_step(const EaStep& args) {
  attention_step::dispatch_width(
      args.dtype, "ea_step", args.cache.channels,
      [&]<class T, int N>() {
        const attention_step::EaQuery<T> query{static_cast<const T*>(args.q)};
        attention_step::run_channels<T, N>(query, args.cache, args.partials, args.y);
      },
      args.q, args.cache.k, args.cache.v);
}

void aft_step(const AftStep& args) {
  attention_step::dispatch_width(
      args.dtype, "aft_step", args.cache.channels,
      [&]<class T, int N>() {
        const attention_step::AftQuery<T> query{static_cast<const T*>(args.q),
                                                static_cast<const T*>(args.position_bias), args.positions};
        attention_step::run_channels<T, N>(query, args.cache, args.partials, args.y);
      },
      args.q, args.cache.k, args.cache.v);
}

}  // namespace elwise::cuda
