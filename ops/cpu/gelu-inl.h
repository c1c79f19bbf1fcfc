// GELU and its derivative over Highway vectors. Include it after core/simd-inl.h; it is compiled once per
// target.

#if defined(ELWISE_OPS_CPU_GELU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_GELU_INL_H_
#undef ELWISE_OPS_CPU_GELU_INL_H_
#else
#define ELWISE_OPS_CPU_GELU_INL_H_
#endif

#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/gelu_table.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {

using namespace elwise::HWY_NAMESPACE;  // core/simd-inl.h

/// gelu(x) = x cdf(x) and its derivative cdf(x) + x pdf(x), of the normal distribution. Make one before a
/// loop: it keeps the loop's constants.
template <class D>
class ExactGelu {
 public:
  using V = hn::VFromD<D>;

  HWY_INLINE ExactGelu(D, GeluCurve) {}

  HWY_INLINE V value(V x) const {
    const D d;
    const V half = hn::Mul(x, hn::Set(d, T(0.5)));
    return hn::MulAdd(half, Erf(d, hn::Mul(x, hn::Set(d, T(0.70710678118654752)))), half);
  }

  HWY_INLINE V derivative(V x) const {
    const D d;
    const V half = hn::Set(d, T(0.5));
    const V cdf = hn::MulAdd(half, Erf(d, hn::Mul(x, hn::Set(d, T(0.70710678118654752)))), half);
    const V density = ExpNonPositive(d, hn::Mul(hn::Mul(x, x), hn::Set(d, T(-0.5))));
    return hn::MulAdd(hn::Mul(x, hn::Set(d, T(0.39894228040143268))), density, cdf);
  }

 private:
  using T = hn::TFromD<D>;
};

#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
/// f32 by gelu_table: a permute of two registers looks a coefficient up for every lane.
/// Against f64, the value is within 1.1e-7 |x| and the derivative within 1e-7 (measured by the test of f32
/// GELU in elementwise_test.cpp).
template <>
class ExactGelu<hn::ScalableTag<float>> {
 public:
  using D = hn::ScalableTag<float>;
  using V = hn::VFromD<D>;

  HWY_INLINE ExactGelu(D d, GeluCurve curve) {
    const GeluTable& table = gelu_table(curve);
    for (int k = 0; k <= GeluTable::kDegree; ++k) {
      low_[k] = hn::LoadU(d, table.coefficients[k]);
      high_[k] = hn::LoadU(d, table.coefficients[k] + GeluTable::kSegments / 2);
    }
  }

  HWY_INLINE V value(V x) const { return hn::Sub(hn::Max(hn::Zero(D()), x), tail(x)); }

  HWY_INLINE V derivative(V x) const {
    const V r = tail(x);
    return hn::IfThenElse(hn::Lt(x, hn::Zero(D())), r, hn::Sub(hn::Set(D(), 1.0f), r));
  }

 private:
  /// The curve at |x|; NaN at NaN and, as x cdf(x) is, at -infinity.
  HWY_INLINE V tail(V x) const {
    const D d;
    constexpr float kWidth = GeluTable::kWidth;
    const V round = hn::Set(d, elwise::HWY_NAMESPACE::detail::kRounder<float>);
    const V last = hn::Set(d, kWidth * (GeluTable::kSegments - 1));
    const V a = hn::Abs(hn::Min(last, x));  // NaN stays, as in Exp; -infinity meets the last segment's zeros
    const V rounder = hn::MulAdd(hn::Min(last, a), hn::Set(d, 1 / kWidth), round);
    const V r = hn::NegMulAdd(hn::Sub(rounder, round), hn::Set(d, kWidth), a);
    V sum = look_up(GeluTable::kDegree, rounder);
    for (int k = GeluTable::kDegree - 1; k >= 0; --k) sum = hn::MulAdd(sum, r, look_up(k, rounder));
    return sum;
  }

  /// Coefficient k of the segment whose number stands in the lowest bits.
  HWY_INLINE V look_up(int k, V rounder) const {
    return V{_mm512_permutex2var_ps(low_[k].raw, _mm512_castps_si512(rounder.raw), high_[k].raw)};
  }

  V low_[GeluTable::kDegree + 1], high_[GeluTable::kDegree + 1];
};
#endif

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
