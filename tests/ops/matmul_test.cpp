#include "ops/matmul.h"

#include <cmath>
#include <cstring>

#include "autograd/grad_mode.h"
#include "core/cost.h"
#include "core/parallel.h"
#include "ops/elementwise.h"
#include "ops/view.h"
#include "tests/support/naive_elementwise.h"
#include "tests/support/naive_index.h"
#include "tests/support/naive_matmul.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

using naive::Array;
using naive::Index;

constexpr MatmulOptions kAllOptions[] = {{false, false}, {false, true}, {true, false}, {true, true}};

Shape swapped(const Shape& shape) {
  return shape.with(-2, shape[-1]).with(-1, shape[-2]);
}

Shape batch_of(const Shape& shape) {
  return shape.without(-1).without(-1);
}

/// a [.., m, k] (stored [.., k, m] when transposed) times b [.., k, n] (stored [.., n, k]).
Values naive_matmul(const Array& a, const Array& b, MatmulOptions options, const Shape& output) {
  const int64_t k = a.shape[options.transpose_a ? -2 : -1];
  const int64_t a_step = options.transpose_a ? a.shape[-1] : 1,
                b_step = options.transpose_b ? 1 : b.shape[-1];
  if (k == 0) return Values(static_cast<size_t>(output.count()), 0);
  return naive::build(output, [&](Index from_a) {
    Index from_b = from_a;
    const size_t row = from_a.size() - 2, col = row + 1;
    if (options.transpose_a) from_a[col] = from_a[row];
    if (options.transpose_b) from_b[row] = from_b[col];
    from_a[options.transpose_a ? row : col] = from_b[options.transpose_b ? col : row] = 0;
    const double *x = &a(from_a), *y = &b(from_b);
    double sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += x[i * a_step] * y[i * b_step];
    return sum;
  });
}

/// Of the product of matrices that are [.., m, k] and [.., k, n] before they are transposed as stored.
OpTest matmul_test(const Shape& a, const Shape& b, MatmulOptions options) {
  const Shape a_stored = options.transpose_a ? swapped(a) : a,
              b_stored = options.transpose_b ? swapped(b) : b;
  const Shape batch = broadcast("", batch_of(a), batch_of(b));
  const Shape output = batch.inserted(batch.rank(), a[-2]).inserted(batch.rank() + 1, b[-1]);
  const std::string transposes =
      std::string(options.transpose_a ? "T" : "N") + (options.transpose_b ? "T" : "N");
  return {.name = detail::concatenate("matmul ", transposes, " ", a, " ", b),
          .op = [=](const std::vector<Tensor>& in) { return matmul(in[0], in[1], options); },
          .inputs = {uniform(a_stored), uniform(b_stored)},
          .naive =
              [=](const std::vector<Values>& in) {
                return naive_matmul({a_stored, in[0]}, {b_stored, in[1]}, options, output);
              }};
}

TEST_CASE("matrices of all sizes, all transposes") {
  struct Sizes {
    int64_t m, k, n;
  };
  const Sizes cases[] = {{1, 1, 1},    {1, 31, 1},    {3, 5, 2},     {63, 1, 65},   {1, 33, 63},
                         {33, 63, 1},  {31, 32, 33},  {32, 33, 31},  {63, 32, 32},  {33, 31, 63},
                         {3, 1027, 5}, {1027, 11, 4}, {4, 11, 1027}, {1, 1027, 40}, {1027, 40, 1},
                         {0, 3, 4},    {3, 0, 4},     {3, 4, 0},     {130, 257, 67}};
  for (const auto& [m, k, n] : cases) {
    for (const MatmulOptions options : kAllOptions) check_op_variants(matmul_test({m, k}, {k, n}, options));
  }
}

TEST_CASE("one to eight rows and a few more, whose product reads the other matrix in place") {
  for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9}) {
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{37, 131}, {131, 37}, {5, 3}}) {
      for (const MatmulOptions options : kAllOptions) check_op(matmul_test({m, k}, {k, n}, options));
    }
  }
}

