#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <string_view>
#include <type_traits>

#include "core/error.h"

namespace elwise {

/// i16 is only stored: words of an optimizer's state (ops/optimizer_step.h).
enum class DType : uint8_t { f32, f64, bf16, i64, i16, boolean };

/// Storage format of bf16: the upper half of an f32. Arithmetic happens in f32.
struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  /// Rounds to nearest even; a NaN stays a (quiet) NaN.
  explicit BFloat16(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    bits = static_cast<uint16_t>(std::isnan(value) ? (word >> 16) | 0x40u
                                                   : (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

/// Bytes of one element.
constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 4;
    case DType::f64:
      return 8;
    case DType::bf16:
      return 2;
    case DType::i64:
      return 8;
    case DType::i16:
      return 2;
    case DType::boolean:
      return 1;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::f64:
      return "f64";
    case DType::bf16:
      return "bf16";
    case DType::i64:
      return "i64";
    case DType::i16:
      return "i16";
    case DType::boolean:
      return "bool";
  }
  return "?";
}

constexpr bool is_floating(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16;
}

/// The dtype of statistics, running sums and optimizer moments beside tensors of `dtype`.
constexpr DType accumulation_dtype(DType dtype) {
  return dtype == DType::bf16 ? DType::f32 : dtype;
}

/// The same of C++ element types, and what kernels compute in where they store T: f32 for bf16.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

inline std::ostream& operator<<(std::ostream& out, DType dtype) {
  return out << name_of(dtype);
}

namespace detail {
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<int16_t> {
  static constexpr DType value = DType::i16;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType value = DType::boolean;
};
}  // namespace detail

/// The DType of a C++ element type: dtype_of<float> is DType::f32.
template <class T>
inline constexpr DType dtype_of = detail::DTypeOf<T>::value;

/// Calls `function.template operator()<T>()` with T = float or double. Kernels that are written for f32 and
/// f64 start with it; `kernel` names the kernel in the error for any other dtype.
template <class Function>
decltype(auto) dispatch_f32_f64(DType dtype, std::string_view kernel, Function&& function) {
  switch (dtype) {
    case DType::f32:
      return function.template operator()<float>();
    case DType::f64:
      return function.template operator()<double>();
    default:
      fail(kernel, ": expected dtype f32 or f64, got ", dtype);
  }
}

/// dispatch_f32_f64 for kernels that are written for bf16 too, whose elements they call Bf16.
template <class Bf16 = BFloat16, class Function>
decltype(auto) dispatch_f32_f64_bf16(DType dtype, std::string_view kernel, Function&& function) {
  switch (dtype) {
    case DType::f32:
      return function.template operator()<float>();
    case DType::f64:
      return function.template operator()<double>();
    case DType::bf16:
      return function.template operator()<Bf16>();
    default:
      fail(kernel, ": expected dtype f32, f64 or bf16, got ", dtype);
  }
}

}  // namespace elwise
