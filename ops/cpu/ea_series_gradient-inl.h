// The rows' part of EA-series backward, one vector of channels at a time; see ops/ea_series_kernels.h for the
// mathematics and ops/cpu/ea_series-inl.h for the scales. Included by ea_series_backward.cpp, once per
// target.
//
// A_n and B_n are kept without their c_n. As n c_n = 2 c_(n-1), the derivative of sum_n c_n x^n m_n is
// 2 sum_n c_n x^n m_(n+1).

#if defined(ELWISE_OPS_CPU_EA_SERIES_GRADIENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_EA_SERIES_GRADIENT_INL_H_
#undef ELWISE_OPS_CPU_EA_SERIES_GRADIENT_INL_H_
#else
#define ELWISE_OPS_CPU_EA_SERIES_GRADIENT_INL_H_
#endif

#include <hwy/highway.h>

#include "ops/cpu/ea_series_steady-inl.h"
#include "ops/cpu/ea_series_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::ea_series {

template <class T>
struct BackwardTensors {
  const T* q;
  const T* k;
  const T* v;
  const T* dy;
  T* dq;
  T* dk;
  T* dv;

  BackwardTensors at(int64_t offset) const {
    return {q + offset, k + offset, v + offset, dy + offset, dq + offset, dk + offset, dv + offset};
  }
};

/// At most a chunk of rows of one vector of channels.
template <class T>
struct BackwardRows : BackwardTensors<T> {
  Compute<T>* moments;  // [kRows, kLanes]: those before the first row, or the totals; causal: overwritten
  const bool* visible;
  int64_t rows;
  int64_t stride;
  VectorsAhead<Compute<T>> ahead;
  bool stream;

  /// Asks for the line that is written `next` elements from the walk's first.
  HWY_INLINE void prefetch_to_write(const T* tensor, int64_t next) const {
    if (!stream) prefetch_far_to_write(tensor + next);
  }
};

/// What the queries' part leaves, row by row, for the sums A, B and the keys' part.
template <class T>
struct Scratch {
  static constexpr int64_t kSize = kEaSeriesChunk * kLanes<T>;

  alignas(64) T a[kSize];  // dy over the denominator
  alignas(64) T y[kSize];
  alignas(64) T weight[kSize];  // of the row's key
  alignas(64) T factor[kSize];  // what the row's key multiplied the moments by, if `moved`
  bool moved[kEaSeriesChunk];
  bool direct[kEaSeriesChunk];  // a goes with the powers of q; otherwise with the homogeneous ones
};

/// Horner's rule in k stays in range up to here: k^n A_n exp(-k^2) does, as every query in A_n was divided by
/// a sum that has this key in it.
inline constexpr double kDirectKey = 7;

template <class T>
struct QueryGradient {
  Vec<T> a, y, dq;
};

template <class T, int kOrder, class Powers>
HWY_INLINE QueryGradient<T> query_gradient(const Moments<T, kOrder>& m, const Powers& x, Vec<T> dy) {
  const Vec<T> inverse = hn::Div(constant<T>(1), x.template sum<kOrder>(m.z));
  const Vec<T> y = hn::Mul(x.template sum<kOrder>(m.s), inverse), a = hn::Mul(dy, inverse);
  const Vec<T> slope =
      hn::NegMulAdd(y, x.template sum<kOrder - 1>(m.z + 1), x.template sum<kOrder - 1>(m.s + 1));
  return {a, y, hn::Mul(hn::Add(a, a), slope)};
}

/// For a row with a large q in some lane, from stored moments. Out of line, as the other rare cases below:
/// the common case keeps its registers.
template <class T, int kOrder>
HWY_NOINLINE QueryGradient<T> large_query_gradient(const T* stored, Vec<T> q, Vec<T> dy) {
  Moments<T, kOrder> moments;
  moments.load(stored, kLanes<T>, kLanes<T>);
  return query_gradient(moments, HomogeneousPowers<T, kOrder>(q), dy);
}

