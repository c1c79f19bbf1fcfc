#include "tools/experiments/least_squares.h"

#include <cmath>
#include <numeric>

#include "core/error.h"

namespace elwise::tools {
namespace {

/// What is left of a column, relative to its size, when it depends on those before it.
constexpr double kDependent = 1e-10;

using Column = std::vector<double>;

double dot(const Column& a, const Column& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// Column `index` of a row-major matrix, less its mean.
struct Centred {
  Column values;
  double mean;
};

Centred centred_column(const std::vector<double>& matrix, int64_t rows, int64_t width, int64_t index) {
  Centred result{Column(static_cast<size_t>(rows)), 0};
  for (size_t row = 0; row < result.values.size(); ++row) {
    result.values[row] = matrix[row * static_cast<size_t>(width) + static_cast<size_t>(index)];
    result.mean += result.values[row] / static_cast<double>(rows);
  }
  for (double& value : result.values) value -= result.mean;
  return result;
}

/// An input made orthogonal to those before it.
struct Factor {
  size_t input;
  Column unit;                     // of length 1
  double length;                   // what was left of the input
  std::vector<double> projection;  // on the units before it
};

/// Takes the parts along the units of `factors` away from `column` and returns their sizes.
std::vector<double> orthogonalise(Column& column, const std::vector<Factor>& factors) {
  std::vector<double> sizes(factors.size(), 0.0);
  for (int pass = 0; pass < 2; ++pass) {  // the second takes away what rounding left
    for (size_t i = 0; i < factors.size(); ++i) {
      const double size = dot(column, factors[i].unit);
      for (size_t row = 0; row < column.size(); ++row) column[row] -= size * factors[i].unit[row];
      sizes[i] += size;
    }
  }
  return sizes;
}

}  // namespace

std::vector<double> LinearModel::operator()(const double* x) const {
  std::vector<double> y;
  const double* row = coefficients.data();
  for (int64_t output = 0; output < outputs; ++output, row += inputs + 1) {
    y.push_back(std::inner_product(x, x + inputs, row, row[inputs]));
  }
  return y;
}

LinearModel least_squares(const std::vector<double>& x, const std::vector<double>& y, int64_t inputs,
                          int64_t outputs) {
  ELWISE_CHECK(inputs > 0 && outputs > 0 && !y.empty(),
               "least_squares: expected inputs, outputs and rows, got ", inputs, ", ", outputs, " and ",
               y.size(), " values");
  const auto rows = static_cast<int64_t>(y.size()) / outputs;
  ELWISE_CHECK(
      rows * outputs == static_cast<int64_t>(y.size()) && rows * inputs == static_cast<int64_t>(x.size()),
      "least_squares: expected as many rows of ", inputs, " inputs as of ", outputs, " outputs, got ",
      x.size(), " and ", y.size(), " values");
  std::vector<Factor> factors;
  std::vector<double> input_means;
  for (int64_t input = 0; input < inputs; ++input) {
    auto [column, mean] = centred_column(x, rows, inputs, input);
    input_means.push_back(mean);
    const double before = std::sqrt(dot(column, column) + static_cast<double>(rows) * mean * mean);
    std::vector<double> projection = orthogonalise(column, factors);
    const double length = std::sqrt(dot(column, column));
    if (length <= kDependent * before) continue;
    for (double& value : column) value /= length;
    factors.push_back({static_cast<size_t>(input), std::move(column), length, std::move(projection)});
  }
  LinearModel model{.inputs = inputs, .outputs = outputs, .coefficients = {}};
  for (int64_t output = 0; output < outputs; ++output) {
    auto [column, intercept] = centred_column(y, rows, outputs, output);
    std::vector<double> sizes = orthogonalise(column, factors);
    std::vector<double> coefficients(static_cast<size_t>(inputs) + 1, 0.0);
    for (size_t i = factors.size(); i-- > 0;) {  // back substitution
      const Factor& factor = factors[i];
      const double coefficient = sizes[i] / factor.length;
      for (size_t j = 0; j < i; ++j) sizes[j] -= coefficient * factor.projection[j];
      coefficients[factor.input] = coefficient;
      intercept -= coefficient * input_means[factor.input];
    }
    coefficients.back() = intercept;
    model.coefficients.insert(model.coefficients.end(), coefficients.begin(), coefficients.end());
  }
  return model;
}

}  // namespace elwise::tools
