#include "ops/embedding.h"

#include "ops/elementwise.h"
#include "ops/view.h"
#include "tests/support/naive_embedding.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

using Indices = std::vector<int64_t>;

/// `count` indices in [0, size) in a mixed order; many repeat where count is larger than size.
Tensor indices(const Shape& shape, int64_t size) {
  Indices values;
  for (int64_t i = 0; i < shape.count(); ++i) values.push_back((i * i * 31 + i * 7 + 3) % size);
  return from_vector(values, shape);
}

Indices to_indices(const Values& values) {
  return Indices(values.begin(), values.end());
}

/// Checks the op with x in f64 and f32, and its values with x in the other dtypes.
void check_lookup(const OpTest& test) {
  check_op_variants(test);
  for (const DType dtype : {DType::bf16, DType::i64, DType::boolean}) {
    OpTest converted = test;
    converted.gradients = false;
    converted.inputs[0] = cast(test.inputs[0], dtype);
    CHECK(test.op(converted.inputs).dtype() == dtype);
    check_op(converted);
  }
}

TEST_CASE("embedding") {
  struct Case {
    int64_t rows, width;
    Shape index;
  };
  const Case cases[] = {{1, 1, {1}},     {3, 1, {31}},    {5, 31, {2, 3}},     {31, 5, {}},
                        {7, 32, {4}},    {4, 33, {3}},    {3, 63, {2, 2}},     {63, 3, {2, 1, 5}},
                        {1027, 3, {33}}, {3, 1027, {51}}, {257, 7, {1027, 3}}, {5, 3, {0}},
                        {5, 3, {2, 0}},  {5, 0, {3}}};
  for (const auto& [rows, width, index] : cases) {
    check_lookup(
        {.name = detail::concatenate("embedding [", rows, ", ", width, "] by ", index),
         .op = [](const std::vector<Tensor>& in) { return embedding(in[0], in[1]); },
         .inputs = {uniform({rows, width}), indices(index, rows)},
         .naive =
             [=](const std::vector<Values>& in) {
               return naive::index_select_forward({1, rows, index.count(), width}, in[0], to_indices(in[1]));
             }});
    const Tensor y = embedding(uniform({rows, width}), indices(index, rows));
    CHECK(y.shape() == index.inserted(index.rank(), width));
  }
}

/// Shapes and dimensions to look up along, and how many elements to take.
struct LookupCase {
  Shape shape;
  int dim;
  int64_t count;

  naive::LookupShape lookup() const {
    return {shape.count_before(dim), shape[dim], count, shape.count_after(dim)};
  }
};

std::vector<LookupCase> lookup_cases() {
  std::vector<LookupCase> cases{{{51, 33, 31}, 1, 33}, {{1027, 51}, 0, 1027}, {{17, 1027}, 1, 3001},
                                {{2, 3}, 0, 0},        {{0, 3}, 0, 0},        {{0, 3}, 1, 2},
                                {{2, 0}, 0, 3},        {{2, 3, 4, 5}, -3, 7}};
  for (const int64_t size : kOddSizes) {
    cases.insert(
        cases.end(),
        {{{size}, 0, 5}, {{size, 3}, 0, 4}, {{3, size}, 1, 4}, {{2, 3, size}, 1, 4}, {{3, 5}, 1, size}});
  }
  return cases;
}

TEST_CASE("index_select") {
  for (const LookupCase& each : lookup_cases()) {
    const auto index_count = Shape{each.count};
    check_lookup(
        {.name = detail::concatenate("index_select ", each.shape, " along ", each.dim),
         .op = [=](const std::vector<Tensor>& in) { return index_select(in[0], each.dim, in[1]); },
         .inputs = {uniform(each.shape), indices(index_count, std::max<int64_t>(1, each.shape[each.dim]))},
         .naive =
             [=](const std::vector<Values>& in) {
               return naive::index_select_forward(each.lookup(), in[0], to_indices(in[1]));
             }});
  }
}

