#include "ops/view.h"

#include "ops/elementwise.h"
#include "tests/support/naive_index.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

using naive::Array;
using naive::Index;

/// An op that moves elements: output element `index` is input number `part`, element `from`.
struct ViewCase {
  std::string name;
  std::vector<Shape> inputs;
  std::function<Tensor(const std::vector<Tensor>&)> op;
  Shape output;
  std::function<double(const std::vector<Array>&, Index)> naive;
};

void check_view(const ViewCase& view) {
  OpTest test{.name = view.name, .op = view.op, .inputs = {}, .naive = {}};
  for (const Shape& shape : view.inputs) test.inputs.push_back(uniform(shape));
  test.naive = [view](const std::vector<Values>& values) {
    std::vector<Array> arrays;
    for (size_t i = 0; i < values.size(); ++i) arrays.push_back({view.inputs[i], values[i]});
    return naive::build(view.output, [&](const Index& index) { return view.naive(arrays, index); });
  };
  CHECK(view.op(test.inputs).shape() == view.output);
  check_op_variants(test);
  for (const DType dtype : {DType::bf16, DType::i64, DType::i16, DType::boolean}) {
    OpTest converted = test;
    converted.gradients = false;
    for (Tensor& input : converted.inputs) input = cast(input, dtype);
    CHECK(view.op(converted.inputs).dtype() == dtype);
    check_op(converted);
    check_op(unaligned(converted));
  }
}

ViewCase transpose_case(const Shape& shape, int a, int b) {
  return {"transpose",
          {shape},
          [=](const std::vector<Tensor>& in) { return transpose(in[0], a, b); },
          shape.with(a, shape[b]).with(b, shape[a]),
          [=](const std::vector<Array>& x, Index index) {
            const auto rank = static_cast<int>(index.size());
            std::swap(index[static_cast<size_t>(a < 0 ? a + rank : a)],
                      index[static_cast<size_t>(b < 0 ? b + rank : b)]);
            return x[0](index);
          }};
}

TEST_CASE("transpose") {
  for (const int64_t size : kOddSizes) {
    check_view(transpose_case({size, 3}, 0, 1));
    check_view(transpose_case({5, size}, 0, 1));
    check_view(transpose_case({2, size, 3}, 1, -1));
    check_view(transpose_case({3, size, 2}, 0, 1));
  }
  check_view(transpose_case({33, 63}, 0, 1));
  check_view(transpose_case({63, 1027}, 0, 1));
  check_view(transpose_case({3, 129, 65}, 1, 2));
  check_view(transpose_case({17, 2, 33, 3}, 0, 2));
  check_view(transpose_case({3, 5, 2, 64}, 1, 2));
  check_view(transpose_case({2, 3, 4, 5}, 0, 3));
  check_view(transpose_case({2, 3, 4, 5}, 1, 2));
  check_view(transpose_case({2, 3, 4, 5}, 1, 1));
  check_view(transpose_case({2, 1, 2, 1, 3, 1, 2, 3}, 2, 7));
  check_view(transpose_case({0, 3}, 0, 1));
  check_view(transpose_case({2, 0, 3}, 0, 2));
}

ViewCase slice_case(const Shape& shape, int dim, int64_t begin, int64_t end) {
  const int at = shape.normalize(dim);
  return {"slice",
          {shape},
          [=](const std::vector<Tensor>& in) { return slice(in[0], dim, begin, end); },
          shape.with(dim, end - begin),
          [=](const std::vector<Array>& x, const Index& index) {
            return x[0](naive::with(index, at, index[static_cast<size_t>(at)] + begin));
          }};
}

TEST_CASE("slice") {
  for (const int64_t size : kOddSizes) {
    check_view(slice_case({size}, 0, 0, size));
    check_view(slice_case({size + 1}, 0, 1, size + 1));
    check_view(slice_case({3, size + 2}, 1, 1, size + 1));
    check_view(slice_case({2, 3, size}, -2, 1, 3));
  }
  check_view(slice_case({5, 128}, 1, 16, 112));
  check_view(slice_case({1, 5, 7}, 1, 2, 4));
  check_view(slice_case({3, 5, 7}, 1, 2, 2));
  check_view(slice_case({3, 5}, 0, 3, 3));
  check_view(slice_case({0, 5, 7}, 1, 2, 4));
  check_view(slice_case({2, 5, 0}, 1, 2, 4));
  check_view(slice_case({2, 2, 2, 2, 2, 2, 2, 3}, 7, 1, 2));
}

