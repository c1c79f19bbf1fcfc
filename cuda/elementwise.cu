#include "ops/elementwise_kernels.h"

#include <cstdint>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/loop_nest.cuh"
#include "cuda/vector.cuh"

// Binary ops and where over broadcast operands; conversions and fills. A thread takes 16 bytes of the result
// at a time, or one element where operands are not aligned or broadcast within such a piece.

namespace elwise::cuda {
namespace {

template <BinaryOp op, class T>
__device__ __forceinline__ T apply(T a, T b) {
  if constexpr (op == BinaryOp::add) return a + b;
  if constexpr (op == BinaryOp::sub) return a - b;
  if constexpr (op == BinaryOp::mul) return a * b;
  if constexpr (op == BinaryOp::div) return a / b;
  // A NaN in b is neither above nor below a, so b is taken.
  if constexpr (op == BinaryOp::maximum) return a > b || a != a ? a : b;
  if constexpr (op == BinaryOp::minimum) return a < b || a != a ? a : b;
  if constexpr (op == BinaryOp::step) return a > b ? T(1) : a == b ? T(0.5) : T(0);
}

template <class T, BinaryOp op, int N>
__global__ void binary_kernel(const T* a, const T* b, T* y, int64_t count, DeviceLoopNest<2> nest) {
  for (int64_t item = grid_thread(); item * N < count; item += grid_threads()) {
    int64_t offsets[2];
    nest.find(item, offsets);
    T left[N], right[N];
    load_item(a + offsets[0], nest.repeats(0), count - item * N, left);
    load_item(b + offsets[1], nest.repeats(1), count - item * N, right);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      left[i] = T(apply<op>(static_cast<Compute<T>>(left[i]), static_cast<Compute<T>>(right[i])));
    }
    store_elements(y, item * N, count, true, left);
  }
}

template <class T, int N>
__global__ void where_kernel(const bool* condition, const T* a, const T* b, T* y, int64_t count,
                             DeviceLoopNest<3> nest) {
  for (int64_t item = grid_thread(); item * N < count; item += grid_threads()) {
    int64_t offsets[3];
    nest.find(item, offsets);
    bool chosen[N];
    T left[N], right[N];
    load_item(condition + offsets[0], nest.repeats(0), count - item * N, chosen);
    load_item(a + offsets[1], nest.repeats(1), count - item * N, left);
    load_item(b + offsets[2], nest.repeats(2), count - item * N, right);
#pragma unroll
    for (int i = 0; i < N; ++i) left[i] = chosen[i] ? left[i] : right[i];
    store_elements(y, item * N, count, true, left);
  }
}

/// One element's conversion. An integer from NaN or beyond its range is its lowest value; bf16 goes through
/// f32.
template <class To, class From>
__host__ __device__ __forceinline__ To convert(From value) {
  if constexpr (std::is_same_v<From, __nv_bfloat16>) {
    return convert<To>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != From(0);
  } else if constexpr (std::is_same_v<To, __nv_bfloat16>) {
    return To(static_cast<float>(value));
  } else if constexpr (std::is_integral_v<To> && std::is_floating_point_v<From>) {
    constexpr To kLowest = std::is_same_v<To, int64_t> ? INT64_MIN : INT16_MIN;
    const bool fits = value >= From(kLowest) && value < -From(kLowest);
    return fits ? static_cast<To>(value) : kLowest;
  } else {
    return static_cast<To>(value);
  }
}

/// 16 bytes of the wider side.
template <class To, class From>
constexpr int kCastElements = kVectorBytes / (sizeof(To) > sizeof(From) ? sizeof(To) : sizeof(From));

template <class To, class From>
__global__ void cast_kernel(const From* x, To* y, int64_t count, bool aligned) {
  constexpr int N = kCastElements<To, From>;
  for (int64_t first = grid_thread() * N; first < count; first += grid_threads() * N) {
    From from[N];
    To to[N];
    load_elements(x, first, count, aligned, from);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = convert<To>(from[i]);
    store_elements(y, first, count, aligned, to);
  }
}

template <class T>
__global__ void fill_kernel(T* y, int64_t count, T value, bool aligned) {
  constexpr int N = kVectorWidth<T>;
  T values[N];
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = value;
  for (int64_t first = grid_thread() * N; first < count; first += grid_threads() * N) {
    store_elements(y, first, count, aligned, values);
  }
}

template <class T, BinaryOp op>
void run_binary(const BinaryForward& args) {
  constexpr int N = kVectorWidth<T>;
  const auto* a = static_cast<const T*>(args.a);
  const auto* b = static_cast<const T*>(args.b);
  auto* y = static_cast<T*>(args.y);
  const int64_t count = args.extents.count();
  if (count == 0) return;
  const Strides* const strides[] = {&args.a_strides, &args.b_strides};
  if (is_aligned(y) && allows_width(N, args.extents, a, args.a_strides) &&
      allows_width(N, args.extents, b, args.b_strides)) {
    launch<binary_kernel<T, op, N>>({.grid = grid_for(ceil_div(count, N)), .block = kThreads}, a, b, y, count,
                                    DeviceLoopNest<2>(args.extents, strides, N));
  } else {
    launch<binary_kernel<T, op, 1>>({.grid = grid_for(count), .block = kThreads}, a, b, y, count,
                                    DeviceLoopNest<2>(args.extents, strides));
  }
}

template <class T>
void run_where(const Where& args) {
  constexpr int N = kVectorWidth<T>;
  const auto* a = static_cast<const T*>(args.a);
  const auto* b = static_cast<const T*>(args.b);
  auto* y = static_cast<T*>(args.y);
  const int64_t count = args.extents.count();
  if (count == 0) return;
  const Strides* const strides[] = {&args.condition_strides, &args.a_strides, &args.b_strides};
  if (is_aligned(y) && allows_width(N, args.extents, args.condition, args.condition_strides) &&
      allows_width(N, args.extents, a, args.a_strides) && allows_width(N, args.extents, b, args.b_strides)) {
    launch<where_kernel<T, N>>({.grid = grid_for(ceil_div(count, N)), .block = kThreads}, args.condition, a,
                               b, y, count, DeviceLoopNest<3>(args.extents, strides, N));
  } else {
    launch<where_kernel<T, 1>>({.grid = grid_for(count), .block = kThreads}, args.condition, a, b, y, count,
                               DeviceLoopNest<3>(args.extents, strides));
  }
}

}  // namespace

