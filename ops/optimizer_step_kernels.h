#pragma once

#include "core/cost.h"
#include "core/dtype.h"
#include "core/host_device.h"

namespace elwise {

/// A bf16 parameter and its remainder hold an f32 number together: its bits are those of the parameter, as
/// f32, plus the remainder. The parameter is the number rounded to nearest (a tie away from 0), so that every
/// number but a NaN, which becomes kNanWord, splits and joins bit for bit. A remainder that would carry a
/// parameter past 0 is one that the parameter was changed under, and counts as 0.
inline constexpr uint32_t kHalfStep = 0x8000, kNanWord = 0x7FC0'0000;

struct SplitNumber {
  uint16_t parameter;
  int16_t remainder;
};

ELWISE_HOST_DEVICE constexpr SplitNumber split_remainder(uint32_t word, bool is_nan) {
  if (is_nan) word = kNanWord;
  return {static_cast<uint16_t>((word + kHalfStep) >> 16), static_cast<int16_t>(word)};
}

ELWISE_HOST_DEVICE constexpr uint32_t join_remainder(SplitNumber number) {
  const uint32_t word = static_cast<uint32_t>(number.parameter) << 16;
  const uint32_t joined = word + static_cast<uint32_t>(int32_t{number.remainder});
  return (joined ^ word) >> 31 != 0 ? word : joined;
}

/// The bytes that one step moves: of a gradient, parameters, what is computed of them and the state.
struct OptimizerTraffic {
  double read, written;

  OptimizerTraffic(DType dtype, int64_t count, bool has_remainder, int moments) {
    const double n = static_cast<double>(count), bytes = n * static_cast<double>(size_of(dtype));
    const double moment = n * static_cast<double>(size_of(accumulation_dtype(dtype)));
    const double remainder = has_remainder ? n * sizeof(int16_t) : 0;
    read = 2 * bytes + moments * moment + remainder;
    written = bytes + moments * moment + remainder;
  }
};

/// One step of Adam, AdamW or RAdam in one pass. With g = grad (+ weight_decay * param unless decoupled):
/// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2; param *= 1 - lr * weight_decay if decoupled;
/// then param -= step_size * m / (sqrt(v) * v_scale + eps), or param -= step_size * m when adaptive is false
/// (RAdam's first steps). The op folds the bias corrections and RAdam's rectification into step_size and
/// v_scale. With a remainder the step is that of the f32 numbers which bf16 parameters and remainders make
/// together (ops/optimizer_step.h): what is far below bf16's spacing adds up over the steps.
struct AdamStep {
  DType dtype;
  void* param;       // [count]
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
  void* remainder = nullptr;  // [count], i16 beside bf16

  KernelCost cost() const {
    const OptimizerTraffic traffic(dtype, count, remainder != nullptr, 2);
    return {.flops = 14 * static_cast<double>(count),
            .bytes_read = traffic.read,
            .bytes_written = traffic.written};
  }
};

/// SGD, with a remainder as above: g = grad + weight_decay * param; with momentum: velocity = momentum *
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
  bool first;                 // the first step: velocity holds nothing yet
  void* velocity = nullptr;   // [count], f64 for f64, else f32: where momentum is not 0
  void* remainder = nullptr;  // [count], i16 beside bf16

  KernelCost cost() const {
    const OptimizerTraffic traffic(dtype, count, remainder != nullptr, velocity == nullptr ? 0 : 1);
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
