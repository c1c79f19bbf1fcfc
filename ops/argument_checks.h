#pragma once

#include "core/tensor.h"

namespace elwise {

/// Throws Error unless `tensor` has a dtype that ops compute in: f32, f64 or bf16.
inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  ELWISE_CHECK(is_floating(tensor.dtype()), op, ": expected ", name, " of dtype f32, f64 or bf16, got ",
               tensor.dtype());
}

/// Throws Error unless `tensor` has the dtype and device of `reference`.
inline void check_same_kind(const char* op, const char* reference_name, const Tensor& reference,
                            const char* name, const Tensor& tensor) {
  ELWISE_CHECK(tensor.dtype() == reference.dtype() && tensor.device() == reference.device(), op,
               ": expected ", name, " of ", reference.dtype(), " on ", reference.device(), " like ",
               reference_name, ", got ", tensor.dtype(), " on ", tensor.device());
}

/// Throws Error unless `tensor`, of running sums beside `reference`, has their dtype and its device.
inline void check_statistics(const char* op, const char* name, const Tensor& tensor,
                             const Tensor& reference) {
  const DType expected = accumulation_dtype(reference.dtype());
  ELWISE_CHECK(tensor.dtype() == expected && tensor.device() == reference.device(), op, ": expected ", name,
               " of ", expected, " on ", reference.device(), ", got ", tensor.dtype(), " on ",
               tensor.device());
}

/// Throws Error unless `tensor` has exactly this shape.
inline void check_shape(const char* op, const char* name, const Tensor& tensor, const Shape& shape) {
  ELWISE_CHECK(tensor.shape() == shape, op, ": expected ", name, " of shape ", shape, ", got ",
               tensor.shape());
}

/// Throws Error unless `weight` [outputs, inputs] and `bias` [outputs], which may be undefined, are a linear
/// layer's and of the dtype and device of `x`.
inline void check_linear(const char* op, const Tensor& x, int64_t inputs, const char* weight_name,
                         const Tensor& weight, const char* bias_name, const Tensor& bias) {
  check_same_kind(op, "x", x, weight_name, weight);
  ELWISE_CHECK(weight.rank() == 2 && weight.size(1) == inputs, op, ": expected ", weight_name, " [.., ",
               inputs, "] for x ", x.shape(), ", got ", weight.shape());
  if (!bias.defined()) return;
  check_same_kind(op, "x", x, bias_name, bias);
  check_shape(op, bias_name, bias, {weight.size(0)});
}

/// An i64 index on the device of `reference`.
inline void check_index(const char* op, const char* name, const Tensor& index, const Tensor& reference) {
  ELWISE_CHECK(index.dtype() == DType::i64 && index.device() == reference.device(), op, ": expected ", name,
               " of i64 on ", reference.device(), ", got ", index.dtype(), " on ", index.device());
}

/// The data of a tensor, or null for an undefined one.
inline void* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.data() : nullptr;
}

}  // namespace elwise
