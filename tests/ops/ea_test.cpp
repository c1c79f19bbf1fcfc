#include "ops/ea.h"

#include <cmath>

#include "ops/elementwise.h"
#include "tests/support/attention_properties.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

Attention full_ea() {
  return {.name = "ea", .run = ea, .naive = naive::ea_forward};
}

TEST_CASE("values and gradients for every mask") {
  for (const bool causal : {false, true}) {
    for (const Visible visible : kVisible) {
      for (const Shape& shape : kAttentionShapes) {
        const OpTest test = attention_test(full_ea(), shape, causal, visible, 2);
        check_op(test);
        check_direction(test);
      }
      for (const Shape& shape : {Shape{2, 3, 5}, Shape{2, 33, 17}, Shape{1, 129, 3}}) {
        check_op_variants(attention_test(full_ea(), shape, causal, visible, 2));
      }
    }
  }
}

TEST_CASE("more queries than a tile holds, and channels of many vectors and blocks") {
  for (const bool causal : {false, true}) {
    for (const Shape& shape : {Shape{1, 515, 2}, Shape{2, 5, 515}, Shape{2, 70, 40}}) {
      const OpTest test = attention_test(full_ea(), shape, causal, Visible::random, 2);
      check_op(test);
      check_direction(test);
    }
  }
}

TEST_CASE("later tokens, other batch entries and hidden keys do not matter") {
  check_attention_properties(full_ea());
}

TEST_CASE("a NaN stays in its channel") {
  check_nan_stays_in_head(full_ea());
}

/// Queries around `query` and keys around `key`, each uniform within `spread`.
struct FarCase {
  double query, key, spread;
};

TEST_CASE("values and gradients keep their digits however far queries and keys are") {
  const FarCase cases[] = {{0, 0, 4},      {0, 0, 50},      {0, 0, 1e4},   {0, 1e4, 1},       {1e4, 0, 1},
                           {-1e4, 1e4, 1}, {1e4, 1e4, 1},   {0, 30, 1},    {0, -1000, 1},     {5, -5, 2},
                           {0, 1e6, 1e3},  {1e-3, 1e-3, 0}, {1e4, 1e4, 0}, {1e4, 1e-3, 1e-3}, {3, 0, 1e-6}};
  const Shape shape{2, 65, 8};
  for (const FarCase& far : cases) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const bool causal : {false, true}) {
        for (const Visible visible : kVisible) {
          const Tensor q = rounded_to(uniform(shape, far.query - far.spread, far.query + far.spread), dtype);
          const Tensor k = rounded_to(uniform(shape, far.key - far.spread, far.key + far.spread), dtype);
          const Tensor v = rounded_to(uniform(shape), dtype), dy = rounded_to(uniform(shape), dtype);
          const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, shape[0], shape[1])};
          const AttentionResult actual = run_attention(full_ea(), q, k, v, dy, dtype, options);
          const AttentionShape sizes = attention_shape(q, options);
          const Values query = values_of(q), key = values_of(k), value = values_of(v);
          const auto [dq, dk, dv] = naive::ea_backward(sizes, query, key, value, values_of(dy));
          const AttentionResult expected{naive::ea_forward(sizes, query, key, value), dq, dk, dv};
          const Tolerance tolerance = dtype == DType::f64 ? kF64Tolerance : kF32Tolerance;
          const std::string what = detail::concatenate("q ", far.query, " k ", far.key, " spread ",
                                                       far.spread, causal ? " causal " : " ", name_of(dtype));
          check_result(actual, expected, q, k, tolerance, tolerance, what);
          check_within_values(sizes, actual.y, value, tolerance.relative, what);
        }
      }
    }
  }
}

TEST_CASE("a query on one key of many that are far takes that key's value") {
  const int64_t length = 129;
  Values positions, values;
  for (int64_t j = 0; j < length; ++j) {
    positions.push_back(static_cast<double>(100 * ((j * 50) % length)));
    values.push_back(static_cast<double>(j));
  }
  const Tensor x = from_vector(positions, {1, length, 1});
  for (const DType dtype : {DType::f64, DType::f32}) {
    const auto on_device = [=](const Tensor& t) { return to(cast(t, dtype), test_device()); };
    const Tensor k = on_device(x), v = on_device(from_vector(values, x.shape()));
    CHECK(values_of(ea(k, k, v)) == values);
    CHECK(values_of(ea(on_device(x + 30.0), k, v)) == values);
  }
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3, 4}), flat = uniform({3, 4}), longer = uniform({2, 5, 4});
  const Tensor index = zeros({2, 3, 4}, {.dtype = DType::i64}), narrow = cast(x, DType::f32);
  check_error([&] { ea(index, index, index); }, "ea: expected q of dtype f32, f64 or bf16, got i64");
  check_error([&] { ea(flat, flat, flat); }, "ea: expected q [batch, length, channels], got [3, 4]");
  check_error([&] { ea(x, narrow, x); }, "ea: expected k of f64 on cpu like q, got f32 on cpu");
  check_error([&] { ea(x, x, to(x, kMeta)); }, "ea: expected v of f64 on cpu like q, got f64 on meta");
  check_error([&] { ea(x, longer, x); }, "ea: expected k of shape [2, 3, 4], got [2, 5, 4]");
  check_error([&] { ea(x, x, longer); }, "ea: expected v of shape [2, 3, 4], got [2, 5, 4]");
  check_error(
      [&] {
        ea(x, x, x, {.key_mask = ones({2, 3})});
      },
      "ea: expected key_mask of bool on cpu, got f32 on cpu");
  check_error(
      [&] {
        ea(x, x, x, {.key_mask = empty({2, 3}, {DType::boolean, kMeta})});
      },
      "ea: expected key_mask of bool on cpu, got bool on meta");
  check_error([&] { ea(x, x, x, {.key_mask = key_mask(Visible::random, 3, 2)}); },
              "ea: expected key_mask of shape [2, 3], got [3, 2]");
}

}  // namespace
}  // namespace elwise::testing
