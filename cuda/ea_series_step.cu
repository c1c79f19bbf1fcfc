// One token of the recurrent form of EA-series (eq. 12 - 16 of arXiv 2501.05730): a thread per channel, its
// moments in registers. See cuda/ea_series.cuh.

#include "cuda/ea_series.cuh"

namespace elwise::cuda {
namespace ea_series {

/// Sums of two f32, rounded up or down with the probability that makes them right on average, as on the CPU
/// (ops/cpu/ea_series_step.cpp says why): the random numbers are a hash of the first operands.
class FairRounding {
 public:
  __device__ __forceinline__ FairRounding(float s0, float z0, float k) {
    hash_ = __float_as_uint(z0) * 0x9E3779B1U;
    hash_ ^= __float_as_uint(s0) * 0x85EBCA77U;
    hash_ ^= __float_as_uint(k) * 0xC2B2AE3DU;
    hash_ = (hash_ ^ hash_ >> 16) * 0x27D4EB2FU;
  }

  __device__ __forceinline__ float add(float sum, float term) {
    const float nearest = sum + term, added = nearest - sum;
    // sum + term = nearest + error, exactly (Knuth's two-sum).
    const float error = (sum - (nearest - added)) + (term - added);
    // The next number on the error's side: of larger magnitude where the signs agree.
    const unsigned differ = (__float_as_uint(nearest) ^ __float_as_uint(error)) >> 31;
    const float other = __uint_as_float(__float_as_uint(nearest) + 1 - 2 * differ);
    hash_ = hash_ * 1664525U + 1013904223U;
    const float uniform = __uint_as_float(hash_ >> 9 | 0x3F800000U) - 1;
    return fabsf(error) > uniform * fabsf(other - nearest) ? other : nearest;
  }

 private:
  unsigned hash_;
};

/// f64 has digits to spare.
struct NearestRounding {
  __device__ __forceinline__ NearestRounding(double, double, double) {}
  __device__ __forceinline__ double add(double sum, double term) { return sum + term; }
};

__device__ __forceinline__ FairRounding rounding_for(float s0, float z0, float k) {
  return {s0, z0, k};
}
__device__ __forceinline__ NearestRounding rounding_for(double s0, double z0, double k) {
  return {s0, z0, k};
}

template <class T, int kOrder>
__global__ void step_kernel(const T* q, const T* k, const T* v, T* y, EaSeriesStatePointers state,
                            int64_t channels) {
  using C = Compute<T>;
  constexpr int kTerms = kOrder + 1;
  const int64_t channel = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  C *s = static_cast<C*>(state.s) + channel * kTerms, *z = static_cast<C*>(state.z) + channel * kTerms,
    *kappa = static_cast<C*>(state.kappa) + channel;
  Moments<C, kOrder> m;
#pragma unroll
  for (int n = 0; n < kTerms; ++n) {
    m.sum[n] = s[n];
    m.sum[kTerms + n] = z[n];
  }
  m.set_kappa(*kappa);

  const C key = static_cast<C>(k[channel]), value = static_cast<C>(v[channel]);
  C power = m.meet(key);
  auto rounding = rounding_for(m.sum[0], m.sum[kTerms], key);
#pragma unroll
  for (int n = 0; n < kTerms; ++n) {
    m.sum[kTerms + n] = rounding.add(m.sum[kTerms + n], power);
    m.sum[n] = rounding.add(m.sum[n], fma(power, value, C(0)));  // rounded before it is added
    power *= key;
  }
  y[channel] = T(m.answer(static_cast<C>(q[channel])));
#pragma unroll
  for (int n = 0; n < kTerms; ++n) {
    s[n] = m.sum[n];
    z[n] = m.sum[kTerms + n];
  }
  *kappa = m.kappa;
}

}  // namespace ea_series

void ea_series_step(const EaSeriesStep& args) {
  constexpr int kStepThreads = 64;
  const int64_t channels = args.batch * args.channels;
  dispatch_floating(args.dtype, "ea_series_step", [&]<class T>() {
    ea_series::dispatch_order(args.order, [&]<int kOrder>() {
      launch<ea_series::step_kernel<T, kOrder>>(
          {.grid = static_cast<unsigned>(ceil_div(channels, kStepThreads)), .block = kStepThreads},
          static_cast<const T*>(args.q), static_cast<const T*>(args.k), static_cast<const T*>(args.v),
          static_cast<T*>(args.y), args.state, channels);
    });
  });
}

}  // namespace elwise::cuda
