// What the EA-series forward and backward kernels share; see ops/ea_series_kernels.h for the mathematics.
//
// A vector holds neighbouring channels, so nothing crosses lanes. Scale: while kappa, the running minimum of
// |k|, is above 4 the moments carry the factor exp(kappa^2), and none once it is below: weights are at most
// 1, sums cannot underflow (e^-16 is the worst), and the scale seldom moves.
//
// Loops over n are unrolled by pragma: only so do the arrays of vectors become registers. Included after
// <hwy/foreach_target.h>, compiled once per target.

#if defined(ELWISE_OPS_CPU_EA_SERIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_EA_SERIES_INL_H_
#undef ELWISE_OPS_CPU_EA_SERIES_INL_H_
#else
#define ELWISE_OPS_CPU_EA_SERIES_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <limits>

#include "core/error.h"
#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"
#include "ops/ea_series_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::ea_series {

namespace hn = hwy::HWY_NAMESPACE;
using namespace elwise::HWY_NAMESPACE;

template <class T>
using Tag = hn::ScalableTag<T>;
template <class T>
using Vec = hn::Vec<Tag<T>>;
template <class T>
inline constexpr int64_t kLanes = hn::MaxLanes(Tag<T>());

template <class T>
HWY_INLINE Vec<T> constant(double value) {
  return hn::Set(Tag<T>(), static_cast<T>(value));
}

/// What the walk of one vector down a block of rows asks the memory for, a vector each row: its share of the
/// rows that the tile comes to next. The walks of the tile's vectors together ask for these row by row, since
/// the memory is faster in the order of its addresses than down a column.
template <class T>
struct VectorsAhead {
  int64_t start = 0;   // elements from the walk's first to the first of those rows
  int64_t stride = 0;  // elements from row to row
  int64_t width = 1;   // vectors of a row
  int64_t first = 0;   // the number of the share's first vector

  class Cursor {
   public:
    HWY_INLINE Cursor(const VectorsAhead& ahead, int64_t vector)
        : at_(ahead.start + vector / ahead.width * ahead.stride + vector % ahead.width * kLanes<T>),
          left_(ahead.width - vector % ahead.width),
          width_(ahead.width),
          skip_(ahead.stride - ahead.width * kLanes<T>) {}

    /// Elements from the walk's first to the next vector.
    HWY_INLINE int64_t next() {
      const int64_t at = at_;
      at_ += kLanes<T>;
      if (--left_ == 0) {
        left_ = width_;
        at_ += skip_;
      }
      return at;
    }

   private:
    int64_t at_, left_, width_, skip_;
  };

  /// For a walk that begins at this row of the block.
  HWY_INLINE Cursor from(int64_t row) const { return Cursor(*this, first + row); }
};

/// The sums carry exp(reference^2). Infinite where no key was seen.
template <class T>
HWY_INLINE Vec<T> reference_of(Vec<T> kappa) {
  return hn::IfThenElseZero(hn::Gt(kappa, constant<T>(4)), kappa);
}

/// exp(to^2 - from^2) for 0 <= to <= from: 0 where only `from` is infinite.
template <class T>
HWY_INLINE Vec<T> scale_ratio(Vec<T> to, Vec<T> from) {
  return ExpOfSquares(Tag<T>(), to, from);
}

/// The same, for rare cases: inlined twice, its constants would take the common case's registers.
template <class T>
HWY_NOINLINE Vec<T> rare_scale_ratio(Vec<T> to, Vec<T> from) {
  return scale_ratio<T>(to, from);
}

/// The same for sums that may both be empty, their references infinite.
template <class T>
HWY_INLINE Vec<T> joining_ratio(Vec<T> to, Vec<T> from) {
  return hn::IfThenElse(hn::Eq(to, from), constant<T>(1), rare_scale_ratio<T>(to, from));
}

/// step[n] = 2 x / (n + 1), so that c_n x^n is the product of the first n.
template <class T, int kOrder>
struct Steps {
  Vec<T> step[kOrder + 1];

