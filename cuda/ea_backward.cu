#include "cuda/ea.cuh"

// The gradient of full element-wise attention, eq. 2 of arXiv 2501.05730: one kernel sums dk and dv over the
// queries, one dq over the keys, each in a fixed order. dq holds the references until it gets its own values.

namespace elwise::cuda {
namespace ea {
namespace {

/// dy / denominator, 0 for a query that sees no key.
template <class C>
__device__ __forceinline__ C scale_of(C dy, C denominator) {
  return denominator == 0 ? C(0) : dy / denominator;
}

/// scale: dy / denominator; scale_y: scale * y.
template <class C>
struct QueryTile {
  Tile<C> query, reference, scale, scale_y;
};

/// A tile of queries on its way to shared memory.
template <class T, int N>
class QueryStage {
  using C = Compute<T>;

 public:
  __device__ __forceinline__ void load(const Place<T, EaBackward>& place, int begin) {
    const EaBackward& args = place.args;
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const Chunk<N> chunk(i);
      if (begin + chunk.row >= place.length) continue;
      load_chunk(place, args.q, begin, chunk, query_[i]);
      load_chunk(place, args.dq, begin, chunk, reference_[i]);
      load_chunk(place, args.y, begin, chunk, y_[i]);
      load_chunk(place, args.dy, begin, chunk, dy_[i]);
      load_chunk(place, args.denominator, begin, chunk, denominator_[i]);
    }
  }

  /// True where all references of the thread's part are their queries.
  __device__ __forceinline__ bool store(QueryTile<C>& tile, int rows) const {
    bool all_near = true;
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const Chunk<N> chunk(i);
      if (chunk.row >= rows) continue;
      C scale[N], scale_y[N];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        scale[n] = scale_of(static_cast<C>(dy_[i][n]), denominator_[i][n]);
        scale_y[n] = scale[n] * static_cast<C>(y_[i][n]);
        all_near &= static_cast<C>(reference_[i][n]) == static_cast<C>(query_[i][n]);
      }
      tile.query.set(chunk.row, chunk.column, query_[i]);
      tile.reference.set(chunk.row, chunk.column, reference_[i]);
      tile.scale.set(chunk.row, chunk.column, scale);
      tile.scale_y.set(chunk.row, chunk.column, scale_y);
    }
    return all_near;
  }

 private:
  static constexpr int kOfThread = Chunk<N>::kOfThread;
  T query_[kOfThread][N], reference_[kOfThread][N], y_[kOfThread][N], dy_[kOfThread][N];
  C denominator_[kOfThread][N];
};

/// dk / 2 and dv of the thread's keys.
template <class T>
struct KeySums {
  using C = Compute<T>;

  C key[kOwn<T>], value[kOwn<T>];
  C dk[kOwn<T>] = {}, dv[kOwn<T>] = {};
  C tile_dk[kOwn<T>] = {}, tile_dv[kOwn<T>] = {};

  /// Adds the share of the tile's first `rows` queries; key i is seen from query `diagonal` + i on.
  template <bool kNear>
  __device__ __forceinline__ void add_queries(const QueryTile<C>& tile, int diagonal, int rows) {
    const int first = max(diagonal, 0), all = min(max(diagonal + kOwn<T> - 1, 0), rows);
#pragma unroll 1
    for (int j = first; j < all; ++j) {
      const C query = tile.query.own(j), reference = tile.reference.own(j);
      const C scale = tile.scale.own(j), scale_y = tile.scale_y.own(j);
#pragma unroll
      for (int i = 0; i < kOwn<T> - 1; ++i) {
        if (j >= diagonal + i) add<kNear>(i, query, reference, scale, scale_y);
      }
    }
#pragma unroll(kNear ? 2 : 1)
    for (int j = all; j < rows; ++j) {
      const C query = tile.query.own(j), reference = tile.reference.own(j);
      const C scale = tile.scale.own(j), scale_y = tile.scale_y.own(j);
#pragma unroll
      for (int i = 0; i < kOwn<T>; ++i) add<kNear>(i, query, reference, scale, scale_y);
    }
#pragma unroll
    for (int i = 0; i < kOwn<T>; ++i) {
      dk[i] += tile_dk[i];
      dv[i] += tile_dv[i];
      tile_dk[i] = tile_dv[i] = 0;
    }
  }

