#pragma once

#include "ops/ea_series.h"
#include "tests/support/attention_properties.h"
#include "tests/support/naive_ea_series.h"

namespace elwise::testing {

inline naive::EaSeriesShape ea_series_shape(const AttentionShape& shape, int order) {
  return {shape.batch, shape.length, shape.channels, order, shape.causal, shape.key_mask};
}

/// EA-series of an order, fused or composed of public ops, as a mechanism under test.
inline Attention ea_series_attention(int order, decltype(ea_series)& function = ea_series) {
  const std::string name = &function == &ea_series ? "ea_series" : "ea_series_composed";
  return {
      .name = detail::concatenate(name, " ", order),
      .run = [order, &function](
                 const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionOptions& options) { return function(q, k, v, order, options); },
      .naive = [order](const AttentionShape& shape, const Values& q, const Values& k,
                       const Values& v) { return naive::ea_series(ea_series_shape(shape, order), q, k, v); }};
}

/// |q|, |k| up to which 2 q k lies in [-1, 1], so that the polynomial loses no digits that kF32Tolerance
/// counts on.
inline constexpr double kModerate = 0.7;

/// How far results may be from exact ones, for any q and k, with |v| <= 1 and |dy| <= 1. Set once, from what
/// the formula allows: with x = 2 q k, the terms x^n / n! of the polynomial add up in magnitude to
/// `condition` times the polynomial at worst, for x near -order / 2, so that their rounding is an error of
/// condition * epsilon in numerator and denominator, and of some more in a gradient.
struct EaSeriesAccuracy {
  int order;
  double condition;

  double output(DType dtype) const { return 4 * condition * epsilon(dtype); }
  double gradient(DType dtype) const { return 8 * condition * epsilon(dtype); }

  static double epsilon(DType dtype) { return dtype == DType::f64 ? 0x1p-53 : 0x1p-24; }
};
inline constexpr EaSeriesAccuracy kEaSeriesAccuracy[] = {
    {0, 1}, {2, 5.83}, {4, 21}, {6, 69.1}, {8, 221}, {10, 696}, {12, 2180}, {14, 6810}, {16, 21200}};

}  // namespace elwise::testing
