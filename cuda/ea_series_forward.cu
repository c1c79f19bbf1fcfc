// EA-series forward (eq. 5, 6 of arXiv 2501.05730). Causal: the sums of every chunk, an exclusive scan over
// chunks, and a second pass over the rows that starts from it. Otherwise: the sums of every chunk, their
// total, and one pass over the queries. See cuda/ea_series.cuh.

#include "cuda/ea_series.cuh"

namespace elwise::cuda {
namespace ea_series {

/// sums: [batch, stored_chunks, 2 t + 3, channels] receives each chunk's S, Z (at the scale of its reference)
/// and kappa.
template <class T, int kOrder>
__global__ void __launch_bounds__(kBlockThreads, 1)
    chunk_sums_kernel(const T* k, const T* v, Compute<T>* sums, int64_t stored_chunks, Sequence sequence) {
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
  C* const to = sums + (place.batch * stored_chunks + place.chunk) * kCarryRows<kOrder> * sequence.channels +
                place.channel;
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

/// A thread per sum and channel walks the chunks. kExclusive: in place, each chunk's sums become those of the
/// chunks before it. Otherwise the total goes to totals [batch, 2 t + 3, channels]. Carry scale both ways.
/// The kappa row stays as it is: kappas_kernel follows.
template <bool kExclusive, class C>
__global__ void combine_chunks_kernel(C* sums, C* totals, int64_t chunks, int64_t summed, int64_t rows,
                                      int64_t channels) {
  const int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (item >= (rows - 1) * channels) return;
  C* const batch = sums + int64_t{blockIdx.y} * chunks * rows * channels;
  const C* const kappas = batch + (rows - 1) * channels + item % channels;
  ScaledSum<C> total;
#pragma unroll 4
  for (int64_t chunk = 0; chunk < summed; ++chunk) {
    C* const at = batch + chunk * rows * channels + item;
    const C own = *at, kappa = kappas[chunk * rows * channels];
    if constexpr (kExclusive) *at = total.sum * to_carry_scale(total.kappa);
    total.add(own, kappa);
  }
  const C last = total.sum * to_carry_scale(total.kappa);
  if constexpr (kExclusive) {
    batch[summed * rows * channels + item] = last;
  } else {
    totals[int64_t{blockIdx.y} * rows * channels + item] = last;
  }
}

/// As above for the kappa row, a running minimum.
template <bool kExclusive, class C>
__global__ void combine_kappas_kernel(C* sums, C* totals, int64_t chunks, int64_t summed, int64_t rows,
                                      int64_t channels) {
  const int64_t channel = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  C* const kappas = sums + (int64_t{blockIdx.y} * chunks * rows + rows - 1) * channels + channel;
  C smallest = C(INFINITY);
#pragma unroll 4
  for (int64_t chunk = 0; chunk < summed; ++chunk) {
    C* const at = kappas + chunk * rows * channels;
    const C own = *at;
    if constexpr (kExclusive) *at = smallest;
    smallest = own < smallest ? own : smallest;
  }
  if constexpr (kExclusive) {
    kappas[summed * rows * channels] = smallest;
  } else {
    totals[(int64_t{blockIdx.y} * rows + rows - 1) * channels + channel] = smallest;
  }
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
  const int64_t summed = args.causal ? chunks - 1 : chunks;

  launch<chunk_sums_kernel<T, kOrder>>(chunk_shape<kN>(args.batch, summed, args.channels), k, v, sums, chunks,
                                       sequence);
  const LaunchShape sums_shape = sums_of_chunks_shape(args.batch, (rows - 1) * args.channels);
  const LaunchShape kappas_shape = sums_of_chunks_shape(args.batch, args.channels);
  const LaunchShape all_rows = chunk_shape<kN>(args.batch, chunks, args.channels);
  if (args.causal) {
    launch<combine_chunks_kernel<true, C>>(sums_shape, sums, nullptr, chunks, summed, rows, args.channels);
    launch<combine_kappas_kernel<true, C>>(kappas_shape, sums, nullptr, chunks, summed, rows, args.channels);
    launch<causal_outputs_kernel<T, kOrder>>(all_rows, q, k, v, y, carry, sequence);
  } else {
    launch<combine_chunks_kernel<false, C>>(sums_shape, sums, carry, chunks, summed, rows, args.channels);
    launch<combine_kappas_kernel<false, C>>(kappas_shape, sums, carry, chunks, summed, rows, args.channels);
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
