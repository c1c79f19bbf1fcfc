// The forward pass of tiled softmax attention (ops/tiled_attention_kernels.h).

#include <algorithm>
#include <limits>
#include <numbers>

#include "core/parallel.h"
#include "ops/tiled_attention_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/tiled_attention_forward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/tiled_attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace tiled_attention {
namespace {

/// The largest of four accumulators' worth of scores, those of hidden keys left out.
template <class T>
Vec<T> largest_score(const Scores<T>& scores, Vec<T> start) {
  const Tag<T> d;
  const auto score = [&](int64_t j) HWY_ATTR { return hn::Load(d, scores.data + j * scores.stride); };
  auto max0 = start, max1 = start, max2 = start, max3 = start;
  int64_t j = 0;
  for (; j + 4 <= scores.full; j += 4) {
    max0 = hn::Max(max0, score(j));
    max1 = hn::Max(max1, score(j + 1));
    max2 = hn::Max(max2, score(j + 2));
    max3 = hn::Max(max3, score(j + 3));
  }
  for (; j < scores.full; ++j) max0 = hn::Max(max0, score(j));
  for (; j < scores.some; ++j) max0 = hn::IfThenElse(scores.hidden(j), max0, hn::Max(max0, score(j)));
  return hn::Max(hn::Max(max0, max1), hn::Max(max2, max3));
}

/// What is known of the queries so far.
template <class T>
struct Running {
  HWY_ALIGN T largest[AttentionTiles::kMostQueries];  // score
  HWY_ALIGN T sum[AttentionTiles::kMostQueries];      // of exp(scale (score - largest))
};

template <class S>
class ForwardBlock {
  using T = Compute<S>;

 public:
  explicit ForwardBlock(const QueryBlock<S, TiledAttentionForward>& block)
      : ForwardBlock(block, Scratch<T>(2 * (block.tiles.queries + block.tiles.keys) * block.tiles.width)) {}

  void run() {
    for (int64_t i = 0; i < block_.count(); i += kLanes<T>) {
      copy_queries(block_, args_.q, block_.begin + i, kLanes<T>, k_);
      pack_queries(k_, tiles_, queries_ + column_of<T>(i, tiles_));
    }
    std::fill_n(outputs_, tiles_.queries * tiles_.width, T(0));
    std::fill_n(running_.largest, AttentionTiles::kMostQueries, -std::numeric_limits<T>::infinity());
    std::fill_n(running_.sum, AttentionTiles::kMostQueries, T(0));
    VisibleKeys keys = block_.visible_keys();
    while (keys.next()) attend(keys);
    for (int64_t i = 0; i < block_.panels(); ++i) finish(Panel<T>(block_, i));
  }

 private:
  ForwardBlock(const QueryBlock<S, TiledAttentionForward>& block, Scratch<T> scratch)
      : block_(block),
        args_(block.args),
        tiles_(block.tiles),
        queries_(scratch.take(tiles_.queries * tiles_.width)),
        outputs_(scratch.take(tiles_.queries * tiles_.width)),
        k_(scratch.take(tiles_.keys * tiles_.width)),
        v_(scratch.take(tiles_.keys * tiles_.width)) {}

  void attend(const VisibleKeys& keys) {
    const KeyRows<T> k = visible_rows(block_, keys, args_.k, k_), v = visible_rows(block_, keys, args_.v, v_);
    for (int64_t i = 0; i < block_.panels(); ++i) {
      const Panel<T> panel(block_, i);
      const int64_t seen = keys.seen_by(panel.last());
      if (seen == 0) continue;
      multiply(TileProduct<T>{.a = k.by_key(),
                              .rows = seen,
                              .b = queries_ + panel.first * tiles_.width,
                              .ldb = kPanel<T>,
                              .vectors = panel.vectors,
                              .depth = tiles_.head,
                              .c = weights_,
                              .ldc = kPanel<T>});
      for (int64_t vector = 0; vector < panel.vectors; ++vector) {
        const int64_t lane = vector * kLanes<T>;
        softmax(Scores<T>{weights_ + lane, kPanel<T>, keys, panel.begin + lane}, panel.first + lane,
                factors_ + lane);
      }
      multiply(TileProduct<T>{.a = v.by_channel(),
                              .rows = tiles_.width,
                              .b = weights_,
                              .ldb = kPanel<T>,
                              .vectors = panel.vectors,
                              .depth = seen,
                              .c = outputs_ + panel.first * tiles_.width,
                              .ldc = kPanel<T>,
                              .factors = factors_});
    }
  }

