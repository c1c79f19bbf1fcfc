#include "ops/loss.h"

#include <cmath>
#include <limits>

#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "tests/support/naive_matmul.h"
#include "tests/support/naive_softmax.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

constexpr int64_t kIgnored = -100;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Targets in [0, classes), every third one ignored where `some_ignored`.
Tensor targets(int64_t rows, int64_t classes, bool some_ignored, int64_t ignore_index) {
  std::vector<int64_t> values;
  for (int64_t row = 0; row < rows; ++row) {
    values.push_back(some_ignored && row % 3 == 1 ? ignore_index : (row * 5 + 2) % classes);
  }
  return from_vector(values, {rows});
}

OpTest cross_entropy_test(const Shape& shape, const Tensor& target, int64_t ignore_index) {
  return {
      .name = detail::concatenate("cross_entropy ", shape, " ignoring ", ignore_index),
      .op = [=](const std::vector<Tensor>& in) { return cross_entropy(in[0], in[1], ignore_index); },
      .inputs = {uniform(shape, -4, 4), target},
      .naive =
          [=](const std::vector<Values>& in) {
            return Values{naive::cross_entropy(in[0], {in[1].begin(), in[1].end()}, shape[1], ignore_index)};
          }};
}

TEST_CASE("cross_entropy, with and without ignored rows") {
  std::vector<Shape> shapes{{51, 1027}, {1027, 51}, {2053, 31}};
  for (const int64_t size : kOddSizes) shapes.insert(shapes.end(), {{3, size}, {size, 2}});
  for (const Shape& shape : shapes) {
    for (const int64_t ignore_index : {kIgnored, int64_t{0}}) {
      for (const bool some_ignored : {false, true}) {
        const Tensor target = targets(shape[0], shape[1], some_ignored, ignore_index);
        check_op_variants(cross_entropy_test(shape, target, ignore_index));
      }
    }
  }
}

TEST_CASE("cross_entropy of no counted row is 0, with a gradient of 0") {
  for (const DType dtype : test_dtypes()) {
    for (const int64_t rows : {0, 1, 33}) {
      const Tensor logits = cast(to(uniform({rows, 5}), test_device()), dtype).set_requires_grad();
      const Tensor target = full({rows}, kIgnored, {.dtype = DType::i64, .device = test_device()});
      const Tensor loss = cross_entropy(logits, target);
      CHECK(loss.item() == 0);
      loss.backward();
      CHECK(values_of(logits.grad()) == Values(static_cast<size_t>(rows * 5), 0));
    }
  }
}

TEST_CASE("what ignored rows hold has no effect") {
  Values values = values_of(uniform({3, 7}));
  const auto loss_of = [](const Tensor& logits) {
    return cross_entropy(logits, to(from_vector<int64_t>({4, kIgnored, 6}, {3}), test_device()));
  };
  const double expected = loss_of(to(from_vector(values, {3, 7}), test_device())).item();
  std::fill_n(values.begin() + 7, 7, NAN);
  const Tensor logits = leaf(values, {3, 7}, DType::f64, test_device());
  const Tensor loss = loss_of(logits);
  CHECK(loss.item() == expected);
  loss.backward();
  for (const double value : values_of(logits.grad())) CHECK(std::isfinite(value));
}

TEST_CASE("cross_entropy over BERT's vocabulary, whose rows start at any alignment") {
  constexpr int64_t kRows = 3, kClasses = 30'522;
  for (const int64_t offset : {0, 1}) {
    for (const DType dtype : test_dtypes()) {
      const Tensor buffer = empty({kRows * kClasses + offset}, {.dtype = dtype, .device = test_device()});
      Tensor logits = buffer.alias({kRows, kClasses}, offset);
      logits.copy_from(cast(to(uniform({kRows, kClasses}, -4, 4), test_device()), dtype));
      const std::vector<int64_t> targets{0, kIgnored, kClasses - 1};
      const Tensor x = logits.detach().set_requires_grad();
      const Tensor loss = cross_entropy(x, to(from_vector(targets, {kRows}), test_device()));
      loss.backward();
      const Values values = values_of(logits);
      check_close(values_of(loss), {naive::cross_entropy(values, targets, kClasses, kIgnored)},
                  tolerance_of(dtype), "cross_entropy");
      check_close(values_of(x.grad()), naive::cross_entropy_backward(values, targets, kClasses, kIgnored, 1),
                  tolerance_of(dtype), "cross_entropy's gradient");
    }
  }
}

