#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "ops/elementwise_kernels.h"

// Plain loops in double for the element-wise ops, the reductions and cumsum: what the kernels are tested
// against.

namespace elwise::naive {

/// op(x), with the op's parameters as in UnaryForward.
inline double unary(UnaryOp op, double x, double p0 = 0, double p1 = 0) {
  switch (op) {
    case UnaryOp::neg:
      return -x;
    case UnaryOp::abs:
      return std::abs(x);
    case UnaryOp::exp:
      return std::exp(x);
    case UnaryOp::log:
      return std::log(x);
    case UnaryOp::sqrt:
      return std::sqrt(x);
    case UnaryOp::tanh:
      return std::tanh(x);
    case UnaryOp::sigmoid:
      return 1 / (1 + std::exp(-x));
    case UnaryOp::relu:
      return x <= 0 ? 0 : x;
    case UnaryOp::elu:
      return x > 0 ? x : std::expm1(x);
    case UnaryOp::gelu:
      return x * 0.5 * (1 + std::erf(x / std::numbers::sqrt2));
    case UnaryOp::gelu_tanh:
      return x * 0.5 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case UnaryOp::clamp:
      return x < p0 ? p0 : x > p1 ? p1 : x;
    case UnaryOp::power:
      return std::pow(x, p0);
    case UnaryOp::add_scalar:
      return x + p0;
    case UnaryOp::mul_scalar:
      return x * p0;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// op'(x), always of the input x.
inline double unary_derivative(UnaryOp op, double x, double p0 = 0, double p1 = 0) {
  const double y = unary(op, x, p0, p1);
  switch (op) {
    case UnaryOp::neg:
      return -1;
    case UnaryOp::abs:
      return x > 0 ? 1 : x < 0 ? -1 : x;
    case UnaryOp::exp:
      return y;
    case UnaryOp::log:
      return 1 / x;
    case UnaryOp::sqrt:
      return 0.5 / y;
    case UnaryOp::tanh:
      return 1 - y * y;
    case UnaryOp::sigmoid:
      return y * (1 - y);
    case UnaryOp::relu:
      return x <= 0 ? 0 : 1;
    case UnaryOp::elu:
      return x > 0 ? 1 : std::exp(x);
    case UnaryOp::gelu: {
      const double cdf = 0.5 * (1 + std::erf(x / std::numbers::sqrt2));
      return cdf + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi);
    }
    case UnaryOp::gelu_tanh: {
      const double scale = std::sqrt(2 / std::numbers::pi);
      const double t = std::tanh(scale * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * x * x);
    }
    case UnaryOp::clamp:
      return x >= p0 && x <= p1 ? 1 : 0;
    case UnaryOp::power:
      return p0 == 0 ? 0 : p0 * std::pow(x, p0 - 1);
    case UnaryOp::add_scalar:
      return 1;
    case UnaryOp::mul_scalar:
      return p0;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// op(a, b); a NaN on either side makes maximum and minimum NaN.
inline double binary(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::add:
      return a + b;
    case BinaryOp::sub:
      return a - b;
    case BinaryOp::mul:
      return a * b;
    case BinaryOp::div:
      return a / b;
    case BinaryOp::maximum:
      return std::isnan(a) || a > b ? a : b;
    case BinaryOp::minimum:
      return std::isnan(a) || a < b ? a : b;
    case BinaryOp::step:
      return a > b ? 1 : a == b ? 0.5 : 0;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// y[o, i] = sum over r of x[o, r, i], for x [outer, reduced, inner].
inline std::vector<double> sum(const std::vector<double>& x, int64_t outer, int64_t reduced, int64_t inner) {
  std::vector<double> y(outer * inner, 0.0);
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t r = 0; r < reduced; ++r) {
      for (int64_t i = 0; i < inner; ++i) y[o * inner + i] += x[(o * reduced + r) * inner + i];
    }
  }
  return y;
}

struct MaxResult {
  std::vector<double> value;
  std::vector<int64_t> index;  // where it first stands
};

/// y[o, i] = max over r of x[o, r, i], for x [outer, reduced, inner]. A NaN counts as the largest.
inline MaxResult max(const std::vector<double>& x, int64_t outer, int64_t reduced, int64_t inner) {
  MaxResult result{std::vector<double>(outer * inner), std::vector<int64_t>(outer * inner, 0)};
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i) {
      double best = x[o * reduced * inner + i];
      for (int64_t r = 1; r < reduced && !std::isnan(best); ++r) {
        const double value = x[(o * reduced + r) * inner + i];
        if (value > best || std::isnan(value)) {
          best = value;
          result.index[o * inner + i] = r;
        }
      }
      result.value[o * inner + i] = best;
    }
  }
  return result;
}

/// y[o, r, i] = sum of x[o, s, i] over s <= r (s >= r when reverse), for x [outer, length, inner].
inline std::vector<double> cumsum(const std::vector<double>& x, int64_t outer, int64_t length, int64_t inner,
                                  bool reverse) {
  std::vector<double> y(x.size());
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i) {
      double total = 0;
      for (int64_t step = 0; step < length; ++step) {
        const int64_t r = reverse ? length - 1 - step : step;
        total += x[(o * length + r) * inner + i];
        y[(o * length + r) * inner + i] = total;
      }
    }
  }
  return y;
}

}  // namespace elwise::naive