  /// Turns scores into weights exp(scale (score - largest)), dropped ones into 0, and updates what is known
  /// of the queries, the first of which is number `query` of the block. `factors`: by what earlier sums and
  /// outputs of the queries shrink.
  void softmax(const Scores<T>& scores, int64_t query, T* factors) {
    const Tag<T> d;
    const auto lowest = hn::Set(d, -std::numeric_limits<T>::infinity());
    const auto scale = hn::Set(d, static_cast<T>(args_.scale * std::numbers::log2e));
    const auto before = hn::Load(d, running_.largest + query), largest = largest_score(scores, before);
    const auto factor = hn::IfThenZeroElse(hn::Eq(before, lowest),
                                           Exp2NonPositive(d, hn::Mul(hn::Sub(before, largest), scale)));
    const bool drops = args_.dropout_p > 0;
    if (drops) kept_.draw(block_, scores.keys, scores.query);

    const auto shift = hn::Mul(largest, scale);
    auto sum = hn::Zero(d);
    const auto weigh = [&]<bool kPartial>(int64_t j) HWY_ATTR {
      T* const at = scores.data + j * scores.stride;
      auto w = Exp2NonPositive(d, hn::MulSub(hn::Load(d, at), scale, shift));
      if constexpr (kPartial) w = hn::IfThenZeroElse(scores.hidden(j), w);
      sum = hn::Add(sum, w);
      hn::Store(drops ? kept_.keep(j, w) : w, d, at);
    };
    int64_t j = 0;
    for (; j < scores.full; ++j) weigh.template operator()<false>(j);
    for (; j < scores.some; ++j) weigh.template operator()<true>(j);
    for (; j < scores.keys.count(); ++j) hn::Store(hn::Zero(d), d, scores.data + j * scores.stride);
    hn::Store(factor, d, factors);
    hn::Store(largest, d, running_.largest + query);
    hn::Store(hn::MulAdd(factor, hn::Load(d, running_.sum + query), sum), d, running_.sum + query);
  }

  /// Writes y and logsumexp.
  void finish(const Panel<T>& panel) {
    const Tag<T> d;
    const auto infinity = hn::Set(d, std::numeric_limits<T>::infinity());
    const auto scale = hn::Set(d, static_cast<T>(args_.scale));
    const auto raised = hn::Set(d, static_cast<T>(1 / (1 - args_.dropout_p)));
    T* const logsumexp = block_.per_query(args_.logsumexp) + panel.begin;
    for_each_vector(d, 0, panel.count, [&](int64_t i, int64_t n) HWY_ATTR {
      const auto sum = hn::Load(d, running_.sum + panel.first + i);
      const auto largest = hn::Load(d, running_.largest + panel.first + i);
      const auto sees_none = hn::Eq(sum, hn::Zero(d));
      hn::Store(hn::IfThenZeroElse(sees_none, hn::Div(raised, sum)), d, factors_ + i);
      const auto log = hn::MulAdd(largest, scale, Log(d, sum));
      store_lanes(d, hn::IfThenElse(sees_none, infinity, log), logsumexp + i, n);
    });
    unpack_queries(panel, tiles_, factors_, outputs_ + panel.first * tiles_.width, block_.out(args_.y),
                   args_.channels);
  }

  const QueryBlock<S, TiledAttentionForward>& block_;
  const TiledAttentionForward& args_;
  const AttentionTiles& tiles_;
  T* queries_;  // panels of [width][kPanel]
  T* outputs_;  // panels of [width][kPanel], sum_j weights_ij v_j so far
  T* k_;        // [keys][width]
  T* v_;        // [keys][width]
  HWY_ALIGN T weights_[AttentionTiles::kMostKeys * kPanel<T>];
  HWY_ALIGN T factors_[kPanel<T>];
  Running<T> running_;
  KeptWeights<T> kept_;
};

}  // namespace
}  // namespace tiled_attention

void tiled_attention_forward_simd(const TiledAttentionForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "tiled_attention_forward", [&]<class S>() {
    tiled_attention::for_each_block<S>(
        args, [](const auto& block) { tiled_attention::ForwardBlock<S>(block).run(); });
  });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(tiled_attention_forward_simd);

void tiled_attention_forward(const TiledAttentionForward& args) {
  HWY_DYNAMIC_DISPATCH(tiled_attention_forward_simd)(args);
}

}  // namespace elwise::cpu
#endif
