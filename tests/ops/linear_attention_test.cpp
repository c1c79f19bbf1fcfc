#include "ops/linear_attention.h"

#include <cmath>
#include <iterator>
#include <utility>
#include <vector>

#include "ops/elementwise.h"
#include "ops/linear_attention_kernels.h"
#include "tests/support/attention_properties.h"
#include "tests/support/naive_linear_attention.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

Attention linear_heads(int64_t heads) {
  return {.name = detail::concatenate("linear_attention ", heads, " heads"),
          .run = [=](const Tensor& q, const Tensor& k, const Tensor& v,
                     const AttentionOptions& options) { return linear_attention(q, k, v, heads, options); },
          .naive =
              [=](const AttentionShape& shape, const Values& q, const Values& k, const Values& v) {
                return naive::linear_attention(shape, heads, q, k, v, Values(v.size(), 0)).y;
              }};
}

/// All masks or, on an emulated GPU, which is slow, a few of them.
std::vector<Visible> masks() {
  if (test_device() == kCpu) return {std::begin(kVisible), std::end(kVisible)};
  return {Visible::all, Visible::random};
}

TEST_CASE("values and gradients for every mask, one head") {
  for (const bool causal : {false, true}) {
    for (const Visible visible : masks()) {
      for (const Shape& shape : kAttentionShapes) {
        const OpTest test = attention_test(linear_heads(1), shape, causal, visible, 2);
        check_op(test);
        check_direction(test);
      }
      check_op_variants(attention_test(linear_heads(1), {2, 33, 15}, causal, visible, 2));
    }
  }
}

TEST_CASE("values and gradients for every mask, several heads") {
  for (const bool causal : {false, true}) {
    for (const Visible visible : masks()) {
      for (const int64_t heads : {2, 4}) {
        for (const Shape& shape :
             {Shape{2, 1, 4}, Shape{2, 5, 12}, Shape{2, 31, 60}, Shape{1, 129, 64}, Shape{2, 65, 128}}) {
          const OpTest test = attention_test(linear_heads(heads), shape, causal, visible, 2);
          check_op(test);
          check_direction(test);
        }
        check_op_variants(attention_test(linear_heads(heads), {2, 3, 8}, causal, visible, 2));
        if (test_device() != kCpu) break;
      }
    }
  }
}

TEST_CASE("sequences of several spans, and heads larger than a tile and a chunk") {
  static_assert(linear_attention_spans(1, 515, 2) == 3 && linear_attention_spans(8, 515, 1) == 1);
  for (const bool causal : {false, true}) {
    for (const Visible visible : {Visible::all, Visible::random}) {
      for (const auto& [shape, heads] : {std::pair{Shape{1, 515, 6}, 2}, {Shape{1, 67, 130}, 1}}) {
        const OpTest test = attention_test(linear_heads(heads), shape, causal, visible, 2);
        check_op(test);
        check_direction(test);
      }
    }
  }
}

TEST_CASE("later tokens, other batch entries and hidden keys do not matter") {
  check_attention_properties(linear_heads(1));
  if (test_device() == kCpu) check_attention_properties(linear_heads(17));
}

/// Queries around `query` and keys around `key`, each uniform within `spread`.
struct FarCase {
  double query, key, spread;
};

