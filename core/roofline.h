#pragma once

#include <memory>

#include "core/cost.h"
#include "core/device.h"
#include "core/dtype.h"

namespace elwise {

/// What a device can do at the time it was measured, the CPU with num_threads() threads. The model is the
/// roofline (Williams, Waterman & Patterson, 2009): a kernel needs its bytes' time or its operations',
/// whichever is longer.
struct Roofline {
  double copy_bytes_per_s = 0;  // of a copy past the caches, what it reads and writes together
  double f64_flops_per_s = 0;   // of independent multiply-adds, two operations each
  double f32_flops_per_s = 0;
  double bf16_flops_per_s = 0;  // of the processor's bf16 products where it has them, else as f32; of a GPU's
                                // large matrix products

  /// The least time that work of this cost takes, in seconds.
  double seconds(const KernelCost& cost, DType dtype) const;
};

/// How one kind of device is measured.
class RooflineProbe {
 public:
  virtual ~RooflineProbe() = default;
  virtual Roofline measure() = 0;
  virtual double measure_read_bytes_per_s() = 0;
};

/// Measures the roofline of a device again and again: machines drift, so it is to be measured in turn with
/// what it judges. Holds buffers that the allocator does not count: 128 MiB, on a GPU 8 MiB for each
/// multiprocessor. Throws Error where they do not fit, for a GPU that is not there and for meta.
class RooflineMeter {
 public:
  explicit RooflineMeter(Device device = kCpu);

  /// Takes some 30 ms.
  Roofline measure() { return probe_->measure(); }

  /// Of memory that is read once, in bytes per second: for what writes next to nothing, such as a product
  /// with one row. Takes some 3 ms.
  double measure_read_bytes_per_s() { return probe_->measure_read_bytes_per_s(); }

 private:
  std::unique_ptr<RooflineProbe> probe_;
};

}  // namespace elwise
