#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/cost.h"
#include "core/parallel.h"
#include "core/safetensors.h"
#include "models/bert.h"
#include "nn/optimizer.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "tests/support/op_test.h"
#include "tests/support/temporary_folder.h"

namespace elwise::testing {
namespace {

models::BertConfig tiny(const std::string& attention, Device device = test_device()) {
  return {.vocabulary = 211,
          .hidden = 48,
          .layers = 2,
          .heads = 4,
          .intermediate = 96,
          .positions = 64,
          .attention = nn::Mechanism::parse(attention),
          .options = {.device = device}};
}

struct Batch {
  models::BertInput input;
  Tensor masked, labels;
};

Batch batch_of(int64_t batch, int64_t length, Device device) {
  std::vector<int64_t> tokens, masked, labels;
  for (int64_t i = 0; i < batch * length; ++i) tokens.push_back(i * 37 % 211);
  for (int64_t i = 0; i < models::masked_positions(batch, length); ++i) {
    masked.push_back(i * 5 % (batch * length));
    labels.push_back(i * 11 % 211);
  }
  const auto count = static_cast<int64_t>(masked.size());
  return {{.tokens = to(from_vector(tokens, {batch, length}), device), .token_types = {}, .key_mask = {}},
          to(from_vector(masked, {count}), device),
          to(from_vector(labels, {count}), device)};
}

struct StepResult {
  MemoryStats memory;
  double flops;
  Values parameters;
};

/// Three AdamW steps; the memory and FLOPs of the last.
StepResult train(const models::BertConfig& config, int64_t batch, int64_t length,
                 bool checkpoint_layers = false, bool step_in_backward = false) {
  manual_seed(7);
  const models::BertForMaskedLm model(config);
  nn::Adam optimizer(model, AdamKind::adamw, {.lr = 1e-3});
  if (step_in_backward) optimizer.step_in_backward();
  const Device device = config.options.device;
  double flops = 0;
  for (int step = 0; step < 3; ++step) {
    reset_memory_peak(device);
    const Batch data = batch_of(batch, length, device);
    const double before = cost_totals().flops;
    model.loss(data.input, data.masked, data.labels, checkpoint_layers).backward();
    optimizer.step();
    optimizer.zero_grad();
    flops = cost_totals().flops - before;
  }
  StepResult result{memory_stats(device), flops, {}};
  if (device != kMeta) {
    for (const Tensor& parameter : model.parameters()) {
      const Values values = values_of(parameter.detach());
      result.parameters.insert(result.parameters.end(), values.begin(), values.end());
    }
  }
  return result;
}

const std::vector<std::string> kMechanisms = {
    "sa", "sa-tiled", "la", "aft", "ea", "ea-2", "ea-6", "ea-series-composed-6", "none"};

}  // namespace

TEST_CASE("BERT-base has exactly 109,482,240 parameters, and with AFT its biases") {
  const auto count = [](const char* attention) {
    const models::BertConfig config{.attention = nn::Mechanism::parse(attention),
                                    .options = {.device = kMeta}};
    return models::Bert(config).parameter_count();
  };
  for (const char* attention : {"sa", "sa-tiled", "la", "ea", "ea-2", "ea-6"})
    CHECK(count(attention) == 109'482'240);
  CHECK(count("aft") == 109'482'240 + 12 * 512 * 512);
}

TEST_CASE("a new model's biases are 0, its tables are not, AFT's position biases among them") {
  const models::Bert model(tiny("aft"));
  for (const auto& [name, parameter] : model.named_parameters()) {
    const Values values = values_of(parameter.detach());
    const bool all_zero = std::ranges::all_of(values, [](double value) { return value == 0; });
    CHECK_MESSAGE(all_zero == name.ends_with(".bias"), name);
  }
}

TEST_CASE("a longer sequence enlarges the position table, and above 8192 positions are sinusoidal") {
  const models::BertConfig base{.options = {.device = kMeta}};
  CHECK(models::Bert(base.for_length(300)).parameter_count() == 109'482'240);
  CHECK(models::Bert(base.for_length(2048)).parameter_count() == 109'482'240 + (2048 - 512) * 768);
  CHECK(models::Bert(base.for_length(16384)).parameter_count() == 109'482'240 - 512 * 768);
  CHECK(base.for_length(16384).positions == 16384);
}

TEST_CASE("meta counts the device's peak memory to the byte, and the same FLOPs") {
  for (const std::string& attention : kMechanisms) {
    for (const auto& [batch, length] : {std::pair<int64_t, int64_t>{1, 64}, {3, 17}, {2, 33}}) {
      for (const bool checkpointed : {false, true}) {
        const StepResult real = train(tiny(attention), batch, length, checkpointed);
        const StepResult meta = train(tiny(attention, kMeta), batch, length, checkpointed);
        CAPTURE(attention);
        CAPTURE(length);
        CAPTURE(checkpointed);
        CHECK(meta.memory.total.peak == real.memory.total.peak);
        for (size_t tag = 0; tag < kMemoryTags; ++tag) {
          CHECK(meta.memory.by_tag[tag].peak == real.memory.by_tag[tag].peak);
        }
        CHECK(meta.flops == real.flops);
      }
    }
  }
}

TEST_CASE("training gives the same bits with any thread count, and from run to run") {
  const int threads = num_threads();
  for (const std::string& attention : kMechanisms) {
    set_num_threads(1);
    const Values expected = train(tiny(attention), 2, 33).parameters;
    for (const int count : {1, 2, 3}) {
      set_num_threads(count);
      const Values actual = train(tiny(attention), 2, 33).parameters;
      CHECK_MESSAGE(std::memcmp(actual.data(), expected.data(), expected.size() * sizeof(double)) == 0,
                    attention, " differs with ", count, " threads");
    }
  }
  set_num_threads(threads);
}

TEST_CASE("checkpointed layers train to the same bits in less memory") {
  for (const char* attention : {"sa", "sa-tiled", "la", "aft", "ea-6"}) {
    CHECK(train(tiny(attention), 2, 33).parameters == train(tiny(attention), 2, 33, true).parameters);
    const models::BertConfig base{.attention = nn::Mechanism::parse(attention), .options = {.device = kMeta}};
    const auto activations = [&](bool checkpointed) {
      return train(base, 4, 512, checkpointed).memory[MemoryTag::activations].peak;
    };
    CHECK(activations(true) < activations(false) / 4);
  }
}

TEST_CASE("steps in backward train to the same bits, and gradients then take a fraction of the memory") {
  for (const char* attention : {"sa", "aft", "ea-6"}) {
    for (const bool checkpointed : {false, true}) {
      const StepResult in_backward = train(tiny(attention), 2, 33, checkpointed, true);
      CHECK(in_backward.parameters == train(tiny(attention), 2, 33, checkpointed).parameters);
      CHECK(in_backward.memory.total.peak ==
            train(tiny(attention, kMeta), 2, 33, checkpointed, true).memory.total.peak);
    }
  }
  const models::BertConfig base{.attention = nn::Mechanism::parse("ea-6"), .options = {.device = kMeta}};
  const auto gradients = [&](bool in_backward) {
    return train(base, 1, 512, false, in_backward).memory[MemoryTag::gradients].peak;
  };
  CHECK(gradients(true) < gradients(false) / 3);  // the token table's, which backward ends with, is a fifth
}

TEST_CASE("EA-series memory hardly depends on the order and is linear in the length") {
  const auto activations = [](const char* attention, int64_t length) {
    models::BertConfig config = models::BertConfig{
        .attention = nn::Mechanism::parse(attention),
        .options = {.device =
                        kMeta}}.for_length(length);
    config.dropout = config.attention_dropout = 0;
    return static_cast<double>(train(config, 1, length).memory[MemoryTag::activations].peak);
  };
  for (const int64_t length : {512, 2048}) {
    CHECK(activations("ea-6", length) < 1.01 * activations("ea-2", length));
  }
  CHECK(activations("ea-6", 2048) <= 2.02 * activations("ea-6", 1024));
}

TEST_CASE("a Hugging Face file loads as it is, with old names and without the prefix") {
  const TemporaryFolder folder;
  manual_seed(1);
  const models::BertForMaskedLm source(tiny("sa"));
  std::map<std::string, Tensor> file;
  for (const auto& [name, parameter] : source.named_parameters()) {
    std::string old = name;
    if (old.ends_with("LayerNorm.weight")) old.replace(old.size() - 6, 6, "gamma");
    if (old.ends_with("LayerNorm.bias")) old.replace(old.size() - 4, 4, "beta");
    file.emplace(old, parameter.detach());
  }
  file.emplace("bert.embeddings.position_ids", arange(64));
  file.emplace("cls.seq_relationship.bias", zeros({2}));
  const auto path = folder.path() / "model.safetensors";
  save_safetensors(path, file);

  const models::BertForMaskedLm target(tiny("sa"));
  const nn::LoadReport report = models::load_bert(path, target);
  CHECK(report.missing.empty());
  CHECK(report.unexpected == std::vector<std::string>{"cls.seq_relationship.bias"});
  const auto expected = source.named_parameters(), actual = target.named_parameters();
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK_MESSAGE(values_of(actual[i].second.detach()) == values_of(expected[i].second.detach()),
                  expected[i].first);
  }

