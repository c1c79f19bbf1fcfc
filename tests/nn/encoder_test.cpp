#include "nn/encoder.h"

#include <map>

#include "ops/ea_series.h"
#include "ops/elementwise.h"
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

constexpr int64_t kBatch = 2, kLength = 5, kHidden = 8;

EncoderConfig config_of(const std::string& mechanism, NormPlacement norm, double dropout = 0) {
  return {.attention = {.mechanism = Mechanism::parse(mechanism),
                        .hidden = kHidden,
                        .heads = 2,
                        .causal = false,
                        .dropout = dropout,
                        .options = {.dtype = DType::f64}},
          .intermediate = 12,
          .dropout = dropout,
          .eps = 1e-5,
          .norm = norm};
}

Tensor padding_mask() {
  return from_vector<bool>({true, true, true, true, false, true, true, true, false, false},
                           {kBatch, kLength});
}

/// Makes every parameter different from what it is at first: LayerNorm's 1 and 0 hide mistakes.
void randomize(const Module& module) {
  for (Tensor& parameter : module.parameters()) parameter.copy_from(uniform(parameter.shape(), -1, 1));
}

/// An encoder layer written with public ops and the layer's parameters.
Tensor composed_layer(const Module& layer, const EncoderConfig& config, const Tensor& x, const Tensor& mask) {
  std::map<std::string, Tensor> parameters;
  for (const auto& [name, parameter] : layer.named_parameters()) parameters.emplace(name, parameter);
  const auto dense = [&](const std::string& name, const Tensor& input) {
    return linear(input, parameters.at(name + ".weight"), parameters.at(name + ".bias"));
  };
  const auto norm = [&](const std::string& name, const Tensor& input) {
    return layer_norm(input, parameters.at(name + ".LayerNorm.weight"),
                      parameters.at(name + ".LayerNorm.bias"), config.eps);
  };
  const auto attend = [&](const Tensor& input) {
    const Tensor q = dense("attention.self.query", input), k = dense("attention.self.key", input);
    const Tensor v = dense("attention.self.value", input);
    const Mechanism& mechanism = config.attention.mechanism;
    const Tensor mixed = mechanism.kind == Mechanism::Kind::sa
                             ? softmax_attention(q, k, v, config.attention.heads, {.key_mask = mask})
                             : ea_series(q, k, v, mechanism.order, {.key_mask = mask});
    return dense("attention.output.dense", mixed);
  };
  const auto feed_forward = [&](const Tensor& input) {
    return dense("output.dense", gelu(dense("intermediate.dense", input)));
  };
  if (config.norm == NormPlacement::post) {
    const Tensor attended = norm("attention.output", add(x, attend(x)));
    return norm("output", add(attended, feed_forward(attended)));
  }
  const Tensor attended = add(x, attend(norm("attention.output", x)));
  return add(attended, feed_forward(norm("output", attended)));
}

TEST_CASE("a layer is what its ops make of it, Post-LN and Pre-LN, with every gradient") {
  for (const std::string mechanism : {"sa", "ea-2"}) {
    for (const NormPlacement norm : {NormPlacement::post, NormPlacement::pre}) {
      const std::string name = mechanism + (norm == NormPlacement::post ? " post" : " pre");
      const EncoderConfig config = config_of(mechanism, norm);
      const EncoderLayer layer(config);
      randomize(layer);
      const Tensor weights = uniform({kBatch, kLength, kHidden}), mask = padding_mask();
      const Tensor x = uniform({kBatch, kLength, kHidden}).set_requires_grad();
      const auto run = [&](const Tensor& y) {
        layer.zero_grad();
        x.set_grad({});
        sum(mul(y, weights)).backward();
        std::vector<Values> results{values_of(y), values_of(x.grad())};
        for (const Tensor& parameter : layer.parameters()) results.push_back(values_of(parameter.grad()));
        return results;
      };
      const std::vector<Values> actual = run(layer.forward(x, mask));
      const std::vector<Values> expected = run(composed_layer(layer, config, x, mask));
      for (size_t i = 0; i < actual.size(); ++i) {
        check_close(actual[i], expected[i], kF64Tolerance, name + " " + std::to_string(i));
      }
    }
  }
}

TEST_CASE("parameter names are those of BERT") {
  const Encoder encoder(config_of("sa", NormPlacement::post), 2);
  std::vector<std::string> expected, actual;
  for (const std::string layer : {"layer.0.", "layer.1."}) {
    for (const char* part :
         {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
          "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"}) {
      expected.push_back(layer + part + ".weight");
      expected.push_back(layer + part + ".bias");
    }
  }
  for (const auto& [name, parameter] : encoder.named_parameters()) actual.push_back(name);
  CHECK(actual == expected);
  CHECK(encoder.parameter_count() ==
        2 * (4 * (kHidden * kHidden + kHidden) + 2 * 12 * kHidden + 12 + kHidden + 4 * kHidden));
}

