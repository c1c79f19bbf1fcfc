#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

// What counts as equal to a naive reference, for the tests and for the benchmarks that check a kernel before
// they time it.

namespace elwise::testing {

using Values = std::vector<double>;

/// How far a result may be from its reference: absolute + relative * the largest magnitude in the reference.
/// Set once per dtype; never per test.
struct Tolerance {
  double absolute;
  double relative;
};
inline constexpr Tolerance kF64Tolerance{1e-12, 1e-12};
inline constexpr Tolerance kF32Tolerance{2e-6, 2e-5};
/// For bf16 storage with f32 arithmetic: a few roundings to 8 bits of the result and of what is kept.
inline constexpr Tolerance kBf16Tolerance{1e-3, 2e-2};

constexpr Tolerance tolerance_of(DType dtype) {
  return dtype == DType::f64 ? kF64Tolerance : dtype == DType::bf16 ? kBf16Tolerance : kF32Tolerance;
}

/// Empty where every element is as close to the reference as the tolerance asks, else a line that starts with
/// `what` and names the worst one. `terms` is the magnitude of the terms that the result is a sum of, for
/// results that may cancel: errors are relative to it where it is larger.
inline std::string mismatch(const Values& actual, const Values& expected, Tolerance tolerance,
                            const std::string& what, double terms = 0) {
  if (actual.size() != expected.size())
    return detail::concatenate(what, ": ", actual.size(), " elements, expected ", expected.size());
  double largest = terms;
  for (const double value : expected) {
    if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
  }
  const double allowed = tolerance.absolute + tolerance.relative * largest;
  size_t worst = 0;
  double worst_error = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const bool both_nan = std::isnan(actual[i]) && std::isnan(expected[i]);
    double error = both_nan || actual[i] == expected[i] ? 0 : std::fabs(actual[i] - expected[i]);
    if (std::isnan(error)) error = INFINITY;
    if (error > worst_error) {
      worst = i;
      worst_error = error;
    }
  }
  if (worst_error <= allowed) return {};
  return detail::concatenate(what, ": element ", worst, " is ", actual[worst], ", expected ", expected[worst],
                             ", allowed error ", allowed);
}

}  // namespace elwise::testing
