#pragma once

#include <memory>

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// What the machine can do at the time it was measured, with num_threads() threads. The model is the roofline
/// (Williams, Waterman & Patterson, 2009): a kernel needs its bytes' time or its operations', whichever is
/// longer.
struct Roofline {
  double copy_bytes_per_s = 0;  // of a copy with non-temporal stores, what it reads and writes together
  double f64_flops_per_s = 0;   // of independent multiply-adds, two operations each
  double f32_flops_per_s = 0;
  double bf16_flops_per_s = 0;  // with the processor's bf16 products where it has them, else as f32

  /// The least time that work of this cost takes, in seconds.
  double seconds(const KernelCost& cost, DType dtype) const;
};

/// Measures the roofline again and again: machines drift, so it is to be measured in turn with what it
/// judges. Holds buffers of 128 MiB that the allocator does not count. Throws OutOfMemoryError.
class RooflineMeter {
 public:
  RooflineMeter();
  ~RooflineMeter();

  /// Takes some 30 ms.
  Roofline measure();

  /// Of memory that is read once, in bytes per second: for what writes next to nothing, such as a product
  /// with one row. Takes some 3 ms.
  double measure_read_bytes_per_s();

 private:
  struct Buffers;
  std::unique_ptr<Buffers> buffers_;
};

}  // namespace elwise
