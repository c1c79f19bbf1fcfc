// The gradient of tiled softmax attention (ops/tiled_attention_kernels.h).

#include <algorithm>
#include <atomic>
#include <limits>
#include <numbers>
#include <type_traits>
#include <vector>

#include "core/parallel.h"
#include "ops/tiled_attention_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/tiled_attention_backward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/tiled_attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace tiled_attention {
namespace {

/// Lets the blocks of a head add to the gradient of a key one after the other, in the order in which they
/// start: sums do not depend on the threads. A block waits only for one that has started.
class Turns {
 public:
  explicit Turns(const TiledAttentionBackward& args)
      : added_(static_cast<size_t>(
            AttentionTiles::of(args.batch, args.length, args.channels, args.heads).blocks)),
        heads_(args.batch * args.heads),
        length_(args.length) {}

  /// Lets no block wait for `task` past this scope, which an exception may end.
  class Last {
   public:
    Last(Turns& turns, int64_t task) : turns_(turns), task_(task) {}
    ~Last() { turns_.pass(task_, turns_.length_); }
    Last(const Last&) = delete;
    Last& operator=(const Last&) = delete;

   private:
    Turns& turns_;
    int64_t task_;
  };

  /// Whether no block of the head comes before `task`.
  bool is_first(int64_t task) const { return task < heads_; }

  /// Returns once the block before `task` has added its part for the key in row `key`.
  void wait(int64_t task, int64_t key) const {
    if (is_first(task)) return;
    const std::atomic<int64_t>& before = added_[static_cast<size_t>(task - heads_)];
    for (int64_t end = before.load(); end <= key; end = before.load()) before.wait(end);
  }

  /// Says that block `task` has added its part for all keys before row `end`.
  void pass(int64_t task, int64_t end) {
    added_[static_cast<size_t>(task)].store(end);
    added_[static_cast<size_t>(task)].notify_all();
  }

 private:
  std::vector<std::atomic<int64_t>> added_;  // per block
  int64_t heads_, length_;
};

/// Where sums of dk and of dv, one after the other, stand until they are whole: in dk and dv, but for those
/// of bf16, which are rounded once only.
struct KeySums {
  void *dk, *dv;
};

template <class S>
KeySums key_sums(const TiledAttentionBackward& args) {
  using T = Compute<S>;
  if constexpr (std::is_same_v<S, T>) {
    return {args.dk, args.dv};
  } else {
    T* const sums = static_cast<T*>(args.key_sums);
    return {sums, sums + args.batch * args.length * args.channels};
  }
}

template <class S>
class BackwardBlock {
  using T = Compute<S>;

 public:
  BackwardBlock(const QueryBlock<S, TiledAttentionBackward>& block, Turns& turns)
      : BackwardBlock(block, turns, Scratch<T>(scratch_elements(block.tiles))) {}

  void run() {
    prepare();
    if (turns_.is_first(block_.task) && args_.key_mask != nullptr) clear_hidden_keys();
    VisibleKeys keys = block_.visible_keys();
    while (keys.next()) {
      const int64_t first = attend(keys);
      turns_.wait(block_.task, keys.begin());
      add_to_keys(keys, first, weights_, dy_, block_.sums(sums_.dv));
      add_to_keys(keys, first, gradients_, q_, block_.sums(sums_.dk));
      turns_.pass(block_.task, keys.row(keys.count() - 1) + 1);
    }
    HWY_ALIGN T scales[kPanel<T>];
    std::fill_n(scales, kPanel<T>, static_cast<T>(args_.scale));
    for (int64_t i = 0; i < block_.panels(); ++i) {
      const Panel<T> panel(block_, i);
      unpack_queries(panel, tiles_, scales, dq_ + panel.first * tiles_.width, block_.out(args_.dq),
                     args_.channels);
    }
  }

 private:
  BackwardBlock(const QueryBlock<S, TiledAttentionBackward>& block, Turns& turns, Scratch<T> scratch)
      : block_(block),
        args_(block.args),
        tiles_(block.tiles),
        turns_(turns),
        sums_(key_sums<S>(block.args)),
        q_(scratch.take(tiles_.queries * tiles_.width)),
        dy_(scratch.take(tiles_.queries * tiles_.width)),
        packed_q_(scratch.take(tiles_.queries * tiles_.width)),
        packed_dy_(scratch.take(tiles_.queries * tiles_.width)),
        dq_(scratch.take(tiles_.queries * tiles_.width)),
        k_(scratch.take(tiles_.keys * tiles_.width)),
        v_(scratch.take(tiles_.keys * tiles_.width)),
        weights_(scratch.take(tiles_.keys * tiles_.queries)),
        gradients_(scratch.take(tiles_.keys * tiles_.queries)) {}

  /// Of queries and dy, each in two layouts, and dq; of keys and values; of weights and their gradients.
  static int64_t scratch_elements(const AttentionTiles& tiles) {
    return (5 * tiles.queries + 2 * tiles.keys) * tiles.width + 2 * tiles.queries * tiles.keys;
  }

