#pragma once

#include <functional>
#include <optional>

#include "tools/cost_measurement.h"

namespace elwise::tools {

/// Sequence lengths are searched in multiples of this many tokens.
inline constexpr int64_t kLengthStep = 8;

/// The longest sequence whose training step fits a memory budget, and what that step costs.
struct LongestLength {
  int64_t length = 0;    // a multiple of kLengthStep; 0: not even kLengthStep tokens fit
  CostResult cost = {};  // at that length, predicted on meta
};

/// Finds it for the request's model and batch by bisection on meta, whatever the request's device and length:
/// some twenty trials of a millisecond. The answer fits `budget` bytes and the next multiple of kLengthStep
/// does not.
LongestLength find_longest_length(const CostRequest& request, int64_t budget);

/// A run of a predicted length, and of the next one, on the CPU within the same budget.
struct Confirmation {
  std::optional<CostResult> cost;  // absent: it did not fit
  bool beyond_fits = false;        // length + kLengthStep did fit

  /// It ran, with the predicted peak to the byte, and the next length did not fit.
  bool holds(const LongestLength& predicted) const;
};

/// Runs request.steps steps, after at least one to warm up. Both lengths need about `budget` bytes of real
/// memory. `progress` is as in measure_cost; nothing is returned when it ended the run.
std::optional<Confirmation> confirm_longest_length(const CostRequest& request, const LongestLength& predicted,
                                                   int64_t budget,
                                                   const std::function<bool(int64_t step)>& progress);

/// The request with another length, and positions for it (they never become fewer: BertConfig::for_length).
CostRequest with_length(CostRequest request, int64_t length);

}  // namespace elwise::tools
