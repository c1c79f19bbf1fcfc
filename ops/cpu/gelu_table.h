#pragma once

namespace elwise::cpu {

/// What a table holds for a = |x| >= 0, with Q the upper tail of the normal distribution.
enum class GeluCurve {
  value,      // a Q(a): gelu(x) = max(x, 0) - a Q(a)
  derivative  // its slope Q(a) - a pdf(a): gelu'(x) = 1 - that for x >= 0, that itself for x < 0
};

/// A curve as polynomials in r = a - n kWidth on segments n = 0 .. 31, |r| <= kWidth / 2: two registers of
/// AVX-512 hold a coefficient of all. The last segment is 0 and stands for all beyond; the first has its
/// value at 0 exactly, so that gelu keeps its relative accuracy there.
struct GeluTable {
  static constexpr int kSegments = 32, kDegree = 4;
  static constexpr float kWidth = 0.1953125F;  // 25 / 128: n kWidth is exact

  alignas(64) float coefficients[kDegree + 1][kSegments];  // of r^0, r^1, ..
};

/// Fitted on the first call, in f64: interpolation at the Chebyshev points of each segment.
const GeluTable& gelu_table(GeluCurve curve);

}  // namespace elwise::cpu