  /// Packs the queries and dy, and finds delta. Queries' rows are scaled: of the products only dk, which is
  /// to be scaled, reads them.
  void prepare() {
    const Tag<T> d;
    const int64_t width = tiles_.width, rows = AttentionTiles::round_up(block_.count(), kLanes<T>);
    copy_queries(block_, args_.q, block_.begin, rows, q_);
    copy_queries(block_, args_.dy, block_.begin, rows, dy_);
    for (int64_t i = 0; i < rows; i += kLanes<T>) {
      pack_queries(q_ + i * width, tiles_, packed_q_ + column_of<T>(i, tiles_));
      pack_queries(dy_ + i * width, tiles_, packed_dy_ + column_of<T>(i, tiles_));
    }
    const auto scale = hn::Set(d, static_cast<T>(args_.scale));
    for (int64_t i = 0; i < rows * width; i += kLanes<T>)
      hn::Store(hn::Mul(scale, hn::Load(d, q_ + i)), d, q_ + i);

    std::fill_n(ones_, kPanel<T>, T(1));
    std::fill_n(dq_, tiles_.queries * width, T(0));
    std::fill_n(delta_, AttentionTiles::kMostQueries, T(0));
    // Weights of lanes past the last query are then 0.
    std::fill_n(logsumexp_, AttentionTiles::kMostQueries, std::numeric_limits<T>::infinity());
    std::copy_n(block_.per_query(args_.logsumexp) + block_.begin, block_.count(), logsumexp_);
    const S* y = block_.in(args_.y) + block_.begin * args_.channels;
    for (int64_t i = 0; i < block_.count(); ++i) {
      delta_[i] = static_cast<T>(sum_terms(d, 0, tiles_.head, [&](int64_t c, int64_t n) HWY_ATTR {
        return hn::Mul(load_lanes(d, y + i * args_.channels + c, n), hn::Load(d, dy_ + i * width + c));
      }));
    }
  }

  void clear_hidden_keys() {
    for (int64_t j = 0; j < args_.length; ++j) {
      if (block_.key_mask()[j]) continue;
      std::fill_n(block_.sums(sums_.dk) + j * args_.channels, tiles_.head, T(0));
      std::fill_n(block_.sums(sums_.dv) + j * args_.channels, tiles_.head, T(0));
    }
  }

  /// The weights of the keys and the scores' gradients, as [keys][queries], and their part of dq. Returns the
  /// first query, in whole panels, from which on they are known: those before see none of the keys.
  int64_t attend(const VisibleKeys& keys) {
    const KeyRows<T> k = visible_rows(block_, keys, args_.k, k_), v = visible_rows(block_, keys, args_.v, v_);
    int64_t first = -1;
    for (int64_t i = 0; i < block_.panels(); ++i) {
      const Panel<T> panel(block_, i);
      const int64_t seen = keys.seen_by(panel.last());
      if (seen == 0) continue;
      if (first < 0) first = panel.first;
      TileProduct<T> scores{.a = k.by_key(),
                            .rows = seen,
                            .b = packed_q_ + panel.first * tiles_.width,
                            .ldb = kPanel<T>,
                            .vectors = panel.vectors,
                            .depth = tiles_.head,
                            .c = weights_ + panel.first,
                            .ldc = tiles_.queries};
      multiply(scores);
      scores.a = v.by_key();
      scores.b = packed_dy_ + panel.first * tiles_.width;
      scores.c = gradients_ + panel.first;
      multiply(scores);
      for (int64_t vector = 0; vector < panel.vectors; ++vector) {
        const int64_t query = panel.first + vector * kLanes<T>;
        differentiate(Scores<T>{weights_ + query, tiles_.queries, keys, block_.begin + query}, query);
      }
      multiply(TileProduct<T>{.a = k.by_channel(),
                              .rows = tiles_.width,
                              .b = gradients_ + panel.first,
                              .ldb = tiles_.queries,
                              .vectors = panel.vectors,
                              .depth = seen,
                              .c = dq_ + panel.first * tiles_.width,
                              .ldc = kPanel<T>,
                              .factors = ones_});
    }
    return first;
  }