  const models::Bert encoder(tiny("sa"));
  CHECK(models::load_bert(path, encoder).missing.empty());
}

TEST_CASE("parameter names are Hugging Face's") {
  const models::BertForMaskedLm model(tiny("ea-6"));
  std::vector<std::string> names;
  for (const auto& [name, parameter] : model.named_parameters()) names.push_back(name);
  for (const char* name :
       {"bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.bias",
        "bert.encoder.layer.1.attention.self.query.weight",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
        "bert.encoder.layer.0.intermediate.dense.bias", "bert.encoder.layer.1.output.dense.weight",
        "bert.pooler.dense.weight", "cls.predictions.transform.LayerNorm.weight", "cls.predictions.bias"}) {
    CHECK_MESSAGE(std::find(names.begin(), names.end(), name) != names.end(), name);
  }
}

TEST_CASE(
    "outputs of a causal model do not change when later tokens do, and batch rows do not affect each other") {
  for (const char* attention : {"sa", "sa-tiled", "la", "aft", "ea", "ea-6"}) {
    models::BertConfig config = tiny(attention);
    config.causal = true;
    models::Bert model(config);
    model.eval();
    const Tensor tokens = batch_of(2, 20, kCpu).input.tokens;
    const auto outputs = [&] {
      const models::BertInput input{.tokens = to(tokens, test_device()), .token_types = {}, .key_mask = {}};
      return values_of(model.forward(input));
    };
    const Values before = outputs();
    tokens.data<int64_t>()[12] = 5;  // row 0, position 12
    const Values after = outputs();
    for (size_t i = 0; i < before.size(); ++i) {
      const bool may_change = i >= 12 * 48 && i < 20 * 48;
      if (!may_change) CHECK(before[i] == after[i]);
    }
    CHECK(before[12 * 48] != after[12 * 48]);
  }
}

