#pragma once

#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "ops/ea_series_kernels.h"

// What the EA-series kernels share; see ops/ea_series_kernels.h for the mathematics.
//
// A block takes one chunk of kEaSeriesChunk rows and a run of channels. Its threads form a grid of kGroups x
// kParts: thread (group, part) owns a few neighbouring channels in the part's rows, their moments in
// registers. Parts pass their sums on through shared memory, chunks through global memory: sums of chunks,
// a scan over them, and a second pass over the rows.
//
// Scale: while kappa, the running minimum of |k|, is above 4 the moments carry the factor exp(kappa^2), and
// none once it is below ("reference", 0 then): weights are at most 1, sums cannot underflow (e^-16 is the
// worst), and but for the first rows no thread has to rescale anything.

namespace elwise::cuda::ea_series {

inline constexpr int kGroups = 16;
inline constexpr int kParts = 16;
inline constexpr int kPartRows = static_cast<int>(kEaSeriesChunk) / kParts;
inline constexpr int kBlockThreads = kGroups * kParts;
static_assert(kPartRows * kParts == kEaSeriesChunk);

/// Channels of a thread: 16 bytes of f32 or f64 up to order 6; half of it above, where the moments of more
/// channels would not fit the registers.
template <class T, int kOrder>
inline constexpr int kWidth = (kOrder <= 6 ? 16 : 8) / static_cast<int>(sizeof(Compute<T>));

template <int kOrder>
inline constexpr int64_t kCarryRows = ea_series_carry_rows(kOrder);

/// The layout of tensors [batch, length, channels]. `aligned`: every row of every tensor allows the threads'
/// vectors.
struct Sequence {
  int64_t length;
  int64_t channels;
  const bool* key_mask;
  bool aligned;
};

/// Where a thread stands: the first of its kN channels, `left` of which exist, and its rows [begin, end).
template <int kN>
struct Place {
  Sequence sequence;
  int64_t batch = blockIdx.z;
  int64_t chunk = blockIdx.y;
  int group = threadIdx.x;
  int part = threadIdx.y;
  int64_t channel;
  int left;
  int64_t begin;
  int64_t end;

  __device__ __forceinline__ explicit Place(const Sequence& s) : sequence(s) {
    channel = (int64_t{blockIdx.x} * kGroups + group) * kN;
    const int64_t rest = s.channels - channel;
    left = rest >= kN ? kN : rest > 0 ? static_cast<int>(rest) : 0;
    const int64_t first = chunk * kEaSeriesChunk + part * kPartRows;
    begin = first < s.length ? first : s.length;
    end = first + kPartRows < s.length ? first + kPartRows : s.length;
  }

  __device__ __forceinline__ bool visible(int64_t row) const {
    return sequence.key_mask == nullptr || sequence.key_mask[batch * sequence.length + row];
  }

  template <class T>
  __device__ __forceinline__ Vector<Compute<T>, kN> read(const T* tensor, int64_t row) const {
    return read_at(tensor + (batch * sequence.length + row) * sequence.channels + channel);
  }
  template <class T, class C>
  __device__ __forceinline__ void write(T* tensor, int64_t row, const Vector<C, kN>& value) const {
    write_at(tensor + (batch * sequence.length + row) * sequence.channels + channel, value);
  }

  /// The thread's channels of memory that a row of `sums` begins: [.., channels].
  template <class T>
  __device__ __forceinline__ Vector<Compute<T>, kN> read_at(const T* from) const {
    Vector<Compute<T>, kN> result;
    if (sequence.aligned && left == kN) {
      const Vector<T, kN> stored = load<kN>(from);
#pragma unroll
      for (int i = 0; i < kN; ++i) result.at[i] = static_cast<Compute<T>>(stored.at[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) result.at[i] = i < left ? static_cast<Compute<T>>(from[i]) : Compute<T>(0);
    }
    return result;
  }
  template <class T, class C>
  __device__ __forceinline__ void write_at(T* to, const Vector<C, kN>& value) const {
    if (sequence.aligned && left == kN) {
      Vector<T, kN> stored;
#pragma unroll
      for (int i = 0; i < kN; ++i) stored.at[i] = T(value.at[i]);
      store_at_once(to, stored);
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (i < left) to[i] = T(value.at[i]);
      }
    }
  }
};

/// The sums carry exp(reference^2). Infinite where no key was seen.
template <class C>
__device__ __forceinline__ C reference_of(C kappa) {
  return kappa > C(4) ? kappa : C(0);
}

/// exp(to^2 - from^2) for 0 <= to <= from, and 0 where `from` is infinite: nothing was summed there.
template <class C>
__device__ __forceinline__ C scale_ratio(C to, C from) {
  return from < C(INFINITY) ? exp((to - from) * (to + from)) : C(0);
}

/// Of a key: exp(reference^2 - k^2). A NaN gives NaN.
template <class C>
__device__ __forceinline__ C key_weight(C reference, C magnitude) {
  return exp((reference - magnitude) * (reference + magnitude));
}

/// c_n = 2^n / n! = the product of 2 / (m + 1) over m < n.
template <class C>
__device__ constexpr C series_step(int n) {
  return C(2.0 / (n + 1));
}

/// sum_n c_n x^n m[n] for n = 0 .. kDegree, by Horner's rule.
template <int kDegree, class C>
__device__ __forceinline__ C horner(C x, const C* m) {
  if constexpr (kDegree < 0) return C(0);
  C result = m[kDegree < 0 ? 0 : kDegree];
#pragma unroll
  for (int n = kDegree - 1; n >= 0; --n) result = fma(result, x * series_step<C>(n), m[n]);
  return result;
}

/// power[n] = q^n s^(t-n), s = 1 / max(1, |q|): the factor s^t, which cancels in every quotient, keeps both
/// polynomials in range for any q.
template <class C, int kOrder>
struct HomogeneousPowers {
  C power[kOrder + 1];