TEST_CASE("batches broadcast") {
  struct Case {
    Shape a, b;
  };
  const Case cases[] = {{{2, 2, 3}, {2, 3, 2}},        // the same batch
                        {{3, 2, 3}, {3, 2}},           // one b for all
                        {{2, 2, 2, 3}, {3, 1}},        //
                        {{2, 3}, {3, 3, 2}},           // one a for all
                        {{2, 1, 2, 3}, {3, 3, 2}},     // both sides
                        {{2, 1, 2, 3}, {2, 3, 3, 2}},  //
                        {{1, 2, 3}, {1, 3, 2}},        // a batch of one
                        {{2, 3, 1, 5}, {2, 3, 5, 1}},  //
                        {{4, 33, 31}, {4, 31, 33}},    //
                        {{2, 33, 63}, {63, 31}},       //
                        {{0, 5, 7}, {0, 7, 2}},        // nothing
                        {{0, 5, 7}, {7, 2}},           //
                        {{3, 5, 0}, {3, 0, 2}},        //
                        {{1, 2, 1, 1, 1, 1, 2, 3}, {2, 1, 1, 1, 1, 2, 3, 2}}};
  for (const auto& [a, b] : cases) {
    check_op_variants(matmul_test(a, b, {}));
    for (const MatmulOptions options : kAllOptions) check_op(matmul_test(a, b, options));
  }
}

struct LinearShape {
  Shape x;
  int64_t outputs;
};
const LinearShape kLinearShapes[] = {
    {{7}, 5},       {{1, 1}, 1},     {{1, 33}, 31},       {{31, 1}, 33},   {{33, 63}, 1},
    {{32, 31}, 32}, {{2, 3, 31}, 5}, {{63, 33}, 1027},    {{1027, 5}, 40}, {{3, 1027}, 2},
    {{0, 3}, 2},    {{2, 0}, 3},     {{2, 2, 2, 2, 3}, 4}};

/// y = x weight^T + bias, inputs empty where there is no bias.
Values naive_linear(const std::vector<Values>& in, const LinearShape& shape) {
  Values y = naive::matmul(in[0], in[1], shape.x.count_before(-1), shape.outputs, shape.x[-1], false, true);
  for (size_t i = 0; i < y.size() && !in[2].empty(); ++i) y[i] += in[2][i % in[2].size()];
  return y;
}

OpTest linear_test(const LinearShape& shape, bool has_bias) {
  return {
      .name = detail::concatenate("linear ", shape.x, " to ", shape.outputs, has_bias ? " with bias" : ""),
      .op = [](const std::vector<Tensor>& in) { return linear(in[0], in[1], in[2]); },
      .inputs = {uniform(shape.x), uniform({shape.outputs, shape.x[-1]}),
                 has_bias ? uniform({shape.outputs}) : Tensor()},
      .naive = [=](const std::vector<Values>& in) { return naive_linear(in, shape); }};
}

TEST_CASE("linear, with and without bias") {
  for (const LinearShape& shape : kLinearShapes) {
    for (const bool has_bias : {false, true}) {
      const OpTest test = linear_test(shape, has_bias);
      CHECK(test.op(test.inputs).shape() == shape.x.with(-1, shape.outputs));
      check_op_variants(test);
    }
  }
}

OpTest linear_gelu_test(const LinearShape& shape, bool has_bias, Gelu kind) {
  OpTest test = linear_test(shape, has_bias);
  test.name = detail::concatenate("gelu of ", test.name, kind == Gelu::tanh ? ", tanh form" : "");
  test.op = [=](const std::vector<Tensor>& in) { return linear_gelu(in[0], in[1], in[2], kind); };
  test.naive = [linear = test.naive, kind](const std::vector<Values>& in) {
    Values y = linear(in);
    for (double& value : y)
      value = naive::unary(kind == Gelu::exact ? UnaryOp::gelu : UnaryOp::gelu_tanh, value);
    return y;
  };
  return test;
}

TEST_CASE("linear_gelu with its gradients, and without, in one kernel") {
  std::vector<LinearShape> shapes(std::begin(kLinearShapes), std::end(kLinearShapes));
  shapes.push_back({{130, 96}, 130});  // large enough for oneDNN
  for (const LinearShape& shape : shapes) {
    for (const bool has_bias : {false, true}) {
      for (const Gelu kind : {Gelu::exact, Gelu::tanh}) {
        OpTest test = linear_gelu_test(shape, has_bias, kind);
        check_op(test);
        test.gradients = false;
        check_op_variants(test);
      }
    }
  }
}