ViewCase concat_case(const std::vector<Shape>& parts, int dim) {
  const int at = parts[0].normalize(dim);
  int64_t total = 0;
  for (const Shape& part : parts) total += part[at];
  return {"concat", parts, [=](const std::vector<Tensor>& in) { return concat(in, dim); },
          parts[0].with(at, total),
          [=](const std::vector<Array>& parts, Index index) {
            int64_t& position = index[static_cast<size_t>(at)];
            size_t part = 0;
            while (position >= parts[part].shape[at]) position -= parts[part++].shape[at];
            return parts[part](index);
          }};
}

TEST_CASE("concat") {
  for (const int64_t size : kOddSizes) {
    check_view(concat_case({{size}, {1}, {3}}, 0));
    check_view(concat_case({{3, size}, {3, 2}}, -1));
    check_view(concat_case({{2, 1, size}, {2, 3, size}}, 1));
  }
  check_view(concat_case({{5, 64}, {5, 32}}, 1));
  check_view(concat_case({{2, 3}}, 0));
  check_view(concat_case({{0, 3}, {2, 3}, {0, 3}}, 0));
  check_view(concat_case({{2, 0}, {2, 3}}, 1));
  check_view(concat_case({{0, 2}, {0, 3}}, 1));
  check_view(concat_case({{0}, {0}}, 0));
}

TEST_CASE("stack") {
  for (const Shape& shape : {Shape{}, Shape{33}, Shape{2, 3}, Shape{2, 0}}) {
    for (int dim = -shape.rank() - 1; dim <= shape.rank(); ++dim) {
      const int at = dim < 0 ? dim + shape.rank() + 1 : dim;
      check_view({"stack",
                  {shape, shape, shape},
                  [=](const std::vector<Tensor>& in) { return stack(in, dim); },
                  shape.inserted(at, 3),
                  [=](const std::vector<Array>& parts, Index index) {
                    const auto part = static_cast<size_t>(index[static_cast<size_t>(at)]);
                    index.erase(index.begin() + at);
                    return parts[part](index);
                  }});
    }
  }
}

TEST_CASE("expand") {
  struct Case {
    Shape from, to;
  };
  const Case cases[] = {{{}, {}},
                        {{}, {33}},
                        {{1}, {33}},
                        {{33}, {5, 33}},
                        {{5, 1}, {5, 33}},
                        {{2, 1, 3}, {2, 4, 3}},
                        {{1}, {2, 3}},
                        {{63}, {31, 63}},
                        {{1, 0}, {3, 0}},
                        {{0}, {2, 0}},
                        {{1}, {0}},
                        {{51, 1}, {51, 1027}},
                        {{5, 1, 64}, {5, 3, 64}},
                        {{3, 5, 1}, {3, 5, 64}}};
  for (const auto& [from, to] : cases) {
    check_view({"expand",
                {from},
                [to](const std::vector<Tensor>& in) { return expand(in[0], to); },
                to,
                [](const std::vector<Array>& x, const Index& index) { return x[0](index); }});
  }
}

/// Ops that keep the order of the elements.
ViewCase same_order(const std::string& name, const Shape& from, const Shape& to,
                    const std::function<Tensor(const Tensor&)>& op) {
  return {name,
          {from},
          [op](const std::vector<Tensor>& in) { return op(in[0]); },
          to,
          [to](const std::vector<Array>& x, const Index& index) {
            return Array{to, x[0].values}(index);
          }};
}

TEST_CASE("reshape and clone") {
  using T = const Tensor&;
  check_view(same_order("reshape", {2, 33}, {33, 2}, [](T x) { return reshape(x, {33, 2}); }));
  check_view(same_order("reshape", {2, 33}, {66}, [](T x) { return reshape(x, {-1}); }));
  check_view(same_order("reshape", {2, 33}, {11, 2, 3}, [](T x) { return reshape(x, {11, -1, 3}); }));
  check_view(same_order("reshape", {1}, {}, [](T x) { return reshape(x, Shape{}); }));
  check_view(same_order("reshape", {}, {1, 1}, [](T x) { return reshape(x, {1, -1}); }));
  check_view(same_order("reshape", {0, 3}, {3, 0}, [](T x) { return reshape(x, {3, -1}); }));
  for (const int64_t size : kOddSizes) {
    check_view(same_order("clone", {size}, {size}, [](T x) { return clone(x); }));
  }
}