TEST_CASE("cross_entropy of large logits") {
  struct Case {
    Values row;
    double loss;
  };
  const Case cases[] = {{{1e4, -1e4, 0}, 0},
                        {{0, 1e4, -1e4}, 1e4},
                        {{-1e4, -1e4, -1e4}, std::log(3.0)},
                        {{1, NAN, 1}, NAN},
                        {{2, -kInfinity, -kInfinity}, 0},
                        {{-kInfinity, -kInfinity, 2}, kInfinity},
                        {{-kInfinity, -kInfinity, -kInfinity}, NAN},
                        {{1, 2, kInfinity}, NAN}};
  for (const auto& [row, loss] : cases) {
    for (const size_t others : {0, 800}) {  // classes of no weight, of which some threads see nothing else
      Values values = row;
      values.resize(3 + others, -kInfinity);
      for (const DType dtype : test_dtypes()) {
        const Tensor logits =
            cast(to(from_vector(values, {1, static_cast<int64_t>(values.size())}), test_device()), dtype);
        const Tensor y = cross_entropy(logits, to(from_vector<int64_t>({0}, {1}), test_device()));
        check_close(values_of(y), {loss}, tolerance_of(dtype), "cross_entropy");
      }
    }
  }
}

/// `block_rows`: how many rows' logits may exist at once, in f32.
OpTest linear_cross_entropy_test(int64_t rows, int64_t inputs, int64_t classes, bool has_bias,
                                 int64_t block_rows) {
  const int64_t most_logits = block_rows * classes * size_of(DType::f32);
  return {.name = detail::concatenate("linear_cross_entropy ", rows, " ", inputs, " ", classes,
                                      has_bias ? " bias" : "", " blocks of ", block_rows),
          .op =
              [=](const std::vector<Tensor>& in) {
                return linear_cross_entropy(in[0], in[1], in[2], in[3], most_logits);
              },
          .inputs = {uniform({rows, inputs}, -1, 1), uniform({classes, inputs}, -1, 1),
                     has_bias ? uniform({classes}) : Tensor(), targets(rows, classes, false, kIgnored)},
          .naive =
              [=](const std::vector<Values>& in) {
                Values logits = naive::matmul(in[0], in[1], rows, classes, inputs, false, true);
                for (size_t i = 0; i < logits.size() && has_bias; ++i) logits[i] += in[2][i % in[2].size()];
                return Values{naive::cross_entropy(logits, {in[3].begin(), in[3].end()}, classes, kIgnored)};
              }};
}

TEST_CASE("linear_cross_entropy, all logits at once and a few rows at a time") {
  for (const bool has_bias : {false, true}) {
    for (const int64_t block_rows : {0, 2, 3, 8, 100}) {
      if (test_device() != kCpu && block_rows != 8) continue;  // an emulated GPU is slow
      check_op(linear_cross_entropy_test(1, 3, 2, has_bias, block_rows));
      check_op(linear_cross_entropy_test(8, 5, 33, has_bias, block_rows));
      check_op_variants(linear_cross_entropy_test(33, 9, 7, has_bias, block_rows));
    }
    if (test_device() == kCpu) check_op(linear_cross_entropy_test(131, 96, 1027, has_bias, 64));
  }
}

