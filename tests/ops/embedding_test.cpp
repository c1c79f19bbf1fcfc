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
  for (const DType dtype : {DType::bf16, DType::i64, DType::i16, DType::boolean}) {
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
    const Tensor x = to(uniform(each.shape), test_device()).set_requires_grad();
    const Values zero(static_cast<size_t>(x.count()), 0);
    const Tensor index = to(indices({each.count}, each.shape[each.dim]), test_device());
    const Tensor y = index_select(x, each.dim, index), dy = to(uniform(y.shape()), test_device());
    y.backward(dy);
    check_close(
        values_of(x.grad()),
        naive::index_select_backward(each.lookup(), values_of(dy), to_indices(values_of(index)), zero),
        kF64Tolerance, "index_select backward");

    const Tensor element_index = to(indices(y.shape(), each.shape[each.dim]), test_device());
    check_close(
        values_of(gather_backward(dy, each.shape, x.shape().normalize(each.dim), element_index)),
        naive::gather_backward(each.lookup(), values_of(dy), to_indices(values_of(element_index)), zero),
        kF64Tolerance, "gather backward");
  }
}

/// Indices of which some repeat for long: runs of them begin, end and stop in the middle of a GPU's runs.
Tensor skewed_indices(int64_t count, int64_t size) {
  Indices values;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t other = (i * i * 31 + i * 7 + 3) % size;
    values.push_back(i % 3 == 0 ? size / 2 : i % 7 < 5 ? other : other % 5);
  }
  return from_vector(values, {count});
}

TEST_CASE("gradients of skewed indices, one by one and added to earlier ones") {
  struct Case {
    int64_t count, size, width;
  };
  const Case cases[] = {{1, 1, 4},      {31, 3, 8},     {32, 1, 8},        {33, 1, 8},     {64, 2, 3},
                        {1024, 300, 4}, {1025, 300, 1}, {3000, 70'000, 4}, {2049, 5, 136}, {700, 30'522, 40}};
  for (const auto& [count, size, width] : cases) {
    const Tensor index = to(skewed_indices(count, size), test_device());
    for (const DType dtype : test_dtypes()) {
      const Tensor weight =
          zeros({size, width}, {.dtype = dtype, .device = test_device()}).set_requires_grad();
      const Tensor dy = cast(to(on_grid({count, width}), test_device()), dtype);
      for (int time = 0; time < 2; ++time) embedding(weight, index).backward(dy);
      Values twice = values_of(dy);
      for (double& value : twice) value *= 2;
      const Values zero(static_cast<size_t>(weight.count()), 0);
      check_close(
          values_of(weight.grad()),
          naive::index_select_backward({1, size, count, width}, twice, to_indices(values_of(index)), zero),
          tolerance_of(dtype), detail::concatenate("embedding of ", count, " of ", size), 2);
    }
  }
}

TEST_CASE("gather: gradients of few columns of many elements") {
  for (const Shape& shape : {Shape{1000}, Shape{3, 700}, Shape{700, 5}, Shape{2, 300, 3}}) {
    const int dim = shape.rank() == 1 ? 0 : shape[0] > 3 ? 0 : 1;
    const naive::LookupShape lookup{shape.count_before(dim), 11, shape[dim], shape.count_after(dim)};
    const Tensor index = to(indices(shape, 11), test_device());
    for (const DType dtype : test_dtypes()) {
      const Tensor dy = cast(to(on_grid(shape), test_device()), dtype);
      const Shape from = shape.with(dim, 11);
      check_close(values_of(gather_backward(dy, from, dim, index)),
                  naive::gather_backward(lookup, values_of(dy), to_indices(values_of(index)),
                                         Values(static_cast<size_t>(from.count()), 0)),
                  tolerance_of(dtype), "gather backward", 2);
    }
  }
}

TEST_CASE("a row that is looked up many times gets every gradient") {
  for (const DType dtype : test_dtypes()) {
    const TensorOptions options{.dtype = dtype, .device = test_device()};
    const Tensor weight = ones({3, 33}, options).set_requires_grad();
    const Tensor index = full({5003}, 1, {.dtype = DType::i64, .device = test_device()});
    embedding(weight, index).backward(ones({5003, 33}, options));
    const Values rounded = values_of(full({33}, 5003, options));
    Values expected(99, 0);
    std::copy(rounded.begin(), rounded.end(), expected.begin() + 33);
    CHECK(values_of(weight.grad()) == expected);
  }
}

TEST_CASE("an index out of range on a GPU is an error of the next wait") {
  if (test_device() == kCpu) return;
  const auto index = [](Indices values) {
    return to(from_vector(values, {static_cast<int64_t>(values.size())}), test_device());
  };
  const Tensor weight = to(uniform({5, 3}), test_device());
  check_error(
      [&] {
        values_of(embedding(weight, index({0, 5, 2})));
      },
      "index_select: index 5 at 1 is outside [0, 5)");
  check_error(
      [&] {
        values_of(index_select(to(uniform({2, 5, 3}), test_device()), 1, index({4, 0, -1})));
      },
      "index_select: index -1 at 2 is outside [0, 5)");
  const Tensor columns = to(from_vector<int64_t>({0, 1, 2, 3, 4, 5}, {2, 3}), test_device());
  check_error([&] { values_of(gather(weight, 0, columns)); }, "gather: index 5 at 5 is outside [0, 5)");
  for (const DType dtype : {DType::f32, DType::bf16}) {  // a thread for each column, and the sort
    const Tensor dy = ones({2, 3}, {.dtype = dtype, .device = test_device()});
    check_error(
        [&] {
          values_of(gather_backward(dy, {5, 3}, 0, columns));
        },
        "gather: index 5 at 5 is outside [0, 5)");
  }
  CHECK(values_of(embedding(weight, index({4, 4}))).size() == 6);  // the error was reported once
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
