#include "ops/norm.h"

#include <cmath>

#include "core/dispatch.h"
#include "ops/elementwise.h"
#include "ops/norm_kernels.h"
#include "ops/reduce.h"
#include "ops/view.h"
#include "tests/support/naive_norm.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

/// Shapes [rows, cols] with every odd size on each side, and some that several threads share. The emulation,
/// which runs a GPU's threads one by one, gets fewer rows, and rows that a GPU works on in its other ways.
std::vector<Shape> matrix_shapes() {
  std::vector<Shape> shapes{{1, 1}, {3, 3}, {33, 1027}};
  for (const int64_t size : kOddSizes) shapes.push_back({2, size});
  if (test_device() == kCpu) {
    for (const int64_t size : kOddSizes) shapes.push_back({size, 31});
    shapes.insert(shapes.end(), {{1027, 33}, {257, 768}});
  } else {
    shapes.insert(shapes.end(), {{63, 31}, {33, 768}, {9, 1028}, {5, 3072}});
  }
  return shapes;
}

Tensor optional(bool present, int64_t size) {
  return present ? uniform({size}) : Tensor();
}

OpTest layer_norm_test(const Shape& shape, bool has_weight, bool has_bias, double eps) {
  const int64_t rows = shape.count_before(-1), cols = shape[-1];
  return {
      .name = detail::concatenate("layer_norm ", shape, has_weight ? " weight" : "", has_bias ? " bias" : ""),
      .op = [=](const std::vector<Tensor>& in) { return layer_norm(in[0], in[1], in[2], eps); },
      .inputs = {uniform(shape), optional(has_weight, cols), optional(has_bias, cols)},
      .naive =
          [=](const std::vector<Values>& in) {
            return naive::layer_norm(in[0], rows, cols, eps, {}, in[1], in[2]).y;
          }};
}

TEST_CASE("layer_norm, with and without weight and bias") {
  for (const bool has_weight : {false, true}) {
    for (const bool has_bias : {false, true}) {
      for (const Shape& shape : matrix_shapes()) {
        check_op_variants(layer_norm_test(shape, has_weight, has_bias, 1e-5));
      }
      check_op_variants(layer_norm_test({33}, has_weight, has_bias, 1e-5));
      check_op_variants(layer_norm_test({2, 3, 31}, has_weight, has_bias, 0.1));
      check_op_variants(layer_norm_test({3, 32}, has_weight, has_bias, 1e-12));
    }
  }
}

/// Which outputs of add_layer_norm the test's output is made of.
enum class Outputs : uint8_t { normalized, sum, both };

OpTest add_layer_norm_test(const Shape& shape, bool has_weight, bool has_bias, Outputs outputs) {
  const int64_t rows = shape.count_before(-1), cols = shape[-1];
  return {.name = detail::concatenate("add_layer_norm ", shape, has_weight ? " weight" : "",
                                      has_bias ? " bias" : "", " outputs ", static_cast<int>(outputs)),
          .op =
              [=](const std::vector<Tensor>& in) {
                const auto [normalized, sum] = add_layer_norm(in[0], in[1], in[2], in[3]);
                if (outputs == Outputs::both) return concat({normalized, sum}, 0);
                return outputs == Outputs::sum ? sum : normalized;
              },
          // Sums that bf16 holds exactly: they are normalised as they are stored.
          .inputs = {on_grid(shape), on_grid(shape) * 0.125, optional(has_weight, cols),
                     optional(has_bias, cols)},
          .naive =
              [=](const std::vector<Values>& in) {
                const naive::LayerNorm y = naive::layer_norm(in[0], rows, cols, 1e-5, in[1], in[2], in[3]);
                Values result = outputs == Outputs::sum ? Values() : y.y;
                if (outputs != Outputs::normalized) result.insert(result.end(), y.h.begin(), y.h.end());
                return result;
              }};
}

