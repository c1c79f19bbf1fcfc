// exp, log, tanh, erf and sigmoid over Highway vectors, f32 and f64. Included by core/simd-inl.h only.

#if defined(ELWISE_CORE_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_CORE_SIMD_MATH_INL_H_
#undef ELWISE_CORE_SIMD_MATH_INL_H_
#else
#define ELWISE_CORE_SIMD_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <limits>
#include <numbers>

HWY_BEFORE_NAMESPACE();
namespace elwise::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

namespace detail {

// Adding 1.5 * 2^(mantissa bits) rounds a float to an integer, which then stands in the sum's lowest bits.
template <class T>
inline constexpr T kRounder = sizeof(T) == 4 ? T(0x1.8p23) : T(0x1.8p52);

/// coefficients[0] x^(N-1) + ... + coefficients[N-1].
template <class D, size_t N, class V = hn::VFromD<D>>
HWY_INLINE V Polynomial(D d, V x, const hn::TFromD<D> (&coefficients)[N]) {
  V sum = hn::Set(d, coefficients[0]);
  for (size_t i = 1; i < N; ++i) sum = hn::MulAdd(sum, x, hn::Set(d, coefficients[i]));
  return sum;
}

/// 2^n, for n given as rounder = n + kRounder, |n| less than the largest exponent.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V PowerOfTwo(D d, V rounder) {
  using T = hn::TFromD<D>;
  const hn::RebindToUnsigned<D> du;
  constexpr int kMantissaBits = sizeof(T) == 4 ? 23 : 52;
  const auto bias = hn::Set(du, sizeof(T) == 4 ? 127 : 1023);
  return hn::BitCast(d, hn::ShiftLeft<kMantissaBits>(hn::Add(hn::BitCast(du, rounder), bias)));
}

/// x = n ln2 + r with |r| <= ln2 / 2 and e^r = 1 + r h; rounder = n + kRounder.
template <class V>
struct ReducedExp {
  V h, r, n, rounder;

  template <class D>
  HWY_INLINE V exp_of_r(D d) const {
    return hn::MulAdd(h, r, hn::Set(d, hn::TFromD<D>(1)));
  }
};

/// |x| at most about 1100 (f64) or 130 (f32). Cody-Waite reduction; e^r = 1 + r + r^2 P(r) with P a Chebyshev
/// fit on |r| <= ln2 / 2 (errors of e^r: 8e-9 in f32, 2e-17 in f64).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE ReducedExp<V> ReduceExp(D d, V x) {
  using T = hn::TFromD<D>;
  const V round = hn::Set(d, kRounder<T>);
  const V rounder = hn::MulAdd(x, hn::Set(d, T(1.4426950408889634)), round);
  const V n = hn::Sub(rounder, round);
  V r, p;
  if constexpr (sizeof(T) == 4) {
    r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
    r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
    p = Polynomial(d, r, {1.3926326e-3f, 8.3632929e-3f, 4.1666554e-2f, 1.6666577e-1f, 0.5f});
  } else {
    r = hn::NegMulAdd(n, hn::Set(d, 6.93147180369123816490e-1), x);
    r = hn::NegMulAdd(n, hn::Set(d, 1.90821492927058770002e-10), r);
    p = Polynomial(d, r,
                   {2.5100569275813682631e-8, 2.762032742826823816e-7, 2.7557268072890098263e-6,
                    2.4801520792572692843e-5, 1.9841269863303223296e-4, 1.3888888917538295848e-3,
                    8.3333333333300117609e-3, 4.1666666666623476764e-2, 1.6666666666666667468e-1,
                    0.50000000000000010417});
  }
  return {hn::MulAdd(p, r, hn::Set(d, T(1))), r, n, rounder};
}

/// p * 2^n, rounded once, for integers |n| <= 2200 (f64) or 250 (f32).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V ScaleByPowerOfTwo(D d, V p, V n) {
  using T = hn::TFromD<D>;
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  if constexpr (sizeof(V) == 64) {
    if constexpr (sizeof(T) == 4) {
      return V{_mm512_scalef_ps(p.raw, n.raw)};
    } else {
      return V{_mm512_scalef_pd(p.raw, n.raw)};
    }
  }
