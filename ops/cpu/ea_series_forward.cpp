// EA-series forward (eq. 5, 6 of arXiv 2501.05730), fused: one pass over q, k, v, y with the moments in
// registers. See ops/ea_series_kernels.h for the mathematics and ops/cpu/ea_series-inl.h for the scales.

#include "ops/ea_series_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ea_series_forward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/ea_series_state-inl.h"
#include "ops/cpu/ea_series_steady-inl.h"
#include "ops/cpu/ea_series_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace ea_series {
namespace {

/// Rows of one vector of channels. Without keys to add k, v and visible are not read; without queries to
/// answer, q and y.
template <class T>
struct ForwardRows {
  const T* q;
  const T* k;
  const T* v;
  T* y;
  const bool* visible;
  int64_t rows;
  int64_t stride;
  VectorsAhead<T> ahead;
  bool stream;
};

/// Rows [begin, end).
template <bool kAddKeys, bool kAnswerQueries, class T, int kOrder>
HWY_INLINE void walk_rows(const ForwardRows<T> rows, int64_t begin, int64_t end,
                          Moments<T, kOrder>& moments) {
  const Tag<T> d;
  auto ahead = rows.ahead.from(begin);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * rows.stride, next = ahead.next();
    if constexpr (kAddKeys) {
      prefetch_far(rows.k + next);
      prefetch_far(rows.v + next);
      if (rows.visible[row]) {
        const Vec<T> k = hn::LoadU(d, rows.k + at), v = hn::LoadU(d, rows.v + at), magnitude = hn::Abs(k);
        Vec<T> factor;
        moments.meet(magnitude, factor);
        moments.add(scale_ratio<T>(moments.reference, magnitude), k, v);
      }
    }
    if constexpr (kAnswerQueries) {
      prefetch_far(rows.q + next);
      if (!rows.stream) prefetch_far_to_write(rows.y + next);
      store_lanes(d, answer(moments, hn::LoadU(d, rows.q + at)), rows.y + at, kLanes<T>, rows.stream);
    }
  }
}

/// The ways down a block of rows of one vector of channels, for one order. `state` is as Moments stores it.
template <class T>
struct ForwardWalks {
  using Walk = void (*)(const ForwardRows<T>& block, T* state);
  Walk causal;
  Walk add_keys;
  Walk answer_queries;
};

template <class T, int kOrder>
class ForwardRowsOfOrder {
 public:
  static constexpr ForwardWalks<T> walks() {
    return {&walk_causal, &walk_vector<true, false>, &walk_vector<false, true>};
  }

 private:
  HWY_NOINLINE static void walk_causal(const ForwardRows<T>& block, T* state) {
    for (int64_t row = 0; row < block.rows;) {
      if constexpr (kHasSteadyRows<T, kOrder>) row = walk_steady(block, row, state);
      const int64_t end = kHasSteadyRows<T, kOrder> ? std::min(row + kSteadyRows, block.rows) : block.rows;
      if (row < end) walk_any(block, row, end, state);
      row = end;
    }
  }

  /// Rows from `row` on, as long as they are steady. Returns the first that is not.
  HWY_NOINLINE static int64_t walk_steady(const ForwardRows<T> rows, int64_t row, T* state) {
    const Tag<T> d;
    const Vec<T> any_key = constant<T>(std::numeric_limits<T>::infinity());
    alignas(64) T weights[kSteadyRows * kLanes<T>];
    auto ahead = rows.ahead.from(row);
    Moments<T, kOrder> moments;
    moments.load(state, kLanes<T>, kLanes<T>);
    while (row < rows.rows) {
      const int64_t begin = row, end = std::min(begin + kSteadyRows, rows.rows);
      if (!weigh_steady_rows(rows, begin, end, moments, any_key, weights)) break;
      for (; row < end; ++row) {
        const int64_t at = row * rows.stride, next = ahead.next();
        prefetch_far(rows.q + next);
        prefetch_far(rows.k + next);
        prefetch_far(rows.v + next);
        if (!rows.stream) prefetch_far_to_write(rows.y + next);
        moments.add(hn::Load(d, weights + (row - begin) * kLanes<T>), hn::LoadU(d, rows.k + at),
                    hn::LoadU(d, rows.v + at));
        const Vec<T> y = moments.answer(Steps<T, kOrder>(hn::LoadU(d, rows.q + at)));
        store_lanes(d, y, rows.y + at, kLanes<T>, rows.stream);
      }
    }
    moments.store(state, kLanes<T>, kLanes<T>);
    return row;
  }

  HWY_NOINLINE static void walk_any(const ForwardRows<T>& block, int64_t begin, int64_t end, T* state) {
    Moments<T, kOrder> moments;
    moments.load(state, kLanes<T>, kLanes<T>);
    walk_rows<true, true>(block, begin, end, moments);
    moments.store(state, kLanes<T>, kLanes<T>);
  }

