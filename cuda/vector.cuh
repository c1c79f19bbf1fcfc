#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/dtype.h"
#include "core/error.h"

namespace elwise::cuda {

/// What a kernel computes in where it stores T: f32 for bf16.
template <class T>
struct ComputeOf {
  using type = T;
};
template <>
struct ComputeOf<__nv_bfloat16> {
  using type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

/// Calls `function.template operator()<T>()` with float, double or __nv_bfloat16.
template <class Function>
decltype(auto) dispatch_floating(DType dtype, std::string_view kernel, Function&& function) {
  return dispatch_f32_f64_bf16<__nv_bfloat16>(dtype, kernel, function);
}

/// Calls `function.template operator()<T>()` with the element type of any dtype.
template <class Function>
decltype(auto) dispatch_any(DType dtype, std::string_view kernel, Function&& function) {
  switch (dtype) {
    case DType::i64:
      return function.template operator()<int64_t>();
    case DType::i16:
      return function.template operator()<int16_t>();
    case DType::boolean:
      return function.template operator()<bool>();
    default:
      return dispatch_floating(dtype, kernel, function);
  }
}

/// The widest access of a thread.
inline constexpr int kVectorBytes = 16;

/// Elements of T in a 16-byte access.
template <class T>
inline constexpr int kVectorWidth = kVectorBytes / static_cast<int>(sizeof(T));

/// N neighbours, read and written by one instruction. `from` is aligned to the whole.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& value) {
  *reinterpret_cast<Vector<T, N>*>(to) = value;
}

/// store() to global memory beside a branch that stores the elements one by one: the compiler would join the
/// two and store them one by one in both.
template <int N, class T>
__device__ __forceinline__ void store_at_once(T* to, const Vector<T, N>& value) {
  if constexpr (sizeof value == sizeof(uint4)) {
    __stcg(reinterpret_cast<uint4*>(to), __builtin_bit_cast(uint4, value));
  } else if constexpr (sizeof value == sizeof(uint2)) {
    __stcg(reinterpret_cast<uint2*>(to), __builtin_bit_cast(uint2, value));
  } else {
    store(to, value);
  }
}

/// values[i] = x[first + i] for those of N neighbours that lie before `count`, and `missing` for the others;
/// in the widest accesses where `aligned`: x + first is then aligned to 16 bytes, or to all N elements if
/// they are fewer.
template <class T, int N>
__device__ __forceinline__ void load_elements(const T* x, int64_t first, int64_t count, bool aligned,
                                              T (&values)[N], T missing = T(0.0F)) {
  constexpr int kWidth = N < kVectorWidth<T> ? N : kVectorWidth<T>;
  if (aligned && first + N <= count) {
#pragma unroll
    for (int i = 0; i < N; i += kWidth) {
      const auto part = load<kWidth>(x + first + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[i + j] = part.at[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = first + i < count ? x[first + i] : missing;
  }
}

/// Writes values[i] to y[first + i] for the elements that lie before `count`; `aligned` as for load_elements.
template <class T, int N>
__device__ __forceinline__ void store_elements(T* y, int64_t first, int64_t count, bool aligned,
                                               const T (&values)[N]) {
  constexpr int kWidth = N < kVectorWidth<T> ? N : kVectorWidth<T>;
  if (aligned && first + N <= count) {
#pragma unroll
    for (int i = 0; i < N; i += kWidth) {
      Vector<T, kWidth> part;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) part.at[j] = values[i + j];
      store(y + first + i, part);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (first + i < count) y[first + i] = values[i];
    }
  }
}

/// True where all pointers allow 16-byte accesses.
template <class... Pointers>
bool is_aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % kVectorBytes == 0) && ...);
}

/// load, to compute with.
template <int N, class T>
__device__ __forceinline__ Vector<Compute<T>, N> load_compute(const T* from) {
  const Vector<T, N> stored = load<N>(from);
  Vector<Compute<T>, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result.at[i] = static_cast<Compute<T>>(stored.at[i]);
  return result;
}

/// store of what was computed.
template <int N, class T>
__device__ __forceinline__ void store_compute(T* to, const Vector<Compute<T>, N>& value) {
  Vector<T, N> stored;
#pragma unroll
  for (int i = 0; i < N; ++i) stored.at[i] = T(value.at[i]);
  store(to, stored);
}

/// What is left of a value once it is stored as T.
template <class T>
__device__ __forceinline__ Compute<T> rounded(Compute<T> value) {
  return static_cast<Compute<T>>(T(value));
}

}  // namespace elwise::cuda
