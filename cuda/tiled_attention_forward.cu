#include "cuda/tiled_attention.cuh"

// The forward pass of tiled softmax attention.

namespace elwise::cuda {
namespace tiled_attention {
namespace {

/// What is known of the thread's queries after some tiles of keys.
template <class T>
struct Queries {
  using C = Compute<T>;

  C largest[kOwn];   // score
  C sum[kOwn] = {};  // of exp(scale (score - largest)), over the thread's columns
  Results<C> results = {};

  __device__ __forceinline__ Queries() {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) largest[i] = -C(INFINITY);
  }

  /// Turns the scores of the tile of keys from `first` on into weights, dropped ones into 0.
  template <class Place>
  __device__ __forceinline__ void weigh(const Place& place, int first, unsigned keys,
                                        const WeightDropout<C>& dropout, const Kept& kept,
                                        Scores<C>& scores) {
    const C scale = static_cast<C>(place.args.scale * kLog2E);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int query = place.begin + own_row(i);
      const C before = largest[i];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        if (place.sees(query, first, own_column(j), keys)) largest[i] = fmax(largest[i], scores[i][j]);
      }
      largest[i] = reduce_warp<kLanes>(largest[i], LargerNumber{});
      const C factor = before == -C(INFINITY) ? C(0) : exp2((before - largest[i]) * scale);
      sum[i] *= factor;
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const bool sees = place.sees(query, first, own_column(j), keys);
        const C weight = sees ? exp2(fma(scores[i][j], scale, -(largest[i] * scale))) : C(0);
        sum[i] += weight;
        scores[i][j] = dropout.keeps(kept, own_row(i), own_column(j)) ? weight : C(0);
      }
#pragma unroll
      for (int c = 0; c < kOwnChannels<C>; ++c) results[i][c] *= factor;
    }
  }

  /// Writes y and logsumexp.
  template <class Place>
  __device__ __forceinline__ void finish(const Place& place, C raised) {
    C factors[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const C total = reduce_warp<kLanes>(sum[i]);
      const bool sees_none = total == 0;
      factors[i] = sees_none ? C(0) : raised / total;
      const int query = place.begin + own_row(i);
      if (lane() != 0 || place.slice != 0 || query >= place.length) continue;
      place.statistics(place.args.logsumexp)[query] =
          sees_none ? C(INFINITY) : fma(largest[i], static_cast<C>(place.args.scale), log(total));
    }
    place.store_results(results, factors, place.args.y);
  }
};

template <class T, bool kAligned>
__global__ void __launch_bounds__(kBlock, 1) tiled_attention_forward_kernel(TiledAttentionForward args) {
  using C = Compute<T>;
  __shared__ Rows<C> q, k, v;
  __shared__ Weights<C> weights;
  __shared__ Kept kept;
  const Place<T, kAligned, TiledAttentionForward> place(args, First::last_rows);
  const WeightDropout<C> dropout(args);
  const unsigned rows = place.rows_from(place.begin);
  const int end = args.causal ? min(place.begin + kTile, place.length) : place.length;
  Queries<T> queries;
  if (place.is_whole()) place.load_rows(args.q, place.begin, rows, 0, q);
  for (int first = 0; first < end; first += kTile) {
    const unsigned keys = place.keys_from(first);
    if (keys == 0) continue;
    Scores<C> scores = {};
    for (int channel = 0; channel < place.head; channel += kChannels<C>) {
      __syncthreads();  // the last tiles have been read
      if (!place.is_whole()) place.load_rows(args.q, place.begin, rows, channel, q);
      place.load_rows(args.k, first, keys, channel, k);
      if (channel == 0) place.load_rows(args.v, first, keys, place.slice, v);
      __syncthreads();
      add_scores(q, k, scores);
    }
    dropout.find(place, place.begin, first, kept);
    __syncwarp();
    queries.weigh(place, first, keys, dropout, kept, scores);
    share(scores, weights);
    add_results(weights, v, queries.results);
  }
  queries.finish(place, dropout.raised);
}

}  // namespace
}  // namespace tiled_attention

void tiled_attention_forward(const TiledAttentionForward& args) {
  using namespace tiled_attention;
  dispatch_heads(
      args, "tiled_attention_forward",
      [&]<class T, bool kAligned>() {
        launch<tiled_attention_forward_kernel<T, kAligned>>(launch_shape<T>(args), args);
      },
      args.q, args.k, args.v, args.y);
}

}  // namespace elwise::cuda
