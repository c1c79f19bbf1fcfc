#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// y[o, i] = sum over r of x[o, r, i].
struct SumForward {
  DType dtype;
  const void* x;  // [outer, reduced, inner]
  void* y;        // [outer, inner]
  int64_t outer;
  int64_t reduced;
  int64_t inner;

  KernelCost cost() const {
    const double n = static_cast<double>(outer * inner), bytes = static_cast<double>(size_of(dtype));
    const double r = static_cast<double>(reduced);
    return {.flops = n * r, .bytes_read = n * r * bytes, .bytes_written = n * bytes};
  }
};

/// y[o, i] = max over r of x[o, r, i], and where it first stands. A NaN counts as the largest.
struct MaxForward {
  DType dtype;
  const void* x;   // [outer, reduced, inner]
  void* y;         // [outer, inner]
  int64_t* index;  // [outer, inner]
  int64_t outer;
  int64_t reduced;
  int64_t inner;

  KernelCost cost() const {
    const double n = static_cast<double>(outer * inner), bytes = static_cast<double>(size_of(dtype));
    const double r = static_cast<double>(reduced);
    return {.flops = n * r, .bytes_read = n * r * bytes, .bytes_written = n * (bytes + 8)};
  }
};

namespace cpu {
void sum_forward(const SumForward&);
void max_forward(const MaxForward&);
}  // namespace cpu
namespace cuda {
void sum_forward(const SumForward&);
void max_forward(const MaxForward&);
}  // namespace cuda

}  // namespace elwise
