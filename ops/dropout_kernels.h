#pragma once

#include "core/cost.h"
#include "core/dtype.h"
#include "core/random.h"

namespace elwise {

/// y[i] = x[i] / (1 - p) where uniform01(stream.word(i)) >= p, else 0. The gradient is the same map of dy. y
/// may be x.
struct Dropout {
  DType dtype;
  const void* x;  // [count]
  void* y;        // [count]
  int64_t count;
  double p;
  RandomStream stream;

  KernelCost cost() const {
    const double n = static_cast<double>(count), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n, .bytes_read = bytes, .bytes_written = bytes};
  }
};

enum class Distribution : uint8_t { uniform, normal };

/// Random numbers from `stream`. uniform: a + (b - a) uniform01(word(i)). normal: mean a, deviation b,
/// Box-Muller on the word pair of i: elements 2j and 2j + 1 are the cosine and sine branch of words 2j and 2j
/// + 1.
struct RandomFill {
  DType dtype;
  Distribution distribution;
  void* y;  // [count]
  int64_t count;
  double a;
  double b;
  RandomStream stream;

  KernelCost cost() const {
    const double n = static_cast<double>(count);
    return {.flops = n, .bytes_read = 0, .bytes_written = n * static_cast<double>(size_of(dtype))};
  }
};

namespace cpu {
void dropout(const Dropout&);
void random_fill(const RandomFill&);
}  // namespace cpu
namespace cuda {
void dropout(const Dropout&);
void random_fill(const RandomFill&);
}  // namespace cuda

}  // namespace elwise
