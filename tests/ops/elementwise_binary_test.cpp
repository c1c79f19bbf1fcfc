#include <cmath>
#include <limits>

#include "ops/elementwise.h"
#include "tests/support/naive_elementwise.h"
#include "tests/support/naive_index.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct BinaryCase {
  std::string name;  // as the op calls itself
  std::function<Tensor(const Tensor&, const Tensor&)> op;
  BinaryOp kind;
};

std::vector<BinaryCase> binary_cases() {
  using T = const Tensor&;
  return {{"add", [](T a, T b) { return add(a, b); }, BinaryOp::add},
          {"sub", [](T a, T b) { return sub(a, b); }, BinaryOp::sub},
          {"mul", [](T a, T b) { return mul(a, b); }, BinaryOp::mul},
          {"div", [](T a, T b) { return div(a, b); }, BinaryOp::div},
          {"maximum", maximum, BinaryOp::maximum},
          {"minimum", minimum, BinaryOp::minimum}};
}

/// The same ops as operators.
std::vector<BinaryCase> operator_cases() {
  using T = const Tensor&;
  return {{"add", [](T a, T b) { return a + b; }, BinaryOp::add},
          {"sub", [](T a, T b) { return a - b; }, BinaryOp::sub},
          {"mul", [](T a, T b) { return a * b; }, BinaryOp::mul},
          {"div", [](T a, T b) { return a / b; }, BinaryOp::div}};
}

/// Pairs of shapes that broadcast.
struct ShapePair {
  Shape a, b;
};

const std::vector<ShapePair> kShapePairs{
    {{}, {}},                                           // scalars
    {{33}, {}},                                         // with a scalar
    {{5, 7}, {1}},                                      // with one element
    {{5, 33}, {33}},                                    // with a row
    {{5, 33}, {1, 33}},                                 //
    {{5, 33}, {5, 1}},                                  // with a column
    {{31, 1}, {1, 3}},                                  // both sides
    {{2, 3, 4}, {4}},                                   // ranks differ
    {{2, 3, 4}, {3, 1}},                                //
    {{3, 1, 5}, {1, 4, 1}},                             // alternating
    {{2, 1, 3, 1, 5}, {2, 1, 2, 1}},                    //
    {{1, 1, 2, 1, 2, 1, 2, 1}, {2, 1, 2, 1, 2, 1, 2}},  // the highest rank
    {{2, 3, 5}, {2, 3, 5}},                             // dense
    {{5, 3, 16}, {16}},                                 // in whole vectors of a GPU
    {{5, 3, 16}, {3, 1}},                               //
    {{3, 1, 16}, {2, 1}},                               //
    {{0}, {1}},                                         // nothing
    {{0, 3}, {3}},                                      //
    {{2, 1}, {1, 0}},                                   //
};

OpTest test_of(const BinaryCase& binary, const Tensor& a, const Tensor& b) {
  return {.name = binary.name,
          .op = [binary](const std::vector<Tensor>& in) { return binary.op(in[0], in[1]); },
          .inputs = {a, b},
          .naive =
              [binary, a_shape = a.shape(), b_shape = b.shape()](const std::vector<Values>& in) {
                const naive::Array first{a_shape, in[0]}, second{b_shape, in[1]};
                return naive::build(broadcast("", a_shape, b_shape), [&](const naive::Index& index) {
                  return naive::binary(binary.kind, first(index), second(index));
                });
              }};
}

/// The op on inputs of these shapes which have no element in common; a divisor is not so small that its
/// gradient is the difference of large numbers.
OpTest test_of(const BinaryCase& binary, const Shape& a, const Shape& b) {
  const Tensor divisor_or_any = binary.kind == BinaryOp::div ? uniform_beside(0, 1, b) : on_grid(b, 1.0 / 16);
  return test_of(binary, on_grid(a), divisor_or_any);
}

