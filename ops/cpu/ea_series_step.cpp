// One token of EA-series' recurrent form (eq. 12 - 16 of arXiv 2501.05730), fused: one pass over the state.
// See ops/ea_series_kernels.h for the mathematics and ops/cpu/ea_series-inl.h for the scales.

#include "ops/ea_series_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ea_series_step.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/ea_series_state-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace ea_series {
namespace {

/// Sums of two f32, rounded up or down with the probability that makes them right on average. Rounding to
/// nearest errs the same way every time the same key comes again: after 100,000 steps the moments would be
/// wrong by up to a part in 300, and not by a few in a million. The random numbers are a hash of the first
/// operands, so that the state needs no room for a generator.
class FairRounding {
 public:
  using V = Vec<float>;
  using Bits = hn::Vec<hn::RebindToUnsigned<Tag<float>>>;

  HWY_INLINE FairRounding(V s0, V z0, V k) {
    hash_ = hn::Mul(bits(z0), word(0x9E3779B1));
    hash_ = hn::Xor(hash_, hn::Mul(bits(s0), word(0x85EBCA77)));
    hash_ = hn::Xor(hash_, hn::Mul(bits(k), word(0xC2B2AE3D)));
    hash_ = hn::Mul(hn::Xor(hash_, hn::ShiftRight<16>(hash_)), word(0x27D4EB2F));
  }

  HWY_INLINE V add(V sum, V term) {
    const V nearest = hn::Add(sum, term), added = hn::Sub(nearest, sum);
    // sum + term = nearest + error, exactly (Knuth's two-sum).
    const V error = hn::Add(hn::Sub(sum, hn::Sub(nearest, added)), hn::Sub(term, added));
    // The next number on the error's side: of larger magnitude where the signs agree.
    const auto differ = hn::ShiftRight<31>(hn::Xor(bits(nearest), bits(error)));
    const V other =
        hn::BitCast(Tag<float>(), hn::Sub(hn::Add(bits(nearest), word(1)), hn::Add(differ, differ)));
    const V gap = hn::Abs(hn::Sub(other, nearest));
    return hn::IfThenElse(hn::Gt(hn::Abs(error), hn::Mul(uniform(), gap)), other, nearest);
  }

 private:
  static HWY_INLINE Bits word(uint32_t value) { return hn::Set(hn::RebindToUnsigned<Tag<float>>(), value); }
  static HWY_INLINE Bits bits(V x) { return hn::BitCast(hn::RebindToUnsigned<Tag<float>>(), x); }

  /// In [0, 1): 23 bits as the mantissa of a number in [1, 2), less 1.
  HWY_INLINE V uniform() {
    hash_ = hn::Add(hn::Mul(hash_, word(1664525)), word(1013904223));
    const Bits one = word(0x3F800000);
    return hn::Sub(hn::BitCast(Tag<float>(), hn::Or(hn::ShiftRight<9>(hash_), one)), constant<float>(1));
  }

  Bits hash_;
};

/// f64 has digits to spare.
struct NearestRounding {
  using V = Vec<double>;
  HWY_INLINE NearestRounding(V, V, V) {}
  HWY_INLINE V add(V sum, V term) { return hn::Add(sum, term); }
};

template <class T>
using Rounding = std::conditional_t<sizeof(T) == sizeof(float), FairRounding, NearestRounding>;

/// `lanes` keys join the states of the channels from `channel` on; returns what the queries are answered.
template <class T, int kOrder>
HWY_NOINLINE Vec<T> step(const EaSeriesStatePointers& state, int64_t channel, int64_t lanes, Vec<T> q,
                         Vec<T> k, Vec<T> v) {
  const ChannelStates<T> states(state, kOrder);
  alignas(64) T rows[Moments<T, kOrder>::kRows * kLanes<T>];
  states.read(channel, lanes, rows);
  Moments<T, kOrder> moments;
  moments.load(rows, kLanes<T>, kLanes<T>);
  const Vec<T> magnitude = hn::Abs(k);
  Vec<T> factor;
  moments.meet(magnitude, factor);
  Rounding<T> rounding(moments.s[0], moments.z[0], k);
  Vec<T> power = scale_ratio<T>(moments.reference, magnitude);
#pragma GCC unroll 17
  for (int n = 0; n <= kOrder; ++n) {
    moments.z[n] = rounding.add(moments.z[n], power);
    moments.s[n] = rounding.add(moments.s[n], hn::Mul(power, v));
    power = hn::Mul(power, k);
  }
  const Vec<T> answers = answer(moments, q);
  moments.store(rows, kLanes<T>, kLanes<T>);
  states.write(channel, lanes, rows);
  return answers;
}

template <class S>
void step_all(const EaSeriesStep& args) {
  using T = Compute<S>;
  constexpr int64_t kVectorsPerThread = 16;  // longer than a thread's start
  const auto *q = static_cast<const S*>(args.q), *k = static_cast<const S*>(args.k),
             *v = static_cast<const S*>(args.v);
  auto* y = static_cast<S*>(args.y);
  const auto step_vector = dispatch_order(args.order, []<int kOrder>() { return &step<T, kOrder>; });
  // Batch entries lie one behind the other, like more channels.
  const int64_t channels = args.batch * args.channels, vectors = (channels + kLanes<T> - 1) / kLanes<T>;
  parallel_for(vectors, kVectorsPerThread, [&](int64_t begin, int64_t end) HWY_ATTR {
    const Tag<T> d;
    for (int64_t vector = begin; vector < end; ++vector) {
      const int64_t at = vector * kLanes<T>, lanes = std::min(kLanes<T>, channels - at);
      const Vec<T> answers = step_vector(args.state, at, lanes, load_lanes(d, q + at, lanes),
                                         load_lanes(d, k + at, lanes), load_lanes(d, v + at, lanes));
      store_lanes(d, answers, y + at, lanes);
    }
  });
}

}  // namespace
}  // namespace ea_series

void ea_series_step_simd(const EaSeriesStep& args) {
  dispatch_f32_f64_bf16(args.dtype, "ea_series_step", [&]<class T>() { ea_series::step_all<T>(args); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(ea_series_step_simd);

void ea_series_step(const EaSeriesStep& args) {
  HWY_DYNAMIC_DISPATCH(ea_series_step_simd)(args);
}

}  // namespace elwise::cpu
#endif