TEST_CASE("add_layer_norm, gradients through each output and through both") {
  for (const bool has_weight : {false, true}) {
    for (const bool has_bias : {false, true}) {
      if (test_device() != kCpu && has_bias != has_weight) continue;  // an emulated GPU is slow
      for (const Outputs outputs : {Outputs::normalized, Outputs::sum, Outputs::both}) {
        for (const Shape& shape : matrix_shapes()) {
          // The largest take long: their gradients through both are enough.
          if (outputs != Outputs::both && shape.count() > 1027 * 32) continue;
          check_op_variants(add_layer_norm_test(shape, has_weight, has_bias, outputs));
        }
        check_op_variants(add_layer_norm_test({2, 3, 5}, has_weight, has_bias, outputs));
      }
    }
  }
}

TEST_CASE("rows that no registers hold") {
  for (const int64_t cols : {4160, 4163, 16'400, 16'411}) {
    check_op_variants(layer_norm_test({2, cols}, true, true, 1e-5));
    check_op(add_layer_norm_test({2, cols}, true, true, Outputs::both));
  }
}

TEST_CASE("add_layer_norm normalises the sum as it is stored") {
  for (const DType dtype : test_dtypes()) {
    const auto on_device = [=](const Tensor& x) { return cast(to(x, test_device()), dtype); };
    for (const int64_t cols : {33, 64, 3072}) {
      const Tensor x = on_device(uniform({5, cols})), residual = on_device(uniform({5, cols}));
      const auto [normalized, sum] = add_layer_norm(x, residual, {}, {});
      CHECK(values_of(normalized) == values_of(layer_norm(sum, {}, {})));
      CHECK(values_of(sum) == values_of(x + residual));
    }
  }
}

TEST_CASE("rows with a large mean keep their digits") {
  for (const int64_t cols : kOddSizes) {
    if (cols == 1) continue;
    // Multiples of 1/8 around 1000: f32 holds them exactly.
    const Values values = values_of(on_grid({3, cols}) + 1000.0);
    const Tensor x = cast(to(from_vector(values, {3, cols}), test_device()), DType::f32);
    check_close(values_of(layer_norm(x, {}, {})), naive::layer_norm(values, 3, cols, 1e-5).y, kF32Tolerance,
                "layer_norm");
  }
}

TEST_CASE("a constant row gives the bias") {
  for (const DType dtype : test_dtypes()) {
    const TensorOptions options{.dtype = dtype, .device = test_device()};
    const Tensor weight = full({33}, 3, options), bias = full({33}, 0.5, options);
    CHECK(values_of(layer_norm(full({2, 33}, 7, options), weight, bias)) == Values(66, 0.5));
  }
}

TEST_CASE("no rows: empty results, gradients of 0") {
  for (const DType dtype : test_dtypes()) {
    const TensorOptions options{.dtype = dtype, .device = test_device()};
    const Tensor x = zeros({0, 33}, options).set_requires_grad();
    const Tensor weight = ones({33}, options).set_requires_grad(),
                 bias = ones({33}, options).set_requires_grad();
    const Tensor y = layer_norm(x, weight, bias);
    y.backward(zeros(y.shape(), options));
    CHECK(x.grad().shape() == Shape{0, 33});
    CHECK(values_of(weight.grad()) == Values(33, 0));
    CHECK(values_of(bias.grad()) == Values(33, 0));
  }
}

TEST_CASE("a NaN spoils its own row only") {
  for (const DType dtype : test_dtypes()) {
    for (const int64_t cols : {33, 64, 1028}) {
      Tensor x = uniform({5, cols});
      x.data<double>()[2 * cols + 8] = NAN;
      const Values y = values_of(layer_norm(cast(to(x, test_device()), dtype), {}, {}));
      for (size_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (static_cast<int64_t>(i) / cols == 2));
    }
  }
}