TEST_CASE("binary ops broadcast, with the gradients summed back") {
  for (const BinaryCase& binary : binary_cases()) {
    for (const auto& [a, b] : kShapePairs) {
      check_op_variants(test_of(binary, a, b));
      check_op(test_of(binary, b, a));
    }
    for (const int64_t size : kOddSizes) {
      check_op_variants(test_of(binary, Shape{size}, Shape{size}));
      check_op_variants(test_of(binary, Shape{3, size}, Shape{size}));
    }
  }
}

TEST_CASE("operators are the binary ops") {
  for (const BinaryCase& binary : operator_cases()) check_op(test_of(binary, {5, 3}, {3}));
}

TEST_CASE("binary ops split a large tensor among threads") {
  for (const BinaryCase& binary : binary_cases()) {
    if (binary.name != "mul" && binary.name != "div") continue;
    for (const auto& [a, b] : {ShapePair{{51, 1027}, {1027}},
                               {{51, 1027}, {51, 1}},
                               {{51, 1027}, {51, 1027}},
                               {{1027, 1}, {51}},
                               {{}, {52'377}}}) {
      check_op(test_of(binary, a, b));
    }
  }
}

TEST_CASE("the same tensor on both sides gets both gradients") {
  const auto square = [](const std::vector<Tensor>& in) { return in[0] * in[0]; };
  const auto naive_square = [](const std::vector<Values>& in) {
    Values y = in[0];
    for (double& value : y) value *= value;
    return y;
  };
  check_op({.name = "x * x", .op = square, .inputs = {uniform({33})}, .naive = naive_square});
}

TEST_CASE("binary ops: NaN, infinities and zeros") {
  const double edges[] = {kNan, kInfinity, -kInfinity, 0, -0.0, 1, -3};
  for (const BinaryCase& binary : binary_cases()) {
    for (const double a : edges) {
      for (const double b : edges) {
        for (const DType dtype : test_dtypes()) {
          const TensorOptions options{.dtype = dtype, .device = test_device()};
          const Tensor y = binary.op(full({19}, a, options), full({19}, b, options));
          check_close(values_of(y), Values(19, naive::binary(binary.kind, a, b)), tolerance_of(dtype),
                      binary.name + " of " + std::to_string(a) + " and " + std::to_string(b));
        }
      }
    }
  }
}

TEST_CASE("maximum and minimum: ties share the gradient") {
  for (const bool larger : {true, false}) {
    for (const DType dtype : test_dtypes()) {
      const Tensor a = leaf({1, 2, 3, -0.0}, {4}, dtype, test_device());
      const Tensor b = leaf({2, 2, 1, 0.0}, {4}, dtype, test_device());
      const Tensor y = larger ? maximum(a, b) : minimum(a, b);
      y.backward(full({4}, 4, y.options()));
      const Values lower{4, 2, 0, 2}, upper{0, 2, 4, 2};
      CHECK(values_of(a.grad()) == (larger ? upper : lower));
      CHECK(values_of(b.grad()) == (larger ? lower : upper));
    }
  }
}

/// A bool tensor, true for about two of three elements.
Tensor condition_of(const Shape& shape) {
  Tensor x = uniform(shape, -1, 2);
  return cast(relu(x), DType::boolean);
}

TEST_CASE("where: values and gradients, all three sides broadcast") {
  const Shape shapes[][3] = {{{}, {}, {}},
                             {{33}, {33}, {33}},
                             {{1027}, {1027}, {}},
                             {{5, 33}, {33}, {5, 1}},
                             {{33}, {5, 1}, {1}},
                             {{5, 1}, {5, 33}, {33}},
                             {{}, {31}, {2, 31}},
                             {{2, 1, 3}, {4, 1}, {2, 4, 3}},
                             {{0, 3}, {3}, {1}},
                             {{51, 1}, {51, 1027}, {1027}},
                             {{3, 64}, {5, 1, 64}, {3, 1}}};
  for (const auto& [condition, a, b] : shapes) {
    const Shape shape = broadcast("", condition, broadcast("", a, b));
    check_op_variants({.name = "where",
                       .op = [](const std::vector<Tensor>& in) { return where(in[0], in[1], in[2]); },
                       .inputs = {condition_of(condition), uniform(a), uniform(b)},
                       .naive =
                           [=](const std::vector<Values>& in) {
                             const naive::Array chooses{condition, in[0]}, first{a, in[1]}, second{b, in[2]};
                             return naive::build(shape, [&](const naive::Index& index) {
                               return chooses(index) != 0 ? first(index) : second(index);
                             });
                           }});
  }
}

TEST_CASE("where takes nothing from the side that was not chosen") {
  for (const DType dtype : test_dtypes()) {
    const auto on_device = [=](const Values& values) { return leaf(values, {3}, dtype, test_device()); };
    const Tensor condition = cast(on_device({1, 0, 1}), DType::boolean);
    const Tensor a = on_device({1, kNan, 3}), b = on_device({kNan, 5, kInfinity});
    const Tensor y = where(condition, a, b);
    CHECK(values_of(y) == Values{1, 5, 3});
    y.backward(on_device({7, 8, 9}));
    CHECK(values_of(a.grad()) == Values{7, 0, 9});
    CHECK(values_of(b.grad()) == Values{0, 8, 0});
  }
}

TEST_CASE("masked_fill") {
  const ShapePair pairs[] = {
      {{}, {}},      {{33}, {33}},         {{5, 33}, {33}}, {{5, 33}, {5, 1}}, {{2, 3, 4}, {3, 1}},
      {{7, 63}, {}}, {{51, 1027}, {1027}}, {{0, 3}, {3}}};
  for (const double value : {-1e9, 0.5, -kInfinity}) {
    for (const auto& [x, mask] : pairs) {
      if (std::isinf(value) && x.count() > 500) continue;
      // -inf - -inf is no numeric gradient: it is read through exp.
      const auto limited = [=](const Tensor& y) { return std::isinf(value) ? exp(y) : y; };
      check_op_variants(
          {.name = "masked_fill",
           .op = [=](const std::vector<Tensor>& in) { return limited(masked_fill(in[0], in[1], value)); },
           .inputs = {uniform(x), condition_of(mask)},
           .naive =
               [=](const std::vector<Values>& in) {
                 const naive::Array old{x, in[0]}, fills{mask, in[1]};
                 return naive::build(x, [&](const naive::Index& index) {
                   const double y = fills(index) != 0 ? value : old(index);
                   return std::isinf(value) ? std::exp(y) : y;
                 });
               }});
    }
  }
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3}), row = uniform({4}), index = arange(3);
  const Tensor mask = condition_of({2, 3});
  for (const BinaryCase& binary : binary_cases()) {
    const std::string& name = binary.name;
    check_error([&] { binary.op(index, index); }, name + ": expected a of dtype f32, f64 or bf16, got i64");
    check_error([&] { binary.op(x, cast(x, DType::f32)); },
                name + ": expected b of f64 on cpu like a, got f32 on cpu");
    check_error([&] { binary.op(x, to(x, kMeta)); },
                name + ": expected b of f64 on cpu like a, got f64 on meta");
    check_error([&] { binary.op(x, row); }, name + ": shapes [2, 3] and [4] do not broadcast");
  }
  check_error([&] { where(x, x, x); }, "where: expected a condition of bool on cpu, got f64 on cpu");
  check_error([&] { where(to(mask, kMeta), x, x); },
              "where: expected a condition of bool on cpu, got bool on meta");
  check_error([&] { where(mask, index, index); }, "where: expected a of dtype f32, f64 or bf16, got i64");
  check_error([&] { where(mask, x, index); }, "where: expected b of f64 on cpu like a, got i64 on cpu");
  check_error([&] { where(mask, x, row); }, "where: shapes [2, 3] and [4] do not broadcast");
  check_error([&] { where(mask, row, row); }, "where: shapes [2, 3] and [4] do not broadcast");
  check_error([&] { masked_fill(uniform({3}), mask, 0); },
              "masked_fill: mask [2, 3] does not broadcast to x [3]");
  check_error([&] { masked_fill(row, mask, 0); }, "masked_fill: shapes [4] and [2, 3] do not broadcast");
}

}  // namespace
}  // namespace elwise::testing
