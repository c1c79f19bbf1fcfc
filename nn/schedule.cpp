#include "nn/schedule.h"

#include <cmath>
#include <numbers>

namespace elwise::nn {
namespace {

/// How far `step` is between warmup and total, in [0, 1].
double progress(int64_t step, int64_t warmup, int64_t total) {
  if (step >= total) return 1;
  return static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
}

}  // namespace

double constant_schedule(int64_t step, int64_t warmup) {
  return step < warmup ? static_cast<double>(step) / static_cast<double>(warmup) : 1;
}

double linear_schedule(int64_t step, int64_t warmup, int64_t total) {
  return step < warmup ? constant_schedule(step, warmup) : 1 - progress(step, warmup, total);
}

double cosine_schedule(int64_t step, int64_t warmup, int64_t total, double floor) {
  if (step < warmup) return constant_schedule(step, warmup);
  return floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * progress(step, warmup, total)));
}

}  // namespace elwise::nn
