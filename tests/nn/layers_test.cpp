#include <cmath>

#include "nn/activation.h"
#include "nn/embedding.h"
#include "nn/init.h"
#include "nn/layer_norm.h"
#include "nn/linear.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "tests/support/op_test.h"

namespace elwise::nn {
namespace {

using testing::check_close;
using testing::check_error;
using testing::kF64Tolerance;
using testing::uniform;
using testing::Values;
using testing::values_of;

constexpr TensorOptions kF64{.dtype = DType::f64};

struct Moments {
  double mean, deviation, largest;
};

Moments moments_of(const Tensor& x) {
  double sum = 0, squares = 0, largest = 0;
  for (const double value : values_of(x)) {
    sum += value;
    squares += value * value;
    largest = std::max(largest, std::fabs(value));
  }
  const double count = static_cast<double>(x.count()), mean = sum / count;
  return {mean, std::sqrt(squares / count - mean * mean), largest};
}

TEST_CASE("Linear computes x weight^T + bias and starts as PyTorch's does") {
  const Linear layer(25, 400, kF64);
  const Tensor x = uniform({2, 3, 25});
  check_close(values_of(layer.forward(x)),
              values_of(add(matmul(x, layer.weight(), {.transpose_b = true}), layer.bias())), kF64Tolerance,
              "Linear");
  const Moments weight = moments_of(layer.weight()), bias = moments_of(layer.bias());
  CHECK(weight.largest <= 0.2);  // 1 / sqrt(25)
  CHECK(weight.largest > 0.199);
  CHECK(weight.deviation == doctest::Approx(0.2 / std::sqrt(3.0)).epsilon(0.02));
  CHECK(bias.largest <= 0.2);
  CHECK(bias.deviation == doctest::Approx(0.2 / std::sqrt(3.0)).epsilon(0.1));
}

TEST_CASE("Linear without a bias has a weight only") {
  const Linear layer(3, 2, {}, /*with_bias=*/false);
  CHECK_FALSE(layer.bias().defined());
  CHECK(layer.named_parameters().size() == 1);
  CHECK(layer.forward(ones({4, 3})).shape() == Shape{4, 2});
  check_error([] { Linear(0, 2); }, "Linear: expected positive sizes, got 0 inputs and 2 outputs");
}

TEST_CASE("LayerNorm starts as the plain normalisation") {
  const LayerNorm layer(5, 1e-5, kF64);
  const Tensor x = uniform({4, 5}), residual = uniform({4, 5});
  CHECK(values_of(layer.forward(x)) == values_of(layer_norm(x, {}, {}, 1e-5)));
  CHECK(values_of(layer.forward_add(x, residual).sum) == values_of(add(x, residual)));
  CHECK(values_of(layer.parameters()[0]) == Values(5, 1));
  CHECK(values_of(layer.parameters()[1]) == Values(5, 0));
}

TEST_CASE("Embedding gives rows of its table, standard normal at first") {
  const Embedding table(100, 50, kF64);
  const Moments moments = moments_of(table.weight());
  CHECK(std::fabs(moments.mean) < 0.05);
  CHECK(moments.deviation == doctest::Approx(1).epsilon(0.05));
  const Tensor rows = table.forward(from_vector<int64_t>({7, 99, 7, 0}, {2, 2}));
  CHECK(rows.shape() == Shape{2, 2, 50});
  CHECK(values_of(rows.alias({50}, 50)) == values_of(table.weight().alias({50}, 99 * 50)));
}

TEST_CASE("Dropout drops while training only") {
  Dropout layer(0.5);
  const Tensor x = ones({1000});
  CHECK_FALSE(layer.forward(x).is_same(x));
  CHECK(moments_of(layer.forward(x)).deviation > 0.5);
  layer.eval();
  CHECK(layer.forward(x).is_same(x));
}

TEST_CASE("GELU is the op of its kind") {
  const Tensor x = uniform({33});
  CHECK(values_of(GELU().forward(x)) == values_of(gelu(x)));
  CHECK(values_of(GELU(Gelu::tanh).forward(x)) == values_of(gelu(x, Gelu::tanh)));
}

TEST_CASE("sinusoidal positions are sines and cosines of falling frequency") {
  const int64_t length = 9, width = 6;
  Values expected;
  for (int64_t p = 0; p < length; ++p) {
    for (const double rate : {1.0, std::pow(10000, -2 / 6.0), std::pow(10000, -4 / 6.0)}) {
      expected.push_back(std::sin(static_cast<double>(p) * rate));
      expected.push_back(std::cos(static_cast<double>(p) * rate));
    }
  }
  const Tensor positions = sinusoidal_positions(length, width, kF64);
  check_close(values_of(positions), expected, kF64Tolerance, "sinusoidal_positions");
  CHECK_FALSE(positions.requires_grad());
  CHECK(sinusoidal_positions(2, 5).shape() == Shape{2, 5});
}

TEST_CASE("initialisers fill with the right spread") {
  const Tensor weight = empty({300, 100}, kF64);
  xavier_uniform(weight);
  CHECK(moments_of(weight).largest <= std::sqrt(6.0 / 400));
  CHECK(moments_of(weight).deviation == doctest::Approx(std::sqrt(2.0 / 400)).epsilon(0.02));
  kaiming_uniform(weight, 2);
  CHECK(moments_of(weight).largest <= 2 * std::sqrt(3.0 / 100));
  CHECK(moments_of(weight).deviation == doctest::Approx(0.2).epsilon(0.02));
  check_error([] { xavier_uniform(empty({3})); }, "xavier_uniform: expected [outputs, inputs], got [3]");
  check_error([] { kaiming_uniform(empty({3}), 1); }, "kaiming_uniform: expected [outputs, inputs], got [3]");
}

TEST_CASE("BERT's initialisation tells biases, LayerNorm weights and the rest apart") {
  struct Block : Module {
    Block() : dense(50, 60, kF64), norm(50, 1e-5, kF64) {
      add_module("dense", dense);
      add_module("LayerNorm", norm);
    }
    Linear dense;
    LayerNorm norm;
  };
  const Block block;
  for (const Tensor& parameter : block.parameters()) fill(parameter, 7);
  initialize_bert(block, 0.02);
  CHECK(moments_of(block.dense.weight()).deviation == doctest::Approx(0.02).epsilon(0.05));
  CHECK(values_of(block.dense.bias()) == Values(60, 0));
  CHECK(values_of(block.norm.parameters()[0]) == Values(50, 1));
  CHECK(values_of(block.norm.parameters()[1]) == Values(50, 0));
}

TEST_CASE("the same seed makes the same layer") {
  manual_seed(17);
  const Linear first(4, 5);
  manual_seed(17);
  const Linear second(4, 5), third(4, 5);
  CHECK(values_of(first.weight()) == values_of(second.weight()));
  CHECK(values_of(first.bias()) == values_of(second.bias()));
  CHECK(values_of(first.weight()) != values_of(third.weight()));
}

}  // namespace
}  // namespace elwise::nn
