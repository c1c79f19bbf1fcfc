#include "cuda/tiled_attention.cuh"

// The gradient of tiled softmax attention: dq by tiles of queries, then dk and dv by tiles of keys. Both find
// the weights anew, so that no sum is shared between blocks.

namespace elwise::cuda {
namespace tiled_attention {
namespace {

/// What a query has besides its row.
template <class C>
struct QueryStatistics {
  C shift;  // logsumexp, to the base 2
  C delta;
};

/// A weight m p and the gradient p (m dy . v - delta) of its score; m is that of dropout.
template <class C>
struct WeightGradient {
  C weight, gradient;

  __device__ __forceinline__ WeightGradient(C score, C product, C scale, const QueryStatistics<C>& query,
                                            C raised) {
    const C p = exp2(fma(score, scale, -query.shift));
    weight = raised * p;
    gradient = p * fma(raised, product, -query.delta);
  }
};

/// dy . y of a query, found by its team. All lanes of a warp must call it.
template <class T, bool kAligned>
__device__ __forceinline__ Compute<T> find_delta(const Place<T, kAligned, TiledAttentionBackward>& place,
                                                 int query) {
  using C = Compute<T>;
  constexpr int kWidth = kVectorWidth<T>;
  C sum = 0;
  if (query < place.length) {
    const int64_t row = place.origin + query * place.args.channels;
    for (int channel = lane() * kWidth; channel < place.head; channel += kLanes * kWidth) {
      T y[kWidth], dy[kWidth];
      load_elements(static_cast<const T*>(place.args.y) + row, channel, place.head, kAligned, y);
      load_elements(static_cast<const T*>(place.args.dy) + row, channel, place.head, kAligned, dy);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum = fma(static_cast<C>(y[i]), static_cast<C>(dy[i]), sum);
    }
  }
  return reduce_warp<kLanes>(sum);
}

/// Writes dq and delta.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kBlock, 1)
    tiled_attention_backward_queries_kernel(TiledAttentionBackward args) {
  using C = Compute<T>;
  __shared__ Rows<C> q, dy, k, v;
  __shared__ Weights<C> gradients;
  __shared__ Kept kept;
  const Place<T, kAligned, TiledAttentionBackward> place(args, First::last_rows);
  const WeightDropout<C> dropout(args);
  const C scale = static_cast<C>(args.scale * kLog2E);
  const unsigned rows = place.rows_from(place.begin);
  const int end = args.causal ? min(place.begin + kTile, place.length) : place.length;
  if (place.is_whole()) {
    place.load_rows(args.q, place.begin, rows, 0, q);
    place.load_rows(args.dy, place.begin, rows, 0, dy);
  }
  QueryStatistics<C> statistics[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int query = place.begin + own_row(i);
    const bool exists = query < place.length;
    statistics[i].shift =
        exists ? static_cast<C>(kLog2E) * place.statistics(args.logsumexp)[query] : C(INFINITY);
    statistics[i].delta = find_delta(place, query);
    if (exists && lane() == 0 && place.slice == 0) {
      place.statistics(args.delta)[query] = statistics[i].delta;
    }
  }
  Results<C> dq = {};
  for (int first = 0; first < end; first += kTile) {
    const unsigned keys = place.keys_from(first);
    if (keys == 0) continue;
    Scores<C> scores = {}, products = {};
    for (int channel = 0; channel < place.head; channel += kChannels<C>) {
      __syncthreads();  // the last tiles have been read
      if (!place.is_whole()) {
        place.load_rows(args.q, place.begin, rows, channel, q);
        place.load_rows(args.dy, place.begin, rows, channel, dy);
      }
      place.load_rows(args.k, first, keys, channel, k);
      place.load_rows(args.v, first, keys, channel, v);
      __syncthreads();
      add_scores(q, k, scores);
      add_scores(dy, v, products);
    }
    if (!place.is_whole()) {
      __syncthreads();
      place.load_rows(args.k, first, keys, place.slice, k);
      __syncthreads();
    }
    dropout.find(place, place.begin, first, kept);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int query = place.begin + own_row(i);
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const C raised = dropout.keeps(kept, own_row(i), own_column(j)) ? dropout.raised : C(0);
        const WeightGradient<C> at(scores[i][j], products[i][j], scale, statistics[i], raised);
        scores[i][j] = place.sees(query, first, own_column(j), keys) ? at.gradient : C(0);
      }
    }
    share(scores, gradients);
    add_results(gradients, k, dq);
  }
  C factors[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) factors[i] = static_cast<C>(args.scale);
  place.store_results(dq, factors, args.dq);
}

/// Of the queries from `first` on; of those that do not exist, what gives weights of 0.
template <class C, class Place>
__device__ __forceinline__ void load_statistics(const Place& place, int first,
                                                QueryStatistics<C> (&statistics)[kTile]) {
  const int row = static_cast<int>(threadIdx.x), query = first + row;
  if (row >= kTile) return;
  const bool exists = query < place.length;
  statistics[row] = {
      .shift = exists ? static_cast<C>(kLog2E) * place.statistics(place.args.logsumexp)[query] : C(INFINITY),
      .delta = exists ? place.statistics(static_cast<const void*>(place.args.delta))[query] : C(0)};
}

/// Writes dk and dv; delta is known.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kBlock, 1)
    tiled_attention_backward_keys_kernel(TiledAttentionBackward args) {
  using C = Compute<T>;
  __shared__ Rows<C> k, v, q, dy;
  __shared__ Weights<C> shared;
  __shared__ QueryStatistics<C> statistics[kTile];
  __shared__ Kept kept;
  const Place<T, kAligned, TiledAttentionBackward> place(args, First::first_rows);
  const WeightDropout<C> dropout(args);
  const C scale = static_cast<C>(args.scale * kLog2E);
  const unsigned keys = place.keys_from(place.begin);
  const int end = keys == 0 ? 0 : place.length;
  if (place.is_whole()) {
    place.load_rows(args.k, place.begin, keys, 0, k);
    place.load_rows(args.v, place.begin, keys, 0, v);
  }
  Results<C> dk = {}, dv = {};
  for (int first = args.causal ? place.begin : 0; first < end; first += kTile) {
    const unsigned queries = place.rows_from(first);
    Scores<C> scores = {}, products = {};
    for (int channel = 0; channel < place.head; channel += kChannels<C>) {
      __syncthreads();  // the last tiles have been read
      if (!place.is_whole()) {
        place.load_rows(args.k, place.begin, keys, channel, k);
        place.load_rows(args.v, place.begin, keys, channel, v);
      }
      place.load_rows(args.q, first, queries, channel, q);
      place.load_rows(args.dy, first, queries, channel, dy);
      if (channel == 0) {
        load_statistics(place, first, statistics);
        dropout.find(place, first, place.begin, kept);
      }
      __syncthreads();
      add_scores(k, q, scores);
      add_scores(v, dy, products);
    }
    if (!place.is_whole()) {
      __syncthreads();
      place.load_rows(args.q, first, queries, place.slice, q);
      place.load_rows(args.dy, first, queries, place.slice, dy);
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const QueryStatistics<C> query = statistics[own_column(j)];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const bool sees = place.sees(first + own_column(j), place.begin, own_row(i), keys);
        const WeightGradient<C> at(scores[i][j], products[i][j], scale, query,
                                   dropout.keeps(kept, own_column(j), own_row(i)) ? dropout.raised : C(0));
        scores[i][j] = sees ? at.weight : C(0);
        products[i][j] = sees ? at.gradient : C(0);
      }
    }
    share(scores, shared);
    add_results(shared, dy, dv);
    share(products, shared);
    add_results(shared, q, dk);
  }
  C factors[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) factors[i] = static_cast<C>(args.scale);
  place.store_results(dk, factors, args.dk);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) factors[i] = 1;
  place.store_results(dv, factors, args.dv);
}

}  // namespace
}  // namespace tiled_attention

void tiled_attention_backward(const TiledAttentionBackward& args) {
  using namespace tiled_attention;
  dispatch_heads(
      args, "tiled_attention_backward",
      [&]<class T, bool kAligned>() {
        const LaunchShape shape = launch_shape<T>(args);
        launch<tiled_attention_backward_queries_kernel<T, kAligned>>(shape, args);
        launch<tiled_attention_backward_keys_kernel<T, kAligned>>(shape, args);
      },
      args.q, args.k, args.v, args.y, args.dy, args.dq, args.dk, args.dv);
}

}  // namespace elwise::cuda