TEST_CASE("split gives the pieces back, and their gradients add up") {
  for (const int64_t size : kOddSizes) {
    for (const int dim : {0, 1}) {
      const Shape shape = dim == 0 ? Shape{size + 4, 3} : Shape{3, size + 4};
      check_op_variants({.name = "split",
                         .op =
                             [=](const std::vector<Tensor>& in) {
                               std::vector<Tensor> parts = split(in[0], {1, size, 0, 3}, dim);
                               CHECK(parts[1].shape() == shape.with(dim, size));
                               parts[0] = parts[0] * 3.0;
                               return concat(parts, dim);
                             },
                         .inputs = {uniform(shape)},
                         .naive =
                             [=](const std::vector<Values>& in) {
                               const Array x{shape, in[0]};
                               return naive::build(shape, [&](const Index& index) {
                                 return x(index) * (index[static_cast<size_t>(dim)] == 0 ? 3 : 1);
                               });
                             }});
    }
  }
}

TEST_CASE("storage is shared where the elements stay dense") {
  const Tensor x = uniform({3, 5, 7}), flat = uniform({1, 5, 7});
  const auto shares = [](const Tensor& a, const Tensor& b) { return a.storage() == b.storage(); };
  CHECK(shares(reshape(x, {-1}), x));
  CHECK(shares(slice(x, 0, 1, 2), x));
  CHECK(shares(slice(flat, 1, 1, 2), flat));
  CHECK(shares(split(x, {1, 2}, 0)[1], x));
  CHECK(slice(x, 0, 1, 2).data<double>() == x.data<double>() + 35);
  CHECK_FALSE(shares(slice(x, 1, 1, 2), x));
  CHECK_FALSE(shares(clone(x), x));
  CHECK_FALSE(shares(transpose(x, 0, 1), x));
  CHECK_FALSE(shares(expand(x, x.shape()), x));
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3});
  check_error([&] { reshape(x, {4}); }, "reshape: [2, 3] has 6 elements, [4] has 4");
  check_error([&] { reshape(x, {-1, -1}); }, "reshape: expected at most one size of -1");
  check_error([&] { reshape(x, {-1, 4}); }, "reshape: [2, 3] does not divide into groups of 4");
  check_error([&] { reshape(x, {-1, 0}); }, "reshape: [2, 3] does not divide into groups of 0");
  check_error([&] { reshape(x, {-2, -3}); }, "shape: expected sizes of 0 or more, got -2");
  check_error([&] { transpose(x, 0, 2); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { transpose(x, -3, 0); }, "shape: dimension -3 is out of range for [2, 3]");
  check_error([&] { slice(x, 1, 2, 1); }, "slice: expected 0 <= begin <= end <= 3, got 2 and 1");
  check_error([&] { slice(x, 1, -1, 1); }, "slice: expected 0 <= begin <= end <= 3, got -1 and 1");
  check_error([&] { slice(x, 0, 0, 3); }, "slice: expected 0 <= begin <= end <= 2, got 0 and 3");
  check_error([&] { slice(x, 2, 0, 1); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { split(x, {1, 1}, 1); }, "split: expected sizes that add up to 3, got 2");
  check_error([&] { split(x, {2, 2}, 1); }, "slice: expected 0 <= begin <= end <= 3, got 2 and 4");
  check_error([&] { concat({}, 0); }, "concat: expected at least one tensor");
  check_error(
      [&] {
        concat({x, cast(x, DType::f32)}, 0);
      },
      "concat: expected each part of f64 on cpu like the first, got f32 on cpu");
  check_error([&] { concat({x, uniform({3})}, 0); }, "concat: [3] does not join [2, 3]");
  check_error(
      [&] {
        concat({x, uniform({2, 4})}, 0);
      },
      "concat: expected each part of shape [2, 3], got [2, 4]");
  check_error([&] { concat({x, x}, 2); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { stack({}, 0); }, "stack: expected at least one tensor");
  check_error([&] { stack({x, x}, 3); }, "stack: dimension 3 is out of range for [2, 3]");
  check_error(
      [&] {
        stack({x, uniform({3, 2})}, 0);
      },
      "stack: expected each part of shape [2, 3], got [3, 2]");
  check_error([&] { expand(x, {4, 3}); }, "expand: shapes [2, 3] and [4, 3] do not broadcast");
  check_error([&] { expand(x, {3}); }, "expand: [2, 3] does not broadcast to [3]");
}

}  // namespace
}  // namespace elwise::testing