  HWY_INLINE explicit Steps(Vec<T> x) {
#pragma GCC unroll 17
    for (int n = 0; n < kOrder; ++n) step[n] = hn::Mul(x, constant<T>(2.0 / (n + 1)));
  }

  /// sum_n c_n x^n m[n] for n = 0 .. kDegree, by Horner's rule.
  template <int kDegree>
  HWY_INLINE Vec<T> sum(const Vec<T>* m) const {
    Vec<T> result = hn::Zero(Tag<T>());
    if constexpr (kDegree >= 0) result = m[kDegree];
#pragma GCC unroll 17
    for (int n = kDegree - 1; n >= 0; --n) result = hn::MulAdd(result, step[n], m[n]);
    return result;
  }
};

/// power[n] = q^n s^(t-n), s = 1 / max(1, |q|): the factor s^t, which cancels in every quotient, keeps both
/// polynomials in range for any q.
template <class T, int kOrder>
struct HomogeneousPowers {
  Vec<T> power[kOrder + 1];

  HWY_INLINE explicit HomogeneousPowers(Vec<T> q) {
    const Vec<T> one = constant<T>(1), s = hn::Div(one, hn::Max(one, hn::Abs(q))), unit = hn::Mul(q, s);
    power[0] = one;
#pragma GCC unroll 17
    for (int n = 1; n <= kOrder; ++n) power[n] = hn::Mul(power[n - 1], unit);
    Vec<T> shrink = s;
#pragma GCC unroll 17
    for (int n = kOrder - 1; n >= 0; --n) {
      power[n] = hn::Mul(power[n], shrink);
      shrink = hn::Mul(shrink, s);
    }
  }

  /// sum_n c_n power[n] m[n] for n = 0 .. kDegree.
  template <int kDegree>
  HWY_INLINE Vec<T> sum(const Vec<T>* m) const {
    Vec<T> result = hn::Zero(Tag<T>());
    double c = 1;
#pragma GCC unroll 17
    for (int n = 0; n <= kDegree; ++n) {
      result = hn::MulAdd(hn::Mul(power[n], constant<T>(c)), m[n], result);
      c *= 2.0 / (n + 1);
    }
    return result;
  }
};

/// S_n, Z_n and kappa of the keys added so far, in the registers of one vector of channels.
template <class T, int kOrder>
struct Moments {
  static constexpr int64_t kRows = 2 * kOrder + 3;

  Vec<T> s[kOrder + 1];
  Vec<T> z[kOrder + 1];
  Vec<T> kappa;
  Vec<T> reference;
  Vec<T> direct_limit;  // |q| up to which Horner's rule in q stays in range

  HWY_INLINE void set_kappa(Vec<T> value) {
    kappa = value;
    reference = reference_of<T>(kappa);
    direct_limit = hn::Div(constant<T>(16), hn::Max(constant<T>(1), reference));
  }

