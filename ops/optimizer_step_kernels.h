#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// The bytes that one step moves: of a gradient, parameters, what is computed of them and the state.
struct OptimizerTraffic {
  double read, written;

  OptimizerTraffic(DType dtype, int64_t count, bool has_master, int moments) {
    const double n = static_cast<double>(count), bytes = n * static_cast<double>(size_of(dtype));
    const double wide = n * static_cast<double>(size_of(accumulation_dtype(dtype))), state = moments * wide;
    read = bytes + (has_master ? wide : bytes) + state;
    written = bytes + (has_master ? wide : 0) + state;
  }
};

/// One step of Adam, AdamW or RAdam in one pass. With g = grad (+ weight_decay * param unless decoupled):
/// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2; param *= 1 - lr * weight_decay if decoupled;
/// then param -= step_size * m / (sqrt(v) * v_scale + eps), or param -= step_size * m when adaptive is false
/// (RAdam's first steps). The op folds the bias corrections and RAdam's rectification into step_size and
/// v_scale. With a master copy of bf16 parameters the step is the master's, and param becomes the master
/// rounded: what is far below bf16's spacing adds up over the steps.
struct AdamStep {
  DType dtype;
  void* param;       // [count], written only where there is a master
  const void* grad;  // [count]
  void* m;           // [count], f64 for f64, else f32
  void* v;           // [count], likewise
  int64_t count;
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  bool decoupled;
  double step_size;
  double v_scale;
  bool adaptive;
  void* master = nullptr;  // [count], f32 beside bf16

  KernelCost cost() const {
    const OptimizerTraffic traffic(dtype, count, master != nullptr, 2);
    return {.flops = 14 * static_cast<double>(count),
            .bytes_read = traffic.read,
            .bytes_written = traffic.written};
  }
};

/// SGD, with a master copy as above: g = grad + weight_decay * param; with momentum: velocity = momentum *
/// velocity + g (g on the first step), and g = velocity, or g + momentum * velocity for Nesterov; param -= lr
/// * g.
struct SgdStep {
  DType dtype;
  void* param;       // [count]
  const void* grad;  // [count]
  int64_t count;
  double lr;
  double weight_decay;
  double momentum;
  bool nesterov;
  bool first;                // the first step: velocity holds nothing yet
  void* velocity = nullptr;  // [count], f64 for f64, else f32: where momentum is not 0
  void* master = nullptr;    // [count], f32 beside bf16

  KernelCost cost() const {
    const OptimizerTraffic traffic(dtype, count, master != nullptr, velocity == nullptr ? 0 : 1);
    return {.flops = 6 * static_cast<double>(count),
            .bytes_read = traffic.read,
            .bytes_written = traffic.written};
  }
};

/// result[0] = sum of x[i]^2, added in chunks whose bounds depend on count only.
struct SumOfSquares {
  DType dtype;
  const void* x;   // [count]
  double* result;  // [1]
  int64_t count;

  KernelCost cost() const {
    const double n = static_cast<double>(count);
    return {.flops = 2 * n, .bytes_read = n * static_cast<double>(size_of(dtype)), .bytes_written = 0};
  }
};

namespace cpu {
void adam_step(const AdamStep&);
void sgd_step(const SgdStep&);
void sum_of_squares(const SumOfSquares&);
}  // namespace cpu
namespace cuda {
void adam_step(const AdamStep&);
void sgd_step(const SgdStep&);
void sum_of_squares(const SumOfSquares&);
}  // namespace cuda

}  // namespace elwise
