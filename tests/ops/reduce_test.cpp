#include "ops/reduce.h"

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

/// Shapes [outer, reduced, inner] with every odd size in each place, and some that several threads or blocks
/// share, in whole vectors of a GPU too.
std::vector<Shape> three_part_shapes() {
  std::vector<Shape> shapes{{1, 52'377, 1}, {51, 1027, 1}, {1, 1027, 51}, {3, 33, 530}, {1027, 51, 1},
                            {1027, 3, 17},  {1, 700, 96},  {5, 2048, 1},  {7, 9, 8}};
  for (const int64_t size : kOddSizes) {
    shapes.insert(shapes.end(), {{size, 2, 1}, {2, size, 1}, {1, size, 3}, {2, 3, size}, {1, 1, size}});
  }
  return shapes;
}

TEST_CASE("sum and mean over a dimension") {
  for (const Shape& shape : three_part_shapes()) {
    for (const bool is_mean : {false, true}) {
      for (const bool keep_dim : {false, true}) {
        const OpTest test{.name = is_mean ? "mean" : "sum",
                          .op =
                              [=](const std::vector<Tensor>& in) {
                                return is_mean ? mean(in[0], 1, keep_dim) : sum(in[0], 1, keep_dim);
                              },
                          .inputs = {uniform(shape)},
                          .naive =
                              [=](const std::vector<Values>& in) {
                                Values y = naive::sum(in[0], shape[0], shape[1], shape[2]);
                                for (double& value : y) value /= is_mean ? static_cast<double>(shape[1]) : 1;
                                return y;
                              }};
        CHECK(test.op(test.inputs).shape() == (keep_dim ? shape.with(1, 1) : shape.without(1)));
        if (keep_dim) {
          check_op(test);
        } else {
          check_op_variants(test);
        }
      }
    }
  }
}

TEST_CASE("sum and mean of all elements") {
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{33}, Shape{2, 3, 5}, Shape{1027}, Shape{51, 1027}}) {
    for (const bool is_mean : {false, true}) {
      const OpTest test{
          .name = is_mean ? "mean" : "sum",
          .op = [=](const std::vector<Tensor>& in) { return is_mean ? mean(in[0]) : sum(in[0]); },
          .inputs = {uniform(shape)},
          .naive =
              [=](const std::vector<Values>& in) {
                const double total = naive::sum(in[0], 1, shape.count(), 1)[0];
                return Values{is_mean ? total / static_cast<double>(shape.count()) : total};
              }};
      CHECK(test.op(test.inputs).shape() == Shape{});
      check_op_variants(test);
    }
  }
}

TEST_CASE("sums of nothing are 0") {
  for (const DType dtype : test_dtypes()) {
    const TensorOptions options{.dtype = dtype, .device = test_device()};
    const Tensor none = zeros({0, 3}, options);
    CHECK(values_of(sum(none)) == Values{0});
    CHECK(values_of(sum(none, 0)) == Values{0, 0, 0});
    CHECK(sum(none, 1).shape() == Shape{0});
    CHECK(sum(none, -1, true).shape() == Shape{0, 1});
    const Tensor x = zeros({2, 0, 3}, options).set_requires_grad();
    sum(x, 1).backward(zeros({2, 3}, options));
    CHECK(x.grad().shape() == x.shape());
  }
}

TEST_CASE("a long f32 sum stays accurate") {
  const int64_t count = 3'000'001;
  const TensorOptions options{.dtype = DType::f32, .device = test_device()};
  const Tensor x = full({count}, 0.1, options);
  const double expected = static_cast<double>(0.1F) * static_cast<double>(count);
  CHECK(sum(x).item() == doctest::Approx(expected).epsilon(1e-6));
  CHECK(mean(x).item() == doctest::Approx(static_cast<double>(0.1F)).epsilon(1e-6));
  const Tensor columns = full({count / 3, 3}, 0.1, options);
  for (const double total : values_of(sum(columns, 0))) {
    CHECK(total == doctest::Approx(expected / 3).epsilon(1e-6));
  }
}

TEST_CASE("NaN stays in its own sum") {
  Values values(5 * 33, 1);
  values[2 * 33 + 7] = kNan;
  const Tensor x = to(from_vector(values, {5, 33}), test_device());
  for (const DType dtype : test_dtypes()) {
    const Values rows = values_of(sum(cast(x, dtype), 1)), columns = values_of(sum(cast(x, dtype), 0));
    for (size_t i = 0; i < rows.size(); ++i) CHECK((i == 2 ? std::isnan(rows[i]) : rows[i] == 33));
    for (size_t i = 0; i < columns.size(); ++i) CHECK((i == 7 ? std::isnan(columns[i]) : columns[i] == 5));
  }
}

TEST_CASE("max over a dimension") {
  for (const Shape& shape : three_part_shapes()) {
    for (const bool keep_dim : {false, true}) {
      const Tensor x = all_different(shape);
      const OpTest test{.name = "max",
                        .op = [=](const std::vector<Tensor>& in) { return max(in[0], 1, keep_dim).values; },
                        .inputs = {x},
                        .naive =
                            [=](const std::vector<Values>& in) {
                              return naive::max(in[0], shape[0], shape[1], shape[2]).value;
                            }};
      const Tensor indices = argmax(to(x, test_device()), 1, keep_dim);
      CHECK(indices.shape() == (keep_dim ? shape.with(1, 1) : shape.without(1)));
      CHECK(to(indices, kCpu).to_vector<int64_t>() ==
            naive::max(values_of(x), shape[0], shape[1], shape[2]).index);
      CHECK(values_of(max(to(x, test_device()), 1).indices) == values_of(indices));
      if (keep_dim) {
        check_op(test);
      } else {
        check_op_variants(test);
      }
    }
  }
}