TEST_CASE("gather") {
  for (const LookupCase& each : lookup_cases()) {
    const Shape index_shape = each.shape.with(each.dim, each.count);
    check_lookup(
        {.name = detail::concatenate("gather ", each.shape, " along ", each.dim),
         .op = [=](const std::vector<Tensor>& in) { return gather(in[0], each.dim, in[1]); },
         .inputs = {uniform(each.shape), indices(index_shape, std::max<int64_t>(1, each.shape[each.dim]))},
         .naive =
             [=](const std::vector<Values>& in) {
               return naive::gather_forward(each.lookup(), in[0], to_indices(in[1]));
             }});
  }
}

TEST_CASE("gradients of repeated indices add up, against plain loops") {
  for (const LookupCase& each : lookup_cases()) {
    if (each.shape[each.dim] == 0) continue;
    const Tensor x = uniform(each.shape).set_requires_grad();
    const Values zero(static_cast<size_t>(x.count()), 0);
    const Tensor index = indices({each.count}, each.shape[each.dim]);
    const Tensor y = index_select(x, each.dim, index), dy = uniform(y.shape());
    y.backward(dy);
    check_close(values_of(x.grad()),
                naive::index_select_backward(each.lookup(), values_of(dy), index.to_vector<int64_t>(), zero),
                kF64Tolerance, "index_select backward");

    const Tensor element_index = indices(y.shape(), each.shape[each.dim]);
    check_close(
        values_of(gather_backward(dy, each.shape, x.shape().normalize(each.dim), element_index)),
        naive::gather_backward(each.lookup(), values_of(dy), element_index.to_vector<int64_t>(), zero),
        kF64Tolerance, "gather backward");
  }
}

TEST_CASE("a row that is looked up many times gets every gradient") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensor weight = ones({3, 33}, {.dtype = dtype}).set_requires_grad();
    embedding(weight, full({5003}, 1, {.dtype = DType::i64})).backward(ones({5003, 33}, {.dtype = dtype}));
    Values expected(99, 0);
    std::fill(expected.begin() + 33, expected.begin() + 66, 5003);
    CHECK(values_of(weight.grad()) == expected);
  }
}

TEST_CASE("errors") {
  const Tensor weight = uniform({5, 3}), wide = uniform({2, 5, 3});
  const auto index = [](Indices values) {
    return from_vector(values, {static_cast<int64_t>(values.size())});
  };
  check_error([&] { embedding(wide, index({0})); },
              "embedding: expected weight [rows, width], got [2, 5, 3]");
  check_error([&] { embedding(weight, weight); }, "embedding: expected index of i64 on cpu, got f64 on cpu");
  check_error([&] { embedding(weight, to(index({0}), kMeta)); },
              "embedding: expected index of i64 on cpu, got i64 on meta");
  check_error([&] { embedding(weight, index({0, 5, 6})); }, "index_select: index 5 at 1 is outside [0, 5)");
  check_error(
      [&] {
        index_select(wide, 1, index({4, 0, -1}));
      },
      "index_select: index -1 at 2 is outside [0, 5)");
  check_error(
      [&] {
        index_select(uniform({0, 3}), 0, index({0}));
      },
      "index_select: index 0 at 0 is outside [0, 0)");
  check_error([&] { index_select(weight, 2, index({0})); }, "shape: dimension 2 is out of range for [5, 3]");
  check_error([&] { index_select(weight, 0, weight); },
              "index_select: expected index of i64 on cpu, got f64 on cpu");
  check_error(
      [&] {
        index_select(weight, 0, indices({2, 2}, 5));
      },
      "index_select: expected index [n], got [2, 2]");
  check_error([&] { gather(weight, 0, weight); }, "gather: expected index of i64 on cpu, got f64 on cpu");
  check_error([&] { gather(weight, 0, index({0})); }, "gather: expected index of rank 2, got [1]");
  check_error(
      [&] {
        gather(weight, 1, indices({4, 2}, 3));
      },
      "gather: expected index of shape [5, 2], got [4, 2]");
  check_error(
      [&] {
        gather(weight, 0, from_vector<int64_t>({0, 1, 2, 3, 4, 5}, {2, 3}));
      },
      "gather: index 5 at 5 is outside [0, 5)");
  check_error(
      [&] {
        gather(weight, -3, indices({5, 3}, 3));
      },
      "shape: dimension -3 is out of range for [5, 3]");
}

}  // namespace
}  // namespace elwise::testing