  template <bool kAddKeys, bool kAnswerQueries>
  HWY_NOINLINE static void walk_vector(const ForwardRows<T>& block, T* state) {
    Moments<T, kOrder> moments;
    if constexpr (kAnswerQueries) {
      moments.load(state, kLanes<T>, kLanes<T>);
      walk_rows<kAddKeys, true>(block, 0, block.rows, moments);
    } else {
      // The block is summed by itself before it joins the total: long sums stay accurate.
      if (std::find(block.visible, block.visible + block.rows, true) == block.visible + block.rows) return;
      moments.start_after(state);
      walk_rows<true, false>(block, 0, block.rows, moments);
      moments.join(state);
    }
    if constexpr (kAddKeys) moments.store(state, kLanes<T>, kLanes<T>);
  }
};

template <class S>
class Forward {
  using T = Compute<S>;

 public:
  explicit Forward(const EaSeriesForward& args)
      : args_(args),
        layout_(Layout<T>::of(args)),
        q_(static_cast<const S*>(args.q)),
        k_(static_cast<const S*>(args.k)),
        v_(static_cast<const S*>(args.v)),
        y_(static_cast<S*>(args.y)),
        carry_(static_cast<T*>(args.carry)),
        partials_(static_cast<T*>(args.partials)),
        walks_(
            dispatch_order(args.order, []<int kOrder>() { return ForwardRowsOfOrder<T, kOrder>::walks(); })),
        rows_(ea_series_carry_rows(args.order)),
        start_(args.state, args.order),
        stream_(may_stream<S>(y_, args.batch * args.length, args.channels)) {}

  void run() const {
    const bool is_cut = layout_.pieces > 1;
    if (is_cut || !args_.causal) for_each_tile(layout_, [this](const Tile& tile) { sum_keys(tile); });
    if (is_cut) {
      for_each_vector_of_pieces(layout_, [this](int64_t batch, int64_t vector) { join(batch, vector); });
    }
    for_each_tile(layout_, [this](const Tile& tile) { args_.causal ? causal(tile) : bidirectional(tile); });
  }

 private:
  using Walk = typename ForwardWalks<T>::Walk;

  /// The moments of one of the tile's vectors.
  T* state_of(T* states, const Tile& tile, int64_t vector) const {
    return states + (vector - tile.first) * rows_ * kLanes<T>;
  }

  int64_t first_channel(int64_t batch, int64_t vector) const {
    return batch * args_.channels + vector * kLanes<T>;
  }

  T* carry_of(int64_t batch, int64_t index, int64_t vector) const {
    const int64_t carries = ea_series_carries(args_.length, args_.causal);
    return carry_ + layout_.set_offset(batch, carries, index, rows_, vector);
  }

  /// Where a piece's own sums wait to be joined. Causal: in the carry that they will be part of, that of the
  /// next piece.
  T* sums_of(int64_t batch, int64_t piece, int64_t vector) const {
    if (args_.causal) return carry_of(batch, (piece + 1) * kPieceChunks, vector);
    if (layout_.pieces == 1) return carry_of(batch, 0, vector);
    return partials_ + layout_.set_offset(batch, ea_series_chunks(args_.length), piece, rows_, vector);
  }

