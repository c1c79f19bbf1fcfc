#include "ops/optimizer_step_kernels.h"

#include "cuda/launch.cuh"
#include "cuda/ordered_sum.cuh"
#include "cuda/vector.cuh"

// A thread takes 16 bytes of each tensor at a time.

namespace elwise::cuda {
namespace {

/// Calls body(first) for the first of every kWidth neighbours that the thread takes of `count`.
template <int kWidth, class Body>
__device__ __forceinline__ void for_each_vector(int64_t count, Body body) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * kWidth;
  for (int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kWidth; first < count;
       first += stride) {
    body(first);
  }
}

/// The numbers of an AdamStep that its elements share.
template <class Element>
struct AdamFactors {
  Element keep, regularisation, beta1, rest1, beta2, rest2, eps, v_scale, step_size;
  bool adaptive;

  explicit AdamFactors(const AdamStep& args)
      : keep(static_cast<Element>(args.decoupled ? 1 - args.lr * args.weight_decay : 1)),
        regularisation(static_cast<Element>(args.decoupled ? 0 : args.weight_decay)),
        beta1(static_cast<Element>(args.beta1)),
        rest1(static_cast<Element>(1 - args.beta1)),
        beta2(static_cast<Element>(args.beta2)),
        rest2(static_cast<Element>(1 - args.beta2)),
        eps(static_cast<Element>(args.eps)),
        v_scale(static_cast<Element>(args.v_scale)),
        step_size(static_cast<Element>(args.step_size)),
        adaptive(args.adaptive) {}

  __device__ __forceinline__ void update(Element& param, Element grad, Element& m, Element& v) const {
    if (regularisation != 0) grad = fma(regularisation, param, grad);
    m = fma(beta1, m, rest1 * grad);
    v = fma(beta2, v, rest2 * grad * grad);
    const Element move = adaptive ? m / fma(sqrt(v), v_scale, eps) : m;
    param = fma(-step_size, move, param * keep);
  }
};

/// The parameters of a step as they are computed with: of bf16, joined with their remainders where there are
/// any.
template <class T>
struct Parameters {
  T* param;
  int16_t* remainder;

  template <class Arguments>
  explicit Parameters(const Arguments& args)
      : param(static_cast<T*>(args.param)), remainder(static_cast<int16_t*>(args.remainder)) {}

  template <int kWidth>
  __device__ __forceinline__ void load(int64_t first, int64_t count, bool aligned,
                                       Compute<T> (&values)[kWidth]) const {
    T stored[kWidth];
    load_elements(param, first, count, aligned, stored);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = stored[i];
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      if (remainder == nullptr) return;
      int16_t rest[kWidth];
      load_elements(remainder, first, count, aligned, rest);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[i] = __uint_as_float(join_remainder({__bfloat16_as_ushort(stored[i]), rest[i]}));
      }
    }
  }
  template <int kWidth>
  __device__ __forceinline__ void store(int64_t first, int64_t count, bool aligned,
                                        const Compute<T> (&values)[kWidth]) const {
    T stored[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) stored[i] = T(values[i]);
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      if (remainder != nullptr) {
        int16_t rest[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const SplitNumber number = split_remainder(__float_as_uint(values[i]), isnan(values[i]));
          stored[i] = __ushort_as_bfloat16(number.parameter);
          rest[i] = number.remainder;
        }
        store_elements(remainder, first, count, aligned, rest);
      }
    }
    store_elements(param, first, count, aligned, stored);
  }
};

template <class T>
__global__ void adam_kernel(Parameters<T> parameters, const T* grad, Compute<T>* m, Compute<T>* v,
                            int64_t count, AdamFactors<Compute<T>> factors, bool aligned) {
  using Element = Compute<T>;
  constexpr int kWidth = kVectorWidth<T>;
  for_each_vector<kWidth>(count, [&](int64_t first) {
    T grads[kWidth];
    Element params[kWidth], means[kWidth], squares[kWidth];
    parameters.load(first, count, aligned, params);
    load_elements(grad, first, count, aligned, grads);
    load_elements(m, first, count, aligned, means);
    load_elements(v, first, count, aligned, squares);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) factors.update(params[i], grads[i], means[i], squares[i]);
    store_elements(m, first, count, aligned, means);
    store_elements(v, first, count, aligned, squares);
    parameters.store(first, count, aligned, params);
  });
}

template <class T>
__global__ void sgd_kernel(SgdStep args, Parameters<T> parameters, bool aligned) {
  using Element = Compute<T>;
  constexpr int kWidth = kVectorWidth<T>;
  const auto lr = static_cast<Element>(args.lr), momentum = static_cast<Element>(args.momentum);
  const auto weight_decay = static_cast<Element>(args.weight_decay);
  Element* velocity = static_cast<Element*>(args.velocity);
  for_each_vector<kWidth>(args.count, [&](int64_t first) {
    T grads[kWidth];
    Element params[kWidth], velocities[kWidth];
    parameters.load(first, args.count, aligned, params);
    load_elements(static_cast<const T*>(args.grad), first, args.count, aligned, grads);
    if (velocity != nullptr && !args.first) load_elements(velocity, first, args.count, aligned, velocities);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      Element g = grads[i];
      if (weight_decay != 0) g = fma(weight_decay, params[i], g);
      if (velocity != nullptr) {
        velocities[i] = args.first ? g : fma(momentum, velocities[i], g);
        g = args.nesterov ? fma(momentum, velocities[i], g) : velocities[i];
      }
      params[i] = fma(-lr, g, params[i]);
    }
    if (velocity != nullptr) store_elements(velocity, first, args.count, aligned, velocities);
    parameters.store(first, args.count, aligned, params);
  });
}

template <class T>
struct Squares {
  static constexpr int kElements = kVectorWidth<T>;
  const T* x;
  bool aligned;

  __device__ __forceinline__ double add(int64_t first, int64_t end) const {
    T values[kElements];
    load_elements(x, first, end, aligned, values);
    Compute<T> sum = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      sum += static_cast<Compute<T>>(values[i]) * static_cast<Compute<T>>(values[i]);
    return sum;
  }
};

struct StoreSum {
  double* result;
  __device__ __forceinline__ void operator()(double sum) const { *result = sum; }
};

}  // namespace

void adam_step(const AdamStep& args) {
  dispatch_floating(args.dtype, "adam_step", [&]<class T>() {
    const bool aligned = is_aligned(args.param, args.grad, args.m, args.v, args.remainder);
    launch<adam_kernel<T>>({.grid = grid_for(ceil_div(args.count, kVectorWidth<T>)), .block = kThreads},
                           Parameters<T>(args), static_cast<const T*>(args.grad),
                           static_cast<Compute<T>*>(args.m), static_cast<Compute<T>*>(args.v), args.count,
                           AdamFactors<Compute<T>>(args), aligned);
  });
}

void sgd_step(const SgdStep& args) {
  dispatch_floating(args.dtype, "sgd_step", [&]<class T>() {
    launch<sgd_kernel<T>>({.grid = grid_for(ceil_div(args.count, kVectorWidth<T>)), .block = kThreads}, args,
                          Parameters<T>(args),
                          is_aligned(args.param, args.grad, args.velocity, args.remainder));
  });
}

void sum_of_squares(const SumOfSquares& args) {
  dispatch_floating(args.dtype, "sum_of_squares", [&]<class T>() {
    sum_in_order(args.count, Squares<T>{static_cast<const T*>(args.x), is_aligned(args.x)},
                 StoreSum{args.result});
  });
}

}  // namespace elwise::cuda
