// The gradient of the Attention Free Transformer around its matrix products.

#include "cuda/aft.cuh"
#include "cuda/reduce.cuh"

namespace elwise::cuda {
namespace aft {
namespace {

template <class T>
__global__ void output_gradients_kernel(AftOutputGradients args, bool aligned) {
  constexpr int N = kVectorWidth<T>;
  using C = Compute<T>;
  const auto place = place_of<N>(args.batch, args.length, args.channels);
  if (!place.exists) return;
  const auto q = place.read(static_cast<const T*>(args.q) + place.element(), aligned);
  const auto dy = place.read(static_cast<const T*>(args.dy) + place.element(), aligned);
  const auto* sums = static_cast<const T*>(args.sums) + place.pair();
  const auto r = place.read(sums, aligned), z = place.read(sums + args.channels, aligned);
  Vector<C, N> dq, a, b;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const C s = sigmoid_of(q.at[i]), u = dy.at[i] * s;
    a.at[i] = z.at[i] == C(0) ? C(0) : u / z.at[i];
    b.at[i] = -a.at[i] * r.at[i];
    dq.at[i] = u * r.at[i] * (C(1) - s);
  }
  auto* gradients = static_cast<T*>(args.gradients) + place.pair();
  place.write(static_cast<T*>(args.dq) + place.element(), dq, aligned);
  place.write(gradients, a, aligned);
  place.write(gradients + args.channels, b, aligned);
}

template <class T>
__global__ void key_gradients_kernel(AftKeyGradients args, bool aligned) {
  constexpr int N = kVectorWidth<T>;
  using C = Compute<T>;
  const auto place = place_of<N>(args.batch, args.length, args.channels);
  if (!place.exists) return;
  const auto* keys = static_cast<const T*>(args.keys) + place.pair();
  const auto* key_sums = static_cast<const T*>(args.key_sums) + place.pair();
  const auto weighted = place.read(keys, aligned), weight = place.read(keys + args.channels, aligned);
  const auto a = place.read(key_sums, aligned), b = place.read(key_sums + args.channels, aligned);
  Vector<C, N> dk, dv;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    dv.at[i] = weight.at[i] * a.at[i];
    dk.at[i] = fma(weighted.at[i], a.at[i], weight.at[i] * b.at[i]);
  }
  place.write(static_cast<T*>(args.dk) + place.element(), dk, aligned);
  place.write(static_cast<T*>(args.dv) + place.element(), dv, aligned);
}

/// Of an element that was answered directly: u, the gradient of r, and r.
template <class T, class Arguments>
__device__ bool direct_gradient(const Arguments& args, int64_t batch, int64_t row, int64_t channel,
                                Compute<T>& u, Compute<T>& r) {
  using C = Compute<T>;
  const auto* sums =
      static_cast<const T*>(args.sums) + (row * args.batch + batch) * 2 * args.channels + channel;
  if (static_cast<C>(sums[args.channels]) != C(0)) return false;
  const int64_t element = (batch * args.length + row) * args.channels + channel;
  r = static_cast<C>(sums[0]);
  u = static_cast<C>(static_cast<const T*>(args.dy)[element]) *
      sigmoid_of(static_cast<C>(static_cast<const T*>(args.q)[element]));
  return true;
}

/// A thread per batch entry and channel adds the part of its direct answers, query by query.
template <class T>
__global__ void direct_key_gradients_kernel(AftKeyGradients args) {
  using C = Compute<T>;
  const int64_t item = grid_thread();
  if (*args.direct_answers == 0 || item >= args.batch * args.channels) return;
  const int64_t batch = item / args.channels, channel = item % args.channels;
  auto *dk = static_cast<T*>(args.dk), *dv = static_cast<T*>(args.dv);
  for (int64_t row = 0; row < args.length; ++row) {
    C u, r;
    if (!direct_gradient<T>(args, batch, row, channel, u, r)) continue;
    const DirectQuery<T> direct(args.direct, batch, args.length, args.channels, row, channel);
    const Scale<C> scale = direct.scale();
    direct.for_each_visible([&](int64_t key) {
      const int64_t at = (batch * args.length + key) * args.channels + channel;
      const C change = direct.probability(key, scale) * u;
      dv[at] = T(static_cast<C>(dv[at]) + change);
      dk[at] = T(fma(change, direct.value(key) - r, static_cast<C>(dk[at])));
    });
  }
}

/// dw = E times the products where positions meet, else 0. A thread takes N elements of a row.
template <class T, int N>
__global__ void bias_gradient_kernel(AftBiasGradient args) {
  using C = Compute<T>;
  const int64_t positions = args.direct.positions, item = grid_thread() * N;
  if (item >= positions * positions) return;
  const int64_t row = item / positions, first = item % positions;
  const int64_t end = row >= args.length ? 0 : args.direct.causal ? row + 1 : args.length;
  Vector<C, N> result{};
  if (first < end) {
    const int64_t at = row * args.length + first;
    const auto weights = load_compute<N>(static_cast<const T*>(args.weights) + at),
               products = load_compute<N>(static_cast<const T*>(args.products) + at);
#pragma unroll
    for (int i = 0; i < N; ++i) result.at[i] = first + i < end ? weights.at[i] * products.at[i] : C(0);
  }
  store_compute<N>(static_cast<T*>(args.dw) + item, result);
}

/// A block per query adds the part of its direct answers. Its threads take the batch entries and channels in
/// turn, then its warps the keys.
template <class T>
__global__ void direct_bias_gradient_kernel(AftBiasGradient args) {
  using C = Compute<T>;
  if (*args.direct_answers == 0) return;
  __shared__ bool is_direct[kThreads];
  __shared__ C us[kThreads], rs[kThreads];
  __shared__ Scale<C> scales[kThreads];
  const int64_t row = blockIdx.x, columns = args.batch * args.channels;
  auto* dw = static_cast<T*>(args.dw) + row * args.direct.positions;
  const int thread = static_cast<int>(threadIdx.x);
  const auto query = [&](int64_t column) {
    return DirectQuery<T>(args.direct, column / args.channels, args.length, args.channels, row,
                          column % args.channels);
  };
  for (int64_t first = 0; first < columns; first += kThreads) {
    const int64_t column = first + thread;
    is_direct[thread] =
        column < columns &&
        direct_gradient<T>(args, column / args.channels, row, column % args.channels, us[thread], rs[thread]);
    if (is_direct[thread]) scales[thread] = query(column).scale();
    if (!__syncthreads_or(is_direct[thread])) continue;
    for (int64_t key = thread / 32; key < query(first).end(); key += kThreads / 32) {
      C share = 0;
      for (int i = thread % 32; i < kThreads; i += 32) {
        if (!is_direct[i]) continue;
        const DirectQuery<T> direct = query(first + i);
        if (!direct.sees(key)) continue;
        share = fma(direct.probability(key, scales[i]) * us[i], direct.value(key) - rs[i], share);
      }
      share = reduce_warp(share);
      if (thread % 32 == 0) dw[key] = T(static_cast<C>(dw[key]) + share);
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace aft

void aft_output_gradients(const AftOutputGradients& args) {
  dispatch_floating(args.dtype, "aft_output_gradients", [&]<class T>() {
    launch<aft::output_gradients_kernel<T>>(
        aft::shape_of<kVectorWidth<T>>(args.batch, args.length, args.channels), args,
        aft::rows_aligned<T>(args.channels, args.q, args.sums, args.dy, args.dq, args.gradients));
  });
}

void aft_key_gradients(const AftKeyGradients& args) {
  dispatch_floating(args.dtype, "aft_key_gradients", [&]<class T>() {
    launch<aft::key_gradients_kernel<T>>(
        aft::shape_of<kVectorWidth<T>>(args.batch, args.length, args.channels), args,
        aft::rows_aligned<T>(args.channels, args.keys, args.key_sums, args.dk, args.dv));
    launch<aft::direct_key_gradients_kernel<T>>(
        {.grid = aft::blocks_for(args.batch * args.channels), .block = kThreads}, args);
  });
}

void aft_bias_gradient(const AftBiasGradient& args) {
  dispatch_floating(args.dtype, "aft_bias_gradient", [&]<class T>() {
    const int64_t positions = args.direct.positions;
    const auto run = [&]<int N>() {
      launch<aft::bias_gradient_kernel<T, N>>(
          {.grid = aft::blocks_for(positions * positions / N), .block = kThreads}, args);
    };
    if (aft::rows_aligned<T>(positions, args.weights, args.products, args.dw) &&
        args.length % kVectorWidth<T> == 0) {
      run.template operator()<kVectorWidth<T>>();
    } else {
      run.template operator()<1>();
    }
    launch<aft::direct_bias_gradient_kernel<T>>(
        {.grid = static_cast<unsigned>(args.length), .block = kThreads}, args);
  });
}

}  // namespace elwise::cuda
