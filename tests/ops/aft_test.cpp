#include "ops/aft.h"

#include <cmath>
#include <utility>

#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/support/attention_properties.h"
#include "tests/support/naive_aft.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

/// The op of q, k, v, the mask and the biases.
OpTest aft_test(const Shape& shape, int64_t positions, bool causal, Visible visible) {
  return {
      .name = detail::concatenate("aft ", shape, " of ", positions, causal ? " causal" : "", " mask ",
                                  static_cast<int>(visible)),
      .op =
          [=](const std::vector<Tensor>& in) {
            return aft(in[0], in[1], in[2], in[4], {.causal = causal, .key_mask = in[3]});
          },
      .inputs = {uniform(shape), uniform(shape), uniform(shape), key_mask(visible, shape[0], shape[1]),
                 uniform({positions, positions})},
      .naive =
          [=](const std::vector<Values>& in) {
            const AttentionShape sizes{shape[0], shape[1], shape[2], causal, {in[3].begin(), in[3].end()}};
            return naive::aft(sizes, positions, in[0], in[1], in[2], in[4], Values(in[0].size(), 0)).y;
          },
      .bf16_uses = {1, 1, 1, shape[0] * shape[2]}};  // all channels share a bias
}

/// The mechanism with fixed biases in [-magnitude, magnitude).
Attention fixed_aft(double magnitude = 2) {
  constexpr int64_t kPositions = 260;
  const Tensor bias = rounded_to(uniform({kPositions, kPositions}, -magnitude, magnitude), DType::f32);
  return {.name = "aft",
          .run =
              [=](const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options) {
                return aft(q, k, v, to(cast(bias, q.dtype()), q.device()), options);
              },
          .naive =
              [=](const AttentionShape& shape, const Values& q, const Values& k, const Values& v) {
                return naive::aft(shape, kPositions, q, k, v, values_of(bias), Values(q.size(), 0)).y;
              }};
}

TEST_CASE("values and gradients for every mask") {
  for (const bool causal : {false, true}) {
    for (const Visible visible : kVisible) {
      for (const Shape& shape : kAttentionShapes) {
        const OpTest test = aft_test(shape, shape[1], causal, visible);
        check_op(test);
        check_direction(test);
      }
      check_op_variants(aft_test({2, 3, 5}, 4, causal, visible));
      check_op_variants(aft_test({2, 33, 17}, 40, causal, visible));
    }
  }
}

TEST_CASE("later tokens, other batch entries and hidden keys do not matter") {
  check_attention_properties(fixed_aft());
}

TEST_CASE("a NaN stays in its channel") {
  check_nan_stays_in_head(fixed_aft());
}

/// Keys around `key` and biases around 0, each uniform within its spread.
struct FarCase {
  double key, key_spread, bias_spread;
};

TEST_CASE("values and gradients keep their digits however far keys and biases are") {
  const FarCase cases[] = {{0, 2, 2},    {0, 60, 2},   {0, 1e4, 2},  {40, 1, 1},   {-40, 1, 1},
                           {-1e4, 1, 1}, {1e4, 1, 50}, {0, 1, 100},  {0, 20, 200}, {0, 100, 1e4},
                           {25, 10, 5},  {-25, 10, 5}, {0, 1e4, 1e4}};
  const Shape shape{2, 65, 5};
  constexpr int64_t kPositions = 67;
  for (const FarCase& far : cases) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const bool causal : {false, true}) {
        for (const Visible visible : {Visible::all, Visible::left_padded, Visible::random}) {
          const auto around = [&](const Shape& size, double middle, double spread) {
            return rounded_to(uniform(size, middle - spread, middle + spread), dtype);
          };
          const Tensor q = around(shape, 0, 2), k = around(shape, far.key, far.key_spread);
          const Tensor v = around(shape, 0, 2), dy = around(shape, 0, 2);
          const Tensor w = around({kPositions, kPositions}, 0, far.bias_spread);
          const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, shape[0], shape[1])};
          const Tensor bias = leaf(values_of(w), w.shape(), dtype, test_device());
          const Attention attention{.name = "aft",
                                    .run = [&](const Tensor& a, const Tensor& b, const Tensor& c,
                                               const AttentionOptions& o) { return aft(a, b, c, bias, o); },
                                    .naive = {}};
          const AttentionResult actual = run_attention(attention, q, k, v, dy, dtype, options);
          const naive::AftResult expected =
              naive::aft(attention_shape(q, options), kPositions, values_of(q), values_of(k), values_of(v),
                         values_of(w), values_of(dy));
          const Tolerance tolerance = dtype == DType::f64 ? kF64Tolerance : kF32Tolerance;
          const std::string what =
              detail::concatenate("k ", far.key, " within ", far.key_spread, " w ", far.bias_spread,
                                  causal ? " causal " : " ", name_of(dtype));
          constexpr double kLargestGradient = 2;
          check_close(actual.y, expected.y, tolerance, what + " y");
          check_close(actual.dq, expected.dq, tolerance, what + " dq");
          check_close(actual.dk, expected.dk, tolerance, what + " dk", kLargestGradient);
          check_close(actual.dv, expected.dv, tolerance, what + " dv");
          check_close(values_of(bias.grad()), expected.dw, tolerance, what + " dw", kLargestGradient);
        }
      }
    }
  }
}

