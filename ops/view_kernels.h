#pragma once

#include "ops/elementwise_kernels.h"

namespace elwise {

/// y[i] = x[i] over a loop nest with a stride for each side: transposes, expands, slices, concatenations.
/// Where x and y have a dense innermost dimension, rows are copied whole. Any dtype.
struct StridedCopy {
  DType dtype;
  const void* x;
  void* y;
  Extents extents;
  Strides x_strides;
  Strides y_strides;

  KernelCost cost() const {
    const double bytes = static_cast<double>(extents.count() * size_of(dtype));
    return {.flops = 0, .bytes_read = bytes, .bytes_written = bytes};
  }
};

namespace cpu {
void strided_copy(const StridedCopy&);
}
namespace cuda {
void strided_copy(const StridedCopy&);
}

}  // namespace elwise
