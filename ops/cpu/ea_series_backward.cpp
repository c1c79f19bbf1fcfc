// EA-series backward, fused; see ops/ea_series_kernels.h for the mathematics. Causal: chunks in reverse; a
// chunk's forward is run again from its carry (dq; a, y and the weights stay in the cache), then it is
// scanned backwards (dk, dv). Otherwise the queries go first (dq, A, B), then the keys (dk, dv). Where the
// length is cut in pieces, each piece's A, B are summed first and then those of the pieces behind it.

#include "ops/ea_series_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ea_series_backward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/ea_series_gradient-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace ea_series {
namespace {

/// The ways down a block of rows of one vector of channels, for one order: causal all of it or only the sums
/// A, B (and dq, which comes again); otherwise the queries and then the keys. `state` are the sums, as
/// GradientSums stores them.
template <class T>
struct BackwardWalks {
  using Walk = void (*)(const BackwardRows<T>& block, T* state);
  Walk all;
  Walk sums;
  Walk queries;
  Walk keys;
};

template <class T, int kOrder>
class BackwardRowsOfOrder {
  using Sums = GradientSums<T, kOrder>;

 public:
  static constexpr BackwardWalks<T> walks() {
    return {&walk_chunk, &walk_chunk_sums, &walk_block_queries, &walk_block_keys};
  }

 private:
  HWY_NOINLINE static void walk_block_queries(const BackwardRows<T>& block, T* state) {
    Moments<T, kOrder> moments;
    moments.load(block.moments, kLanes<T>, kLanes<T>);
    Scratch<T> scratch;
    Sums sums;
    walk_queries<false>(block, 0, block.rows, moments, scratch);
    sums.clear();
    walk_back<Back::kSums>(block, 0, block.rows, scratch, sums);
    sums.add(state);  // blocks are summed by themselves first: more accurate
    sums.store(state);
  }

  HWY_NOINLINE static void walk_block_keys(const BackwardRows<T>& block, T* state) {
    Sums sums;
    sums.load(state);
    walk_keys(block, sums, reference_of<T>(kappa_of(block.moments, Moments<T, kOrder>::kRows)));
  }

  HWY_NOINLINE static void walk_chunk(const BackwardRows<T>& rows, T* state) {
    Scratch<T> scratch;
    bool steady[kEaSeriesChunk];
    for (int64_t row = 0; row < rows.rows;) {
      const int64_t begin =
          kHasSteadyRows<T, kOrder> ? steady_queries(rows, row, rows.moments, scratch) : row;
      const int64_t end = kHasSteadyRows<T, kOrder> ? std::min(begin + kSteadyRows, rows.rows) : rows.rows;
      std::fill(steady + row, steady + begin, true);
      std::fill(steady + begin, steady + end, false);
      if (begin < end) chunk_queries(rows, begin, end, rows.moments, scratch);
      row = end;
    }
    for (int64_t end = rows.rows; end > 0;) {
      int64_t begin = end - 1;
      while (begin > 0 && steady[begin - 1] == steady[end - 1]) --begin;
      const auto back = steady[begin] ? &steady_back : &chunk_back;
      back(rows, begin, end, scratch, state);
      end = begin;
    }
  }

  HWY_NOINLINE static void walk_chunk_sums(const BackwardRows<T>& rows, T* state) {
    Scratch<T> scratch;
    chunk_queries(rows, 0, rows.rows, rows.moments, scratch);
    Sums sums;
    sums.load(state);
    walk_back<Back::kScaledSums>(rows, 0, rows.rows, scratch, sums);
    sums.store(state);
  }

  // The parts of a chunk are functions of their own, which leaves each all the registers.

  HWY_NOINLINE static int64_t steady_queries(const BackwardRows<T>& rows, int64_t row, T* stored,
                                             Scratch<T>& scratch) {
    if constexpr (kHasSteadyRows<T, kOrder>) {
      Moments<T, kOrder> moments;
      moments.load(stored, kLanes<T>, kLanes<T>);
      row = walk_steady_queries(rows, row, moments, scratch);
      moments.store(stored, kLanes<T>, kLanes<T>);
    }
    return row;
  }