TEST_CASE("linear_gelu fuses where nothing is recorded and cuBLASLt's form of GELU is asked for") {
  for (const Device device : {test_device(), kMeta}) {
    const Tensor x = to(cast(uniform({3, 5}), DType::f32), device),
                 weight = to(cast(uniform({4, 5}), DType::f32), device);
    const auto kernels = [&](Gelu kind) {
      const int64_t before = cost_totals().kernels;
      linear_gelu(x, weight, {}, kind);
      return cost_totals().kernels - before;
    };
    CHECK(kernels(Gelu::tanh) == 1);
    CHECK(kernels(Gelu::exact) == 2);
    Tensor(weight).set_requires_grad();
    CHECK(kernels(Gelu::tanh) == 2);
    CHECK(linear_gelu(x, weight).requires_grad());
    const NoGradGuard no_grad;
    CHECK(kernels(Gelu::tanh) == 1);
  }
}

TEST_CASE("no element is left unwritten where nothing is added up") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const auto on_device = [&](const Tensor& x) { return to(cast(x, dtype), test_device()); };
    const Tensor x = on_device(uniform({3, 0})), weight = on_device(uniform({2, 0}));
    const Tensor bias = on_device(from_vector<double>({5, 6}, {2}));
    CHECK(values_of(linear(x, weight)) == Values(6, 0));
    CHECK(values_of(linear(x, weight, bias)) == Values{5, 6, 5, 6, 5, 6});
    const Tensor a = on_device(uniform({0, 4})), b = on_device(uniform({4, 2})).set_requires_grad();
    matmul(a, b).backward(on_device(uniform({0, 2})));
    CHECK(values_of(b.grad()) == Values(8, 0));
  }
}

/// The product, on the test device, of matrices that are rounded to `dtype`.
Values product_of(const Tensor& a, const Tensor& b, MatmulOptions options, DType dtype) {
  return values_of(matmul(to(cast(a, dtype), test_device()), to(cast(b, dtype), test_device()), options));
}

/// The CPU's product has the same bits with each thread count.
void check_same_bits(const Tensor& a, const Tensor& b, MatmulOptions options) {
  if (test_device() != kCpu) return;
  const int threads = num_threads();
  std::vector<Tensor> products;
  for (const int count : {1, 2, 3, 4, 6, 7, 16}) {
    set_num_threads(count);
    products.push_back(matmul(a, b, options));
  }
  set_num_threads(threads);
  const auto bytes = static_cast<size_t>(products[0].count() * size_of(products[0].dtype()));
  for (size_t i = 1; i < products.size(); ++i) {
    CHECK_MESSAGE(std::memcmp(products[i].data(), products[0].data(), bytes) == 0, a.shape(), " ", b.shape(),
                  ": other bits with thread count number ", i);
  }
}

TEST_CASE("a long inner dimension: the same bits for any thread count, and close to f64") {
  struct Sizes {
    int64_t m, k, n;
  };
  for (const auto& [m, k, n] : {Sizes{768, 4096, 9},
                                {9, 4096, 768},
                                {1, 8192, 3},
                                {33, 5001, 31},
                                {256, 3072, 256},
                                {3, 771, 1029},
                                {8, 771, 1029}}) {
    const Tensor a = uniform({m, k}), b = uniform({k, n});
    const Values expected = values_of(matmul(a, b));
    for (const MatmulOptions options : kAllOptions) {
      const Tensor left = options.transpose_a ? transpose(a, 0, 1) : a;
      const Tensor right = options.transpose_b ? transpose(b, 0, 1) : b;
      check_close(product_of(left, right, options, DType::f64), expected, kF64Tolerance, "f64");
      check_same_bits(left, right, options);
      check_close(product_of(left, right, options, DType::f32), expected, kF32Tolerance, "f32");
      check_same_bits(cast(left, DType::f32), cast(right, DType::f32), options);
    }
  }
}

TEST_CASE("large products that threads share: the same bits for any thread count, and close to f64") {
  struct Sizes {
    int64_t m, k, n;
  };
  for (const auto& [m, k, n] :
       {Sizes{97, 130, 513}, {289, 100, 97}, {145, 700, 145}, {50, 1000, 49}, {385, 64, 1}}) {
    const Tensor a = uniform({m, k}), b = uniform({k, n});
    const Values expected = values_of(matmul(a, b));
    for (const MatmulOptions options : kAllOptions) {
      const Tensor left = options.transpose_a ? transpose(a, 0, 1) : a;
      const Tensor right = options.transpose_b ? transpose(b, 0, 1) : b;
      check_close(product_of(left, right, options, DType::f32), expected, kF32Tolerance, "f32");
      check_same_bits(cast(left, DType::f32), cast(right, DType::f32), options);
    }
  }
}