  __device__ __forceinline__ explicit HomogeneousPowers(C q) {
    const C magnitude = fabs(q), s = C(1) / (magnitude > C(1) ? magnitude : C(1)), unit = q * s;
    power[0] = C(1);
#pragma unroll
    for (int n = 1; n <= kOrder; ++n) power[n] = power[n - 1] * unit;
    C shrink = s;
#pragma unroll
    for (int n = kOrder - 1; n >= 0; --n) {
      power[n] *= shrink;
      shrink *= s;
    }
  }

  /// sum_n c_n power[n] m[n] for n = 0 .. kDegree.
  template <int kDegree>
  __device__ __forceinline__ C sum(const C* m) const {
    C result = 0, c = 1;
#pragma unroll
    for (int n = 0; n <= kDegree; ++n) {
      result = fma(power[n] * c, m[n], result);
      c *= series_step<C>(n);
    }
    return result;
  }
};

/// Up to here Horner's rule in q stays in range.
template <class C>
__device__ __forceinline__ bool is_direct(C q, C reference) {
  return fabs(q) * (reference > C(1) ? reference : C(1)) <= C(16);
}

/// S_n (rows 0 .. t), Z_n (rows t + 1 .. 2 t + 1) and kappa of the keys added so far, of one channel.
template <class C, int kOrder>
struct Moments {
  static constexpr int kSums = 2 * kOrder + 2;

  C sum[kSums];
  C kappa;
  C reference;

  __device__ __forceinline__ const C* s() const { return sum; }
  __device__ __forceinline__ const C* z() const { return sum + kOrder + 1; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < kSums; ++n) sum[n] = C(0);
    set_kappa(C(INFINITY));
  }

  __device__ __forceinline__ void set_kappa(C value) {
    kappa = value;
    reference = reference_of(value);
  }

  /// Z_0 is positive, or NaN, as soon as there is a key.
  __device__ __forceinline__ bool is_empty() const {
    return sum[kOrder + 1] == C(0);
  }

  __device__ __forceinline__ void scale(C factor) {
#pragma unroll
    for (int n = 0; n < kSums; ++n) sum[n] *= factor;
  }

  /// Lowers kappa to the |k| of a new key and returns its weight.
  __device__ __forceinline__ C meet(C k) {
    const C magnitude = fabs(k);
    if (magnitude < kappa) {
      const C before = reference;
      set_kappa(magnitude);
      if (reference < before) scale(scale_ratio(reference, before));
    }
    return key_weight(reference, magnitude);
  }

  __device__ __forceinline__ void add_key(C k, C v) {
    C power = meet(k);
#pragma unroll
    for (int n = 0; n <= kOrder; ++n) {
      sum[kOrder + 1 + n] += power;
      sum[n] = fma(power, v, sum[n]);
      power *= k;
    }
  }

  __device__ __forceinline__ C answer(C q) const {
    if (is_empty()) return C(0);
    if (is_direct(q, reference)) return horner<kOrder>(q, s()) / horner<kOrder>(q, z());
    const HomogeneousPowers<C, kOrder> powers(q);
    return powers.template sum<kOrder>(s()) / powers.template sum<kOrder>(z());
  }
};

/// A carry's sums have the factor exp(kappa^2), be kappa large or small; what brings them to the reference.
template <class C>
__device__ __forceinline__ C from_carry_scale(C kappa) {
  return kappa > C(4) ? C(1) : exp(-kappa * kappa);
}
template <class C>
__device__ __forceinline__ C to_carry_scale(C kappa) {
  return kappa > C(4) ? C(1) : exp(kappa * kappa);
}