  HWY_ATTR void sum_keys(const Tile& tile) const {
    if (args_.causal && tile.piece + 1 == layout_.pieces) return;
    const ChannelStates<T> none({}, args_.order);
    alignas(64) T states[kTileVectors<T> * kMaxState<T>];
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      none.read(0, 0, state_of(states, tile, vector));
    }
    for (int64_t row = tile.begin; row < tile.end; row += kBlock) {
      for (int64_t vector = tile.first; vector < tile.last; ++vector) {
        walk_block(walks_.add_keys, tile, row, row + kBlock, vector, state_of(states, tile, vector));
      }
    }
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      store(state_of(states, tile, vector), vector, sums_of(tile.batch, tile.piece, vector));
    }
  }

  /// Causal: the sums of all keys before each piece, in its first carry. Otherwise the total, in the only
  /// one.
  HWY_ATTR void join(int64_t batch, int64_t vector) const {
    const int64_t first = args_.causal ? 1 : 0;
    alignas(64) T state[kMaxState<T>];
    start_.read(first_channel(batch, vector), layout_.lanes(vector), state);
    for (int64_t piece = 0; piece < layout_.pieces; ++piece) {
      if (piece >= first) {
        alignas(64) T of_piece[kMaxState<T>];
        load(sums_of(batch, piece - first, vector), vector, of_piece);
        merge_moments(of_piece, rows_, state);
      }
      if (!args_.causal && piece + 1 < layout_.pieces) continue;
      store(state, vector, carry_of(batch, args_.causal ? piece * kPieceChunks : 0, vector));
    }
  }

  HWY_ATTR void causal(const Tile& tile) const {
    alignas(64) T states[kTileVectors<T> * kMaxState<T>];
    const bool is_cut = layout_.pieces > 1;
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      T* of_vector = state_of(states, tile, vector);
      if (is_cut) {
        load(carry_of(tile.batch, tile.piece * kPieceChunks, vector), vector, of_vector);
      } else {
        start_.read(first_channel(tile.batch, vector), layout_.lanes(vector), of_vector);
      }
    }
    // Z_0 is positive, or NaN, as soon as there is a key, and then so in all channels.
    const bool is_empty = states[(args_.order + 1) * kLanes<T>] == T(0);
    const int64_t first_row = is_empty ? layout_.first_visible(tile.batch) : 0;
    layout_.clear(y_, tile, first_row);
    for (int64_t row = tile.begin; row < tile.end; row += kBlock) {
      const bool has_carry = row % kEaSeriesChunk == 0 && !(is_cut && row == tile.begin);
      for (int64_t vector = tile.first; vector < tile.last; ++vector) {
        T* of_vector = state_of(states, tile, vector);
        if (has_carry) store(of_vector, vector, carry_of(tile.batch, row / kEaSeriesChunk, vector));
        walk_block(walks_.causal, tile, std::max(row, first_row), row + kBlock, vector, of_vector);
      }
    }
    if (tile.end < args_.length) return;
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      start_.write(first_channel(tile.batch, vector), layout_.lanes(vector), state_of(states, tile, vector));
    }
  }

  HWY_ATTR void bidirectional(const Tile& tile) const {
    if (layout_.first_visible(tile.batch) == args_.length) return layout_.clear(y_, tile, args_.length);
    alignas(64) T states[kTileVectors<T> * kMaxState<T>];
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      load(carry_of(tile.batch, 0, vector), vector, state_of(states, tile, vector));
    }
    for (int64_t row = tile.begin; row < tile.end; row += kBlock) {
      for (int64_t vector = tile.first; vector < tile.last; ++vector) {
        walk_block(walks_.answer_queries, tile, row, row + kBlock, vector, state_of(states, tile, vector));
      }
    }
  }

  void load(const T* carry, int64_t vector, T* state) const {
    load_carry(carry, args_.channels, rows_, layout_.lanes(vector), state);
  }
  void store(const T* state, int64_t vector, T* carry) const {
    store_carry(state, args_.channels, rows_, layout_.lanes(vector), carry);
  }

  /// Rows [begin, end) of one vector, as far as they exist.
  HWY_NOINLINE void walk_block(Walk walk, const Tile& tile, int64_t begin, int64_t end, int64_t vector,
                               T* state) const {
    const int64_t rows = std::min(end, args_.length) - begin, lanes = layout_.lanes(vector);
    if (rows <= 0) return;
    const int64_t offset = layout_.offset(tile.batch, begin, vector), stride = args_.channels;
    const bool* visible = layout_.visible(tile.batch, begin);
    const int64_t step = begin + rows + kBlock <= args_.length ? kBlock : 0;
    const VectorsAhead<T> ahead = tile.ahead<T>(vector, rows, step * stride, stride);
    if constexpr (std::is_same_v<S, T>) {
      if (lanes == kLanes<T>) {
        return walk(
            {q_ + offset, k_ + offset, v_ + offset, y_ + offset, visible, rows, stride, ahead, stream_},
            state);
      }
    }
    // A partial vector, or bf16: through buffers of whole vectors of T.
    alignas(64) T padded[4][kBlock * kLanes<T>];
    const bool add_keys = walk != walks_.answer_queries, answer_queries = walk != walks_.add_keys;
    if (answer_queries) pad_rows(q_ + offset, stride, rows, lanes, ahead, padded[0]);
    if (add_keys) pad_rows(k_ + offset, stride, rows, lanes, ahead, padded[1]);
    if (add_keys) pad_rows(v_ + offset, stride, rows, lanes, ahead, padded[2]);
    walk({padded[0], padded[1], padded[2], padded[3], visible, rows, kLanes<T>, {}, false}, state);
    if (answer_queries) unpad_rows(padded[3], rows, lanes, y_ + offset, stride, ahead);
  }

  const EaSeriesForward& args_;
  Layout<T> layout_;
  const S* q_;
  const S* k_;
  const S* v_;
  S* y_;
  T* carry_;
  T* partials_;
  ForwardWalks<T> walks_;
  int64_t rows_;  // of a vector's moments
  ChannelStates<T> start_;
  bool stream_;
};

}  // namespace
}  // namespace ea_series

void ea_series_forward_simd(const EaSeriesForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "ea_series_forward",
                        [&]<class T>() { ea_series::Forward<T>(args).run(); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(ea_series_forward_simd);

void ea_series_forward(const EaSeriesForward& args) {
  HWY_DYNAMIC_DISPATCH(ea_series_forward_simd)(args);
}

}  // namespace elwise::cpu
#endif