TEST_CASE("bad sizes and too many tokens give clear errors") {
  check_error(
      [] { models::Bert(models::BertConfig{.hidden = 10, .heads = 3, .options = {.device = kMeta}}); },
      "attention: expected heads that divide hidden size 10, got 3");
  const models::Bert model(tiny("ea-6"));
  check_error([&] { model.forward(batch_of(1, 65, test_device()).input); },
              "bert: expected at most 64 tokens, got 65 (BertConfig::for_length makes room)");
}

namespace {

/// The losses of AdamW steps on masked positions of random tokens, whose labels are functions of the tokens.
Values loss_curve(const std::string& attention, DType dtype, uint64_t seed, int steps) {
  constexpr int64_t kBatch = 4, kLength = 32;
  models::BertConfig config = tiny(attention);
  config.options.dtype = dtype;
  config.dropout = config.attention_dropout = 0;
  config.initializer_deviation = 0.1;
  manual_seed(seed);
  const models::BertForMaskedLm model(config);
  nn::Adam optimizer(model, AdamKind::adamw, {.lr = 3e-3});
  uint64_t random = 1;
  Values losses;
  for (int step = 0; step < steps; ++step) {
    std::vector<int64_t> tokens, masked, labels;
    for (int64_t i = 0; i < kBatch * kLength; ++i) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      tokens.push_back(static_cast<int64_t>(random >> 33) % 40);
    }
    for (int64_t i = 0; i < kBatch * kLength; i += 2) {
      masked.push_back(i);
      labels.push_back(tokens[static_cast<size_t>(i)] * 5 % 40);
    }
    const auto count = static_cast<int64_t>(masked.size());
    const auto there = [](const Tensor& x) { return to(x, test_device()); };
    const Tensor loss = model.loss(
        {.tokens = there(from_vector(tokens, {kBatch, kLength})), .token_types = {}, .key_mask = {}},
        there(from_vector(masked, {count})), there(from_vector(labels, {count})));
    CHECK(loss.dtype() == DType::f32);
    losses.push_back(loss.item());
    loss.backward();
    optimizer.step();
    optimizer.zero_grad();
  }
  return losses;
}

double mean_difference(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::fabs(a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

}  // namespace

TEST_CASE("in bf16 the loss falls as in f32: closer to it than the next seed is") {
  struct Case {
    const char* attention;
    int steps;
  };
  for (const auto& [attention, steps] : {Case{"ea-6", 120}, Case{"sa", 120}, Case{"sa-tiled", 30},
                                         Case{"ea", 30}, Case{"la", 30}, Case{"aft", 30}}) {
    const bool emulated = test_device() != kCpu;  // takes long
    if (emulated && steps < 120) continue;
    const auto losses = [&](DType dtype, uint64_t seed) {
      return loss_curve(attention, dtype, seed, emulated ? 3 : steps);
    };
    const Values narrow = losses(DType::bf16, 7), wide = losses(DType::f32, 7), other = losses(DType::f32, 8);
    INFO(attention, ": losses from ", wide.front(), " to ", wide.back(), " in f32, to ", narrow.back(),
         " in bf16; ", mean_difference(narrow, wide), " apart, another seed ", mean_difference(other, wide));
    CHECK(mean_difference(narrow, wide) < mean_difference(other, wide));
    if (!emulated && steps == 120) CHECK(narrow.back() < 0.5 * narrow.front());
  }
}

}  // namespace elwise::testing
