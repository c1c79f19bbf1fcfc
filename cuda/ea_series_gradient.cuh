#pragma once

#include "cuda/ea_series.cuh"

// What the kernels of EA-series backward are made of; see ops/ea_series_kernels.h for the mathematics.
//
// A_n and B_n are kept without their c_n. As n c_n = 2 c_(n-1), the derivative of sum_n c_n x^n m_n is
// 2 sum_n c_n x^n m_(n+1). As a row's a carries exp(-reference^2), sums of rows are brought to the scale of
// the first, which has the largest reference, as dk and dv of earlier rows need them.

namespace elwise::cuda::ea_series {

template <class C>
struct QueryGradient {
  C a = 0, y = 0, dq = 0;
};

template <class C, int kOrder>
__device__ __forceinline__ QueryGradient<C> query_gradient(const Moments<C, kOrder>& m, C q, C dy) {
  if (m.is_empty()) return {};
  C n, d, dn, dd;  // the two polynomials, and half their derivatives
  if (is_direct(q, m.reference)) {
    n = horner<kOrder>(q, m.s());
    d = horner<kOrder>(q, m.z());
    dn = horner<kOrder - 1>(q, m.s() + 1);
    dd = horner<kOrder - 1>(q, m.z() + 1);
  } else {
    const HomogeneousPowers<C, kOrder> powers(q);
    n = powers.template sum<kOrder>(m.s());
    d = powers.template sum<kOrder>(m.z());
    dn = powers.template sum<kOrder - 1>(m.s() + 1);
    dd = powers.template sum<kOrder - 1>(m.z() + 1);
  }
  const C inverse = C(1) / d, y = n * inverse, a = dy * inverse;
  return {a, y, 2 * a * fma(-y, dd, dn)};
}

template <class C>
struct KeyGradient {
  C dk, dv;
};

/// A_n (rows 0 .. t) and B_n (rows t + 1 .. 2 t + 1), less their c_n, of one channel.
template <class C, int kOrder>
struct GradientSums {
  static constexpr int kSums = 2 * kOrder + 2;

  C sum[kSums];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < kSums; ++n) sum[n] = C(0);
  }

  __device__ __forceinline__ void scale(C factor) {
#pragma unroll
    for (int n = 0; n < kSums; ++n) sum[n] *= factor;
  }

  __device__ __forceinline__ void add_query(C q, C a, C y, C reference) {
    if (is_direct(q, reference)) {
      C term = a;
#pragma unroll
      for (int n = 0; n <= kOrder; ++n) {
        add_term(n, term, y);
        term *= q;
      }
    } else {
      const HomogeneousPowers<C, kOrder> powers(q);
#pragma unroll
      for (int n = 0; n <= kOrder; ++n) add_term(n, a * powers.power[n], y);
    }
  }

  /// With C_n = v A_n + B_n: dv = w sum_n c_n k^n A_n, dk = 2 w (sum_n c_n k^n C_(n+1) - k sum_n c_n k^n
  /// C_n).
  __device__ __forceinline__ KeyGradient<C> key_gradient(C k, C v, C weight) const {
    C mixed[kOrder + 1];
#pragma unroll
    for (int n = 0; n <= kOrder; ++n) mixed[n] = fma(v, sum[n], sum[kOrder + 1 + n]);
    // Horner's rule in k stays in range up to here: k^n A_n exp(-k^2) does, as every query in A_n was divided
    // by a sum that has this key in it.
    if (fabs(k) <= C(7)) {
      const C slope = fma(-k, horner<kOrder>(k, mixed), horner<kOrder - 1>(k, mixed + 1));
      return {2 * weight * slope, weight * horner<kOrder>(k, sum)};
    }
    // power = c_n k^n w: with the weight folded in first, nothing overflows for any k.
    C power = weight, dv = 0, by_k = 0, by_next = 0;
#pragma unroll
    for (int n = 0; n <= kOrder; ++n) {
      dv = fma(power, sum[n], dv);
      by_k = fma(power, mixed[n], by_k);
      if (n < kOrder) by_next = fma(power, mixed[n < kOrder ? n + 1 : n], by_next);
      power *= k * series_step<C>(n);
    }
    return {2 * fma(-k, by_k, by_next), dv};
  }

 private:
  __device__ __forceinline__ void add_term(int n, C term, C y) {
    sum[n] += term;
    sum[kOrder + 1 + n] = fma(-y, term, sum[kOrder + 1 + n]);
  }
};

/// The references of a part's rows, where keys still lower them.
template <class C, int kN>
struct References {
  C start[kN];  // kappa before the part's first row
  C first[kN];  // the reference of the first row that sees a key; infinite if none does
  C last[kN];   // of the last row
  bool moving;  // some reference is not 0

