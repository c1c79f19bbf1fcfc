#include "ops/softmax.h"

#include <cmath>
#include <limits>

#include "core/dispatch.h"
#include "ops/elementwise.h"
#include "ops/softmax_kernels.h"
#include "ops/view.h"
#include "tests/support/naive_index.h"
#include "tests/support/naive_softmax.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Values naive_softmax(const naive::Array& x, int dim) {
  const auto at = static_cast<size_t>(dim);
  return naive::build(x.shape, [&](const naive::Index& index) {
    Values line;
    for (int64_t i = 0; i < x.shape[dim]; ++i) line.push_back(x(naive::with(index, dim, i)));
    return naive::softmax(line, 1, x.shape[dim])[static_cast<size_t>(index[at])];
  });
}

void check_softmax(const Shape& shape, int dim) {
  check_op_variants({.name = detail::concatenate("softmax ", shape, " over ", dim),
                     .op = [=](const std::vector<Tensor>& in) { return softmax(in[0], dim); },
                     .inputs = {uniform(shape, -4, 4)},
                     .naive =
                         [=](const std::vector<Values>& in) {
                           return dim + 1 == shape.rank()
                                      ? naive::softmax(in[0], shape.count_before(dim), shape[dim])
                                      : naive_softmax({shape, in[0]}, dim);
                         }});
}

