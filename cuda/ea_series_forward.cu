// EA-series forward (eq. 5, 6 of arXiv 2501.05730). Causal: the sums of every chunk, an exclusive scan over
// chunks, and a second pass over the rows that starts from it. Otherwise: the sums of every chunk, their
// total, and one pass over the queries. See cuda/ea_series.cuh.

#include "cuda/ea_series.cuh"

namespace elwise::cuda {
namespace ea_series {

/// sums: [batch, chunks, 2 t + 3, channels] receives each chunk's S, Z (at the scale of its reference)
/// and kappa.
template <class T, int kOrder>
__global__ void __launch_bounds__(kBlockThreads, 1)
    chunk_sums_kernel(const T* k, const T* v, Compute<T>* sums, Sequence sequence) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>, kSums = Moments<C, kOrder>::kSums;
  __shared__ Exchange<C, kN> exchange;
  const Place<kN> place(sequence);
  Moments<C, kOrder> m[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) m[i].clear();
  add_keys(place, k, v, m);

  bool rescales = false;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    exchange.scale[place.part][place.group].at[i] = m[i].kappa;
    rescales |= m[i].kappa > C(4) && m[i].kappa < C(INFINITY);
  }
  rescales = __syncthreads_or(rescales);
  Vector<C, kN> kappa;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    kappa.at[i] = C(INFINITY);
    for (int u = 0; u < kParts; ++u) {
      const C other = exchange.scale[u][place.group].at[i];
      kappa.at[i] = other < kappa.at[i] ? other : kappa.at[i];
    }
  }
  C* const to =
      sums + (place.batch * gridDim.y + place.chunk) * kCarryRows<kOrder> * sequence.channels + place.channel;
  if (place.part == kParts - 1) place.write_at(to + kSums * sequence.channels, kappa);
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    auto& rows = exchange.row[n & 1];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      C own = m[i].sum[n];
      if (rescales) own *= scale_ratio(reference_of(kappa.at[i]), m[i].reference);
      rows[place.part][place.group].at[i] = own;
    }
    __syncthreads();
    if (place.part != n % kParts) continue;
    Vector<C, kN> total = rows[0][place.group];
    for (int u = 1; u < kParts; ++u) {
#pragma unroll
      for (int i = 0; i < kN; ++i) total.at[i] += rows[u][place.group].at[i];
    }
    place.write_at(to + n * sequence.channels, total);
  }
}

/// Sums and their kappa, brought to one scale as they are added.
template <class C>
struct ScaledSum {
  C sum = 0;
  C kappa = C(INFINITY);

  __device__ __forceinline__ void add(C other, C other_kappa) {
    const C smaller = other_kappa < kappa ? other_kappa : kappa, reference = reference_of(smaller);
    sum = sum * scale_ratio(reference, reference_of(kappa)) +
          other * scale_ratio(reference, reference_of(other_kappa));
    kappa = smaller;
  }
};

/// What the kernels that combine chunks work on. sums: [batch, chunks, rows, channels].
template <class C>
struct ChunkSums {
  C* sums;
  C* totals;  // [batch, rows, channels], where not causal
  int64_t chunks, rows, channels;
  EaSeriesStatePointers state;  // may be null

  __device__ __forceinline__ int64_t batch() const { return blockIdx.y; }
  __device__ __forceinline__ C* first_set() const { return sums + batch() * chunks * rows * channels; }
  __device__ __forceinline__ int64_t set() const { return rows * channels; }
  /// Sum `row` of a channel in the state: S_0 .. S_t, Z_0 .. Z_t.
  __device__ __forceinline__ C& state_sum(int64_t row, int64_t channel) const {
    const int64_t terms = (rows - 1) / 2, at = (batch() * channels + channel) * terms + row % terms;
    return static_cast<C*>(row < terms ? state.s : state.z)[at];
  }
  __device__ __forceinline__ C& state_kappa(int64_t channel) const {
    return static_cast<C*>(state.kappa)[batch() * channels + channel];
  }
};

/// A thread per sum and channel walks the chunks. kExclusive: in place, each chunk's sums become those of the
/// keys before it, in the state or in chunks, and the state's those of all. Otherwise the totals get them.
/// Carries are in carry scale, the state in that of its reference. The kappa rows stay as they are:
/// combine_kappas_kernel follows.
template <bool kExclusive, class C>
__global__ void combine_chunks_kernel(ChunkSums<C> args) {
  const int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (item >= (args.rows - 1) * args.channels) return;
  const int64_t row = item / args.channels, channel = item % args.channels;
  C* const own_row = args.first_set() + item;
  const C* const kappas = args.first_set() + (args.rows - 1) * args.channels + channel;
  ScaledSum<C> total;
  if (args.state.s != nullptr) total = {args.state_sum(row, channel), args.state_kappa(channel)};
#pragma unroll 4
  for (int64_t chunk = 0; chunk < args.chunks; ++chunk) {
    C* const at = own_row + chunk * args.set();
    const C own = *at, kappa = kappas[chunk * args.set()];
    if constexpr (kExclusive) *at = total.sum * to_carry_scale(total.kappa);
    total.add(own, kappa);
  }
  if (args.state.s != nullptr) args.state_sum(row, channel) = total.sum;
  if constexpr (!kExclusive) {
    args.totals[args.batch() * args.set() + item] = total.sum * to_carry_scale(total.kappa);
  }
}