/// dq of rows [begin, end), and their scratch. kAddKeys: each row's key joins the moments first.
template <bool kAddKeys, class T, int kOrder>
HWY_INLINE void walk_queries(const BackwardRows<T> rows, int64_t begin, int64_t end,
                             Moments<T, kOrder>& moments, Scratch<T>& scratch) {
  const Tag<T> d;
  auto ahead = rows.ahead.from(begin);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * rows.stride, next = ahead.next(), kept = row * kLanes<T>;
    prefetch_far(rows.q + next);
    prefetch_far(rows.dy + next);
    rows.prefetch_to_write(rows.dq, next);
    if constexpr (kAddKeys) {
      prefetch_far(rows.k + next);
      prefetch_far(rows.v + next);
      scratch.moved[row] = false;
      if (rows.visible[row]) {
        const Vec<T> k = hn::LoadU(d, rows.k + at), v = hn::LoadU(d, rows.v + at), magnitude = hn::Abs(k);
        Vec<T> factor;
        if (moments.meet(magnitude, factor)) {
          scratch.moved[row] = true;
          hn::Store(factor, d, scratch.factor + kept);
        }
        const Vec<T> weight = scale_ratio<T>(moments.reference, magnitude);
        hn::Store(weight, d, scratch.weight + kept);
        moments.add(weight, k, v);
      }
    }
    const Vec<T> q = hn::LoadU(d, rows.q + at), dy = hn::LoadU(d, rows.dy + at);
    QueryGradient<T> gradient;
    scratch.direct[row] = moments.is_direct(q);
    if (scratch.direct[row]) {
      gradient = query_gradient(moments, Steps<T, kOrder>(q), dy);
    } else {
      alignas(64) T stored[Moments<T, kOrder>::kRows * kLanes<T>];
      moments.store(stored, kLanes<T>, kLanes<T>);
      gradient = large_query_gradient<T, kOrder>(stored, q, dy);
    }
    hn::Store(gradient.a, d, scratch.a + kept);
    hn::Store(gradient.y, d, scratch.y + kept);
    store_lanes(d, gradient.dq, rows.dq + at, kLanes<T>, rows.stream);
  }
}

/// walk_queries<true> from `row` on, as long as the rows are steady. Returns the first that is not.
template <class T, int kOrder>
HWY_INLINE int64_t walk_steady_queries(const BackwardRows<T> rows, int64_t row, Moments<T, kOrder>& moments,
                                       Scratch<T>& scratch) {
  const Tag<T> d;
  const Vec<T> key_limit = constant<T>(kDirectKey);
  auto ahead = rows.ahead.from(row);
  while (row < rows.rows) {
    const int64_t end = std::min(row + kSteadyRows, rows.rows);
    if (!weigh_steady_rows(rows, row, end, moments, key_limit, scratch.weight + row * kLanes<T>)) break;
    for (; row < end; ++row) {
      const int64_t at = row * rows.stride, next = ahead.next(), kept = row * kLanes<T>;
      for (const T* tensor : {rows.q, rows.k, rows.v, rows.dy}) prefetch_far(tensor + next);
      rows.prefetch_to_write(rows.dq, next);
      moments.add(hn::Load(d, scratch.weight + kept), hn::LoadU(d, rows.k + at), hn::LoadU(d, rows.v + at));
      const QueryGradient<T> gradient =
          query_gradient(moments, Steps<T, kOrder>(hn::LoadU(d, rows.q + at)), hn::LoadU(d, rows.dy + at));
      hn::Store(gradient.a, d, scratch.a + kept);
      hn::Store(gradient.y, d, scratch.y + kept);
      store_lanes(d, gradient.dq, rows.dq + at, kLanes<T>, rows.stream);
    }
  }
  return row;
}

/// terms[n] = a q^n s^(t-n) for a row with a large q in some lane.
template <class T, int kOrder>
HWY_NOINLINE void large_query_terms(Vec<T> q, Vec<T> a, T* terms) {
  const Tag<T> d;
  const HomogeneousPowers<T, kOrder> powers(q);
  for (int n = 0; n <= kOrder; ++n) hn::Store(hn::Mul(a, powers.power[n]), d, terms + n * kLanes<T>);
}

template <class T>
struct KeyGradient {
  Vec<T> dk, dv;
};

/// power[n] = c_n k^n w: with the weight folded in first, nothing overflows for any k.
template <class T, int kOrder>
struct WeightedPowers {
  Vec<T> power[kOrder + 1];

  HWY_INLINE WeightedPowers(Vec<T> k, Vec<T> weight) {
    const Steps<T, kOrder> steps(k);
    power[0] = weight;
#pragma GCC unroll 17
    for (int n = 0; n < kOrder; ++n) power[n + 1] = hn::Mul(power[n], steps.step[n]);
  }

  template <int kDegree>
  HWY_INLINE Vec<T> sum(const Vec<T>* m) const {
    Vec<T> result = hn::Zero(Tag<T>());
#pragma GCC unroll 17
    for (int n = 0; n <= kDegree; ++n) result = hn::MulAdd(power[n], m[n], result);
    return result;
  }
};