TEST_CASE("values and gradients") {
  for (const int64_t size : kOddSizes) {
    check_softmax({size}, 0);
    check_softmax({2, size}, 1);
    check_softmax({size, 3}, 1);
  }
  for (const Shape& shape : {Shape{33, 3}, Shape{2, 31, 3}, Shape{2, 3, 4, 5}}) {
    for (int dim = 0; dim < shape.rank(); ++dim) check_softmax(shape, dim);
  }
  check_softmax({1027, 51}, 1);
  check_softmax({51, 1027}, 1);
  check_softmax({1, 52'377}, 1);
  check_softmax({0, 3}, 1);
  check_softmax({0, 3}, 0);
  check_softmax({3, 0}, 1);
}

TEST_CASE("the last dimension is the default, and negative ones count from the end") {
  const Tensor x = uniform({2, 3, 5});
  CHECK(values_of(softmax(x)) == values_of(softmax(x, 2)));
  CHECK(values_of(softmax(x, -2)) == values_of(softmax(x, 1)));
}

TEST_CASE("large, masked and spoilt rows") {
  struct Case {
    Values row, expected;
  };
  const double half = 0.5, third = 1.0 / 3;
  const Case cases[] = {{{1e4, 1e4, -1e4}, {half, half, 0}},
                        {{-1e4, -1e4, -1e4}, {third, third, third}},
                        {{3e38, 0, -3e38}, {1, 0, 0}},
                        {{-kInfinity, 2, 2}, {0, half, half}},
                        {{-kInfinity, -kInfinity, 7}, {0, 0, 1}},
                        {{-kInfinity, -kInfinity, -kInfinity}, {NAN, NAN, NAN}},
                        {{1, NAN, 2}, {NAN, NAN, NAN}},
                        {{1, kInfinity, 2}, {NAN, NAN, NAN}}};
  for (const auto& [row, expected] : cases) {
    for (const DType dtype : test_dtypes()) {
      // Between two ordinary rows, which stay as they are.
      Values values{1, 1, 1, 0, 0, 0, 2, 2, 2}, wanted{third, third, third, 0, 0, 0, third, third, third};
      std::copy(row.begin(), row.end(), values.begin() + 3);
      std::copy(expected.begin(), expected.end(), wanted.begin() + 3);
      const bool hidden = std::ranges::all_of(row, [](double x) { return x == -kInfinity; });
      if (hidden && dtype != DType::f64 && test_device() != kCpu) {  // cuDNN's
        std::fill_n(wanted.begin() + 3, 3, 0.0);
      }
      const Tensor x = to(from_vector(values, {3, 3}), test_device());
      check_close(values_of(softmax(cast(x, dtype))), wanted, tolerance_of(dtype), "softmax");
      const Tensor view = concat({zeros({1}, x.options()), reshape(x, {9})}, 0).alias({3, 3}, 1);
      check_close(values_of(softmax(cast(view, dtype))), wanted, tolerance_of(dtype), "softmax of a view");
    }
  }
}

TEST_CASE("every row adds up to 1") {
  for (const int64_t cols : kOddSizes) {
    const Values y = values_of(softmax(cast(to(uniform({3, cols}, -30, 30), test_device()), DType::f32)));
    for (int64_t row = 0; row < 3; ++row) {
      double total = 0;
      for (int64_t col = 0; col < cols; ++col) total += y[static_cast<size_t>(row * cols + col)];
      CHECK(total == doctest::Approx(1).epsilon(1e-6));
    }
  }
}

/// A softmax in place of rows whose columns a mask, causality or both may hide; what those hold is NaN.
void check_hidden_columns(int64_t batch, int64_t queries, int64_t cols, bool masked, bool causal,
                          int64_t offset) {
  constexpr int64_t kHeads = 2;
  const int64_t rows = batch * kHeads * queries;
  naive::SoftmaxMask mask{.batch = batch, .queries = queries, .causal = causal};
  std::vector<double> visible;
  for (int64_t i = 0; masked && i < batch * cols; ++i) {
    // The first entry of the batch sees nothing, the second all but its first 5 columns, the others every
    // third.
    const int64_t entry = i / cols, col = i % cols;
    visible.push_back(entry == 0 ? 0 : entry == 1 ? col >= 5 : col % 3 == 1);
    mask.key_mask.push_back(visible.back() != 0);
  }
  const std::string what = detail::concatenate("softmax of ", queries, " queries of ", cols, " keys",
                                               masked ? " masked" : "", causal ? " causal" : "");
  for (const DType dtype : test_dtypes()) {
    Values values = values_of(cast(uniform({rows, cols}, -4, 4), dtype));
    for (int64_t i = 0; i < rows * cols; ++i) {
      if (!mask.visible(i / cols, rows, i % cols, cols)) values[static_cast<size_t>(i)] = NAN;
    }
    const Tensor buffer = full({rows * cols + offset}, 7, {.dtype = dtype, .device = test_device()});
    Tensor x = buffer.alias({rows, cols}, offset);
    x.copy_from(to(cast(from_vector(values, {rows, cols}), dtype), test_device()));
    const Tensor key_mask =
        to(cast(from_vector(visible, {static_cast<int64_t>(visible.size())}), DType::boolean), test_device());
    ELWISE_DISPATCH(test_device(), softmax_forward,
                    {.dtype = dtype,
                     .x = x.data(),
                     .y = x.data(),
                     .rows = rows,
                     .cols = cols,
                     .batch = batch,
                     .queries = queries,
                     .key_mask = masked ? static_cast<const bool*>(key_mask.data()) : nullptr,
                     .causal = causal});
    check_close(values_of(x), naive::softmax(values, rows, cols, mask), tolerance_of(dtype), what);
  }
}

TEST_CASE("hidden columns get nothing and have no effect") {
  struct Case {
    int64_t batch, queries, cols;
  };
  const Case cases[] = {{3, 1, 1},   {3, 5, 7},    {3, 33, 33},  {3, 40, 32},  {3, 33, 64},
                        {1, 4, 512}, {3, 5, 1027}, {3, 5, 1028}, {1, 2, 9000}, {1, 2, 9001}};
  for (const auto& [batch, queries, cols] : cases) {
    for (const bool masked : {false, true}) {
      for (const bool causal : {false, true}) {
        for (const int64_t offset : {0, 1})
          check_hidden_columns(batch, queries, cols, masked, causal, offset);
      }
    }
  }
}

TEST_CASE("errors") {
  check_error([] { softmax(arange(3)); }, "softmax: expected x of dtype f32, f64 or bf16, got i64");
  check_error([] { softmax(uniform({2, 3}), 2); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([] { softmax(uniform({})); }, "shape: dimension -1 is out of range for []");
}

}  // namespace
}  // namespace elwise::testing