TEST_CASE("linear_cross_entropy adds to the gradient of a weight that is used elsewhere") {
  for (const int64_t most_logits : {1, 1 << 20}) {
    const Tensor x = uniform({9, 4}), weight = uniform({5, 4}), target = targets(9, 5, false, kIgnored);
    const auto run = [&](const auto& loss_of) {
      const Tensor input = x.detach().set_requires_grad(), w = weight.detach().set_requires_grad();
      add(loss_of(input, w), mul(loss_of(input, w), 2)).backward();
      return std::vector<Values>{values_of(input.grad()), values_of(w.grad())};
    };
    const auto actual = run([&](const Tensor& input, const Tensor& w) {
      return linear_cross_entropy(input, w, {}, target, most_logits);
    });
    const auto expected =
        run([&](const Tensor& input, const Tensor& w) { return cross_entropy(linear(input, w), target); });
    check_close(actual[0], expected[0], kF64Tolerance, "x");
    check_close(actual[1], expected[1], kF64Tolerance, "weight");
  }
}

TEST_CASE("linear_cross_entropy holds no more logits than it may") {
  constexpr int64_t kRows = 1000, kClasses = 100'000, kMost = int64_t{16} << 20;
  const TensorOptions options{.device = kMeta};
  const Tensor x = empty({kRows, 8}, options).set_requires_grad(), weight = empty({kClasses, 8}, options);
  reset_memory_peak(kMeta);
  const int64_t before = memory_stats(kMeta).total.now;
  const Tensor target = empty({kRows}, {.dtype = DType::i64, .device = kMeta});
  const Tensor loss = linear_cross_entropy(x, weight, {}, target, kMost);
  loss.backward();
  constexpr int64_t kWorkspace = int64_t{24} << 20;  // of a product
  CHECK(memory_stats(kMeta).total.peak - before < kMost + kWorkspace + (1 << 20));
}

TEST_CASE("mse_loss and l1_loss") {
  for (const bool squared : {true, false}) {
    std::vector<Shape> shapes{{}, {2, 3, 5}, {51, 1027}};
    for (const int64_t size : kOddSizes) shapes.push_back({size});
    for (const Shape& shape : shapes) {
      check_op_variants({.name = detail::concatenate(squared ? "mse_loss " : "l1_loss ", shape),
                         .op =
                             [=](const std::vector<Tensor>& in) {
                               return squared ? mse_loss(in[0], in[1]) : l1_loss(in[0], in[1]);
                             },
                         .inputs = {on_grid(shape), on_grid(shape, 1.0 / 16)},
                         .naive =
                             [=](const std::vector<Values>& in) {
                               return Values{squared ? naive::mse_loss(in[0], in[1])
                                                     : naive::l1_loss(in[0], in[1])};
                             }});
    }
  }
}

TEST_CASE("l1_loss: equal elements have a gradient of 0") {
  for (const DType dtype : test_dtypes()) {
    const Tensor x = leaf({1, 2, 3}, {3}, dtype, test_device());
    const Tensor target = leaf({1, 5, -1}, {3}, dtype, test_device());
    l1_loss(x, target).backward();
    const double third = 1.0 / 3;
    check_close(values_of(x.grad()), {0, -third, third}, tolerance_of(dtype), "x");
    check_close(values_of(target.grad()), {0, third, -third}, tolerance_of(dtype), "target");
  }
}

TEST_CASE("a NaN spoils the loss") {
  Tensor values = uniform({33});
  values.data<double>()[20] = NAN;
  for (const DType dtype : test_dtypes()) {
    const Tensor x = cast(to(values, test_device()), dtype), zero = zeros({33}, x.options());
    CHECK(std::isnan(mse_loss(x, zero).item()));
    CHECK(std::isnan(l1_loss(zero, x).item()));
    const Tensor leaf = x.detach().set_requires_grad();
    l1_loss(leaf, zero).backward();
    CHECK(std::isnan(values_of(leaf.grad())[20]));
  }
}

