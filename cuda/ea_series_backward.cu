// EA-series backward. Causal: as forward starts its chunks from the carry, a first pass over the queries
// gives dq, each row's a = dy / D and y, and the sums A, B of every chunk; a scan over chunks from the last
// to the first; and a pass over the rows of a chunk from the last to the first gives dk and dv. Otherwise the
// queries go first (dq, A, B), then the keys (dk, dv). Between the passes a and y stand where dv and dk will.

#include "cuda/ea_series_gradient.cuh"

namespace elwise::cuda {
namespace ea_series {

/// dq, a, y; and A, B of every chunk into partials.
template <class T, int kOrder>
__global__ void __launch_bounds__(kBlockThreads, 1)
    causal_queries_kernel(Tensors<T> tensors, const Compute<T>* carry, Compute<T>* partials,
                          Sequence sequence) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>;
  __shared__ Exchange<C, kN> exchange;
  const Place<kN> place(sequence);
  const int64_t offset = (place.batch * gridDim.y + place.chunk) * kCarryRows<kOrder> * sequence.channels;
  References<C, kN> references;
  {
    Moments<C, kOrder> m[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) m[i].clear();
    add_keys(place, tensors.k, tensors.v, m);
    start_parts(place, carry + offset, exchange, m);
    C kappa[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) kappa[i] = m[i].kappa;
    references.begin(kappa);
    walk_queries<true>(place, tensors, m);
  }
  GradientSums<C, kOrder> sums[kN];
  sum_queries(place, tensors.q, tensors.k, tensors.dv, tensors.dk, references, sums);
  __syncthreads();  // the exchange is free again
  store_chunk_sums(place, references, exchange, sums, partials + offset);
}

/// A thread per sum and channel walks the chunks from the last to the first: each chunk's sums become those
/// of the chunks after it, at the scale of the reference at its end, which the next chunk's carry gives.
template <class C>
__global__ void combine_later_kernel(C* partials, const C* carry, int64_t chunks, int64_t rows,
                                     int64_t channels) {
  const int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (item >= (rows - 1) * channels) return;
  const int64_t batch = int64_t{blockIdx.y} * chunks * rows * channels;
  const int64_t scale_row = batch + (rows - 1) * channels + item % channels;
  C sum = 0, end_reference = 0;
#pragma unroll 4
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t at = chunk * rows * channels;
    const C own = partials[batch + at + item], first = partials[scale_row + at];
    partials[batch + at + item] = sum;
    const C reference = reference_of(carry[scale_row + at]);
    sum = sum * scale_ratio(end_reference, reference) + own * scale_ratio(first, reference);
    end_reference = reference;
  }
}

template <class T, int kOrder>
__global__ void __launch_bounds__(kBlockThreads, 1)
    causal_keys_kernel(Tensors<T> tensors, const Compute<T>* carry, const Compute<T>* partials,
                       Sequence sequence) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>;
  __shared__ Exchange<C, kN> exchange;
  const Place<kN> place(sequence);
  const int64_t offset = (place.batch * gridDim.y + place.chunk) * kCarryRows<kOrder> * sequence.channels;
  References<C, kN> references;
  C kappa[kN];
  start_kappas(place, tensors.k, carry + offset + (kCarryRows<kOrder> - 1) * sequence.channels, exchange,
               kappa);
  references.begin(kappa);
  GradientSums<C, kOrder> sums[kN];
  sum_queries(place, tensors.q, tensors.k, tensors.dv, tensors.dk, references, sums);
  start_parts_back(place, partials + offset, references, exchange, sums);

  C after[kN];  // the reference of the row after
#pragma unroll
  for (int i = 0; i < kN; ++i) after[i] = references.last[i];
#pragma unroll 1
  for (int64_t row = place.end - 1; row >= place.begin; --row) {
    C reference[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) reference[i] = C(0);
    if (references.moving) {
      references.at(place, tensors.k, row, reference);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (reference[i] > after[i]) sums[i].scale(scale_ratio(after[i], reference[i]));
        after[i] = reference[i];
      }
    }
    const auto queries = place.read(tensors.q, row), as = place.read(tensors.dv, row),
               ys = place.read(tensors.dk, row);
#pragma unroll
    for (int i = 0; i < kN; ++i) sums[i].add_query(queries.at[i], as.at[i], ys.at[i], reference[i]);
    write_key_gradients(place, tensors, row, reference, sums);
  }
}

/// totals: [batch, 2 t + 3, channels], of all keys.
template <class T, int kOrder>
__global__ void __launch_bounds__(kBlockThreads, 1)
    queries_kernel(Tensors<T> tensors, const Compute<T>* totals, Compute<T>* partials, Sequence sequence) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>;
  __shared__ Exchange<C, kN> exchange;
  const Place<kN> place(sequence);
  C reference[kN];
  {
    Moments<C, kOrder> m[kN];
    load_carry(place, totals + place.batch * kCarryRows<kOrder> * sequence.channels, m);
#pragma unroll
    for (int i = 0; i < kN; ++i) reference[i] = m[i].reference;
    walk_queries<false>(place, tensors, m);
  }
  GradientSums<C, kOrder> sums[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) sums[i].clear();
