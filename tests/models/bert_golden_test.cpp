#include <doctest/doctest.h>

#include "core/safetensors.h"
#include "models/bert.h"
#include "nn/optimizer.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/loss.h"
#include "ops/view.h"
#include "tests/support/op_test.h"

// A small BERT against values that PyTorch computed (tests/models/golden/make_golden.py).

namespace elwise::testing {
namespace {

using Tensors = std::map<std::string, Tensor>;

// The golden values are f64; an f64 run rounds differently in its sums, and ten optimizer steps amplify that.
constexpr Tolerance kGoldenTolerance{1e-11, 1e-11};

constexpr int64_t kLabels = 3;

/// On the test device.
Tensors golden(const std::string& name) {
  Tensors tensors =
      load_safetensors(std::string(ELWISE_SOURCE_DIR) + "/tests/models/golden/" + name + ".safetensors");
  for (auto& [key, tensor] : tensors) tensor = to(tensor, test_device());
  return tensors;
}

/// The parameters that the golden run started from.
Tensors initial_parameters(const std::string& attention) {
  Tensors parameters = golden("initial");
  if (attention == "aft") parameters.merge(golden("initial-aft"));
  return parameters;
}

/// The mechanism whose golden values this one must reach: another form of one computes the same.
std::string values_of_mechanism(const std::string& attention) {
  return attention == "sa-tiled" ? "sa" : attention;
}

models::BertConfig small_config(const std::string& attention, bool causal, DType dtype) {
  return {.vocabulary = 29,
          .hidden = 16,
          .layers = 2,
          .heads = 2,
          .intermediate = 24,
          .positions = 16,
          .dropout = 0,
          .attention_dropout = 0,
          .attention = nn::Mechanism::parse(attention),
          .causal = causal,
          .options = {.dtype = dtype, .device = test_device()}};
}

/// Both heads on one encoder: what the golden loss is made of.
struct PretrainingModel : nn::Module {
  explicit PretrainingModel(const models::BertConfig& config)
      : bert(config), head(config), classifier(config.hidden, kLabels, config.options) {
    add_module("bert", bert);
    add_module("cls", head);
    add_module("classifier", classifier);
  }
  models::Bert bert;
  models::LmHead head;
  nn::Linear classifier;
};

struct Losses {
  std::vector<Tensor> hidden;
  Tensor pooled;
  Tensor loss;
};

Losses forward(const PretrainingModel& model, const Tensors& inputs, bool padded) {
  Losses result;
  const models::BertInput input{.tokens = inputs.at("input_ids"),
                                .token_types = inputs.at("token_type_ids"),
                                .key_mask = padded ? inputs.at("attention_mask") : Tensor()};
  const Tensor hidden = model.bert.forward(input, false, &result.hidden);
  result.pooled = model.bert.pool(hidden);
  const Tensor chosen = index_select(reshape(hidden, {-1, hidden.size(2)}), 0, inputs.at("masked_positions"));
  const Tensor masked_lm =
      cross_entropy(model.head.forward(chosen, model.bert.token_table()), inputs.at("mlm_labels"));
  result.loss = masked_lm + cross_entropy(model.classifier.forward(result.pooled), inputs.at("class_labels"));
  return result;
}

void check_case(const std::string& attention, bool causal, bool padded) {
  const std::string variant = std::string(causal ? "-causal" : "") + (padded ? "-padded" : "");
  const std::string name = attention + variant;
  CAPTURE(name);
  const Tensors expected = golden(values_of_mechanism(attention) + variant), inputs = golden("inputs");
  PretrainingModel model(small_config(attention, causal, DType::f64));
  const nn::LoadReport report = nn::load_parameters(model, initial_parameters(attention));
  CHECK(report.missing.empty());
  CHECK(report.unexpected.empty());
  const auto check = [&](const std::string& what, const Tensor& actual) {
    check_close(values_of(actual), values_of(expected.at(what)), kGoldenTolerance, name + " " + what);
  };

  const Losses first = forward(model, inputs, padded);
  for (size_t i = 0; i < first.hidden.size(); ++i) check("hidden." + std::to_string(i), first.hidden[i]);
  check("pooled", first.pooled);
  check("loss", first.loss);
  first.loss.backward();
  for (const auto& [parameter, tensor] : model.named_parameters()) check("grad." + parameter, tensor.grad());
  model.zero_grad();

  nn::Adam optimizer(model, AdamKind::adamw, {.lr = 1e-2, .eps = 1e-4, .weight_decay = 0.01});
  std::vector<double> losses;
  for (int step = 0; step < 10; ++step) {
    const Tensor loss = forward(model, inputs, padded).loss;
    losses.push_back(loss.item());
    loss.backward();
    optimizer.step();
    optimizer.zero_grad();
  }
  check_close(losses, values_of(expected.at("losses")), kGoldenTolerance, name + " losses");
  for (const auto& [parameter, tensor] : model.named_parameters()) check("final." + parameter, tensor);
}

}  // namespace

TEST_CASE("hidden states, loss, gradients and ten AdamW steps equal PyTorch's in f64") {
  for (const char* attention : {"sa", "sa-tiled", "la", "aft", "ea", "ea-2", "ea-6"}) {
    for (const bool causal : {false, true}) {
      for (const bool padded : {false, true}) check_case(attention, causal, padded);
    }
  }
}

TEST_CASE("f32 hidden states and gradients equal PyTorch's f64 ones within f32's tolerance") {
  for (const char* attention : {"sa", "sa-tiled", "la", "aft", "ea", "ea-2", "ea-6"}) {
    const Tensors expected = golden(values_of_mechanism(attention) + "-causal-padded"),
                  inputs = golden("inputs");
    PretrainingModel model(small_config(attention, true, DType::f32));
    nn::load_parameters(model, initial_parameters(attention));
    const Losses first = forward(model, inputs, true);
    check_close(values_of(first.hidden.back()), values_of(expected.at("hidden.2")), kF32Tolerance, attention);
    first.loss.backward();
    for (const auto& [parameter, tensor] : model.named_parameters()) {
      check_close(values_of(tensor.grad()), values_of(expected.at("grad." + parameter)), kF32Tolerance,
                  attention + (" " + parameter));
    }
  }
}

}  // namespace elwise::testing