  HWY_NOINLINE static void chunk_queries(const BackwardRows<T>& rows, int64_t begin, int64_t end, T* stored,
                                         Scratch<T>& scratch) {
    Moments<T, kOrder> moments;
    moments.load(stored, kLanes<T>, kLanes<T>);
    walk_queries<true>(rows, begin, end, moments, scratch);
    moments.store(stored, kLanes<T>, kLanes<T>);
  }

  HWY_NOINLINE static void steady_back(const BackwardRows<T>& rows, int64_t begin, int64_t end,
                                       const Scratch<T>& scratch, T* state) {
    if constexpr (kHasSteadyRows<T, kOrder>) {
      Sums sums;
      sums.load(state);
      walk_steady_back(rows, begin, end, scratch, sums);
      sums.store(state);
    }
  }

  HWY_NOINLINE static void chunk_back(const BackwardRows<T>& rows, int64_t begin, int64_t end,
                                      const Scratch<T>& scratch, T* state) {
    Sums sums;
    sums.load(state);
    walk_back<Back::kKeys>(rows, begin, end, scratch, sums);
    sums.store(state);
  }
};

template <class S>
class Backward {
  using T = Compute<S>;

 public:
  explicit Backward(const EaSeriesBackward& args)
      : args_(args),
        layout_(Layout<T>::of(args)),
        tensors_{static_cast<const S*>(args.q),  static_cast<const S*>(args.k), static_cast<const S*>(args.v),
                 static_cast<const S*>(args.dy), static_cast<S*>(args.dq),      static_cast<S*>(args.dk),
                 static_cast<S*>(args.dv)},
        walks_(
            dispatch_order(args.order, []<int kOrder>() { return BackwardRowsOfOrder<T, kOrder>::walks(); })),
        moment_rows_(ea_series_carry_rows(args.order)),
        sum_rows_(moment_rows_ - 1),
        stream_(can_stream(args.dq) && can_stream(args.dk) && can_stream(args.dv)) {}

  void run() const {
    if (args_.length == 0) return;  // nothing to write, and no room in partials
    const auto for_each = [this](void (Backward::*part)(const Tile&) const) {
      for_each_tile(layout_, [this, part](const Tile& tile) { (this->*part)(tile); });
    };
    const bool is_cut = layout_.pieces > 1;
    if (!args_.causal) {
      for_each(&Backward::queries);
    } else if (is_cut) {
      for_each(&Backward::sum_queries);
    }
    if (is_cut) {
      for_each_vector_of_pieces(layout_, [this](int64_t batch, int64_t vector) {
        args_.causal ? pass_back(batch, vector) : add_up(batch, vector);
      });
    }
    for_each(args_.causal ? &Backward::causal : &Backward::keys);
  }

 private:
  using Walk = typename BackwardWalks<T>::Walk;

  bool can_stream(const void* tensor) const {
    return may_stream<S>(tensor, args_.batch * args_.length, args_.channels);
  }

  const T* carry_of(int64_t batch, int64_t index, int64_t vector) const {
    const int64_t carries = ea_series_carries(args_.length, args_.causal);
    return static_cast<const T*>(args_.carry) +
           layout_.set_offset(batch, carries, index, moment_rows_, vector);
  }

  /// The sums A, B that belong to a piece.
  T* sums_of(int64_t batch, int64_t piece, int64_t vector) const {
    return static_cast<T*>(args_.partials) +
           layout_.set_offset(batch, ea_series_chunks(args_.length), piece, moment_rows_, vector);
  }
  HWY_ATTR void load_sums(int64_t batch, int64_t piece, int64_t vector, T* state) const {
    pad_rows(sums_of(batch, piece, vector), args_.channels, sum_rows_, layout_.lanes(vector),
             VectorsAhead<T>(), state);
  }
  HWY_ATTR void store_sums(const T* state, int64_t batch, int64_t piece, int64_t vector) const {
    unpad_rows(state, sum_rows_, layout_.lanes(vector), sums_of(batch, piece, vector), args_.channels,
               VectorsAhead<T>());
  }

