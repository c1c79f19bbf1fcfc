#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "ops/elementwise_kernels.h"

// Unary ops, op for op as in ops/cpu/elementwise_unary.cpp. A thread takes 16 bytes of elements at a time.

namespace elwise::cuda {
namespace {

/// The parameters p0, p1 of an op and, for power, its exponent.
template <class V>
struct Parameters {
  V p0, p1;
  int64_t exponent;
};

/// x^n by repeated multiplication (by squaring); 1 / x^-n for n < 0, 1 for n = 0.
template <class V>
__device__ __forceinline__ V power(V x, int64_t n) {
  V product = 1;
  for (uint64_t rest = n < 0 ? -static_cast<uint64_t>(n) : static_cast<uint64_t>(n); rest != 0; rest >>= 1) {
    if (rest & 1) product *= x;
    x *= x;
  }
  return n < 0 ? 1 / product : product;
}

template <class V>
__device__ __forceinline__ V sigmoid(V x) {
  return 1 / (1 + exp(-x));
}

constexpr double kGeluScale = 1.5957691216057308;  // 2 sqrt(2 / pi)
constexpr double kGeluCubic = kGeluScale * 0.044715;
constexpr double kRootHalf = 0.70710678118654752;
constexpr double kDensityAtZero = 0.39894228040143268;  // of the normal distribution

/// 2u of gelu_tanh(x) = x / 2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class V>
__device__ __forceinline__ V gelu_tanh_argument(V x) {
  return x * fma(x * x, V(kGeluCubic), V(kGeluScale));
}

/// op(x).
template <UnaryOp op, class V>
__device__ __forceinline__ V forward(V x, const Parameters<V>& p) {
  if constexpr (op == UnaryOp::neg) return -x;
  if constexpr (op == UnaryOp::abs) return fabs(x);
  if constexpr (op == UnaryOp::exp) return exp(x);
  if constexpr (op == UnaryOp::log) return log(x);
  if constexpr (op == UnaryOp::sqrt) return sqrt(x);
  if constexpr (op == UnaryOp::tanh) return tanh(x);
  if constexpr (op == UnaryOp::sigmoid) return sigmoid(x);
  if constexpr (op == UnaryOp::relu) return x <= 0 ? V(0) : x;
  if constexpr (op == UnaryOp::elu) return x > 0 ? x : expm1(x);
  if constexpr (op == UnaryOp::gelu) {
    const V half = x * V(0.5);
    return fma(half, erf(x * V(kRootHalf)), half);
  }
  if constexpr (op == UnaryOp::gelu_tanh) return x * sigmoid(gelu_tanh_argument(x));
  if constexpr (op == UnaryOp::clamp) {
    const V raised = x < p.p0 ? p.p0 : x;
    return raised > p.p1 ? p.p1 : raised;
  }
  if constexpr (op == UnaryOp::power) return power(x, p.exponent);
  if constexpr (op == UnaryOp::add_scalar) return x + p.p0;
  if constexpr (op == UnaryOp::mul_scalar) return x * p.p0;
}

/// dy * op'(x), given s, which gradient_source(op) names.
template <UnaryOp op, class V>
__device__ __forceinline__ V backward(V s, V dy, const Parameters<V>& p) {
  if constexpr (op == UnaryOp::neg) return -dy;
  if constexpr (op == UnaryOp::abs) return dy * (s > 0 ? V(1) : s < 0 ? V(-1) : s);
  if constexpr (op == UnaryOp::exp) return dy * s;
  if constexpr (op == UnaryOp::log) return dy / s;
  if constexpr (op == UnaryOp::sqrt) return dy / (s + s);
  if constexpr (op == UnaryOp::tanh) return dy * fma(-s, s, V(1));
  if constexpr (op == UnaryOp::sigmoid) return dy * (s * (1 - s));
  if constexpr (op == UnaryOp::relu) return s <= 0 ? V(0) : dy;
  if constexpr (op == UnaryOp::elu) return s > 0 ? dy : dy * exp(s);
  if constexpr (op == UnaryOp::gelu) {  // the normal distribution: cdf(x) + x pdf(x)
    const V cdf = fma(V(0.5), erf(s * V(kRootHalf)), V(0.5));
    const V density = exp(s * s * V(-0.5));
    return dy * fma(s * V(kDensityAtZero), density, cdf);
  }
  if constexpr (op == UnaryOp::gelu_tanh) {
    const V sigma = sigmoid(gelu_tanh_argument(s));
    const V slope = fma(s * s, V(3 * kGeluCubic), V(kGeluScale));
    // In this order, for large |s| it is 0 times a finite slope, never 0 times infinity.
    const V spread = s * (sigma * (1 - sigma));
    return dy * fma(spread, slope, sigma);
  }
  if constexpr (op == UnaryOp::clamp) return s >= p.p0 && s <= p.p1 ? dy : V(0);
  if constexpr (op == UnaryOp::power) return p.exponent == 0 ? V(0) : dy * (p.p0 * power(s, p.exponent - 1));
  if constexpr (op == UnaryOp::add_scalar) return dy;
  if constexpr (op == UnaryOp::mul_scalar) return dy * p.p0;
}

template <class T, UnaryOp op>
__global__ void unary_forward_kernel(const T* x, T* y, int64_t count, Parameters<Compute<T>> parameters,
                                     bool aligned) {
  constexpr int N = kVectorWidth<T>;
  for (int64_t first = grid_thread() * N; first < count; first += grid_threads() * N) {
    T values[N];
    load_elements(x, first, count, aligned, values);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = T(forward<op>(static_cast<Compute<T>>(values[i]), parameters));
    store_elements(y, first, count, aligned, values);
  }
}

template <class T, UnaryOp op>
__global__ void unary_backward_kernel(const T* saved, const T* dy, T* dx, int64_t count,
                                      Parameters<Compute<T>> parameters, bool aligned) {
  constexpr int N = kVectorWidth<T>;
  for (int64_t first = grid_thread() * N; first < count; first += grid_threads() * N) {
    T values[N], gradients[N];
    load_elements(saved, first, count, aligned, values);
    load_elements(dy, first, count, aligned, gradients);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      gradients[i] = T(backward<op>(static_cast<Compute<T>>(values[i]), static_cast<Compute<T>>(gradients[i]),
                                    parameters));
    }
    store_elements(dx, first, count, aligned, gradients);
  }
}

/// Calls function.template operator()<op>().
template <class Function>
void dispatch_op(UnaryOp op, const Function& function) {
  switch (op) {
    case UnaryOp::neg:
      return function.template operator()<UnaryOp::neg>();
    case UnaryOp::abs:
      return function.template operator()<UnaryOp::abs>();
    case UnaryOp::exp:
      return function.template operator()<UnaryOp::exp>();
    case UnaryOp::log:
      return function.template operator()<UnaryOp::log>();
    case UnaryOp::sqrt:
      return function.template operator()<UnaryOp::sqrt>();
    case UnaryOp::tanh:
      return function.template operator()<UnaryOp::tanh>();
    case UnaryOp::sigmoid:
      return function.template operator()<UnaryOp::sigmoid>();
    case UnaryOp::relu:
      return function.template operator()<UnaryOp::relu>();
    case UnaryOp::elu:
      return function.template operator()<UnaryOp::elu>();
    case UnaryOp::gelu:
      return function.template operator()<UnaryOp::gelu>();
    case UnaryOp::gelu_tanh:
      return function.template operator()<UnaryOp::gelu_tanh>();
    case UnaryOp::clamp:
      return function.template operator()<UnaryOp::clamp>();
    case UnaryOp::power:
      return function.template operator()<UnaryOp::power>();
    case UnaryOp::add_scalar:
      return function.template operator()<UnaryOp::add_scalar>();
    case UnaryOp::mul_scalar:
      return function.template operator()<UnaryOp::mul_scalar>();
  }
}

template <class T, class Arguments>
Parameters<Compute<T>> parameters(const Arguments& args) {
  const int64_t exponent = args.op == UnaryOp::power ? static_cast<int64_t>(args.p0) : 0;
  return {static_cast<Compute<T>>(args.p0), static_cast<Compute<T>>(args.p1), exponent};
}

template <class T>
LaunchShape shape_for(int64_t count) {
  return {.grid = grid_for(ceil_div(count, kVectorWidth<T>)), .block = kThreads};
}

}  // namespace

void unary_forward(const UnaryForward& args) {
  dispatch_floating(args.dtype, "unary_forward", [&]<class T>() {
    dispatch_op(args.op, [&]<UnaryOp op>() {
      launch<unary_forward_kernel<T, op>>(shape_for<T>(args.count), static_cast<const T*>(args.x),
                                          static_cast<T*>(args.y), args.count, parameters<T>(args),
                                          is_aligned(args.x, args.y));
    });
  });
}

void unary_backward(const UnaryBackward& args) {
  dispatch_floating(args.dtype, "unary_backward", [&]<class T>() {
    dispatch_op(args.op, [&]<UnaryOp op>() {
      launch<unary_backward_kernel<T, op>>(shape_for<T>(args.count), static_cast<const T*>(args.saved),
                                           static_cast<const T*>(args.dy), static_cast<T*>(args.dx),
                                           args.count, parameters<T>(args),
                                           is_aligned(args.saved, args.dy, args.dx));
    });
  });
}

}  // namespace elwise::cuda