#endif
  const V round = hn::Set(d, kRounder<T>);
  const V rounder = hn::MulAdd(n, hn::Set(d, T(0.5)), round);
  const V rest = hn::Sub(n, hn::Sub(rounder, round));
  return hn::Mul(hn::Mul(p, PowerOfTwo(d, rounder)), PowerOfTwo(d, hn::Add(rest, round)));
}

}  // namespace detail

/// e^x for any x, within 1.5 ulp. Overflows to infinity, underflows through the denormals to 0; NaN stays
/// NaN.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V Exp(D d, V x) {
  using T = hn::TFromD<D>;
  // Beyond these bounds the result is 0 or infinity. x comes second: where one is NaN, x86 gives the second.
  const T low = sizeof(T) == 4 ? T(-104) : T(-746), high = sizeof(T) == 4 ? T(89) : T(710);
  const auto e = detail::ReduceExp(d, hn::Min(hn::Set(d, high), hn::Max(hn::Set(d, low), x)));
  return detail::ScaleByPowerOfTwo(d, e.exp_of_r(d), e.n);
}

/// e^x for x <= 0, within 1.5 ulp. -infinity gives 0, NaN stays NaN. Results below the least normal number
/// may be 0. Cheaper than Exp: most so without AVX-512.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V ExpNonPositive(D d, V x) {
  using T = hn::TFromD<D>;
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  const auto e = detail::ReduceExp(d, hn::Max(hn::Set(d, sizeof(T) == 4 ? T(-104) : T(-746)), x));
  return detail::ScaleByPowerOfTwo(d, e.exp_of_r(d), e.n);
#else
  const V low = hn::Set(d, sizeof(T) == 4 ? T(-87.3365402) : T(-708.39641853226408));
  const auto e = detail::ReduceExp(d, hn::Max(low, x));
  return hn::IfThenZeroElse(hn::Lt(x, low), hn::Mul(e.exp_of_r(d), detail::PowerOfTwo(d, e.rounder)));
#endif
}

/// 2^x for x <= 0, within 1.5 ulp. -infinity gives 0, NaN stays NaN. Results below the least normal number
/// may be 0. A quarter cheaper than ExpNonPositive. 2^r = 1 + r P(r) on |r| <= 1/2 with P a least-maximum fit
/// (errors of 2^r: 3e-9 in f32, 2e-17 in f64).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V Exp2NonPositive(D d, V x) {
  using T = hn::TFromD<D>;
  const auto power = [d](V r) HWY_ATTR {
    V p;
    if constexpr (sizeof(T) == 4) {
      p = detail::Polynomial(
          d, r,
          {1.55946832e-4f, 1.34066442e-3f, 9.61769297e-3f, 5.55031055e-2f, 2.40226528e-1f, 6.93147215e-1f});
    } else {
      p = detail::Polynomial(
          d, r,
          {4.0780451108401167e-10, 7.0725702206402865e-9, 1.0180647844774275e-7, 1.3215442676553934e-6,
           1.5252727384740497e-5, 1.5403530441569449e-4, 1.3333558153440419e-3, 9.6181291076070045e-3,
           5.5504108664790393e-2, 2.4022650695910097e-1, 6.9314718055994573e-1});
    }
    return hn::MulAdd(p, r, hn::Set(d, T(1)));
  };
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  if constexpr (sizeof(V) == 64) {
    // One instruction gives x less the nearest integer: 0 for -infinity and all that is large.
    constexpr int kToNearest = 8;
    V r;
    if constexpr (sizeof(T) == 4) {
      r = V{_mm512_reduce_ps(x.raw, kToNearest)};
    } else {
      r = V{_mm512_reduce_pd(x.raw, kToNearest)};
    }
    return detail::ScaleByPowerOfTwo(d, power(r), hn::Sub(x, r));
  }
#endif
  const V low = hn::Set(d, sizeof(T) == 4 ? T(-126) : T(-1022)), round = hn::Set(d, detail::kRounder<T>);
  const V bounded = hn::Max(low, x), rounder = hn::Add(bounded, round);
  const V r = hn::Sub(bounded, hn::Sub(rounder, round));
  return hn::IfThenZeroElse(hn::Lt(x, low), hn::Mul(power(r), detail::PowerOfTwo(d, rounder)));
}

