#pragma once

#include <cstdint>

namespace elwise::nn {

// Learning-rate schedules: the factor on the base rate at `step` (0, 1, ..). All rise linearly from 0 over
// `warmup` steps, reaching 1 at step == warmup, and then:

/// stays 1.
double constant_schedule(int64_t step, int64_t warmup);
/// falls linearly to 0 at `total`.
double linear_schedule(int64_t step, int64_t warmup, int64_t total);
/// falls to `floor` at `total` along half a cosine (Loshchilov & Hutter, arXiv 1608.03983).
double cosine_schedule(int64_t step, int64_t warmup, int64_t total, double floor = 0);

}  // namespace elwise::nn
