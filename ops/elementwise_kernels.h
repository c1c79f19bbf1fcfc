#pragma once

#include <array>

#include "core/cost.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace elwise {

enum class UnaryOp : uint8_t {
  neg,
  abs,
  exp,
  log,
  sqrt,
  tanh,
  sigmoid,
  relu,
  elu,
  gelu,
  gelu_tanh,
  clamp,
  power,
  add_scalar,
  mul_scalar
};

/// What op'(x) is computed from.
enum class GradientSource : uint8_t { input, output, nothing };

constexpr GradientSource gradient_source(UnaryOp op) {
  switch (op) {
    case UnaryOp::exp:
    case UnaryOp::sqrt:
    case UnaryOp::tanh:
    case UnaryOp::sigmoid:
      return GradientSource::output;
    case UnaryOp::neg:
    case UnaryOp::add_scalar:
    case UnaryOp::mul_scalar:
      return GradientSource::nothing;
    default:
      return GradientSource::input;
  }
}

/// y = op(x). y may be x.
struct UnaryForward {
  DType dtype;
  UnaryOp op;
  const void* x;  // [count]
  void* y;        // [count]
  int64_t count;
  double p0 = 0;  // clamp: low; power: the integer exponent; add_scalar, mul_scalar: the scalar
  double p1 = 0;  // clamp: high

  KernelCost cost() const {
    const double n = static_cast<double>(count), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n, .bytes_read = bytes, .bytes_written = bytes};
  }
};

/// dx = dy * op'(x). dx may be dy.
struct UnaryBackward {
  DType dtype;
  UnaryOp op;
  const void* saved;  // [count]: what gradient_source(op) names, or any readable elements for nothing
  const void* dy;     // [count]
  void* dx;           // [count]
  int64_t count;
  double p0 = 0;
  double p1 = 0;

  KernelCost cost() const {
    const double n = static_cast<double>(count), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 2 * n, .bytes_read = 2 * bytes, .bytes_written = bytes};
  }
};

/// A loop nest over `rank` dimensions, outermost first; a stride (in elements) of 0 repeats an operand.
/// Adjacent dimensions are merged before a kernel sees them, so a contiguous case has rank 1.
struct Extents {
  int rank = 0;
  std::array<int64_t, kMaxRank> size{};

  int64_t count() const {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= size[static_cast<size_t>(i)];
    return product;
  }
};
using Strides = std::array<int64_t, kMaxRank>;

/// step(a, b) = 1 where a > b, 0.5 where a == b, else 0: the gradient of maximum with respect to a.
enum class BinaryOp : uint8_t { add, sub, mul, div, maximum, minimum, step };

/// y = op(a, b), broadcast. y is dense in the order of `extents`; y may be a or b where their strides are
/// dense.
struct BinaryForward {
  DType dtype;
  BinaryOp op;
  const void* a;
  const void* b;
  void* y;  // [extents]
  Extents extents;
  Strides a_strides;
  Strides b_strides;

  KernelCost cost() const {
    const double n = static_cast<double>(extents.count()), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n, .bytes_read = 2 * bytes, .bytes_written = bytes};
  }
};

/// y = condition ? a : b, broadcast.
struct Where {
  DType dtype;
  const bool* condition;
  const void* a;
  const void* b;
  void* y;  // [extents]
  Extents extents;
  Strides condition_strides;
  Strides a_strides;
  Strides b_strides;

  KernelCost cost() const {
    const double n = static_cast<double>(extents.count()), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 0, .bytes_read = 2 * bytes + n, .bytes_written = bytes};
  }
};

/// y[i] = value, converted to dtype (any dtype).
struct Fill {
  DType dtype;
  void* y;  // [count]
  int64_t count;
  double value;

  KernelCost cost() const {
    return {.flops = 0, .bytes_read = 0, .bytes_written = static_cast<double>(count * size_of(dtype))};
  }
};

/// y[i] = x[i], converted between any two dtypes (to bool: x != 0).
struct Cast {
  DType from;
  DType to;
  const void* x;  // [count]
  void* y;        // [count]
  int64_t count;

  KernelCost cost() const {
    return {.flops = 0,
            .bytes_read = static_cast<double>(count * size_of(from)),
            .bytes_written = static_cast<double>(count * size_of(to))};
  }
};

namespace cpu {
void unary_forward(const UnaryForward&);
void unary_backward(const UnaryBackward&);
void binary_forward(const BinaryForward&);
void where(const Where&);
void fill(const Fill&);
void cast(const Cast&);
}  // namespace cpu

namespace cuda {
void unary_forward(const UnaryForward&);
void unary_backward(const UnaryBackward&);
void binary_forward(const BinaryForward&);
void where(const Where&);
void fill(const Fill&);
void cast(const Cast&);
}  // namespace cuda

}  // namespace elwise
