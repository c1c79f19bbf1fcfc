#include <algorithm>
#include <cmath>

#include "ops/elementwise.h"
#include "tests/support/ea_series_attention.h"

// EA-series where its terms are large or far apart.

namespace elwise::testing {
namespace {

constexpr DType kDTypes[] = {DType::f64, DType::f32};
constexpr bool kCausal[] = {false, true};

/// The reference for run_attention(ea_series_attention(order), ...), in long double.
AttentionResult exact(int order, const AttentionOptions& options, const Tensor& q, const Tensor& k,
                      const Tensor& v, const Tensor& dy) {
  const naive::EaSeriesShape shape = ea_series_shape(attention_shape(q, options), order);
  const Values query = values_of(q), key = values_of(k), value = values_of(v);
  const auto [dq, dk, dv] = naive::ea_series_backward(shape, query, key, value, values_of(dy));
  return {naive::ea_series(shape, query, key, value), dq, dk, dv};
}

/// Runs and checks against the reference. Adds what the order allows to the tolerance of the dtype.
AttentionResult check_exact(const EaSeriesAccuracy& accuracy, const AttentionOptions& options,
                            const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& dy, DType dtype,
                            const std::string& what) {
  const AttentionResult actual =
      run_attention(ea_series_attention(accuracy.order), q, k, v, dy, dtype, options);
  const Tolerance base = dtype == DType::f64 ? kF64Tolerance : kF32Tolerance;
  const Tolerance output{base.absolute + accuracy.output(dtype), base.relative},
      gradient{base.absolute + accuracy.gradient(dtype), base.relative + accuracy.gradient(dtype)};
  check_result(actual, exact(accuracy.order, options, q, k, v, dy), q, k, output, gradient, what);
  check_within_values(attention_shape(q, options), actual.y, values_of(v), output.absolute, what);
  return actual;
}

TEST_CASE("results keep their digits for |q|, |k| <= 4, as far as the order lets them") {
  const Shape shape{2, 133, 5};
  for (const EaSeriesAccuracy& accuracy : kEaSeriesAccuracy) {
    for (const DType dtype : kDTypes) {
      for (const bool causal : kCausal) {
        for (const Visible visible : {Visible::all, Visible::random}) {
          const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, shape[0], shape[1])};
          const auto input = [&](double low, double high) {
            return rounded_to(uniform(shape, low, high), dtype);
          };
          check_exact(
              accuracy, options, input(-4, 4), input(-4, 4), input(-1, 1), input(-1, 1), dtype,
              detail::concatenate("order ", accuracy.order, causal ? " causal " : " ", name_of(dtype)));
        }
      }
    }
  }
}

/// Elements of magnitude `from` .. `to` and either sign.
struct Magnitudes {
  double from, to;
};

/// Magnitudes beyond what the order can take are lowered to its limit.
struct ExtremeCase {
  Magnitudes q, k;
};

constexpr ExtremeCase kExtremes[] = {
    {{0, 1}, {0, 1}},          {{0, 1e4}, {0, 1e4}},
    {{1e4, 1e4}, {1e4, 1e4}},  {{1e4, 1e4}, {0, 1e-3}},
    {{1e4, 1e4}, {0, 0}},      {{0, 1e-3}, {0, 1e4}},
    {{0, 0}, {1e4, 1e4}},      {{0, 1}, {29, 31}},
    {{29, 31}, {29, 31}},      {{0, 1}, {990, 1000}},
    {{100, 200}, {990, 1000}}, {{0, 20}, {0, 10}},
    {{15, 17}, {3.9, 4.1}},    {{0, 3}, {6.9, 7.1}},
    {{0, 1e4}, {3, 5}},        {{1e-20, 1e-20}, {1e-20, 1e-20}},
};

/// The magnitudes up to which every result is finite.
double largest_magnitude(int order) {
  return order <= 6 ? 1e4 : std::pow(10, 30.0 / order);
}

/// How the magnitudes of keys run along the sequence. The running minimum moves at every row when they fall.
enum class Course : uint8_t { any, falling, rising };

Tensor extreme(const Shape& shape, Magnitudes magnitudes, int order, Course course, DType dtype) {
  const double limit = largest_magnitude(order);
  const double from = std::min(magnitudes.from, limit), to = std::min(magnitudes.to, limit);
  Values values = values_of(uniform(shape, -1, 1));
  const int64_t row_size = shape.count_after(1), length = shape[1];
  for (size_t i = 0; i < values.size(); ++i) {
    const double row = static_cast<double>(static_cast<int64_t>(i) / row_size % length);
    const double place = course == Course::any       ? std::fabs(values[i])
                         : course == Course::falling ? 1 - row / static_cast<double>(length)
                                                     : row / static_cast<double>(length);
    values[i] = std::copysign(from + (to - from) * place, values[i]);
  }
  return rounded_to(from_vector(values, shape), dtype);
}

void check_extreme(const ExtremeCase& extremes, const EaSeriesAccuracy& accuracy, const Shape& shape,
                   Course course, const AttentionOptions& options) {
  const int order = accuracy.order;
  for (const DType dtype : kDTypes) {
    const Tensor q = extreme(shape, extremes.q, order, Course::any, dtype);
    const Tensor k = extreme(shape, extremes.k, order, course, dtype);
    const Tensor v = rounded_to(uniform(shape, -1, 1), dtype), dy = rounded_to(uniform(shape, -1, 1), dtype);
    const std::string what = detail::concatenate(
        "order ", order, " q ", extremes.q.from, "..", extremes.q.to, " k ", extremes.k.from, "..",
        extremes.k.to, " course ", static_cast<int>(course), " length ", shape[1],
        options.causal ? " causal " : " ", options.key_mask.defined() ? "masked " : "", name_of(dtype));
    const AttentionResult result = check_exact(accuracy, options, q, k, v, dy, dtype, what);
    for (const Values* values : {&result.y, &result.dq, &result.dk, &result.dv}) {
      CHECK_MESSAGE(std::ranges::all_of(*values, [](double x) { return std::isfinite(x); }), what);
    }
  }
}

TEST_CASE("large, small and far inputs: finite, within the values, exact") {
  for (const EaSeriesAccuracy& accuracy : kEaSeriesAccuracy) {
    // All orders are one source; an emulated GPU is slow.
    if (test_device() != kCpu && accuracy.order != 2 && accuracy.order != 6 && accuracy.order != 16) continue;
    for (const ExtremeCase& extremes : kExtremes) {
      for (const bool causal : kCausal) {
        for (const Course course : {Course::any, Course::falling, Course::rising}) {
          check_extreme(extremes, accuracy, {1, 133, 2}, course, {.causal = causal, .key_mask = {}});
        }
        for (const Visible visible : kVisible) {
          const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, 2, 33)};
          check_extreme(extremes, accuracy, {2, 33, 5}, Course::any, options);
        }
      }
    }
  }
}

}  // namespace
}  // namespace elwise::testing