#pragma unroll 2
  for (int64_t row = place.begin; row < place.end; ++row) {
    const auto queries = place.read(tensors.q, row), as = place.read(tensors.dv, row),
               ys = place.read(tensors.dk, row);
#pragma unroll
    for (int i = 0; i < kN; ++i) sums[i].add_query(queries.at[i], as.at[i], ys.at[i], reference[i]);
  }
  References<C, kN> one_scale;
  const C none[kN] = {};
  one_scale.begin(none);
  store_chunk_sums(
      place, one_scale, exchange, sums,
      partials + (place.batch * gridDim.y + place.chunk) * kCarryRows<kOrder> * sequence.channels);
}

/// The first chunk's sums become those of all chunks.
template <class C>
__global__ void add_chunks_kernel(C* partials, int64_t chunks, int64_t rows, int64_t channels) {
  const int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (item >= (rows - 1) * channels) return;
  C* const at = partials + int64_t{blockIdx.y} * chunks * rows * channels + item;
  C sum = 0;
#pragma unroll 4
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += at[chunk * rows * channels];
  *at = sum;
}

/// partials: those of the first chunk hold all queries' A, B.
template <class T, int kOrder>
__global__ void __launch_bounds__(kBlockThreads, 1)
    keys_kernel(Tensors<T> tensors, const Compute<T>* totals, const Compute<T>* partials, Sequence sequence) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>;
  const Place<kN> place(sequence);
  const int64_t set = kCarryRows<kOrder> * sequence.channels;
  const Vector<C, kN> kappa =
      place.read_at(totals + place.batch * set + set - sequence.channels + place.channel);
  C reference[kN];
  GradientSums<C, kOrder> sums[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) reference[i] = reference_of(kappa.at[i]);
  const C* const from = partials + place.batch * gridDim.y * set + place.channel;
#pragma unroll
  for (int n = 0; n < GradientSums<C, kOrder>::kSums; ++n) {
    const Vector<C, kN> row = place.read_at(from + n * sequence.channels);
#pragma unroll
    for (int i = 0; i < kN; ++i) sums[i].sum[n] = row.at[i];
  }
#pragma unroll 1
  for (int64_t row = place.begin; row < place.end; ++row) {
    write_key_gradients(place, tensors, row, reference, sums);
  }
}

template <class T, int kOrder>
void backward(const EaSeriesBackward& args) {
  using C = Compute<T>;
  constexpr int kN = kWidth<T, kOrder>;
  const int64_t chunks = ea_series_chunks(args.length), rows = kCarryRows<kOrder>;
  const bool aligned =
      is_aligned(args.q, args.k, args.v, args.dy, args.dq, args.dk, args.dv) && args.channels % kN == 0;
  const Sequence sequence{args.length, args.channels, args.key_mask, aligned};
  const Tensors<T> tensors{static_cast<const T*>(args.q), static_cast<const T*>(args.k),
                           static_cast<const T*>(args.v), static_cast<const T*>(args.dy),
                           static_cast<T*>(args.dq),      static_cast<T*>(args.dk),
                           static_cast<T*>(args.dv)};
  const auto* carry = static_cast<const C*>(args.carry);
  auto* partials = static_cast<C*>(args.partials);
  const LaunchShape all_rows = chunk_shape<kN>(args.batch, chunks, args.channels);
  const LaunchShape sums_shape = sums_of_chunks_shape(args.batch, (rows - 1) * args.channels);
  if (args.causal) {
    launch<causal_queries_kernel<T, kOrder>>(all_rows, tensors, carry, partials, sequence);
    launch<combine_later_kernel<C>>(sums_shape, partials, carry, chunks, rows, args.channels);
    launch<causal_keys_kernel<T, kOrder>>(all_rows, tensors, carry, partials, sequence);
  } else {
    launch<queries_kernel<T, kOrder>>(all_rows, tensors, carry, partials, sequence);
    launch<add_chunks_kernel<C>>(sums_shape, partials, chunks, rows, args.channels);
    launch<keys_kernel<T, kOrder>>(all_rows, tensors, carry, partials, sequence);
  }
}

}  // namespace ea_series

void ea_series_backward(const EaSeriesBackward& args) {
  if (args.batch * args.length * args.channels == 0) return;
  dispatch_floating(args.dtype, "ea_series_backward", [&]<class T>() {
    ea_series::dispatch_order(args.order, [&]<int kOrder>() { ea_series::backward<T, kOrder>(args); });
  });
}

}  // namespace elwise::cuda
