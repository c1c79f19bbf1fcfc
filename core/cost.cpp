#include "core/cost.h"

namespace elwise {
namespace {
thread_local CostTotals totals;
}

const CostTotals& cost_totals() {
  return totals;
}

void record_cost(const KernelCost& cost) {
  totals += cost;
  ++totals.kernels;
}

}  // namespace elwise