/// e^(x - y) for x <= y, y finite. Cheaper than ExpNonPositive of the difference, whose rounding costs about
/// as much: with it the result is within 1.5 + |x - y| ulp.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V ExpOfDifference(D d, V x, V y) {
  const V log2_e = hn::Set(d, std::numbers::log2e_v<hn::TFromD<D>>);
  return Exp2NonPositive(d, hn::Mul(hn::Sub(x, y), log2_e));
}

/// e^(x^2 - y^2) for 0 <= x <= y, within 1.5 + 2 |x^2 - y^2| ulp: 0 where only y is infinite.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V ExpOfSquares(D d, V x, V y) {
  const V log2_e = hn::Set(d, std::numbers::log2e_v<hn::TFromD<D>>);
  return Exp2NonPositive(d, hn::Mul(hn::Sub(x, y), hn::MulAdd(y, log2_e, hn::Mul(x, log2_e))));
}

/// e^x - 1 for x <= 0, within 2 ulp, also near 0. -infinity gives -1, NaN stays NaN.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V ExpMinusOneNonPositive(D d, V x) {
  using T = hn::TFromD<D>;
  const auto e = detail::ReduceExp(d, hn::Max(hn::Set(d, sizeof(T) == 4 ? T(-80) : T(-700)), x));
  const V scale = detail::PowerOfTwo(d, e.rounder);
  return hn::MulAdd(scale, hn::Mul(e.h, e.r), hn::Sub(scale, hn::Set(d, T(1))));
}

/// ln x, within 1 ulp; -infinity at 0, NaN below 0, denormals included. The method and the coefficients are
/// fdlibm's (e_log.c, e_logf.c): x = 2^k (1 + f), s = f / (2 + f), ln(1 + f) = f - f^2/2 + s (f^2/2 +
/// R(s^2)).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V Log(D d, V x) {
  using T = hn::TFromD<D>;
  constexpr bool kSingle = sizeof(T) == 4;
  constexpr int kMantissaBits = kSingle ? 23 : 52;
  const hn::RebindToSigned<D> di;
  using TI = hn::TFromD<decltype(di)>;

  const auto denormal = hn::Lt(x, hn::Set(d, std::numeric_limits<T>::min()));
  const V scaled = hn::IfThenElse(denormal, hn::Mul(x, hn::Set(d, kSingle ? T(0x1p25) : T(0x1p54))), x);
  // Adding (1 - sqrt(1/2)) in the bits makes the exponent k that of the range [sqrt(1/2), sqrt(2)).
  const TI root_half = kSingle ? TI(0x3f3504f3) : TI(0x3fe6a09e667f3bcd);
  const TI one_bits = kSingle ? TI(0x3f800000) : TI(0x3ff0000000000000);
  const TI mantissa_mask = (TI(1) << kMantissaBits) - 1;
  const auto bits = hn::Add(hn::BitCast(di, scaled), hn::Set(di, one_bits - root_half));
  const hn::RebindToUnsigned<D> du;
  const auto exponent = hn::BitCast(di, hn::ShiftRight<kMantissaBits>(hn::BitCast(du, bits)));
  V k = hn::ConvertTo(d, hn::Sub(exponent, hn::Set(di, kSingle ? TI(127) : TI(1023))));
  k = hn::Sub(k, hn::IfThenElseZero(denormal, hn::Set(d, kSingle ? T(25) : T(54))));
  const auto mantissa = hn::Add(hn::And(bits, hn::Set(di, mantissa_mask)), hn::Set(di, root_half));

  const V f = hn::Sub(hn::BitCast(d, mantissa), hn::Set(d, T(1)));
  const V s = hn::Div(f, hn::Add(f, hn::Set(d, T(2))));
  const V z = hn::Mul(s, s);
  V ln2_high, ln2_low, r;
  if constexpr (kSingle) {
    ln2_high = hn::Set(d, 6.9313812256e-1f);
    ln2_low = hn::Set(d, 9.0580006145e-6f);
    r = detail::Polynomial(d, z, {0.24279078841f, 0.28498786688f, 0.40000972152f, 0.66666662693f});
  } else {
    ln2_high = hn::Set(d, 6.93147180369123816490e-1);
    ln2_low = hn::Set(d, 1.90821492927058770002e-10);
    r = detail::Polynomial(
        d, z,
        {1.479819860511658591e-1, 1.531383769920937332e-1, 1.818357216161805012e-1, 2.222219843214978396e-1,
         2.857142874366239149e-1, 3.999999999940941908e-1, 6.666666666666735130e-1});
  }
  const V half_square = hn::Mul(hn::Mul(f, f), hn::Set(d, T(0.5)));
  const V small = hn::MulAdd(k, ln2_low, hn::Mul(s, hn::MulAdd(r, z, half_square)));
  V result = hn::MulAdd(k, ln2_high, hn::Add(f, hn::Sub(small, half_square)));

  const T infinity = std::numeric_limits<T>::infinity();
  result = hn::IfThenElse(hn::Lt(x, hn::Set(d, infinity)), result, x);  // infinity and NaN are their own log
  result = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Set(d, std::numeric_limits<T>::quiet_NaN()), result);
  return hn::IfThenElse(hn::Eq(x, hn::Zero(d)), hn::Set(d, -infinity), result);
}

