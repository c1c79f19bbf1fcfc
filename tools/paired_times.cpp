#include "tools/paired_times.h"

#include "tools/median.h"

namespace elwise::tools {

void PairedTimes::add(double seconds) {
  pending_.push_back(seconds);
  pending_seconds_ += seconds;
}

void PairedTimes::close(const Roofline& roofline) {
  const std::optional<double> seconds = median(pending_);
  pending_.clear();
  pending_seconds_ = 0;
  if (!seconds) return;
  seconds_.push_back(*seconds);
  copy_shares_.push_back(cost_.bytes() / *seconds / roofline.copy_bytes_per_s);
  roofline_shares_.push_back(roofline.seconds(cost_, dtype_) / *seconds);
  copies_.push_back(roofline.copy_bytes_per_s);
}

KernelRates PairedTimes::rates() const {
  return {.seconds = median(seconds_).value_or(0),
          .copy_share = median(copy_shares_).value_or(0),
          .roofline_share = median(roofline_shares_).value_or(0),
          .copy_bytes_per_s = median(copies_).value_or(0)};
}

}  // namespace elwise::tools