void binary_forward(const BinaryForward& args) {
  dispatch_floating(args.dtype, "binary_forward", [&]<class T>() {
    switch (args.op) {
      case BinaryOp::add:
        return run_binary<T, BinaryOp::add>(args);
      case BinaryOp::sub:
        return run_binary<T, BinaryOp::sub>(args);
      case BinaryOp::mul:
        return run_binary<T, BinaryOp::mul>(args);
      case BinaryOp::div:
        return run_binary<T, BinaryOp::div>(args);
      case BinaryOp::maximum:
        return run_binary<T, BinaryOp::maximum>(args);
      case BinaryOp::minimum:
        return run_binary<T, BinaryOp::minimum>(args);
      case BinaryOp::step:
        return run_binary<T, BinaryOp::step>(args);
    }
  });
}

void where(const Where& args) {
  dispatch_floating(args.dtype, "where", [&]<class T>() { run_where<T>(args); });
}

void fill(const Fill& args) {
  dispatch_any(args.dtype, "fill", [&]<class T>() {
    auto* y = static_cast<T*>(args.y);
    launch<fill_kernel<T>>({.grid = grid_for(ceil_div(args.count, kVectorWidth<T>)), .block = kThreads}, y,
                           args.count, convert<T>(args.value), is_aligned(y));
  });
}

void cast(const Cast& args) {
  dispatch_any(args.from, "cast", [&]<class From>() {
    dispatch_any(args.to, "cast", [&]<class To>() {
      launch<cast_kernel<To, From>>(
          {.grid = grid_for(ceil_div(args.count, kCastElements<To, From>)), .block = kThreads},
          static_cast<const From*>(args.x), static_cast<To*>(args.y), args.count, is_aligned(args.x, args.y));
    });
  });
}

}  // namespace elwise::cuda