  /// For a vector of queries, number `query` of the block and on: from scores m p in place, m that of
  /// dropout, and from dy . v, in gradients_, p (m dy . v - delta).
  void differentiate(const Scores<T>& scores, int64_t query) {
    const Tag<T> d;
    const auto scale = hn::Set(d, static_cast<T>(args_.scale * std::numbers::log2e));
    const auto shift = hn::Mul(hn::Load(d, logsumexp_ + query), hn::Set(d, std::numbers::log2e_v<T>));
    const auto delta = hn::Load(d, delta_ + query),
               raised = hn::Set(d, static_cast<T>(1 / (1 - args_.dropout_p)));
    const bool drops = args_.dropout_p > 0;
    if (drops) kept_.draw(block_, scores.keys, scores.query);
    T* const gradients = gradients_ + query;
    const auto visit = [&]<bool kPartial>(int64_t j) HWY_ATTR {
      const int64_t at = j * scores.stride;
      auto weight = Exp2NonPositive(d, hn::MulSub(hn::Load(d, scores.data + at), scale, shift));
      auto gradient = hn::Load(d, gradients + at);
      if (drops) gradient = kept_.keep(j, hn::Mul(gradient, raised));
      gradient = hn::Mul(weight, hn::Sub(gradient, delta));
      if (drops) weight = kept_.keep(j, hn::Mul(weight, raised));
      if constexpr (kPartial) {
        weight = hn::IfThenZeroElse(scores.hidden(j), weight);
        gradient = hn::IfThenZeroElse(scores.hidden(j), gradient);
      }
      hn::Store(weight, d, scores.data + at);
      hn::Store(gradient, d, gradients + at);
    };
    int64_t j = 0;
    for (; j < scores.full; ++j) visit.template operator()<false>(j);
    for (; j < scores.some; ++j) visit.template operator()<true>(j);
    for (; j < scores.keys.count(); ++j) {
      hn::Store(hn::Zero(d), d, scores.data + j * scores.stride);
      hn::Store(hn::Zero(d), d, gradients + j * scores.stride);
    }
  }

  /// Adds factors [keys][queries] times rows [queries][width], from query `first` on, to the visible keys'
  /// rows of `gradient`, or writes it there where the block is the first of its head.
  void add_to_keys(const VisibleKeys& keys, int64_t first, const T* factors, const T* rows, T* gradient) {
    const Tag<T> d;
    const bool adds = !turns_.is_first(block_.task);
    TileProduct<T> product{.a = {factors + first, tiles_.queries, 1},
                           .rows = keys.count(),
                           .b = rows + first * tiles_.width,
                           .ldb = tiles_.width,
                           .vectors = tiles_.width / kLanes<T>,
                           .depth = block_.count() - first,
                           .c = k_,
                           .ldc = tiles_.width};
    if (in_place(keys, tiles_)) {
      product.c = gradient + keys.row(0) * args_.channels;
      product.ldc = args_.channels;
      product.factors = adds ? ones_ : nullptr;
      return multiply(product);
    }
    multiply(product);
    for (int64_t j = 0; j < keys.count(); ++j) {
      T* const row = gradient + keys.row(j) * args_.channels;
      for_each_vector(d, 0, tiles_.head, [&](int64_t c, int64_t n) HWY_ATTR {
        const auto sum = hn::Load(d, k_ + j * tiles_.width + c);
        store_lanes(d, adds ? hn::Add(sum, load_lanes(d, row + c, n)) : sum, row + c, n);
      });
    }
  }

  const QueryBlock<S, TiledAttentionBackward>& block_;
  const TiledAttentionBackward& args_;
  const AttentionTiles& tiles_;
  Turns& turns_;
  KeySums sums_;
  T* q_;          // [queries][width]
  T* dy_;         // [queries][width]
  T* packed_q_;   // panels of [width][kPanel]
  T* packed_dy_;  // panels of [width][kPanel]
  T* dq_;         // panels of [width][kPanel]
  T* k_;          // [keys][width], if not read in place; then a part of dv or dk
  T* v_;          // [keys][width], if not read in place
  T* weights_;    // [keys][queries]
  T* gradients_;  // [keys][queries]
  HWY_ALIGN T logsumexp_[AttentionTiles::kMostQueries];
  HWY_ALIGN T delta_[AttentionTiles::kMostQueries];
  HWY_ALIGN T ones_[kPanel<T>];
  KeptWeights<T> kept_;
};

/// dk and dv from their sums.
template <class S>
void round_key_sums(const TiledAttentionBackward& args) {
  using T = Compute<S>;
  const KeySums sums = key_sums<S>(args);
  const auto round = [&](const void* from, void* to) {
    parallel_for(args.batch * args.length * args.channels, kElementsPerThread,
                 [&](int64_t begin, int64_t end) HWY_ATTR {
                   const Tag<T> d;
                   for_each_vector(d, begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
                     store_lanes(d, load_lanes(d, static_cast<const T*>(from) + i, n),
                                 static_cast<S*>(to) + i, n);
                   });
                 });
  };
  round(sums.dk, args.dk);
  round(sums.dv, args.dv);
}

}  // namespace
}  // namespace tiled_attention

void tiled_attention_backward_simd(const TiledAttentionBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "tiled_attention_backward", [&]<class S>() {
    tiled_attention::Turns turns(args);
    tiled_attention::for_each_block<S>(args, [&](const auto& block) {
      const tiled_attention::Turns::Last last(turns, block.task);
      tiled_attention::BackwardBlock<S>(block, turns).run();
    });
    if constexpr (!std::is_same_v<S, Compute<S>>) tiled_attention::round_key_sums<S>(args);
  });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(tiled_attention_backward_simd);

void tiled_attention_backward(const TiledAttentionBackward& args) {
  HWY_DYNAMIC_DISPATCH(tiled_attention_backward_simd)(args);
}

}  // namespace elwise::cpu
#endif