  template <bool kNear>
  __device__ __forceinline__ void add(int i, C query, C reference, C scale, C scale_y) {
    const Pair<kNear, C> pair(query, reference, key[i]);
    tile_dv[i] += pair.weight * scale;
    tile_dk[i] += pair.weight * (scale * value[i] - scale_y) * pair.distance;
  }
};

template <class T, int N>
__global__ void __launch_bounds__(kBlock, sizeof(T) == 8 ? 1 : kResident) ea_dk_dv_kernel(EaBackward args) {
  using C = Compute<T>;
  __shared__ QueryTile<C> tile;
  const Place<T, EaBackward> place(args, First::first_rows);
  const unsigned visible = visible_rows(place, place.block_row, place.length);
  KeySums<T> sums;
#pragma unroll
  for (int i = 0; i < kOwn<T>; ++i) {
    sums.key[i] = place.load(args.k, i);
    sums.value[i] = place.load(args.v, i);
  }

  QueryStage<T, N> stage;
  int begin = visible == 0 ? place.length : args.causal ? place.block_row : 0;
  if (begin < place.length) stage.load(place, begin);
  for (; begin < place.length; begin += kTile) {
    const int rows = min(place.length - begin, kTile);
    __syncthreads();  // all have read the last tile
    const bool all_near = __syncthreads_and(stage.store(tile, rows)) != 0;
    if (begin + kTile < place.length) stage.load(place, begin + kTile);
    if (!place.owns(0)) continue;
    const int diagonal = args.causal ? place.row - begin : -kOwn<T>;
    if (all_near) {
      sums.template add_queries<true>(tile, diagonal, rows);
    } else {
      sums.template add_queries<false>(tile, diagonal, rows);
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn<T>; ++i) {
    const bool hidden = (visible >> (place.row - place.block_row + i) & 1) == 0;
    place.store(args.dk, i, hidden ? 0 : 2 * sums.dk[i]);
    place.store(args.dv, i, hidden ? 0 : sums.dv[i]);
  }
}

/// sum_j w_ij (v_j - y_i) (k_j - r_i) of the thread's queries.
template <class T>
struct QuerySums {
  using C = Compute<T>;

  C query[kOwn<T>], reference[kOwn<T>], y[kOwn<T>];
  C sum[kOwn<T>] = {}, tile_sum[kOwn<T>] = {};

  template <bool kNear>
  __device__ __forceinline__ void add(int i, C key, C value) {
    const Pair<kNear, C> pair(query[i], reference[i], key);
    tile_sum[i] += pair.weight * (value - y[i]) * pair.displacement;
  }
  __device__ __forceinline__ void end_tile() {
#pragma unroll
    for (int i = 0; i < kOwn<T>; ++i) {
      sum[i] += tile_sum[i];
      tile_sum[i] = 0;
    }
  }
};

/// args.dq holds the references before, dq after.
template <class T, int N>
__global__ void __launch_bounds__(kBlock, sizeof(T) == 8 ? 1 : kResident) ea_dq_kernel(EaBackward args) {
  using C = Compute<T>;
  const Place<T, EaBackward> place(args, First::last_rows);
  QuerySums<T> sums;
  C scale[kOwn<T>];
  bool all_near = true;
#pragma unroll
  for (int i = 0; i < kOwn<T>; ++i) {
    sums.query[i] = place.load(args.q, i);
    sums.reference[i] = place.load(args.dq, i);
    sums.y[i] = place.load(args.y, i);
    scale[i] = scale_of(place.load(args.dy, i), place.template load<C>(args.denominator, i));
    all_near &= sums.reference[i] == sums.query[i];
  }
  walk_keys<N>(place, all_near, sums);
#pragma unroll
  for (int i = 0; i < kOwn<T>; ++i) place.store(args.dq, i, 2 * scale[i] * sums.sum[i]);
}

}  // namespace
}  // namespace ea

void ea_backward(const EaBackward& args) {
  ea::find_references(args, args.dq);
  ea::dispatch_chunks(
      args.dtype, "ea_backward", args.channels,
      [&]<class T, int N>() {
        launch<ea::ea_dk_dv_kernel<T, N>>(ea::launch_shape<T>(args), args);
        launch<ea::ea_dq_kernel<T, N>>(ea::launch_shape<T>(args), args);
      },
      args.q, args.k, args.v, args.y, args.denominator, args.dy, args.dq);
}

}  // namespace elwise::cuda