TEST_CASE("the result may replace x or residual") {
  for (const DType dtype : test_dtypes()) {
    for (const int64_t cols : {31, 64, 1028, 16'400}) {
      const auto on_device = [=](const Tensor& x) { return cast(to(x, test_device()), dtype); };
      const Tensor x = on_device(uniform({3, cols})), residual = on_device(uniform({3, cols}));
      const Values expected = values_of(add_layer_norm(x, residual, {}, {}).normalized);
      const TensorOptions statistics{.dtype = accumulation_dtype(dtype), .device = test_device()};
      const Tensor mean = empty({3}, statistics), rstd = empty({3}, statistics);
      for (const bool over_x : {true, false}) {
        const Tensor y = clone(over_x ? x : residual);
        ELWISE_DISPATCH(test_device(), layer_norm_forward,
                        {.dtype = dtype,
                         .x = over_x ? y.data() : x.data(),
                         .y = y.data(),
                         .mean = mean.data(),
                         .rstd = rstd.data(),
                         .rows = 3,
                         .cols = cols,
                         .eps = 1e-5,
                         .residual = over_x ? residual.data() : y.data()});
        CHECK(values_of(y) == expected);
      }
    }
  }
}

TEST_CASE("an x that is moved and that no one else has is overwritten; any other is not") {
  for (const DType dtype : test_dtypes()) {
    const auto on_device = [=](const Tensor& x) { return cast(to(x, test_device()), dtype); };
    const Tensor x = on_device(uniform({5, 33})), residual = on_device(uniform({5, 33}));
    const Values before = values_of(x);
    const AddLayerNormResult expected = add_layer_norm(x, residual, {}, {});
    CHECK(values_of(x) == before);
    Tensor moved = clone(x), view = clone(x);
    const Tensor other = view.detach();
    const void* const memory = moved.data();
    const AddLayerNormResult result = add_layer_norm(std::move(moved), residual, {}, {});
    CHECK(result.normalized.data() == memory);
    CHECK(values_of(result.normalized) == values_of(expected.normalized));
    CHECK(values_of(result.sum) == values_of(expected.sum));
    CHECK(values_of(add_layer_norm(std::move(view), residual, {}, {}).normalized) ==
          values_of(expected.normalized));
    CHECK(values_of(other) == before);
  }
}

TEST_CASE("gradients pass an x that was overwritten") {
  const Tensor weight = uniform({3}), residual = uniform({2, 3});
  const auto of = [&](bool moved) {
    const Tensor x = from_vector<double>({1, 2, 4, -1, 0.5, 3}, {2, 3}).set_requires_grad();
    Tensor y = mul(x, x);
    Tensor keep = moved ? Tensor() : y;
    sum(mul(add_layer_norm(std::move(y), residual, weight, {}).normalized, residual)).backward();
    return values_of(x.grad());
  };
  CHECK(of(true) == of(false));
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3}), row = uniform({3}), other = uniform({4}), index = arange(3);
  check_error([&] { layer_norm(index, {}, {}); },
              "layer_norm: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { layer_norm(uniform({}), {}, {}); }, "layer_norm: expected x [.., cols], got []");
  check_error([&] { layer_norm(uniform({3, 0}), {}, {}); }, "layer_norm: expected x [.., cols], got [3, 0]");
  check_error([&] { layer_norm(x, other, {}); }, "layer_norm: expected weight of shape [3], got [4]");
  check_error([&] { layer_norm(x, row, other); }, "layer_norm: expected bias of shape [3], got [4]");
  check_error([&] { layer_norm(x, {}, index); },
              "layer_norm: expected bias of f64 on cpu like x, got i64 on cpu");
  check_error([&] { layer_norm(x, cast(row, DType::f32), {}); },
              "layer_norm: expected weight of f64 on cpu like x, got f32 on cpu");
  check_error([&] { add_layer_norm(x, row, {}, {}); },
              "add_layer_norm: expected residual of shape [2, 3], got [3]");
  check_error([&] { add_layer_norm(x, cast(x, DType::f32), {}, {}); },
              "add_layer_norm: expected residual of f64 on cpu like x, got f32 on cpu");
  check_error([&] { add_layer_norm(x, x, other, {}); },
              "add_layer_norm: expected weight of shape [3], got [4]");
  check_error([&] { add_layer_norm(index, index, {}, {}); },
              "add_layer_norm: expected x of dtype f32, f64 or bf16, got i64");
}

}  // namespace
}  // namespace elwise::testing
