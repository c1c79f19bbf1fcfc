// Full element-wise attention and the Attention Free Transformer for one query over a cache: eq. 2 and 19 of
// arXiv 2501.05730. One pass over the cache, relative to the nearest key so far.

#include "ops/attention_step_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/elementwise_attention_step.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

template <class T>
using Tag = hn::ScalableTag<T>;
template <class T>
using Vec = hn::Vec<Tag<T>>;

/// EA: a key weighs exp(-d^2), d = |q - k|.
template <class S>
struct SquaredDistance {
  using T = Compute<S>;

  Vec<T> q;

  HWY_INLINE Vec<T> distance(Vec<T> k, int64_t) const { return hn::Abs(hn::Sub(q, k)); }
  static HWY_INLINE Vec<T> ratio(Vec<T> near, Vec<T> far) { return ExpOfSquares(Tag<T>(), near, far); }
};

/// AFT: a key weighs exp(-d), d = -(k + bias of its row).
template <class S>
struct NegativeBiasedKey {
  using T = Compute<S>;

  const S* bias;  // of the query's position

  HWY_INLINE Vec<T> distance(Vec<T> k, int64_t row) const {
    return hn::Neg(hn::Add(k, hn::Set(Tag<T>(), static_cast<T>(bias[row]))));
  }
  static HWY_INLINE Vec<T> ratio(Vec<T> near, Vec<T> far) { return ExpOfDifference(Tag<T>(), near, far); }
};

/// Sums of weights, and of weights times values, relative to the weight at distance `nearest`. (No default
/// values: g++ compiles a constructor that it writes itself for no SIMD target.)
template <class T>
struct WeightedSums {
  Vec<T> nearest, weights, values;

  /// Of no key.
  static HWY_INLINE WeightedSums none() {
    const Tag<T> d;
    return {hn::Set(d, std::numeric_limits<T>::infinity()), hn::Zero(d), hn::Zero(d)};
  }

  /// Adds other sums of the same kind, which hold at least one key.
  template <class Weight>
  HWY_INLINE void add(const WeightedSums& other) {
    const Vec<T> both = hn::Min(nearest, other.nearest);
    const Vec<T> factor = Weight::ratio(both, nearest), other_factor = Weight::ratio(both, other.nearest);
    weights = hn::MulAdd(weights, factor, hn::Mul(other.weights, other_factor));
    values = hn::MulAdd(values, factor, hn::Mul(other.values, other_factor));
    nearest = both;
  }
};

/// Up to kBlock rows of one vector of channels.
inline constexpr int64_t kBlock = 8;

/// The sums of rows [begin, begin + kRows).
template <int64_t kRows, class S, class Weight, class T = Compute<S>>
HWY_INLINE WeightedSums<T> block_sums(const Weight& weight, const S* k, const S* v, int64_t stride,
                                      int64_t begin, int64_t lanes) {
  constexpr int64_t kAhead = 4 * kBlock;  // rows; what lies beyond the cache is not fetched, and does no harm
  const Tag<T> d;
  auto sums = WeightedSums<T>::none();
  Vec<T> distances[kRows];
#pragma GCC unroll 8
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t at = (begin + row) * stride;
    hwy::Prefetch(k + at + kAhead * stride);
    hwy::Prefetch(v + at + kAhead * stride);
    distances[row] = weight.distance(load_lanes(d, k + at, lanes), begin + row);
    sums.nearest = hn::Min(sums.nearest, distances[row]);
  }
#pragma GCC unroll 8
  for (int64_t row = 0; row < kRows; ++row) {
    const Vec<T> w = Weight::ratio(sums.nearest, distances[row]);
    sums.weights = hn::Add(sums.weights, w);
    sums.values = hn::MulAdd(w, load_lanes(d, v + (begin + row) * stride, lanes), sums.values);
  }
  return sums;
}

