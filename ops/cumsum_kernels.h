#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// y[o, r, i] = sum of x[o, s, i] over s <= r (s >= r when reverse). y may be x.
struct Cumsum {
  DType dtype;
  const void* x;  // [outer, length, inner]
  void* y;        // [outer, length, inner]
  int64_t outer;
  int64_t length;
  int64_t inner;
  bool reverse;

  KernelCost cost() const {
    const double n = static_cast<double>(outer * length * inner),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n, .bytes_read = bytes, .bytes_written = bytes};
  }
};

namespace cpu {
void cumsum(const Cumsum&);
}
namespace cuda {
void cumsum(const Cumsum&);
}

}  // namespace elwise