  /// From rows of memory; lanes beyond the first `lanes` are 0.
  HWY_INLINE void load(const T* from, int64_t stride, int64_t lanes) {
    const Tag<T> d;
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      s[n] = load_lanes(d, from + n * stride, lanes);
      z[n] = load_lanes(d, from + (kOrder + 1 + n) * stride, lanes);
    }
    set_kappa(load_lanes(d, from + (kRows - 1) * stride, lanes));
  }

  HWY_INLINE void store(T* to, int64_t stride, int64_t lanes) const {
    const Tag<T> d;
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      store_lanes(d, s[n], to + n * stride, lanes);
      store_lanes(d, z[n], to + (kOrder + 1 + n) * stride, lanes);
    }
    store_lanes(d, kappa, to + (kRows - 1) * stride, lanes);
  }

  HWY_INLINE void scale(Vec<T> factor) {
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      s[n] = hn::Mul(s[n], factor);
      z[n] = hn::Mul(z[n], factor);
    }
  }

  /// No sums yet, and the kappa of `stored`, to be joined later.
  HWY_INLINE void start_after(const T* stored) {
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) s[n] = z[n] = hn::Zero(Tag<T>());
    set_kappa(hn::Load(Tag<T>(), stored + (kRows - 1) * kLanes<T>));
  }

  /// Adds what was stored before start_after. Some key must have been met.
  HWY_INLINE void join(const T* stored) {
    const Tag<T> d;
    const Vec<T> before = hn::Load(d, stored + (kRows - 1) * kLanes<T>);
    const Vec<T> factor = rare_scale_ratio<T>(reference, reference_of<T>(before));
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      s[n] = hn::MulAdd(hn::Load(d, stored + n * kLanes<T>), factor, s[n]);
      z[n] = hn::MulAdd(hn::Load(d, stored + (kOrder + 1 + n) * kLanes<T>), factor, z[n]);
    }
  }

  /// Lowers kappa to the |k| of a new key. Where that moves the reference in some lane it returns true, and
  /// the moments have been multiplied by `factor`.
  HWY_INLINE bool meet(Vec<T> magnitude, Vec<T>& factor) {
    kappa = hn::Min(kappa, magnitude);
    if (HWY_LIKELY(hn::AllFalse(Tag<T>(), hn::Lt(magnitude, reference)))) return false;
    const Vec<T> before = reference;
    set_kappa(kappa);
    factor = rare_scale_ratio<T>(reference, before);
    scale(factor);
    return true;
  }

  HWY_INLINE void add(Vec<T> weight, Vec<T> k, Vec<T> v) {
    Vec<T> power = weight;
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      z[n] = hn::Add(z[n], power);
      s[n] = hn::MulAdd(power, v, s[n]);
      power = hn::Mul(power, k);
    }
  }

  /// The quotient of the two polynomials.
  template <class Powers>
  HWY_INLINE Vec<T> answer(const Powers& powers) const {
    return hn::Div(powers.template sum<kOrder>(s), powers.template sum<kOrder>(z));
  }

  HWY_INLINE bool is_direct(Vec<T> q) const {
    return HWY_LIKELY(hn::AllTrue(Tag<T>(), hn::Le(hn::Abs(q), direct_limit)));
  }
};

/// y of a row with a large q in some lane, from stored moments. Out of line: the common case keeps its
/// registers.
template <class T, int kOrder>
HWY_NOINLINE Vec<T> answer_large_query(const T* stored, Vec<T> q) {
  Moments<T, kOrder> moments;
  moments.load(stored, kLanes<T>, kLanes<T>);
  return moments.answer(HomogeneousPowers<T, kOrder>(q));
}

template <class T, int kOrder>
HWY_INLINE Vec<T> answer(const Moments<T, kOrder>& moments, Vec<T> q) {
  if (moments.is_direct(q)) {
    return moments.answer(Steps<T, kOrder>(q));
  }
  alignas(64) T stored[Moments<T, kOrder>::kRows * kLanes<T>];
  moments.store(stored, kLanes<T>, kLanes<T>);
  return answer_large_query<T, kOrder>(stored, q);
}

/// The result of function.template operator()<kOrder>(), for an even order.
template <class Function>
auto dispatch_order(int order, const Function& function) {
  switch (order) {
    case 0:
      return function.template operator()<0>();
    case 2:
      return function.template operator()<2>();
    case 4:
      return function.template operator()<4>();
    case 6:
      return function.template operator()<6>();
    case 8:
      return function.template operator()<8>();
    case 10:
      return function.template operator()<10>();
    case 12:
      return function.template operator()<12>();
    case 14:
      return function.template operator()<14>();
    case 16:
      return function.template operator()<16>();
    default:
      fail("ea_series: expected an even order from 0 to ", kEaSeriesMaxOrder, ", got ", order);
  }
}

}  // namespace elwise::cpu::HWY_NAMESPACE::ea_series
HWY_AFTER_NAMESPACE();

#endif