/// A_n and B_n, less their c_n, of the queries added so far, in the registers of one vector of channels.
template <class T, int kOrder>
struct GradientSums {
  static constexpr int64_t kRows = 2 * kOrder + 2;

  Vec<T> a[kOrder + 1];
  Vec<T> b[kOrder + 1];

  HWY_INLINE void clear() {
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) a[n] = b[n] = hn::Zero(Tag<T>());
  }

  HWY_INLINE void load(const T* from) {
    const Tag<T> d;
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      a[n] = hn::Load(d, from + n * kLanes<T>);
      b[n] = hn::Load(d, from + (kOrder + 1 + n) * kLanes<T>);
    }
  }

  HWY_INLINE void store(T* to) const {
    const Tag<T> d;
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      hn::Store(a[n], d, to + n * kLanes<T>);
      hn::Store(b[n], d, to + (kOrder + 1 + n) * kLanes<T>);
    }
  }

  HWY_INLINE void scale(Vec<T> factor) {
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      a[n] = hn::Mul(a[n], factor);
      b[n] = hn::Mul(b[n], factor);
    }
  }

  /// Adds what another block of queries summed.
  HWY_INLINE void add(const T* stored) {
    const Tag<T> d;
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) {
      a[n] = hn::Add(a[n], hn::Load(d, stored + n * kLanes<T>));
      b[n] = hn::Add(b[n], hn::Load(d, stored + (kOrder + 1 + n) * kLanes<T>));
    }
  }

  /// Adds a query with the a and y of its row.
  HWY_INLINE void add_query(Vec<T> q, Vec<T> row_a, Vec<T> row_y, bool direct) {
    if (HWY_LIKELY(direct)) {
      Vec<T> term = row_a;
#pragma GCC unroll 17
      for (int n = 0; n <= kOrder; ++n) {
        add_term(n, term, row_y);
        term = hn::Mul(term, q);
      }
    } else {
      alignas(64) T terms[(kOrder + 1) * kLanes<T>];
      large_query_terms<T, kOrder>(q, row_a, terms);
#pragma GCC unroll 17
      for (int n = 0; n <= kOrder; ++n) add_term(n, hn::Load(Tag<T>(), terms + n * kLanes<T>), row_y);
    }
  }

  /// With C_n = v A_n + B_n: dv = w sum_n c_n k^n A_n, dk = 2 w (sum_n c_n k^n C_(n+1) - k sum_n c_n k^n
  /// C_n). x and w together make the powers c_n k^n w.
  template <class Powers>
  HWY_INLINE KeyGradient<T> key_gradient(const Powers& x, Vec<T> w, Vec<T> k, Vec<T> v) const {
    Vec<T> c[kOrder + 1];
#pragma GCC unroll 17
    for (int n = 0; n <= kOrder; ++n) c[n] = hn::MulAdd(v, a[n], b[n]);
    const Vec<T> slope = hn::NegMulAdd(k, x.template sum<kOrder>(c), x.template sum<kOrder - 1>(c + 1));
    return {hn::Mul(hn::Add(w, w), slope), hn::Mul(w, x.template sum<kOrder>(a))};
  }

 private:
  HWY_INLINE void add_term(int n, Vec<T> term, Vec<T> row_y) {
    a[n] = hn::Add(a[n], term);
    b[n] = hn::NegMulAdd(row_y, term, b[n]);
  }
};

template <class T, int kOrder>
HWY_NOINLINE KeyGradient<T> large_key_gradient(const T* stored, Vec<T> weight, Vec<T> k, Vec<T> v) {
  GradientSums<T, kOrder> sums;
  sums.load(stored);
  return sums.key_gradient(WeightedPowers<T, kOrder>(k, weight), constant<T>(1), k, v);
}

/// dk and dv of a row whose key has the weight exp(reference^2 - k^2).
template <class T, int kOrder>
HWY_INLINE void write_key_gradient(const BackwardRows<T>& rows, int64_t at,
                                   const GradientSums<T, kOrder>& sums, Vec<T> weight) {
  const Tag<T> d;
  const Vec<T> k = hn::LoadU(d, rows.k + at), v = hn::LoadU(d, rows.v + at);
  KeyGradient<T> gradient;
  if (HWY_LIKELY(hn::AllTrue(d, hn::Le(hn::Abs(k), constant<T>(kDirectKey))))) {
    gradient = sums.key_gradient(Steps<T, kOrder>(k), weight, k, v);
  } else {
    alignas(64) T stored[GradientSums<T, kOrder>::kRows * kLanes<T>];
    sums.store(stored);
    gradient = large_key_gradient<T, kOrder>(stored, weight, k, v);
  }
  store_lanes(d, gradient.dk, rows.dk + at, kLanes<T>, rows.stream);
  store_lanes(d, gradient.dv, rows.dv + at, kLanes<T>, rows.stream);
}