TEST_CASE("a NaN spoils its own row or column only") {
  constexpr int64_t kBatch = 2;
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const int64_t m : {1, 5, 33}) {
      for (const int64_t n : {1, 7, 63}) {
        for (const MatmulOptions options : kAllOptions) {
          const int64_t k = 31;
          const auto product = [&](Values a, Values b) {
            Tensor left = from_vector(a, {kBatch, m, k}), right = from_vector(b, {kBatch, k, n});
            if (options.transpose_a) left = transpose(left, 1, 2);
            if (options.transpose_b) right = transpose(right, 1, 2);
            return product_of(left, right, options, dtype);
          };
          const Values ones_a(static_cast<size_t>(kBatch * m * k), 1),
              ones_b(static_cast<size_t>(kBatch * k * n), 1);
          Values a = ones_a, b = ones_b;
          const int64_t row = m / 2, col = n / 2;
          a[static_cast<size_t>((m + row) * k + 3)] = NAN;
          b[static_cast<size_t>((k + 3) * n + col)] = NAN;
          const Values by_a = product(a, ones_b), by_b = product(ones_a, b);
          const auto expect = [&](const auto& spoilt) {
            return naive::build({kBatch, m, n}, [&](const Index& index) {
              return index[0] == 1 && spoilt(index) ? NAN : static_cast<double>(k);
            });
          };
          check_close(by_a, expect([&](const Index& index) { return index[1] == row; }), {0, 0}, "NaN in a");
          check_close(by_b, expect([&](const Index& index) { return index[2] == col; }), {0, 0}, "NaN in b");
        }
      }
    }
  }
}

TEST_CASE("MatmulLog collects the products of its scope, backward included") {
  const Tensor x = uniform({2, 5, 7}).set_requires_grad(), weight = uniform({3, 7}).set_requires_grad();
  const MatmulLog outer;
  linear(x, weight).backward(uniform({2, 5, 3}));
  {
    const MatmulLog inner;
    matmul(to(x.detach(), kMeta), to(x.detach(), kMeta), {.transpose_b = true});
    CHECK(inner.shapes() == std::vector<MatmulShape>{{5, 5, 7, false, true, 2, 1}});
  }
  CHECK(outer.shapes() == std::vector<MatmulShape>{{10, 3, 7, false, true, 1, 1},
                                                   {3, 7, 10, true, false, 1, 1},
                                                   {10, 7, 3, false, false, 1, 1},
                                                   {5, 5, 7, false, true, 2, 1}});
}

TEST_CASE("errors") {
  const Tensor a = uniform({2, 3}), b = uniform({4, 5}), v = uniform({3}), index = arange(3);
  check_error([&] { matmul(index, a); }, "matmul: expected a of dtype f32, f64 or bf16, got i64");
  check_error([&] { matmul(a, cast(b, DType::f32)); },
              "matmul: expected b of f64 on cpu like a, got f32 on cpu");
  check_error([&] { matmul(a, v); }, "matmul: expected matrices, got [2, 3] and [3]");
  check_error([&] { matmul(v, a); }, "matmul: expected matrices, got [3] and [2, 3]");
  check_error([&] { matmul(a, b); }, "matmul: inner sizes differ: 3 of a [2, 3] and 4 of b [4, 5]");
  check_error(
      [&] {
        matmul(a, b, {true, true});
      },
      "matmul: inner sizes differ: 2 of a [2, 3] transposed and 5 of b [4, 5] transposed");
  check_error(
      [&] {
        matmul(uniform({2, 2, 3}), uniform({3, 3, 4}));
      },
      "matmul: shapes [2] and [3] do not broadcast");
  check_error([&] { linear(index, a); }, "linear: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { linear(a, cast(b, DType::f32)); },
              "linear: expected weight of f64 on cpu like x, got f32 on cpu");
  check_error([&] { linear(a, b); }, "linear: expected weight [.., 3] for x [2, 3], got [4, 5]");
  check_error([&] { linear(uniform({}), b); }, "linear: expected x [.., inputs], got []");
  check_error([&] { linear_gelu(a, b); }, "linear_gelu: expected weight [.., 3] for x [2, 3], got [4, 5]");
  check_error([&] { linear(a, v); }, "linear: expected weight [.., 3] for x [2, 3], got [3]");
  check_error([&] { linear(a, uniform({4, 3}), v); }, "linear: expected bias of shape [4], got [3]");
  check_error(
      [&] {
        linear(a, uniform({4, 3}), index);
      },
      "linear: expected bias of f64 on cpu like x, got i64 on cpu");
}

}  // namespace
}  // namespace elwise::testing
