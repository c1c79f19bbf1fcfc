#include "tools/longest_length.h"

#include <algorithm>

namespace elwise::tools {
namespace {

/// Sets a device's memory limit until the end of the scope.
class MemoryLimitGuard {
 public:
  MemoryLimitGuard(Device device, int64_t bytes) : device_(device), previous_(memory_limit(device)) {
    set_memory_limit(device, bytes);
  }
  ~MemoryLimitGuard() { set_memory_limit(device_, previous_); }
  MemoryLimitGuard(const MemoryLimitGuard&) = delete;
  MemoryLimitGuard& operator=(const MemoryLimitGuard&) = delete;

 private:
  Device device_;
  int64_t previous_;
};

/// The cost of a request if it fits the budget on its device, and the model allows its length at all.
std::optional<CostResult> cost_within(const CostRequest& request, int64_t budget,
                                      const std::function<bool(int64_t)>& progress) {
  const bool is_aft = request.model.attention.kind == nn::Mechanism::Kind::aft;
  if (is_aft && request.length > nn::kLongestPositionBias) return std::nullopt;
  const MemoryLimitGuard limit(request.model.options.device, budget);
  try {
    return measure_cost(request, progress);
  } catch (const OutOfMemoryError&) {
    return std::nullopt;
  }
}

}  // namespace

CostRequest with_length(CostRequest request, int64_t length) {
  request.model = request.model.for_length(length);
  request.length = length;
  return request;
}

LongestLength find_longest_length(const CostRequest& request, int64_t budget) {
  CostRequest on_meta = request;
  on_meta.model.options.device = kMeta;
  on_meta.text.clear();                // no token is read there
  on_meta.steps = on_meta.warmup = 1;  // the first step makes the optimizer's state, the second has the peak
  LongestLength result;
  // Whether `steps` times kLengthStep tokens fit; remembers the longest that did.
  const auto fits = [&](int64_t steps) {
    const int64_t length = steps * kLengthStep;
    const auto cost = cost_within(with_length(on_meta, length), budget, [](int64_t) { return true; });
    if (cost && length > result.length) result = {length, *cost};
    return cost.has_value();
  };
  // Memory grows with the length, but for one fall: above the longest table, positions are no parameters.
  // Above it the search doubles and bisects; below it bisects.
  const int64_t table = models::kLongestPositionTable / kLengthStep;
  int64_t fitting = 0, failing = table + 1;
  while (fits(failing)) {
    fitting = failing;
    failing *= 2;
  }
  while (failing - fitting > 1) {
    const int64_t middle = fitting + (failing - fitting) / 2;
    (fits(middle) ? fitting : failing) = middle;
  }
  return result;
}

bool Confirmation::holds(const LongestLength& predicted) const {
  return cost && cost->memory.total.peak == predicted.cost.memory.total.peak && !beyond_fits;
}

std::optional<Confirmation> confirm_longest_length(const CostRequest& request, const LongestLength& predicted,
                                                   int64_t budget,
                                                   const std::function<bool(int64_t step)>& progress) {
  CostRequest confirmed = request;
  confirmed.warmup = std::max<int64_t>(request.warmup, 1);
  confirmed.matmul_floor = false;
  Confirmation result;
  bool ended = false;
  const auto watch = [&](int64_t step) { return !(ended = !progress(step)); };
  result.cost = cost_within(with_length(confirmed, predicted.length), budget, watch);
  if (ended) return std::nullopt;
  confirmed.steps = 1;
  result.beyond_fits =
      cost_within(with_length(confirmed, predicted.length + kLengthStep), budget, watch).has_value();
  if (ended) return std::nullopt;
  return result;
}

}  // namespace elwise::tools