/// The mean of `rows` values. Sums of segments join the total: long sums stay accurate.
template <class S, class Weight, class T = Compute<S>>
HWY_INLINE Vec<T> weighted_mean(const Weight& weight, const S* k, const S* v, int64_t stride, int64_t rows,
                                int64_t lanes) {
  constexpr int64_t kSegment = 32 * kBlock;
  auto total = WeightedSums<T>::none();
  for (int64_t segment = 0; segment < rows; segment += kSegment) {
    const int64_t end = std::min(rows, segment + kSegment);
    auto sums = WeightedSums<T>::none();
    int64_t row = segment;
    for (; row + kBlock <= end; row += kBlock) {
      sums.template add<Weight>(block_sums<kBlock>(weight, k, v, stride, row, lanes));
    }
    for (; row < end; ++row) sums.template add<Weight>(block_sums<1>(weight, k, v, stride, row, lanes));
    total.template add<Weight>(sums);
  }
  return hn::Div(total.values, total.weights);
}

/// Calls body(batch, channel, lanes, keys, k, v) for every vector of channels, in parallel: k and v point at
/// its first row in the cache.
template <class S, class Body>
void for_each_vector_of_channels(const CachePointers& cache, const Body& body) {
  const int64_t kLanes = hn::MaxLanes(Tag<Compute<S>>()), vectors = (cache.channels + kLanes - 1) / kLanes;
  const int64_t grain = 1 + kElementsPerThread / (std::max<int64_t>(cache.longest, 1) * kLanes);
  parallel_for(cache.batch * vectors, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t batch = item / vectors, channel = item % vectors * kLanes;
      const int64_t first = batch * cache.capacity * cache.channels + channel;
      body(batch, channel, std::min(kLanes, cache.channels - channel), cache.lengths[batch],
           static_cast<const S*>(cache.k) + first, static_cast<const S*>(cache.v) + first);
    }
  });
}

template <class S, class T = Compute<S>>
void ea_all(const EaStep& args) {
  const auto* q = static_cast<const S*>(args.q);
  auto* y = static_cast<S*>(args.y);
  const int64_t stride = args.cache.channels;
  for_each_vector_of_channels<S>(args.cache, [&](int64_t batch, int64_t channel, int64_t lanes, int64_t rows,
                                                 const S* k, const S* v) HWY_ATTR {
    const Tag<T> d;
    const int64_t at = batch * stride + channel;
    Vec<T> answer = hn::Zero(d);
    if (rows > 0) {
      const SquaredDistance<S> weight{load_lanes(d, q + at, lanes)};
      answer = weighted_mean(weight, k, v, stride, rows, lanes);
    }
    store_lanes(d, answer, y + at, lanes);
  });
}

template <class S, class T = Compute<S>>
void aft_all(const AftStep& args) {
  const auto *q = static_cast<const S*>(args.q), *bias = static_cast<const S*>(args.position_bias);
  auto* y = static_cast<S*>(args.y);
  const int64_t stride = args.cache.channels;
  for_each_vector_of_channels<S>(args.cache, [&](int64_t batch, int64_t channel, int64_t lanes, int64_t rows,
                                                 const S* k, const S* v) HWY_ATTR {
    const Tag<T> d;
    const int64_t at = batch * stride + channel;
    Vec<T> answer = hn::Zero(d);
    if (rows > 0) {
      const NegativeBiasedKey<S> weight{bias + (rows - 1) * args.positions};
      answer =
          hn::Mul(Sigmoid(d, load_lanes(d, q + at, lanes)), weighted_mean(weight, k, v, stride, rows, lanes));
    }
    store_lanes(d, answer, y + at, lanes);
  });
}

void ea_step_simd(const EaStep& args) {
  dispatch_f32_f64_bf16(args.dtype, "ea_step", [&]<class S>() { ea_all<S>(args); });
}

void aft_step_simd(const AftStep& args) {
  dispatch_f32_f64_bf16(args.dtype, "aft_step", [&]<class S>() { aft_all<S>(args); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(ea_step_simd);
HWY_EXPORT(aft_step_simd);

void ea_step(const EaStep& args) {
  HWY_DYNAMIC_DISPATCH(ea_step_simd)(args);
}

void aft_step(const AftStep& args) {
  HWY_DYNAMIC_DISPATCH(aft_step_simd)(args);
}

}  // namespace elwise::cpu
#endif
