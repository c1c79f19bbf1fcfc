// The forward pass of the Attention Free Transformer around its matrix products.

#include "cuda/aft.cuh"
#include "ops/elementwise_kernels.h"

namespace elwise::cuda {
namespace aft {
namespace {

template <class T>
__global__ void aft_keys_kernel(AftKeys args, bool aligned) {
  constexpr int N = kVectorWidth<T>;
  using C = Compute<T>;
  const auto place = place_of<N>(args.batch, args.length, args.channels);
  if (!place.exists) return;
  Vector<C, N> weighted{}, weights{};
  if (args.key_mask == nullptr || args.key_mask[place.batch * args.length + place.row]) {
    const auto keys = place.read(static_cast<const T*>(args.k) + place.element(), aligned);
    const auto values = place.read(static_cast<const T*>(args.v) + place.element(), aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool large = keys.at[i] > C(kAftLargestKey);
      weights.at[i] = large ? C(0) : exp(keys.at[i]);
      weighted.at[i] = weights.at[i] * values.at[i];
      if (large && args.first_large != nullptr && place.channel + i < args.channels) {
        auto* first = args.first_large + place.batch * args.channels + place.channel + i;
        atomicMin(reinterpret_cast<long long*>(first), static_cast<long long>(place.row));
      }
    }
  }
  auto* to = static_cast<T*>(args.keys) + place.pair();
  place.write(to, weighted, aligned);
  place.write(to + args.channels, weights, aligned);
}

template <class T>
__global__ void aft_outputs_kernel(AftOutputs args, bool aligned) {
  constexpr int N = kVectorWidth<T>;
  using C = Compute<T>;
  const auto place = place_of<N>(args.batch, args.length, args.channels);
  if (!place.exists) return;
  auto* sums = static_cast<T*>(args.sums) + place.pair();
  const auto sum = place.read(sums, aligned);
  auto weight = place.read(sums + args.channels, aligned);
  const auto q = place.read(static_cast<const T*>(args.q) + place.element(), aligned);
  const int64_t end = args.direct.causal ? place.row + 1 : args.length;
  Vector<C, N> ratio, y;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int64_t channel = place.channel + i;
    if (channel >= args.channels) continue;
    const bool sees_large = args.first_large[place.batch * args.channels + channel] < end;
    if (weight.at[i] >= C(kAftLeastSum) && fabs(sum.at[i]) < C(INFINITY) && !sees_large) {
      ratio.at[i] = sum.at[i] / weight.at[i];
    } else {
      const DirectQuery<T> direct(args.direct, place.batch, args.length, args.channels, place.row, channel);
      const Scale<C> scale = direct.scale();
      C result = 0;
      direct.for_each_visible(
          [&](int64_t key) { result = fma(direct.probability(key, scale), direct.value(key), result); });
      if (scale.total != C(0)) *args.direct_answers = 1;
      ratio.at[i] = result;
      weight.at[i] = C(0);
    }
    y.at[i] = sigmoid_of(q.at[i]) * ratio.at[i];
  }
  place.write(sums, ratio, aligned);
  place.write(sums + args.channels, weight, aligned);
  place.write(static_cast<T*>(args.y) + place.element(), y, aligned);
}

}  // namespace
}  // namespace aft

void aft_keys(const AftKeys& args) {
  if (args.first_large != nullptr) {
    fill({.dtype = DType::i64,
          .y = args.first_large,
          .count = args.batch * args.channels,
          .value = static_cast<double>(args.length)});
  }
  dispatch_floating(args.dtype, "aft_keys", [&]<class T>() {
    launch<aft::aft_keys_kernel<T>>(aft::shape_of<kVectorWidth<T>>(args.batch, args.length, args.channels),
                                    args, aft::rows_aligned<T>(args.channels, args.k, args.v, args.keys));
  });
}

void aft_outputs(const AftOutputs& args) {
  fill({.dtype = DType::i64, .y = args.direct_answers, .count = 1, .value = 0});
  dispatch_floating(args.dtype, "aft_outputs", [&]<class T>() {
    launch<aft::aft_outputs_kernel<T>>(aft::shape_of<kVectorWidth<T>>(args.batch, args.length, args.channels),
                                       args, aft::rows_aligned<T>(args.channels, args.q, args.sums, args.y));
  });
}

}  // namespace elwise::cuda
