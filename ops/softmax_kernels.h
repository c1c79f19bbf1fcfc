#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// y = softmax(x) over each row, its maximum subtracted first; y may be x. Row r belongs to batch entry
/// r / (rows / batch) and is query r % queries. A column that key_mask or causality hides gets weight 0; a
/// row with no visible column is all 0. A row of visible -infinity is NaN (cuDNN gives zeros for f32, bf16).
struct SoftmaxForward {
  DType dtype;
  const void* x;  // [rows, cols]
  void* y;        // [rows, cols]
  int64_t rows;
  int64_t cols;
  int64_t batch = 1;
  int64_t queries = 1;
  const bool* key_mask = nullptr;  // [batch, cols], true = visible
  bool causal = false;             // query i sees columns 0 .. i

  KernelCost cost() const {
    const double n = static_cast<double>(rows * cols), bytes = n * static_cast<double>(size_of(dtype));
    const double seen = causal ? 0.5 : 1;
    return {.flops = 4 * n * seen, .bytes_read = bytes * seen, .bytes_written = bytes};
  }
};

/// dx = y * (dy - sum(y * dy)) for each row. dx may be dy. Hidden columns have y = 0 and so dx = 0.
struct SoftmaxBackward {
  DType dtype;
  const void* y;   // [rows, cols]
  const void* dy;  // [rows, cols]
  void* dx;        // [rows, cols]
  int64_t rows;
  int64_t cols;

  KernelCost cost() const {
    const double n = static_cast<double>(rows * cols), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 4 * n, .bytes_read = 2 * bytes, .bytes_written = bytes};
  }
};

namespace cpu {
void softmax_forward(const SoftmaxForward&);
void softmax_backward(const SoftmaxBackward&);
}  // namespace cpu
namespace cuda {
void softmax_forward(const SoftmaxForward&);
void softmax_backward(const SoftmaxBackward&);
}  // namespace cuda

}  // namespace elwise
