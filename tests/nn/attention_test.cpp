#include "nn/attention.h"

#include <cmath>
#include <map>

#include "ops/aft.h"
#include "ops/ea.h"
#include "ops/ea_series.h"
#include "ops/elementwise.h"
#include "ops/linear_attention.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/softmax_attention.h"
#include "tests/support/op_test.h"

namespace elwise::nn {
namespace {

using testing::check_close;
using testing::check_error;
using testing::kF64Tolerance;
using testing::uniform;
using testing::Values;
using testing::values_of;

constexpr int64_t kBatch = 2, kLength = 5, kHidden = 6, kPositions = 7;

const std::vector<std::string> kNames{
    "sa", "sa-tiled", "la", "aft", "ea", "ea-0", "ea-2", "ea-6", "ea-series-composed-2", "none"};

AttentionConfig config_of(const std::string& name, bool causal = false, DType dtype = DType::f64) {
  return {.mechanism = Mechanism::parse(name),
          .hidden = kHidden,
          .heads = 2,
          .positions = kPositions,
          .causal = causal,
          .options = {.dtype = dtype}};
}

/// The last key of each row is padding.
Tensor padding_mask() {
  return from_vector<bool>({true, true, true, true, false, true, true, true, true, false}, {kBatch, kLength});
}

TEST_CASE("every mechanism has a name that parses") {
  using Kind = Mechanism::Kind;
  CHECK(Mechanism::parse("sa") == Mechanism{Kind::sa});
  CHECK(Mechanism::parse("sa-tiled") == Mechanism{Kind::sa_tiled});
  CHECK(Mechanism::parse("la") == Mechanism{Kind::la});
  CHECK(Mechanism::parse("aft") == Mechanism{Kind::aft});
  CHECK(Mechanism::parse("ea") == Mechanism{Kind::ea});
  CHECK(Mechanism::parse("none") == Mechanism{Kind::none});
  for (int order = 0; order <= 16; order += 2) {
    const std::string number = std::to_string(order);
    CHECK(Mechanism::parse("ea-" + number) == Mechanism{Kind::ea_series, order});
    CHECK(Mechanism::parse("ea-series-composed-" + number) == Mechanism{Kind::ea_series_composed, order});
  }
  for (const std::string& name : kNames) CHECK(Mechanism::parse(name).name() == name);
}

TEST_CASE("any other name is an error that lists them") {
  for (const std::string name :
       {"", "SA", "softmax", "sa ", "sa-", "sa-tiled-2", "ea-", "ea-x", "ea-2x", "ea-2.0", "ea--", "ea-+2",
        "ea-series-composed", "ea-series-composed-", "ea-99999999999999999999", "none-2"}) {
    check_error(
        [&] { Mechanism::parse(name); },
        "attention: expected sa, sa-tiled, la, aft, ea, ea-N or ea-series-composed-N (N even, 0 .. 16), or "
        "none, got '" +
            name + "'");
  }
  for (const auto& [name, order] : {std::pair{"ea-1", "1"},
                                    {"ea-3", "3"},
                                    {"ea-18", "18"},
                                    {"ea--2", "-2"},
                                    {"ea-series-composed-5", "5"}}) {
    check_error([&, text = std::string(name)] { Mechanism::parse(text); },
                std::string("attention: '") + name + "' has order " + order +
                    ", expected an even one in 0 .. 16 (the polynomial of an odd order is not positive)");
  }
}

TEST_CASE("every mechanism keeps the shape and gives every parameter a gradient") {
  for (const std::string& name : kNames) {
    for (const bool causal : {false, true}) {
      for (const Tensor& mask : {Tensor(), padding_mask()}) {
        CAPTURE(name);
        const SelfAttention attention(config_of(name, causal, DType::f32));
        const Tensor x = cast(uniform({kBatch, kLength, kHidden}), DType::f32).detach().set_requires_grad();
        const Tensor y = attention.forward(x, mask);
        CHECK(y.shape() == x.shape());
        for (const double value : values_of(y)) CHECK(std::isfinite(value));
        sum(mul(y, y)).backward();
        CHECK(x.grad().shape() == x.shape());
        for (const Tensor& parameter : attention.parameters()) CHECK(parameter.grad().defined());
      }
    }
  }
}

TEST_CASE("every mechanism works on meta") {
  for (const std::string& name : kNames) {
    AttentionConfig config = config_of(name, /*causal=*/true, DType::f32);
    config.options.device = kMeta;
    const SelfAttention attention(config);
    const Tensor y =
        attention.forward(empty({kBatch, kLength, kHidden}, config.options), to(padding_mask(), kMeta));
    CHECK(y.shape() == Shape{kBatch, kLength, kHidden});
    sum(y).backward();
    CHECK(attention.parameters().front().grad().device() == kMeta);
  }
}

TEST_CASE("the mechanism works on the projections of x") {
  for (const std::string& name : kNames) {
    CAPTURE(name);
    SelfAttention attention(config_of(name, /*causal=*/true));
    attention.eval();
    std::map<std::string, Tensor> parameters;
    for (const auto& [parameter_name, parameter] : attention.named_parameters()) {
      parameters.emplace(parameter_name, parameter);
    }
    const Tensor x = uniform({kBatch, kLength, kHidden}), mask = padding_mask();
    const auto project = [&](const std::string& part) {
      return linear(x, parameters.at(part + ".weight"), parameters.at(part + ".bias"));
    };
    const AttentionOptions options{.causal = true, .key_mask = mask};
    const Mechanism mechanism = Mechanism::parse(name);
    Tensor expected = project("value");
    if (mechanism.kind != Mechanism::Kind::none) {
      const Tensor q = project("query"), k = project("key"), v = expected;
      if (mechanism.kind == Mechanism::Kind::sa) expected = softmax_attention(q, k, v, 2, options);
      if (mechanism.kind == Mechanism::Kind::sa_tiled)
        expected = softmax_attention_tiled(q, k, v, 2, options);
      if (mechanism.kind == Mechanism::Kind::la) expected = linear_attention(q, k, v, 2, options);
      if (mechanism.kind == Mechanism::Kind::aft) {
        expected = aft(q, k, v, parameters.at("position_bias"), options);
      }
      if (mechanism.kind == Mechanism::Kind::ea) expected = ea(q, k, v, options);
      if (mechanism.kind == Mechanism::Kind::ea_series ||
          mechanism.kind == Mechanism::Kind::ea_series_composed) {
        expected = ea_series(q, k, v, mechanism.order, options);
      }
    }
    check_close(values_of(attention.forward(x, mask)), values_of(expected), kF64Tolerance, name);
  }
}

TEST_CASE("none has only the parameters of the value projection") {
  const auto names_of = [](const std::string& mechanism) {
    std::vector<std::string> names;
    for (const auto& [name, parameter] : SelfAttention(config_of(mechanism)).named_parameters()) {
      names.push_back(name);
    }
    return names;
  };
  CHECK(names_of("none") == std::vector<std::string>{"value.weight", "value.bias"});
  CHECK(names_of("ea-2") == std::vector<std::string>{"query.weight", "query.bias", "key.weight", "key.bias",
                                                     "value.weight", "value.bias"});
}

TEST_CASE("aft has a bias for each pair of positions, normal with deviation 0.02") {
  AttentionConfig config = config_of("aft", false, DType::f32);
  config.positions = 300;
  const SelfAttention attention(config);
  const auto [name, bias] = attention.named_parameters().front();
  CHECK(name == "position_bias");
  CHECK(bias.shape() == Shape{300, 300});
  double mean = 0, square = 0;
  for (const double value : values_of(bias.detach())) {
    mean += value / 90'000;
    square += value * value / 90'000;
  }
  CHECK(std::fabs(mean) < 4 * 0.02 / 300);
  CHECK(std::fabs(std::sqrt(square) - 0.02) < 0.0003);
}

TEST_CASE("aft needs a bias for every position") {
  AttentionConfig config = config_of("aft");
  const SelfAttention attention(config);
  check_error(
      [&] {
        attention.forward(uniform({1, kPositions + 1, kHidden}));
      },
      "aft: expected position_bias [positions, positions] for 8 positions or more, got [7, 7]");
  for (const int64_t positions : {int64_t{0}, kLongestPositionBias + 1}) {
    config.positions = positions;
    check_error(
        [&] { SelfAttention{config}; },
        "attention: aft learns a bias for each pair of positions: expected 1 .. 8192 positions, got " +
            std::to_string(positions));
    config.mechanism = Mechanism::parse("la");
    CHECK_NOTHROW(SelfAttention{config});
    config.mechanism = Mechanism::parse("aft");
  }
}

TEST_CASE("dropout concerns softmax attention, while training") {
  const Tensor x = uniform({kBatch, kLength, kHidden});
  const auto changes = [&](const std::string& name, bool training) {
    AttentionConfig config = config_of(name);
    config.dropout = 0.5;
    SelfAttention attention(config);
    attention.train(training);
    return values_of(attention.forward(x)) != values_of(attention.forward(x));
  };
  for (const char* name : {"sa", "sa-tiled"}) {
    CHECK(changes(name, true));
    CHECK_FALSE(changes(name, false));
  }
  CHECK_FALSE(changes("la", true));
  CHECK_FALSE(changes("aft", true));
  CHECK_FALSE(changes("ea", true));
  CHECK_FALSE(changes("ea-2", true));
}

TEST_CASE("heads divide the hidden size") {
  AttentionConfig config = config_of("sa");
  config.heads = 4;
  check_error([&] { SelfAttention{config}; }, "attention: expected heads that divide hidden size 6, got 4");
  config.heads = 0;
  check_error([&] { SelfAttention{config}; }, "attention: expected heads that divide hidden size 6, got 0");
}

}  // namespace
}  // namespace elwise::nn
