#pragma once

#include <vector>

#include "core/cost.h"
#include "core/roofline.h"

namespace elwise::tools {

/// How fast a kernel is, and how fast next to the machine at that time: medians over the pairs.
struct KernelRates {
  double seconds = 0;           // of one call
  double copy_share = 0;        // of the bandwidth of a copy: the bytes that it must move over its time
  double roofline_share = 0;    // the roofline's time for its cost over its own
  double copy_bytes_per_s = 0;  // of the copy
};

/// A kernel's times in pairs: calls that together take some time, and the roofline measured right after them,
/// since machines drift.
class PairedTimes {
 public:
  /// Of a kernel that does `cost` in `dtype` at each call.
  PairedTimes(const KernelCost& cost, DType dtype) : cost_(cost), dtype_(dtype) {}

  /// One call took so long.
  void add(double seconds);
  /// True once the calls since the last pair took 25 ms: the roofline takes as long.
  bool due() const { return pending_seconds_ >= kPairSeconds; }
  bool pending() const { return !pending_.empty(); }
  /// Ends a pair: the calls since the last one, by their median, and what the machine can do.
  void close(const Roofline& roofline);

  int64_t pairs() const { return static_cast<int64_t>(seconds_.size()); }
  /// Zeros before the first pair.
  KernelRates rates() const;

 private:
  static constexpr double kPairSeconds = 0.025;

  KernelCost cost_;
  DType dtype_;
  std::vector<double> pending_;
  double pending_seconds_ = 0;
  std::vector<double> seconds_, copy_shares_, roofline_shares_, copies_;  // of the pairs
};

}  // namespace elwise::tools