  __device__ __forceinline__ void begin(const C (&kappa)[kN]) {
    moving = false;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      start[i] = kappa[i];
      first[i] = last[i] = reference_of(kappa[i]);
      moving |= !(kappa[i] <= C(4));
    }
  }

  /// The references of a row, from those of no row before it: for rows in any order.
  template <class T>
  __device__ __forceinline__ void at(const Place<kN>& place, const T* k, int64_t row,
                                     C (&reference)[kN]) const {
    C kappa[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) kappa[i] = start[i];
    for (int64_t r = place.begin; r <= row; ++r) {
      if (!place.visible(r)) continue;
      const auto keys = place.read(k, r);
#pragma unroll
      for (int i = 0; i < kN; ++i) kappa[i] = fabs(keys.at[i]) < kappa[i] ? fabs(keys.at[i]) : kappa[i];
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) reference[i] = reference_of(kappa[i]);
  }
};

/// A, B of the part's queries, at the scale of references.first.
template <class T, int kOrder, int kN>
__device__ __forceinline__ void sum_queries(const Place<kN>& place, const T* q, const T* k, const T* a,
                                            const T* y, References<Compute<T>, kN>& references,
                                            GradientSums<Compute<T>, kOrder> (&sums)[kN]) {
  using C = Compute<T>;
#pragma unroll
  for (int i = 0; i < kN; ++i) sums[i].clear();
#pragma unroll 2
  for (int64_t row = place.begin; row < place.end; ++row) {
    const auto queries = place.read(q, row), as = place.read(a, row), ys = place.read(y, row);
    C reference[kN], factor[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      reference[i] = C(0);
      factor[i] = C(1);
    }
    if (references.moving) {
      references.at(place, k, row, reference);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        references.last[i] = reference[i];
        if (!(references.first[i] < C(INFINITY))) references.first[i] = reference[i];
        factor[i] = scale_ratio(reference[i], references.first[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      sums[i].add_query(queries.at[i], as.at[i] * factor[i], ys.at[i], reference[i]);
    }
  }
}

/// Adds up the parts' sums and writes them, and the scale they are at, to `to`, [2 t + 3, channels].
template <class C, int kOrder, int kN>
__device__ void store_chunk_sums(const Place<kN>& place, const References<C, kN>& references,
                                 Exchange<C, kN>& exchange, GradientSums<C, kOrder> (&sums)[kN], C* to) {
  constexpr int kSums = GradientSums<C, kOrder>::kSums;
#pragma unroll
  for (int i = 0; i < kN; ++i) exchange.scale[place.part][place.group].at[i] = references.first[i];
  const bool moving = __syncthreads_or(references.moving);
  Vector<C, kN> first;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    first.at[i] = C(INFINITY);
    for (int u = kParts - 1; u >= 0; --u) {
      const C other = exchange.scale[u][place.group].at[i];
      if (other < C(INFINITY)) first.at[i] = other;
    }
  }
  to += place.channel;
  if (place.part == kParts - 1) place.write_at(to + kSums * place.sequence.channels, first);
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    auto& rows = exchange.row[n & 1];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      C own = sums[i].sum[n];
      if (moving && references.first[i] < C(INFINITY)) own *= scale_ratio(references.first[i], first.at[i]);
      rows[place.part][place.group].at[i] = own;
    }
    __syncthreads();
    if (place.part != n % kParts) continue;
    Vector<C, kN> total = rows[0][place.group];
    for (int u = 1; u < kParts; ++u) {
#pragma unroll
      for (int i = 0; i < kN; ++i) total.at[i] += rows[u][place.group].at[i];
    }
    place.write_at(to + n * place.sequence.channels, total);
  }
}

/// The tensors of a problem. a and y stand in dv and dk until these are written.
template <class T>
struct Tensors {
  const T *q, *k, *v, *dy;
  T *dq, *dk, *dv;
};

/// Writes dq, a and y of the part's rows. kAddKeys: each row's key joins the moments first.
template <bool kAddKeys, class T, int kOrder, int kN>
__device__ __forceinline__ void walk_queries(const Place<kN>& place, const Tensors<T>& tensors,
                                             Moments<Compute<T>, kOrder> (&m)[kN]) {
  using C = Compute<T>;
#pragma unroll 1
  for (int64_t row = place.begin; row < place.end; ++row) {
    const auto queries = place.read(tensors.q, row), dys = place.read(tensors.dy, row);
    Vector<C, kN> dq, a, y;
    if (kAddKeys && place.visible(row)) {
      const auto keys = place.read(tensors.k, row), values = place.read(tensors.v, row);
#pragma unroll
      for (int i = 0; i < kN; ++i) m[i].add_key(keys.at[i], values.at[i]);
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const QueryGradient<C> gradient = query_gradient(m[i], queries.at[i], dys.at[i]);
      dq.at[i] = gradient.dq;
      a.at[i] = gradient.a;
      y.at[i] = gradient.y;
    }
    place.write(tensors.dq, row, dq);
    place.write(tensors.dv, row, a);
    place.write(tensors.dk, row, y);
  }
}