TEST_CASE("outputs lie between the values where the gate is open, however far keys and biases are") {
  const Shape shape{2, 65, 5};
  const Tensor q = full(shape, 100, {.dtype = DType::f64});
  for (const double bias : {1.0, 1e4}) {
    for (const double magnitude : {1.0, 50.0, 1e4}) {
      for (const DType dtype : {DType::f64, DType::f32}) {
        for (const bool causal : {false, true}) {
          const Tensor k = uniform(shape, -magnitude, magnitude), v = rounded_to(uniform(shape), dtype);
          const AttentionOptions options{.causal = causal,
                                         .key_mask = key_mask(Visible::random, shape[0], shape[1])};
          const Values y = run_attention(fixed_aft(bias), q, k, v, v, dtype, options).y;
          check_within_values(attention_shape(q, options), y, values_of(v),
                              (dtype == DType::f64 ? kF64Tolerance : kF32Tolerance).relative,
                              detail::concatenate("k ", magnitude, " w ", bias, " ", name_of(dtype)));
        }
      }
    }
  }
}

TEST_CASE("later tokens do not matter to the last bit, however far their keys are") {
  const Shape shape{1, 130, 6};
  constexpr int64_t kRow = 70;
  const Attention attention = fixed_aft();
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const double magnitude : {2.0, 60.0}) {
      Tensor inputs[] = {uniform(shape), uniform(shape, -magnitude, magnitude), uniform(shape)};
      const auto run = [&] {
        const auto on_device = [&](int i) { return to(cast(inputs[i], dtype), test_device()); };
        return values_of(
            attention.run(on_device(0), on_device(1), on_device(2), {.causal = true, .key_mask = {}}));
      };
      const Values expected = run();
      for (const auto& [input, value] :
           {std::pair{0, 1e4}, {1, 29.0}, {1, 31.0}, {1, 1e4}, {1, -1e4}, {2, 1e9}}) {
        double& changed = inputs[input].data<double>()[kRow * shape[2] + 1];
        const double before = std::exchange(changed, value);
        const Values actual = run();
        changed = before;
        CHECK_MESSAGE(std::equal(actual.begin(), actual.begin() + kRow * shape[2], expected.begin()),
                      "input ", input, " is ", value);
      }
    }
  }
}

TEST_CASE("biases of pairs that do not meet get no gradient") {
  const Shape shape{2, 5, 3};
  const Tensor x = to(uniform(shape), test_device());
  const Tensor bias = to(uniform({7, 7}), test_device()).set_requires_grad();
  sum(aft(x, x, x, bias, {.causal = true, .key_mask = {}})).backward();
  const Values dw = values_of(bias.grad());
  for (int64_t i = 0; i < 7; ++i) {
    for (int64_t j = 0; j < 7; ++j) {
      // A query's only key has probability 1 whatever its bias.
      if (i >= 5 || j > i) CHECK(dw[i * 7 + j] == 0);
      if (i < 5 && j <= i && i > 0) CHECK(dw[i * 7 + j] != 0);
    }
  }
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3, 4}), flat = uniform({3, 4}), longer = uniform({2, 5, 4}),
               w = uniform({3, 3});
  const Tensor index = zeros({2, 3, 4}, {.dtype = DType::i64}), narrow = cast(x, DType::f32);
  check_error([&] { aft(index, index, index, w); }, "aft: expected q of dtype f32, f64 or bf16, got i64");
  check_error([&] { aft(flat, flat, flat, w); }, "aft: expected q [batch, length, channels], got [3, 4]");
  check_error([&] { aft(x, x, narrow, w); }, "aft: expected v of f64 on cpu like q, got f32 on cpu");
  check_error([&] { aft(x, longer, x, w); }, "aft: expected k of shape [2, 3, 4], got [2, 5, 4]");
  check_error([&] { aft(x, x, x, w, {.key_mask = key_mask(Visible::random, 2, 4)}); },
              "aft: expected key_mask of shape [2, 3], got [2, 4]");
  check_error([&] { aft(x, x, x, cast(w, DType::f32)); },
              "aft: expected position_bias of f64 on cpu like q, got f32 on cpu");
  check_error([&] { aft(x, x, x, to(w, kMeta)); },
              "aft: expected position_bias of f64 on cpu like q, got f64 on meta");
  for (const auto& [shape, text] : {std::pair<Shape, std::string>{{3}, "[3]"},
                                    {{3, 4}, "[3, 4]"},
                                    {{2, 2}, "[2, 2]"},
                                    {{1, 3, 3}, "[1, 3, 3]"}}) {
    check_error([&, size = shape] { aft(x, x, x, uniform(size)); },
                "aft: expected position_bias [positions, positions] for 3 positions or more, got " + text);
  }
}

}  // namespace
}  // namespace elwise::testing