TEST_CASE("values and gradients keep their digits however large or small features are") {
  const FarCase cases[] = {{0, 0, 4},      {0, 0, 50},     {0, 0, 1e4},     {-50, 0, 1},      {0, -50, 20},
                           {-1e4, 0, 1},   {0, -1e4, 1},   {-1e4, -1e4, 1}, {-60, -60, 40},   {1e4, 1e4, 1},
                           {1e4, -1e4, 1}, {-1e4, 1e4, 1}, {-1e4, -1e4, 0}, {-9e3, -9e3, 1e3}};
  const Shape shape{test_device() == kCpu ? 2 : 1, 69, 12};
  for (const FarCase& far : cases) {
    for (const int64_t heads : {4, 1, 12}) {
      for (const DType dtype : {DType::f64, DType::f32}) {
        for (const bool causal : {false, true}) {
          const Tensor q = rounded_to(uniform(shape, far.query - far.spread, far.query + far.spread), dtype);
          const Tensor k = rounded_to(uniform(shape, far.key - far.spread, far.key + far.spread), dtype);
          const Tensor v = rounded_to(uniform(shape), dtype), dy = rounded_to(uniform(shape), dtype);
          const AttentionOptions options{.causal = causal,
                                         .key_mask = key_mask(Visible::random, shape[0], shape[1])};
          const AttentionResult actual = run_attention(linear_heads(heads), q, k, v, dy, dtype, options);
          const AttentionShape sizes = attention_shape(q, options);
          const auto [y, dq, dk, dv] =
              naive::linear_attention(sizes, heads, values_of(q), values_of(k), values_of(v), values_of(dy));
          const Tolerance tolerance = dtype == DType::f64 ? kF64Tolerance : kF32Tolerance;
          const std::string what =
              detail::concatenate("q ", far.query, " k ", far.key, " spread ", far.spread, " heads ", heads,
                                  causal ? " causal " : " ", name_of(dtype));
          constexpr double kLargestGradient = 2;
          check_close(actual.y, y, tolerance, what + " y");
          check_close(actual.dq, dq, tolerance, what + " dq", kLargestGradient);
          check_close(actual.dk, dk, tolerance, what + " dk", kLargestGradient);
          check_close(actual.dv, dv, tolerance, what + " dv");
          check_within_values(sizes, actual.y, values_of(v), tolerance.relative, what);
        }
      }
      if (test_device() != kCpu) break;
    }
  }
}

TEST_CASE("later tokens do not matter where features vanish, even if they are NaN") {
  const Shape shape{1, 130, 6};
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const double middle : {0.0, -100.0}) {
      Tensor inputs[] = {uniform(shape, middle - 40, middle + 40), uniform(shape, middle - 40, middle + 40),
                         uniform(shape)};
      const auto run = [&] {
        const auto on_device = [&](int i) { return to(cast(inputs[i], dtype), test_device()); };
        return values_of(
            linear_attention(on_device(0), on_device(1), on_device(2), 2, {.causal = true, .key_mask = {}}));
      };
      const Values expected = run();
      for (const auto& [input, value] :
           {std::pair{0, 3.0}, {1, 1e4}, {2, 7.0}, {0, NAN}, {1, NAN}, {2, NAN}}) {
        constexpr int64_t kRow = 70;
        double& changed = inputs[input].data<double>()[kRow * shape[2] + 1];
        const double before = std::exchange(changed, value);
        const Values actual = run();
        changed = before;
        // A NaN among the values changes how the queries of its chunk are answered.
        const auto end = std::isnan(value) && input == 2 ? 64 : kRow;
        CHECK_MESSAGE(std::equal(actual.begin(), actual.begin() + end * shape[2], expected.begin()), "input ",
                      input, " is ", value);
        check_close({actual.begin(), actual.begin() + kRow * shape[2]},
                    {expected.begin(), expected.begin() + kRow * shape[2]},
                    dtype == DType::f64 ? kF64Tolerance : kF32Tolerance, "rows before");
        CHECK(std::isnan(actual[kRow * shape[2] + 1]) == std::isnan(value));
      }
    }
  }
}

TEST_CASE("a NaN stays in its head") {
  constexpr int64_t kHead = 7;
  check_nan_stays_in_head(linear_heads(kNanChannels / kHead), kHead);
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3, 4}), flat = uniform({3, 4}), longer = uniform({2, 5, 4});
  const Tensor index = zeros({2, 3, 4}, {.dtype = DType::i64}), narrow = cast(x, DType::f32);
  check_error([&] { linear_attention(index, index, index, 1); },
              "linear_attention: expected q of dtype f32, f64 or bf16, got i64");
  check_error([&] { linear_attention(flat, flat, flat, 1); },
              "linear_attention: expected q [batch, length, channels], got [3, 4]");
  check_error([&] { linear_attention(x, x, narrow, 1); },
              "linear_attention: expected v of f64 on cpu like q, got f32 on cpu");
  check_error([&] { linear_attention(x, longer, x, 1); },
              "linear_attention: expected k of shape [2, 3, 4], got [2, 5, 4]");
  check_error([&] { linear_attention(x, x, x, 1, {.key_mask = key_mask(Visible::random, 2, 4)}); },
              "linear_attention: expected key_mask of shape [2, 3], got [2, 4]");
  for (const int64_t heads : {3, 0, -2, 8}) {
    check_error([&] { linear_attention(x, x, x, heads); },
                "linear_attention: expected heads that divide 4 channels, got " + std::to_string(heads));
  }
}

}  // namespace
}  // namespace elwise::testing