/// As above for the kappa rows, a running minimum.
template <bool kExclusive, class C>
__global__ void combine_kappas_kernel(ChunkSums<C> args) {
  const int64_t channel = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (channel >= args.channels) return;
  const int64_t kappa_row = (args.rows - 1) * args.channels + channel;
  C* const kappas = args.first_set() + kappa_row;
  C smallest = args.state.s != nullptr ? args.state_kappa(channel) : C(INFINITY);
#pragma unroll 4
  for (int64_t chunk = 0; chunk < args.chunks; ++chunk) {
    C* const at = kappas + chunk * args.set();
    const C own = *at;
    if constexpr (kExclusive) *at = smallest;
    smallest = own < smallest ? own : smallest;
  }
  if (args.state.s != nullptr) args.state_kappa(channel) = smallest;
  if constexpr (!kExclusive) args.totals[args.batch() * args.set() + kappa_row] = smallest;
}

template <class T, int kOrder>
__global__ void __launch_bounds__(kBlockThreads, 1)
    causal_outputs_kernel(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                          T* __restrict__ y, const Compute<T>* __restrict__ carry, Sequence sequence) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>;
  __shared__ Exchange<C, kN> exchange;
  const Place<kN> place(sequence);
  Moments<C, kOrder> m[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) m[i].clear();
  add_keys(place, k, v, m);
  const C* const before =
      carry + (place.batch * gridDim.y + place.chunk) * kCarryRows<kOrder> * sequence.channels;
  start_parts(place, before, exchange, m);
#pragma unroll 2
  for (int64_t row = place.begin; row < place.end; ++row) {
    const auto queries = place.read(q, row), keys = place.read(k, row), values = place.read(v, row);
    const bool visible = place.visible(row);
    Vector<C, kN> answers;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (visible) m[i].add_key(keys.at[i], values.at[i]);
      answers.at[i] = m[i].answer(queries.at[i]);
    }
    place.write(y, row, answers);
  }
}

/// totals: [batch, 2 t + 3, channels].
template <class T, int kOrder>
__global__ void __launch_bounds__(kBlockThreads, 1)
    outputs_kernel(const T* __restrict__ q, T* __restrict__ y, const Compute<T>* __restrict__ totals,
                   Sequence sequence) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>;
  const Place<kN> place(sequence);
  Moments<C, kOrder> m[kN];
  load_carry(place, totals + place.batch * kCarryRows<kOrder> * sequence.channels, m);
#pragma unroll 2
  for (int64_t row = place.begin; row < place.end; ++row) {
    const auto queries = place.read(q, row);
    Vector<C, kN> answers;
#pragma unroll
    for (int i = 0; i < kN; ++i) answers.at[i] = m[i].answer(queries.at[i]);
    place.write(y, row, answers);
  }
}

template <class T, int kOrder>
void forward(const EaSeriesForward& args) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>;
  const int64_t chunks = ea_series_chunks(args.length), rows = kCarryRows<kOrder>;
  const bool aligned = is_aligned(args.q, args.k, args.v, args.y) && args.channels % kN == 0;
  const Sequence sequence{args.length, args.channels, args.key_mask, aligned};
  const auto *q = static_cast<const T*>(args.q), *k = static_cast<const T*>(args.k),
             *v = static_cast<const T*>(args.v);
  auto* y = static_cast<T*>(args.y);
  auto *carry = static_cast<C*>(args.carry), *sums = args.causal ? carry : static_cast<C*>(args.partials);
  const LaunchShape all_rows = chunk_shape<kN>(args.batch, chunks, args.channels);
  const LaunchShape sums_shape = sums_of_chunks_shape(args.batch, (rows - 1) * args.channels);
  const LaunchShape kappas_shape = sums_of_chunks_shape(args.batch, args.channels);
  const ChunkSums<C> combined{sums, carry, chunks, rows, args.channels, args.state};

  launch<chunk_sums_kernel<T, kOrder>>(all_rows, k, v, sums, sequence);
  if (args.causal) {
    launch<combine_chunks_kernel<true, C>>(sums_shape, combined);
    launch<combine_kappas_kernel<true, C>>(kappas_shape, combined);
    launch<causal_outputs_kernel<T, kOrder>>(all_rows, q, k, v, y, carry, sequence);
  } else {
    launch<combine_chunks_kernel<false, C>>(sums_shape, combined);
    launch<combine_kappas_kernel<false, C>>(kappas_shape, combined);
    launch<outputs_kernel<T, kOrder>>(all_rows, q, y, carry, sequence);
  }
}

}  // namespace ea_series

void ea_series_forward(const EaSeriesForward& args) {
  if (args.batch * args.length * args.channels == 0) return;
  dispatch_floating(args.dtype, "ea_series_forward", [&]<class T>() {
    ea_series::dispatch_order(args.order, [&]<int kOrder>() { ea_series::forward<T, kOrder>(args); });
  });
}

}  // namespace elwise::cuda
