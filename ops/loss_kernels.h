#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// loss = mean of logsumexp(logits[r]) - logits[r, target[r]] over the rows whose target is not ignore_index;
/// 0 when there is none. Throws Error for another target outside [0, classes).
struct CrossEntropyForward {
  DType dtype;
  const void* logits;     // [rows, classes]
  const int64_t* target;  // [rows]
  void* loss;             // [1], f64 for f64, else f32
  void* logsumexp;        // [rows], likewise
  void* row_loss;         // [rows], scratch, likewise
  int64_t rows;
  int64_t classes;
  int64_t ignore_index;

  KernelCost cost() const {
    const double n = static_cast<double>(rows * classes);
    return {.flops = 3 * n, .bytes_read = n * static_cast<double>(size_of(dtype)), .bytes_written = 0};
  }
};

/// dlogits[r] = (softmax(logits[r]) - onehot(target[r])) * dloss / rows counted; 0 in ignored rows. dlogits
/// may be logits.
struct CrossEntropyBackward {
  DType dtype;
  const void* logits;     // [rows, classes]
  const int64_t* target;  // [rows]
  const void* logsumexp;  // [rows], f64 for f64, else f32
  const void* dloss;      // [1], likewise
  void* dlogits;          // [rows, classes]
  int64_t rows;
  int64_t classes;
  int64_t ignore_index;

  KernelCost cost() const {
    const double n = static_cast<double>(rows * classes), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 3 * n, .bytes_read = bytes, .bytes_written = bytes};
  }
};

enum class PointwiseLoss : uint8_t { mse, l1 };

/// loss = mean of (x - target)^2 or |x - target|.
struct PointwiseLossForward {
  DType dtype;
  PointwiseLoss kind;
  const void* x;       // [count]
  const void* target;  // [count]
  void* loss;          // [1], f64 for f64, else f32
  int64_t count;

  KernelCost cost() const {
    const double n = static_cast<double>(count);
    return {.flops = 3 * n, .bytes_read = 2 * n * static_cast<double>(size_of(dtype)), .bytes_written = 0};
  }
};

/// dx = dloss / count * (2 (x - target) or sign(x - target)). The gradient of target is -dx.
struct PointwiseLossBackward {
  DType dtype;
  PointwiseLoss kind;
  const void* x;       // [count]
  const void* target;  // [count]
  const void* dloss;   // [1], f64 for f64, else f32
  void* dx;            // [count]
  int64_t count;

  KernelCost cost() const {
    const double n = static_cast<double>(count), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 2 * n, .bytes_read = 2 * bytes, .bytes_written = bytes};
  }
};

namespace cpu {
void cross_entropy_forward(const CrossEntropyForward&);
void cross_entropy_backward(const CrossEntropyBackward&);
void pointwise_loss_forward(const PointwiseLossForward&);
void pointwise_loss_backward(const PointwiseLossBackward&);
}  // namespace cpu
namespace cuda {
void cross_entropy_forward(const CrossEntropyForward&);
void cross_entropy_backward(const CrossEntropyBackward&);
void pointwise_loss_forward(const PointwiseLossForward&);
void pointwise_loss_backward(const PointwiseLossBackward&);
}  // namespace cuda

}  // namespace elwise