TEST_CASE("max of all elements") {
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{2, 33}, Shape{1027}}) {
    check_op_variants(
        {.name = "max",
         .op = [](const std::vector<Tensor>& in) { return max(in[0]); },
         .inputs = {all_different(shape)},
         .naive =
             [=](const std::vector<Values>& in) { return naive::max(in[0], 1, shape.count(), 1).value; }});
  }
}

TEST_CASE("max: ties, NaN and infinities") {
  struct Case {
    Values row;
    double value;
    int64_t index;
  };
  const Case cases[] = {{{1, 3, 3, 2}, 3, 1},
                        {{2, 2, 2, 2}, 2, 0},
                        {{-0.0, 0, -0.0, 0}, 0, 0},
                        {{1, kNan, kInfinity, kNan}, kNan, 1},
                        {{kNan, 1, 2, 3}, kNan, 0},
                        {{0, 1, 2, kNan}, kNan, 3},
                        {{-kInfinity, -kInfinity, -kInfinity, -kInfinity}, -kInfinity, 0},
                        {{-kInfinity, 5, kInfinity, kInfinity}, kInfinity, 2}};
  for (const Case& each : cases) {
    for (const DType dtype : test_dtypes()) {
      for (const int64_t repeats : {1, 9}) {   // the pattern once or several times in a row
        for (const int64_t inner : {1, 19}) {  // along the row, or in 19 columns beside one another
          const int64_t length = 4 * repeats;
          const Values values = naive::build({length, inner}, [&](const naive::Index& index) {
            return each.row[static_cast<size_t>(index[0] % 4)];
          });
          const Tensor x = leaf(values, {length, inner}, dtype, test_device());
          const MaxResult result = max(x, 0);
          const auto columns = static_cast<size_t>(inner);
          check_close(values_of(result.values), Values(columns, each.value), {0, 0}, "max");
          CHECK(values_of(result.indices) == Values(columns, static_cast<double>(each.index)));
          CHECK(values_of(argmax(x, 0)) == values_of(result.indices));
          result.values.backward(full({inner}, 2, x.options()));
          CHECK(values_of(x.grad()) == naive::build({length, inner}, [&](const naive::Index& index) {
                  return index[0] == each.index ? 2.0 : 0.0;
                }));
        }
      }
    }
  }
}

TEST_CASE("argmax takes no part in autograd") {
  const Tensor x = leaf({1, 2}, {2});
  CHECK_FALSE(argmax(x, 0).requires_grad());
  CHECK_FALSE(max(x, 0).indices.requires_grad());
}

TEST_CASE("sum_to undoes broadcasting") {
  struct Case {
    Shape from, to;
  };
  const Case cases[] = {{{5, 33}, {33}},   {{5, 33}, {5, 1}},  {{5, 33}, {1, 33}},        {{5, 33}, {}},
                        {{5, 33}, {1, 1}}, {{5, 33}, {5, 33}}, {{2, 3, 4, 5}, {3, 1, 5}}, {{2, 3}, {1, 1, 1}},
                        {{0, 3}, {3}},     {{1, 3}, {3}},      {{1027, 51}, {51}}};
  for (const auto& [from, to] : cases) {
    if (to.rank() > from.rank()) continue;
    check_op_variants({.name = "sum_to",
                       .op = [to](const std::vector<Tensor>& in) { return sum_to(in[0], to); },
                       .inputs = {uniform(from)},
                       .naive =
                           [=](const std::vector<Values>& in) {
                             Values y(static_cast<size_t>(to.count()), 0);
                             // The positions that the elements of `to` go to when it is broadcast to `from`.
                             Values positions(y.size());
                             for (size_t i = 0; i < y.size(); ++i) positions[i] = static_cast<double>(i);
                             const naive::Array target{to, positions};
                             size_t element = 0;
                             naive::build(from, [&](const naive::Index& index) {
                               return y[static_cast<size_t>(target(index))] += in[0][element++];
                             });
                             return y;
                           }});
  }
  const Tensor x = uniform({3});
  CHECK(sum_to(x, {3}).is_same(x));
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3}), index = arange(3), none = uniform({0, 3});
  check_error([&] { sum(index); }, "sum: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { sum(index, 0); }, "sum: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { mean(index, 0); }, "sum: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { max(index, 0); }, "max: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { sum(x, 2); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { mean(x, -3); }, "shape: dimension -3 is out of range for [2, 3]");
  check_error([&] { max(x, 2); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { mean(none, 0); }, "mean: expected at least one element along dimension 0, got [0, 3]");
  check_error([&] { mean(none); }, "mean: expected at least one element along dimension 0, got [0]");
  check_error([&] { max(none, 0); }, "max: expected at least one element along dimension 0, got [0, 3]");
  check_error([&] { argmax(none, -2); }, "max: expected at least one element along dimension 0, got [0, 3]");
}

}  // namespace
}  // namespace elwise::testing