template <class T>
HWY_INLINE void write_hidden_key(const BackwardRows<T>& rows, int64_t at) {
  store_lanes(Tag<T>(), hn::Zero(Tag<T>()), rows.dk + at, kLanes<T>, rows.stream);
  store_lanes(Tag<T>(), hn::Zero(Tag<T>()), rows.dv + at, kLanes<T>, rows.stream);
}

/// What follows each row's query on the way back. Causal: the sums pass on to the scale of the row before,
/// for kKeys once the row's key took its gradient from them.
enum class Back { kSums, kScaledSums, kKeys };

/// Adds the queries of rows [begin, end) to the sums, from the last row to the first.
template <Back kBack, class T, int kOrder>
HWY_INLINE void walk_back(const BackwardRows<T> rows, int64_t begin, int64_t end, const Scratch<T>& scratch,
                          GradientSums<T, kOrder>& sums) {
  const Tag<T> d;
  auto ahead = rows.ahead.from(rows.rows - end);
  for (int64_t row = end - 1; row >= begin; --row) {
    const int64_t at = row * rows.stride, next = ahead.next(), kept = row * kLanes<T>;
    if constexpr (kBack == Back::kKeys) {
      rows.prefetch_to_write(rows.dk, next);
      rows.prefetch_to_write(rows.dv, next);
    }
    sums.add_query(hn::LoadU(d, rows.q + at), hn::Load(d, scratch.a + kept), hn::Load(d, scratch.y + kept),
                   scratch.direct[row]);
    if constexpr (kBack == Back::kKeys) {
      if (rows.visible[row]) {
        write_key_gradient(rows, at, sums, hn::Load(d, scratch.weight + kept));
      } else {
        write_hidden_key(rows, at);
      }
    }
    if constexpr (kBack != Back::kSums) {
      if (HWY_UNLIKELY(scratch.moved[row])) sums.scale(hn::Load(d, scratch.factor + kept));
    }
  }
}

/// walk_back<Back::kKeys> of steady rows.
template <class T, int kOrder>
HWY_INLINE void walk_steady_back(const BackwardRows<T> rows, int64_t begin, int64_t end,
                                 const Scratch<T>& scratch, GradientSums<T, kOrder>& sums) {
  const Tag<T> d;
  auto ahead = rows.ahead.from(rows.rows - end);
  for (int64_t row = end - 1; row >= begin; --row) {
    const int64_t at = row * rows.stride, next = ahead.next(), kept = row * kLanes<T>;
    rows.prefetch_to_write(rows.dk, next);
    rows.prefetch_to_write(rows.dv, next);
    sums.add_query(hn::LoadU(d, rows.q + at), hn::Load(d, scratch.a + kept), hn::Load(d, scratch.y + kept),
                   /*direct=*/true);
    const Vec<T> k = hn::LoadU(d, rows.k + at), v = hn::LoadU(d, rows.v + at);
    const KeyGradient<T> gradient =
        sums.key_gradient(Steps<T, kOrder>(k), hn::Load(d, scratch.weight + kept), k, v);
    store_lanes(d, gradient.dk, rows.dk + at, kLanes<T>, rows.stream);
    store_lanes(d, gradient.dv, rows.dv + at, kLanes<T>, rows.stream);
  }
}

template <class T, int kOrder>
HWY_INLINE void walk_keys(const BackwardRows<T> rows, const GradientSums<T, kOrder>& sums, Vec<T> reference) {
  const Tag<T> d;
  auto ahead = rows.ahead.from(0);
  for (int64_t row = 0; row < rows.rows; ++row) {
    const int64_t at = row * rows.stride, next = ahead.next();
    prefetch_far(rows.k + next);
    prefetch_far(rows.v + next);
    rows.prefetch_to_write(rows.dk, next);
    rows.prefetch_to_write(rows.dv, next);
    if (rows.visible[row]) {
      const Vec<T> weight = scale_ratio<T>(reference, hn::Abs(hn::LoadU(d, rows.k + at)));
      write_key_gradient(rows, at, sums, weight);
    } else {
      write_hidden_key(rows, at);
    }
  }
}

}  // namespace elwise::cpu::HWY_NAMESPACE::ea_series
HWY_AFTER_NAMESPACE();

#endif