  /// The sums of one of the tile's vectors.
  T* state_of(T* states, const Tile& tile, int64_t vector) const {
    return states + (vector - tile.first) * sum_rows_ * kLanes<T>;
  }
  /// Not causal: the total moments of one of the tile's vectors.
  T* totals_of(T* totals, const Tile& tile, int64_t vector) const {
    return totals + (vector - tile.first) * moment_rows_ * kLanes<T>;
  }
  HWY_ATTR void load_totals(const Tile& tile, T* totals) const {
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      load_carry(carry_of(tile.batch, 0, vector), args_.channels, moment_rows_, layout_.lanes(vector),
                 totals_of(totals, tile, vector));
    }
  }
  void clear_states(T* states, const Tile& tile) const {
    std::fill(states, state_of(states, tile, tile.last), T(0));
  }

  HWY_ATTR void queries(const Tile& tile) const {
    alignas(64) T states[kTileVectors<T> * kMaxState<T>];
    clear_states(states, tile);
    if (layout_.first_visible(tile.batch) == args_.length) {
      layout_.clear(tensors_.dq, tile, args_.length);
    } else {
      alignas(64) T totals[kTileVectors<T> * kMaxState<T>];
      load_totals(tile, totals);
      for (int64_t row = tile.begin; row < tile.end; row += kBlock) {
        walk_tile(walks_.queries, tile, row, row + kBlock, totals, states);
      }
    }
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      store_sums(state_of(states, tile, vector), tile.batch, tile.piece, vector);
    }
  }

  /// The total of all pieces' sums, in place of the first one's.
  HWY_ATTR void add_up(int64_t batch, int64_t vector) const {
    alignas(64) T total[kMaxState<T>], own[kMaxState<T>];
    load_sums(batch, 0, vector, total);
    for (int64_t piece = 1; piece < layout_.pieces; ++piece) {
      load_sums(batch, piece, vector, own);
      add_rows(own, sum_rows_, total);
    }
    store_sums(total, batch, 0, vector);
  }

  HWY_ATTR void keys(const Tile& tile) const {
    if (layout_.first_visible(tile.batch) == args_.length) {
      layout_.clear(tensors_.dk, tile, args_.length);
      return layout_.clear(tensors_.dv, tile, args_.length);
    }
    alignas(64) T states[kTileVectors<T> * kMaxState<T>];
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      load_sums(tile.batch, 0, vector, state_of(states, tile, vector));
    }
    alignas(64) T totals[kTileVectors<T> * kMaxState<T>];
    load_totals(tile, totals);
    for (int64_t row = tile.begin; row < tile.end; row += kBlock) {
      walk_tile(walks_.keys, tile, row, row + kBlock, totals, states);
    }
  }

  /// The tile's chunks that see a key, from the last to the first.
  HWY_ATTR void walk_chunks(Walk walk, const Tile& tile, int64_t unseen, T* states) const {
    for (int64_t chunk = ea_series_chunks(tile.end) - 1; chunk * kEaSeriesChunk >= tile.begin; --chunk) {
      const int64_t begin = chunk * kEaSeriesChunk;
      walk_tile(walk, tile, std::max(begin, unseen), begin + kEaSeriesChunk, nullptr, states);
    }
  }

  HWY_ATTR void sum_queries(const Tile& tile) const {
    if (tile.piece == 0) return;  // no keys are before it
    alignas(64) T states[kTileVectors<T> * kMaxState<T>];
    clear_states(states, tile);
    walk_chunks(walks_.sums, tile, layout_.first_visible(tile.batch), states);
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      store_sums(state_of(states, tile, vector), tile.batch, tile.piece, vector);
    }
  }

  /// In place of each piece's own sums, at the scale of its first row, those of all pieces behind it, at the
  /// scale of its last one.
  HWY_ATTR void pass_back(int64_t batch, int64_t vector) const {
    const auto reference_before = [&](int64_t piece) HWY_ATTR {
      const T* kappa = carry_of(batch, piece * kPieceChunks, vector) + (moment_rows_ - 1) * args_.channels;
      return reference_of<T>(load_lanes(Tag<T>(), kappa, layout_.lanes(vector)));
    };
    alignas(64) T behind[kMaxState<T>] = {};
    for (int64_t piece = layout_.pieces - 1; piece >= 0; --piece) {
      alignas(64) T own[kMaxState<T>] = {};
      if (piece > 0) load_sums(batch, piece, vector, own);
      store_sums(behind, batch, piece, vector);
      if (piece > 0 && piece + 1 < layout_.pieces) {
        scale_rows<T>(joining_ratio<T>(reference_before(piece + 1), reference_before(piece)), sum_rows_,
                      behind);
      }
      add_rows(own, sum_rows_, behind);
    }
  }

  HWY_ATTR void causal(const Tile& tile) const {
    const int64_t unseen = layout_.first_visible(tile.batch);
    layout_.clear(tensors_.dq, tile, unseen);
    layout_.clear(tensors_.dk, tile, unseen);
    layout_.clear(tensors_.dv, tile, unseen);
    alignas(64) T states[kTileVectors<T> * kMaxState<T>];
    clear_states(states, tile);
    if (layout_.pieces > 1) {
      for (int64_t vector = tile.first; vector < tile.last; ++vector) {
        load_sums(tile.batch, tile.piece, vector, state_of(states, tile, vector));
      }
    }
    walk_chunks(walks_.all, tile, unseen, states);
  }

  /// Rows [begin, end) as far as they exist, vector by vector. The states hold each vector's sums A, B; the
  /// totals its moments, where not causal.
  HWY_ATTR void walk_tile(Walk walk, const Tile& tile, int64_t begin, int64_t end, T* totals,
                          T* states) const {
    const int64_t rows = std::min(end, args_.length) - begin, stride = args_.channels;
    if (rows <= 0) return;
    const int64_t step = args_.causal ? -kEaSeriesChunk : kBlock, next = begin + step;
    const int64_t ahead = next >= 0 && next + rows <= args_.length ? step * stride : 0;
    for (int64_t vector = tile.first; vector < tile.last; ++vector) {
      alignas(64) T before[kMaxState<T>];
      const int64_t lanes = layout_.lanes(vector);
      if (args_.causal) {
        load_carry(carry_of(tile.batch, begin / kEaSeriesChunk, vector), stride, moment_rows_, lanes, before);
      }
      const BackwardRows<S> block{tensors_.at(layout_.offset(tile.batch, begin, vector)),
                                  args_.causal ? before : totals_of(totals, tile, vector),
                                  layout_.visible(tile.batch, begin),
                                  rows,
                                  stride,
                                  tile.ahead<T>(vector, rows, ahead, stride),
                                  stream_};
      T* state = state_of(states, tile, vector);
      if constexpr (std::is_same_v<S, T>) {
        if (lanes == kLanes<T>) {
          walk(block, state);
          continue;
        }
      }
      walk_padded(walk, block, lanes, state);
    }
  }

  /// The last, partial vector of channels, and bf16: through buffers of whole vectors of T.
  HWY_NOINLINE void walk_padded(Walk walk, const BackwardRows<S>& block, int64_t lanes, T* state) const {
    alignas(64) T padded[7][kEaSeriesChunk * kLanes<T>];
    const auto pad = [&](const S* from, T* to) {
      pad_rows(from, block.stride, block.rows, lanes, block.ahead, to);
    };
    const auto unpad = [&](const T* from, S* to) {
      unpad_rows(from, block.rows, lanes, to, block.stride, block.ahead);
    };
    const bool is_queries = walk == walks_.queries, is_keys = walk == walks_.keys;
    if (!is_keys) pad(block.q, padded[0]), pad(block.dy, padded[3]);
    if (!is_queries) pad(block.k, padded[1]), pad(block.v, padded[2]);
    walk({{padded[0], padded[1], padded[2], padded[3], padded[4], padded[5], padded[6]},
          block.moments,
          block.visible,
          block.rows,
          kLanes<T>,
          {},
          false},
         state);
    if (!is_keys) unpad(padded[4], block.dq);
    if (walk == walks_.all || is_keys) unpad(padded[5], block.dk), unpad(padded[6], block.dv);
  }

  const EaSeriesBackward& args_;
  Layout<T> layout_;
  BackwardTensors<S> tensors_;
  BackwardWalks<T> walks_;
  int64_t moment_rows_, sum_rows_;  // of a vector
  bool stream_;
};

}  // namespace
}  // namespace ea_series

void ea_series_backward_simd(const EaSeriesBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "ea_series_backward",
                        [&]<class T>() { ea_series::Backward<T>(args).run(); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(ea_series_backward_simd);

void ea_series_backward(const EaSeriesBackward& args) {
  HWY_DYNAMIC_DISPATCH(ea_series_backward_simd)(args);
}

}  // namespace elwise::cpu
#endif