TEST_CASE("an encoder is its layers in turn") {
  const Encoder encoder(config_of("ea-2", NormPlacement::post), 3);
  randomize(encoder);
  const Tensor x = uniform({kBatch, kLength, kHidden});
  std::vector<Tensor> outputs;
  const Tensor y = encoder.forward(x, padding_mask(), false, &outputs);
  REQUIRE(outputs.size() == 3);
  CHECK(outputs[2].is_same(y));
  CHECK(values_of(outputs[0]) != values_of(outputs[1]));
  CHECK(values_of(encoder.forward(x)) != values_of(y));  // the mask reaches the layers
  check_error([] { Encoder(config_of("ea-2", NormPlacement::post), 0); },
              "Encoder: expected at least one layer, got 0");
}

TEST_CASE("checkpointed layers give the same values and gradients, with dropout too") {
  for (const std::string mechanism : {"sa", "ea-2"}) {
    const Encoder encoder(config_of(mechanism, NormPlacement::pre, 0.2), 2);
    const Tensor x = uniform({kBatch, kLength, kHidden}), mask = padding_mask();
    const auto run = [&](bool checkpoint_layers) {
      encoder.zero_grad();
      manual_seed(23);
      const Tensor y = encoder.forward(x, mask, checkpoint_layers);
      sum(mul(y, y)).backward();
      std::vector<Values> results{values_of(y)};
      for (const Tensor& parameter : encoder.parameters()) results.push_back(values_of(parameter.grad()));
      return results;
    };
    CHECK(run(true) == run(false));
  }
}

TEST_CASE("checkpointed layers take less memory") {
  EncoderConfig config = config_of("ea-2", NormPlacement::post);
  config.attention.options.device = kMeta;
  const Encoder encoder(config, 8);
  const auto peak = [&](bool checkpoint_layers) {
    encoder.zero_grad();
    reset_memory_peak(kMeta);
    sum(encoder.forward(empty({64, 1024, kHidden}, config.attention.options), {}, checkpoint_layers))
        .backward();
    return memory_stats(kMeta)[MemoryTag::activations].peak;
  };
  CHECK(peak(true) < peak(false) / 2);
}

/// What a layer keeps for backward, in units of batch x length x hidden values at BERT's sizes: the growth
/// from one layer to two, so that a layer's output counts once, as the next one's input.
double units_kept(const std::string& mechanism, bool causal, int64_t batch, int64_t length) {
  const AttentionConfig attention{.mechanism = Mechanism::parse(mechanism),
                                  .positions = length,
                                  .causal = causal,
                                  .options = {.device = kMeta}};
  const auto kept = [&](int64_t layers) {
    const Encoder encoder({.attention = attention, .dropout = 0}, layers);
    const int64_t before = memory_stats(kMeta)[MemoryTag::activations].now;
    const Tensor y = encoder.forward(empty({batch, length, attention.hidden}, attention.options));
    return memory_stats(kMeta)[MemoryTag::activations].now - before;
  };
  return static_cast<double>(kept(2) - kept(1)) /
         static_cast<double>(batch * length * attention.hidden * size_of(DType::f32));
}

TEST_CASE("a layer keeps what the README's table says") {
  constexpr int64_t kRows = 1024, kHiddenSize = 768, kHeads = 12;
  constexpr double kStatistics = 4.0 / kHiddenSize;  // mean and 1/deviation of two LayerNorms
  struct Case {
    const char* mechanism;
    bool causal;
    double attention;  // beside the mechanism's result, which is the output projection's input
  };
  const double heads = static_cast<double>(kHeads) / kHiddenSize, weights = heads * kRows;
  const Case cases[] = {{"none", false, 0},
                        {"ea-2", false, 3 + 7.0 / kRows},
                        {"ea-6", false, 3 + 15.0 / kRows},
                        {"ea-6", true, 3 + 15.0 / 128},
                        {"ea", false, 4},
                        {"sa", false, 3 + weights},
                        {"sa", true, 3 + weights},
                        {"sa-tiled", false, 3 + heads},
                        {"la", false, 3 + heads + 65.0 / kRows},
                        {"aft", false, 5}};
  for (const int64_t batch : {1, 3}) {
    for (const auto& [mechanism, causal, attention] : cases) {
      const double units = units_kept(mechanism, causal, batch, kRows);
      CHECK_MESSAGE(units == doctest::Approx(9 + attention + kStatistics).epsilon(1e-4),
                    std::string(mechanism));
    }
  }
}

TEST_CASE("dropout acts while training only") {
  Encoder encoder(config_of("sa", NormPlacement::post, 0.5), 1);
  const Tensor x = uniform({kBatch, kLength, kHidden});
  CHECK(values_of(encoder.forward(x)) != values_of(encoder.forward(x)));
  encoder.eval();
  CHECK(values_of(encoder.forward(x)) == values_of(encoder.forward(x)));
}

}  // namespace
}  // namespace elwise::nn
