#include "ops/cpu/gelu_table.h"

#include <cmath>
#include <numbers>

namespace elwise::cpu {
namespace {

double curve_at(GeluCurve curve, double a) {
  const double q = 0.5 * std::erfc(a / std::numbers::sqrt2);
  if (curve == GeluCurve::value) return a * q;
  return q - a * std::exp(-0.5 * a * a) / std::sqrt(2 * std::numbers::pi);
}

GeluTable fit(GeluCurve curve) {
  constexpr int kPoints = GeluTable::kDegree + 1;
  constexpr double kHalf = GeluTable::kWidth / 2.0;
  GeluTable table{};
  for (int segment = 0; segment + 1 < GeluTable::kSegments; ++segment) {
    double r[kPoints], difference[kPoints];
    for (int j = 0; j < kPoints; ++j) {
      // The first segment is the half where a >= 0, both ends among its points.
      r[j] = segment == 0 ? kHalf * (1 - std::cos(std::numbers::pi * j / (kPoints - 1))) / 2
                          : kHalf * std::cos(std::numbers::pi * (j + 0.5) / kPoints);
      difference[j] = curve_at(curve, segment * double{GeluTable::kWidth} + r[j]);
    }
    for (int order = 1; order < kPoints; ++order) {  // Newton's divided differences
      for (int j = kPoints - 1; j >= order; --j) {
        difference[j] = (difference[j] - difference[j - 1]) / (r[j] - r[j - order]);
      }
    }
    double power[kPoints] = {};  // the coefficients of r^0, r^1, .., by Horner's rule
    for (int j = kPoints - 1; j >= 0; --j) {
      for (int k = kPoints - 1; k > 0; --k) power[k] = power[k - 1] - r[j] * power[k];
      power[0] = difference[j] - r[j] * power[0];
    }
    for (int k = 0; k < kPoints; ++k) table.coefficients[k][segment] = static_cast<float>(power[k]);
  }
  return table;
}

}  // namespace

const GeluTable& gelu_table(GeluCurve curve) {
  static const GeluTable value = fit(GeluCurve::value), derivative = fit(GeluCurve::derivative);
  return curve == GeluCurve::value ? value : derivative;
}

}  // namespace elwise::cpu