/// tanh x, within 2 ulp. Small |x|: x + x^3 P(x^2) / Q(x^2) (Cephes tanh.c, tanhf.c); else 1 - 2 / (e^2|x| +
/// 1).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V Tanh(D d, V x) {
  using T = hn::TFromD<D>;
  const V one = hn::Set(d, T(1)), two = hn::Set(d, T(2));
  const V a = hn::Abs(x), z = hn::Mul(x, x);
  V p;
  if constexpr (sizeof(T) == 4) {
    p = detail::Polynomial(
        d, z,
        {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f});
  } else {
    p = hn::Div(
        detail::Polynomial(
            d, z, {-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3}),
        detail::Polynomial(
            d, z, {1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3}));
  }
  const V near = hn::MulAdd(hn::Mul(p, z), a, a);
  const V e = Exp(d, hn::Add(a, a));
  const V far = hn::Sub(one, hn::Div(two, hn::Add(e, one)));
  return hn::CopySign(hn::IfThenElse(hn::Lt(a, hn::Set(d, T(0.625))), near, far), x);
}

/// 1 / (1 + e^-x), within 3 ulp where it is a normal number.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, hn::TFromD<D>(1));
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

/// The error function, within 3 ulp. f32: 1 - 2^-|x| P(|x|) sign x, where P is a weighted least-maximum fit
/// (Lawson) of -log2(erfc(x)) / x on [0, 4] (error of erf: 4e-9); written with 2^f - 1 so that it keeps its
/// relative accuracy near 0. f64: std::erf lane by lane, as f64 is for checks.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V Erf(D d, V x) {
  using T = hn::TFromD<D>;
  if constexpr (sizeof(T) == 4) {
    const V round = hn::Set(d, detail::kRounder<T>);
    const V a = hn::Min(hn::Set(d, 4.0f), hn::Abs(x));  // erf(4) rounds to 1; a NaN stays as in Exp
    const V log2_erfc = hn::Mul(a, detail::Polynomial(d, a,
                                                      {1.335423726e-5f, -1.69722756e-4f, 9.129982345e-4f,
                                                       -2.405025296e-3f, 2.314146598e-4f, 2.76320244e-2f,
                                                       -1.48277065e-1f, -9.184476254e-1f, -1.627907035f}));
    const V rounder = hn::Add(log2_erfc, round);
    const V f = hn::Sub(log2_erfc, hn::Sub(rounder, round));
    const V scale = detail::PowerOfTwo(d, rounder);
    const V less_one = hn::Mul(f, detail::Polynomial(d, f,
                                                     {1.545316295e-4f, 1.339086336e-3f, 9.618082557e-3f,
                                                      5.550357114e-2f, 2.402265076e-1f, 6.93147188e-1f}));
    return hn::CopySign(hn::NegMulAdd(scale, less_one, hn::Sub(hn::Set(d, 1.0f), scale)), x);
  } else {
    HWY_ALIGN T lanes[hn::MaxLanes(D())];
    hn::Store(x, d, lanes);
    for (T& lane : lanes) lane = std::erf(lane);
    return hn::Load(d, lanes);
  }
}

}  // namespace elwise::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