TEST_CASE("a target out of range on a GPU is an error of the next wait") {
  if (test_device() == kCpu) return;
  const auto target = [](int64_t a, int64_t b) {
    return to(from_vector<int64_t>({a, b}, {2}), test_device());
  };
  const Tensor logits = to(uniform({2, 3}), test_device());
  check_error([&] { values_of(cross_entropy(logits, target(0, 3))); },
              "cross_entropy: target 3 at row 1 is outside [0, 3)");
  check_error([&] { values_of(cross_entropy(logits, target(-1, 0))); },
              "cross_entropy: target -1 at row 0 is outside [0, 3)");
  CHECK(std::isfinite(cross_entropy(logits, target(0, 1)).item()));
}

TEST_CASE("errors") {
  const Tensor logits = uniform({2, 3}), index = arange(2);
  const auto target = [](int64_t a, int64_t b) { return from_vector<int64_t>({a, b}, {2}); };
  check_error([&] { cross_entropy(index, index); },
              "cross_entropy: expected logits of dtype f32, f64 or bf16, got i64");
  check_error([&] { cross_entropy(uniform({3}), index); },
              "cross_entropy: expected logits [rows, classes], got [3]");
  check_error(
      [&] {
        cross_entropy(uniform({2, 0}), index);
      },
      "cross_entropy: expected logits [rows, classes], got [2, 0]");
  check_error([&] { cross_entropy(logits, logits); },
              "cross_entropy: expected target of i64 on cpu, got f64 on cpu");
  check_error([&] { cross_entropy(logits, arange(3)); },
              "cross_entropy: expected target of shape [2], got [3]");
  check_error([&] { cross_entropy(logits, target(0, 3)); },
              "cross_entropy: target 3 at row 1 is outside [0, 3)");
  check_error([&] { cross_entropy(logits, target(-1, 0)); },
              "cross_entropy: target -1 at row 0 is outside [0, 3)");
  check_error([&] { cross_entropy(logits, target(kIgnored, 0), -1); },
              "cross_entropy: target -100 at row 0 is outside [0, 3)");
  check_error(
      [&] {
        linear_cross_entropy(uniform({2, 3}), uniform({5, 4}), {}, index);
      },
      "linear_cross_entropy: expected weight [.., 3] for x [2, 3], got [5, 4]");
  check_error(
      [&] {
        linear_cross_entropy(uniform({0, 4}), uniform({5, 4}), {}, arange(0));
      },
      "linear_cross_entropy: expected x [rows, inputs], got [0, 4]");
  check_error(
      [&] {
        linear_cross_entropy(uniform({2, 4}), uniform({0, 4}), {}, index);
      },
      "linear_cross_entropy: expected weight [classes, inputs], got [0, 4]");
  check_error(
      [&] {
        linear_cross_entropy(uniform({2, 4}), uniform({5, 4}), uniform({4}), index);
      },
      "linear_cross_entropy: expected bias of shape [5], got [4]");
  check_error(
      [&] {
        linear_cross_entropy(uniform({2, 4}), uniform({5, 4}), {}, arange(3));
      },
      "linear_cross_entropy: expected target of shape [2], got [3]");
  check_error(
      [&] {
        linear_cross_entropy(uniform({2, 4}), uniform({5, 4}), {}, target(0, kIgnored));
      },
      "cross_entropy: target -100 at row 1 is outside [0, 5)");
  for (const auto& [name, loss] : {std::pair{"mse_loss", &mse_loss}, std::pair{"l1_loss", &l1_loss}}) {
    const std::string op = name;
    check_error([&] { loss(index, index); }, op + ": expected x of dtype f32, f64 or bf16, got i64");
    check_error([&] { loss(logits, cast(logits, DType::f32)); },
                op + ": expected target of f64 on cpu like x, got f32 on cpu");
    check_error([&] { loss(logits, uniform({3})); }, op + ": expected target of shape [2, 3], got [3]");
    check_error(
        [&] {
          loss(uniform({0, 3}), uniform({0, 3}));
        },
        op + ": expected at least one element, got [0, 3]");
  }
}

}  // namespace
}  // namespace elwise::testing
