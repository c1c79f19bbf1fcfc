#pragma once

#include <cstdint>

namespace elwise {

/// The least work that a kernel must do: floating-point operations (a multiply-add counts two, an exp or a
/// division one), and bytes read from and written to memory when every operand is touched once.
struct KernelCost {
  double flops = 0;
  double bytes_read = 0;
  double bytes_written = 0;

  double bytes() const { return bytes_read + bytes_written; }

  KernelCost& operator+=(const KernelCost& other) {
    flops += other.flops;
    bytes_read += other.bytes_read;
    bytes_written += other.bytes_written;
    return *this;
  }
};

/// The sum of the costs of all kernels dispatched by the calling thread, on any device, since the thread
/// started. Take the difference of two readings.
struct CostTotals : KernelCost {
  int64_t kernels = 0;
};
const CostTotals& cost_totals();

/// Called by ELWISE_DISPATCH for every kernel.
void record_cost(const KernelCost& cost);

}  // namespace elwise
