#pragma once

#include <cstdint>
#include <vector>

namespace elwise::tools {

/// y = intercept + sum_i coefficient_i x_i for several outputs y at once.
struct LinearModel {
  int64_t inputs = 0;
  int64_t outputs = 0;
  std::vector<double> coefficients;  // [outputs, inputs + 1], the intercept last

  /// x [inputs] -> y [outputs].
  std::vector<double> operator()(const double* x) const;
};

/// The linear model with the least sum of squared errors (Gram-Schmidt's factorisation, in double). Of inputs
/// that depend linearly on those before them, or do not vary, the coefficients are 0. x [rows, inputs],
/// y [rows, outputs], row-major. Throws Error for sizes that do not fit and for no rows.
LinearModel least_squares(const std::vector<double>& x, const std::vector<double>& y, int64_t inputs,
                          int64_t outputs);

}  // namespace elwise::tools