/// The reverse of start_parts: replaces each part's sums by those of all queries after it, at the scale of
/// references.last. `after`: [2 t + 2, channels].
template <class C, int kOrder, int kN>
__device__ void start_parts_back(const Place<kN>& place, const C* after, const References<C, kN>& references,
                                 Exchange<C, kN>& exchange, GradientSums<C, kOrder> (&sums)[kN]) {
  constexpr int kSums = GradientSums<C, kOrder>::kSums;
#pragma unroll
  for (int i = 0; i < kN; ++i) exchange.scale[place.part][place.group].at[i] = references.first[i];
  // The reference at the chunk's end, through the second row of the exchange, which is used last.
  auto& ends = exchange.row[1];
#pragma unroll
  for (int i = 0; i < kN; ++i) ends[place.part][place.group].at[i] = references.last[i];
  const bool moving = __syncthreads_or(references.moving);
  C end_factor[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    const C end = ends[kParts - 1][place.group].at[i];
    end_factor[i] = moving ? scale_ratio(end, references.last[i]) : C(1);
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    auto& rows = exchange.row[n & 1];
#pragma unroll
    for (int i = 0; i < kN; ++i) rows[place.part][place.group].at[i] = sums[i].sum[n];
    __syncthreads();
    const Vector<C, kN> later = place.read_at(after + n * place.sequence.channels + place.channel);
    C total[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) total[i] = later.at[i] * end_factor[i];
    for (int u = kParts - 1; u > place.part; --u) {
      const Vector<C, kN> other = rows[u][place.group];
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        C term = other.at[i];
        if (moving) term *= scale_ratio(exchange.scale[u][place.group].at[i], references.last[i]);
        total[i] += term;
      }
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) sums[i].sum[n] = total[i];
  }
}

/// kappa before the part's first row, from that before the chunk.
template <class T, int kN>
__device__ __forceinline__ void start_kappas(const Place<kN>& place, const T* k, const Compute<T>* before,
                                             Exchange<Compute<T>, kN>& exchange, Compute<T> (&kappa)[kN]) {
  using C = Compute<T>;
  const Vector<C, kN> chunk = place.read_at(before + place.channel);
  bool moving = false;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    kappa[i] = chunk.at[i];
    moving |= !(kappa[i] <= C(4));
  }
  if (!__syncthreads_or(moving)) return;
  Vector<C, kN> own;
#pragma unroll
  for (int i = 0; i < kN; ++i) own.at[i] = C(INFINITY);
  for (int64_t row = place.begin; row < place.end; ++row) {
    if (!place.visible(row)) continue;
    const auto keys = place.read(k, row);
#pragma unroll
    for (int i = 0; i < kN; ++i) own.at[i] = fabs(keys.at[i]) < own.at[i] ? fabs(keys.at[i]) : own.at[i];
  }
  exchange.scale[place.part][place.group] = own;
  __syncthreads();
  for (int u = 0; u < place.part; ++u) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const C other = exchange.scale[u][place.group].at[i];
      kappa[i] = other < kappa[i] ? other : kappa[i];
    }
  }
  __syncthreads();  // the exchange is free again
}

/// dk and dv of a row, 0 for a hidden key.
template <class T, int kOrder, int kN>
__device__ __forceinline__ void write_key_gradients(const Place<kN>& place, const Tensors<T>& tensors,
                                                    int64_t row, const Compute<T> (&reference)[kN],
                                                    const GradientSums<Compute<T>, kOrder> (&sums)[kN]) {
  using C = Compute<T>;
  Vector<C, kN> dk, dv;
  if (place.visible(row)) {
    const auto keys = place.read(tensors.k, row), values = place.read(tensors.v, row);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const C weight = key_weight(reference[i], fabs(keys.at[i]));
      const KeyGradient<C> gradient = sums[i].key_gradient(keys.at[i], values.at[i], weight);
      dk.at[i] = gradient.dk;
      dv.at[i] = gradient.dv;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kN; ++i) dk.at[i] = dv.at[i] = C(0);
  }
  place.write(tensors.dk, row, dk);
  place.write(tensors.dv, row, dv);
}

}  // namespace elwise::cuda::ea_series