/// Adds the visible keys of the thread's rows.
template <class T, int kOrder, int kN>
__device__ __forceinline__ void add_keys(const Place<kN>& place, const T* __restrict__ k,
                                         const T* __restrict__ v, Moments<Compute<T>, kOrder> (&m)[kN]) {
#pragma unroll 2
  for (int64_t row = place.begin; row < place.end; ++row) {
    if (!place.visible(row)) continue;
    const auto keys = place.read(k, row), values = place.read(v, row);
#pragma unroll
    for (int i = 0; i < kN; ++i) m[i].add_key(keys.at[i], values.at[i]);
  }
}

/// Shared memory through which the parts of a block pass one row of sums at a time: two rows, so that one
/// barrier a row is enough.
template <class C, int kN>
struct Exchange {
  Vector<C, kN> row[2][kParts][kGroups];
  Vector<C, kN> scale[kParts][kGroups];  // each part's reference or kappa
};

/// Replaces the moments of each part by those of all keys before it: `carry`, [kSums + 1, channels] in carry
/// scale, and the parts before.
template <class C, int kOrder, int kN>
__device__ void start_parts(const Place<kN>& place, const C* carry, Exchange<C, kN>& exchange,
                            Moments<C, kOrder> (&m)[kN]) {
  constexpr int kSums = Moments<C, kOrder>::kSums;
  const Vector<C, kN> before = place.read_at(carry + kSums * place.sequence.channels + place.channel);
  bool rescales = false;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    exchange.scale[place.part][place.group].at[i] = m[i].kappa;
    rescales |= (m[i].kappa > C(4) && m[i].kappa < C(INFINITY)) ||
                (before.at[i] > C(4) && before.at[i] < C(INFINITY));
  }
  rescales = __syncthreads_or(rescales);
  C own_carry_factor[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    C kappa = before.at[i];
    for (int u = 0; u < place.part; ++u) {
      const C other = exchange.scale[u][place.group].at[i];
      kappa = other < kappa ? other : kappa;
    }
    m[i].set_kappa(kappa);
    own_carry_factor[i] = from_carry_scale(before.at[i]);
    if (rescales) own_carry_factor[i] *= scale_ratio(m[i].reference, reference_of(before.at[i]));
  }
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    auto& rows = exchange.row[n & 1];
#pragma unroll
    for (int i = 0; i < kN; ++i) rows[place.part][place.group].at[i] = m[i].sum[n];
    __syncthreads();
    const Vector<C, kN> carried = place.read_at(carry + n * place.sequence.channels + place.channel);
    C total[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) total[i] = carried.at[i] * own_carry_factor[i];
    for (int u = 0; u < place.part; ++u) {
      const Vector<C, kN> other = rows[u][place.group];
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        C term = other.at[i];
        if (rescales) {
          term *= scale_ratio(m[i].reference, reference_of(exchange.scale[u][place.group].at[i]));
        }
        total[i] += term;
      }
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) m[i].sum[n] = total[i];
  }
}

/// Moments of one channel run from memory in carry scale.
template <class C, int kOrder, int kN>
__device__ __forceinline__ void load_carry(const Place<kN>& place, const C* carry,
                                           Moments<C, kOrder> (&m)[kN]) {
  constexpr int kSums = Moments<C, kOrder>::kSums;
  const Vector<C, kN> kappa = place.read_at(carry + kSums * place.sequence.channels + place.channel);
  C factor[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    m[i].set_kappa(kappa.at[i]);
    factor[i] = from_carry_scale(kappa.at[i]);
  }
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    const Vector<C, kN> row = place.read_at(carry + n * place.sequence.channels + place.channel);
#pragma unroll
    for (int i = 0; i < kN; ++i) m[i].sum[n] = row.at[i] * factor[i];
  }
}

/// Blocks and threads of the kernels above.
template <int kN>
LaunchShape chunk_shape(int64_t batch, int64_t chunks, int64_t channels) {
  return {.grid = dim3(static_cast<unsigned>(ceil_div(channels, int64_t{kGroups} * kN)),
                       static_cast<unsigned>(chunks), static_cast<unsigned>(batch)),
          .block = dim3(kGroups, kParts)};
}

/// Of the kernels with a thread per sum.
inline LaunchShape sums_of_chunks_shape(int64_t batch, int64_t sums) {
  constexpr int kSumThreads = 128;
  return {.grid = dim3(static_cast<unsigned>(ceil_div(sums, kSumThreads)), static_cast<unsigned>(batch)),
          .block = kSumThreads};
}

/// Calls function.template operator()<kOrder>() for an even order.
template <class Function>
void dispatch_order(int order, const Function& function) {
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

}  // namespace elwise::cuda::ea_series
