#include "models/decoder.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "autograd/grad_mode.h"
#include "core/parallel.h"
#include "core/safetensors.h"
#include "models/config.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/view.h"
#include "tests/support/op_test.h"
#include "tests/support/temporary_folder.h"

namespace elwise::models {
namespace {

using testing::check_close;
using testing::check_error;
using testing::kF64Tolerance;
using testing::test_device;
using testing::tolerance_of;
using testing::Values;
using testing::values_of;

using Tokens = std::vector<int64_t>;

const std::vector<std::string> kMechanisms{"sa", "la", "aft", "ea", "ea-2", "ea-6", "none"};

constexpr int64_t kVocabulary = 23;

BertConfig tiny(const std::string& attention, DType dtype = DType::f64) {
  return {.vocabulary = kVocabulary,
          .hidden = 24,
          .layers = 2,
          .heads = 4,
          .intermediate = 40,
          .positions = 40,
          .initializer_deviation = 0.3,  // large: logits that tell tokens apart
          .attention = nn::Mechanism::parse(attention),
          .options = {.dtype = dtype, .device = test_device()}};
}

/// A model in eval(), the same for the same config.
struct Model : Decoder {
  explicit Model(const BertConfig& config) : Decoder((manual_seed(3), config)) { eval(); }
};

Tokens some_tokens(int64_t count, int64_t seed = 0) {
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back((i * i * 7 + seed * 5 + i) % kVocabulary);
  return tokens;
}

Tensor on_device(const Tokens& tokens, const Shape& shape) {
  return to(from_vector(tokens, shape), test_device());
}

/// Logits [batch, vocabulary] of position i.
Values position(const Tensor& logits, int64_t i) {
  return values_of(slice(logits, 1, i, i + 1));
}

TEST_CASE("steps give what forward gives at every position, with every mechanism") {
  const NoGradGuard inference;
  constexpr int64_t kBatch = 2, kLength = 11, kPrompt = 4;
  for (const std::string& name : kMechanisms) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const nn::NormPlacement norm : {nn::NormPlacement::post, nn::NormPlacement::pre}) {
        BertConfig config = tiny(name, dtype);
        config.norm = norm;
        const Model model(config);
        const Tensor tokens = on_device(some_tokens(kBatch * kLength), {kBatch, kLength});
        const Tensor expected = model.forward(tokens);
        GenerationState state = model.make_state(kBatch);
        Tensor logits = model.prefill(slice(tokens, 1, 0, kPrompt), {}, state);
        for (int64_t i = kPrompt; i < kLength; ++i) {
          check_close(values_of(logits), position(expected, i - 1), tolerance_of(dtype), name);
          logits = model.step(reshape(slice(tokens, 1, i, i + 1), {kBatch}), state);
        }
        check_close(values_of(logits), position(expected, kLength - 1), tolerance_of(dtype), name);
        CHECK(state.positions == Tokens(kBatch, kLength));
      }
    }
  }
}

TEST_CASE("prompts of different lengths: each row goes on at its own position, as if it were alone") {
  const NoGradGuard inference;
  const std::vector<Tokens> prompts{some_tokens(6, 1), some_tokens(1, 2), some_tokens(3, 3)};
  Tokens padded;
  std::vector<bool> visible;
  for (const Tokens& prompt : prompts) {
    for (size_t i = 0; i < 6; ++i) {
      padded.push_back(i < prompt.size() ? prompt[i] : 9);
      visible.push_back(i < prompt.size());
    }
  }
  const Tensor mask = to(from_vector(visible, {3, 6}), test_device());
  for (const std::string& name : kMechanisms) {
    for (const bool sinusoidal : {false, true}) {
      BertConfig config = tiny(name);
      config.sinusoidal = sinusoidal;
      const Model model(config);
      GenerationState together = model.make_state(3);
      Tensor logits = model.prefill(on_device(padded, {3, 6}), mask, together);
      std::vector<GenerationState> alone;
      std::vector<Tensor> expected;
      for (const Tokens& prompt : prompts) {
        const auto length = static_cast<int64_t>(prompt.size());
        alone.push_back(model.make_state(1));
        expected.push_back(model.prefill(on_device(prompt, {1, length}), {}, alone.back()));
      }
      for (int64_t step = 0; step < 4; ++step) {
        check_close(values_of(logits), values_of(concat(expected, 0)), kF64Tolerance, name);
        const Tokens next{step, 5 + step, 11};
        logits = model.step(on_device(next, {3}), together);
        for (size_t row = 0; row < 3; ++row) {
          expected[row] = model.step(on_device({next[row]}, {1}), alone[row]);
        }
      }
      CHECK(together.positions == Tokens{10, 5, 7});
    }
  }
}

/// The token that `model` finds most probable after `tokens`.
int64_t best_after(const Model& model, const Tokens& tokens) {
  const NoGradGuard inference;
  const auto length = static_cast<int64_t>(tokens.size());
  const Values logits = position(model.forward(on_device(tokens, {1, length})), length - 1);
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

TEST_CASE("greedy generation is what forward finds most probable, prompt by prompt") {
  const std::vector<Tokens> prompts{some_tokens(5, 1), some_tokens(2, 2), some_tokens(9, 3)};
  for (const std::string& name : kMechanisms) {
    const Model model(tiny(name));
    const GenerateOptions options{.tokens = 7, .sampling = {.temperature = 0}};
    const std::vector<Tokens> generated = model.generate(prompts, options);
    for (size_t row = 0; row < prompts.size(); ++row) {
      Tokens tokens = prompts[row];
      for (int64_t i = 0; i < 7; ++i) tokens.push_back(best_after(model, tokens));
      const auto prompt_end = tokens.begin() + static_cast<int64_t>(prompts[row].size());
      CHECK_MESSAGE(generated[row] == Tokens(prompt_end, tokens.end()), name);
    }
    GenerateOptions cold = options;
    cold.sampling.temperature = 1e-6;
    CHECK(model.generate(prompts, cold) == generated);
    cold.sampling = {.temperature = 3, .top_k = 1};
    CHECK(model.generate(prompts, cold) == generated);
  }
}

TEST_CASE("the same seed draws the same tokens, with any thread count, whatever the other prompts are") {
  const Model model(tiny("ea-6"));
  const std::vector<Tokens> prompts{some_tokens(5, 1), some_tokens(2, 2), some_tokens(2, 2)};
  const auto generate = [&](uint64_t seed) { return model.generate(prompts, {.tokens = 12, .seed = seed}); };
  const std::vector<Tokens> first = generate(1);
  const int threads = num_threads();
  for (const int count : {1, 2, 3}) {
    set_num_threads(count);
    CHECK(generate(1) == first);
  }
  set_num_threads(threads);
  CHECK(generate(2) != first);
  CHECK(first[1] != first[2]);  // equal prompts draw each for itself
  CHECK(model.generate({prompts[0]}, {.tokens = 12, .seed = 1})[0] == first[0]);
}

TEST_CASE("drawn tokens are as frequent as the model finds them probable") {
  const Model model(tiny("ea-2"));
  const Tokens prompt = some_tokens(4);
  const NoGradGuard inference;
  const Values logits = position(model.forward(on_device(prompt, {1, 4})), 3);
  constexpr int kRows = 100, kRounds = 10;
  Values counts(kVocabulary);
  for (uint64_t seed = 0; seed < kRounds; ++seed) {
    for (const Tokens& row :
         model.generate(std::vector<Tokens>(kRows, prompt), {.tokens = 1, .seed = seed})) {
      ++counts[static_cast<size_t>(row[0])];
    }
  }
  double total = 0;
  for (const double logit : logits) total += std::exp(logit);
  for (size_t token = 0; token < logits.size(); ++token) {
    const double p = std::exp(logits[token]) / total, draws = kRows * kRounds;
    CHECK(std::fabs(counts[token] / draws - p) <= 4.5 * std::sqrt(p * (1 - p) / draws));
  }
}

TEST_CASE("a row ends with the stop token, and each token is told as it is drawn") {
  const Model model(tiny("ea-6"));
  const std::vector<Tokens> prompts{some_tokens(5, 1), some_tokens(2, 2)};
  GenerateOptions options{.tokens = 9, .seed = 4};
  const std::vector<Tokens> whole = model.generate(prompts, options);
  options.stop = whole[0][3];
  std::vector<Tokens> told(2);
  options.on_token = [&](size_t row, int64_t token) { told[row].push_back(token); };
  const std::vector<Tokens> stopped = model.generate(prompts, options);
  for (size_t row = 0; row < 2; ++row) {
    auto end = std::find(whole[row].begin(), whole[row].end(), *options.stop);
    if (end != whole[row].end()) ++end;
    CHECK(stopped[row] == Tokens(whole[row].begin(), end));
  }
  CHECK(stopped[0].size() <= 4);
  CHECK(told == stopped);
  CHECK(model.generate({}, options).empty());
  options.tokens = 0;
  CHECK(model.generate(prompts, options) == std::vector<Tokens>(2));
}

TEST_CASE("a state, saved and restored, goes on with the same bits") {
  const TemporaryFolder folder;
  for (const std::string name : {"sa", "la", "ea-6"}) {
    const Model model(tiny(name, DType::f32));
    GenerationState state = model.make_state(2), restored = model.make_state(2);
    const Tensor mask = to(from_vector<bool>({true, true, true, true, false, false}, {2, 3}), test_device());
    model.prefill(on_device(some_tokens(6), {2, 3}), mask, state);
    save_safetensors(folder / "state.safetensors", state.named_tensors());
    restored.set_tensors(load_safetensors(folder / "state.safetensors"));
    CHECK(restored.positions == Tokens{3, 1});
    for (int64_t i = 0; i < 3; ++i) {
      const Tensor next = on_device({i, i + 4}, {2});
      CHECK(values_of(model.step(next, state)) == values_of(model.step(next, restored)));
    }
  }
}

TEST_CASE("the loss is the cross entropy of forward's logits over what is not padding") {
  for (const std::string name : {"sa", "ea-6"}) {
    const Model model(tiny(name));
    const Tensor tokens = on_device(some_tokens(12), {2, 6});
    const Tokens targets{3, 1, 4, 1, 5, 9, 2, 6, kNoTarget, kNoTarget, kNoTarget, kNoTarget};
    const Tensor loss = model.loss(tokens, on_device(targets, {2, 6}));
    const Values logits = values_of(model.forward(tokens).detach());
    double expected = 0;
    for (size_t i = 0; i < 8; ++i) {
      double total = 0;
      for (size_t c = 0; c < kVocabulary; ++c) total += std::exp(logits[i * kVocabulary + c]);
      expected += (std::log(total) - logits[i * kVocabulary + static_cast<size_t>(targets[i])]) / 8;
    }
    check_close({loss.item()}, {expected}, kF64Tolerance, name);
    loss.backward();
    for (const auto& [parameter_name, parameter] : model.named_parameters()) {
      CHECK_MESSAGE(parameter.grad().defined(), parameter_name);
    }
    check_close({model.loss(tokens, on_device(targets, {2, 6}), /*checkpoint_layers=*/true).item()},
                {expected}, kF64Tolerance, name);
  }
}

TEST_CASE("steps with EA-series need no more memory, however many there are") {
  const Model model(tiny("ea-6", DType::f32));
  GenerationState state = model.make_state(2);
  const int64_t bytes = state.bytes();
  CHECK(bytes == 2 * 2 * 24 * (2 * 7 + 1) * 4);
  const Tensor next = on_device({1, 2}, {2});
  MemoryCount after_three;
  for (int step = 0; step < 30; ++step) {
    if (step == 2) reset_memory_peak(test_device());
    model.step(next, state);
    if (step == 2) after_three = memory_stats(test_device()).total;
  }
  CHECK(memory_stats(test_device()).total.now == after_three.now);
  CHECK(memory_stats(test_device()).total.peak == after_three.peak);
  CHECK(state.bytes() == bytes);
}

TEST_CASE("BERT-base's size by default, the table shared with the head") {
  const BertConfig config{.attention = nn::Mechanism::parse("ea-6"), .options = {.device = kMeta}};
  const int64_t bert = 109'482'240, pooler = 768 * 768 + 768, types = 2 * 768;
  CHECK(Decoder(config).parameter_count() == bert - pooler - types + 768 * 768 + 768 + 2 * 768 + 30522);
  BertConfig pre = config;
  pre.norm = nn::NormPlacement::pre;
  CHECK(Decoder(pre).parameter_count() == Decoder(config).parameter_count() + 2 * 768);
  CHECK(Decoder(pre).config().causal);
}

TEST_CASE("a config is read back as it was written") {
  const TemporaryFolder folder;
  BertConfig config = tiny("ea-4", DType::f64);
  config.norm = nn::NormPlacement::pre;
  config.sinusoidal = true;
  config.dropout = 0.125;
  config.attention_dropout = 0.25;
  const Model model(config);
  save_config(folder / "model", model.config());
  const BertConfig read = load_config(folder / "model", test_device());
  CHECK(read.causal);
  CHECK(read.dropout == 0.125);
  CHECK(read.attention_dropout == 0.25);
  CHECK(read.options.dtype == DType::f64);
  const Tensor tokens = on_device(some_tokens(5), {1, 5});
  CHECK(values_of(Model(read).forward(tokens)) == values_of(model.forward(tokens)));

  const std::string path = (folder / "model" / "config.json").string();
  folder.write("model/config.json", "{}");
  CHECK_THROWS_WITH_AS(load_config(folder / "model"),
                       doctest::Contains(("config: " + path + " is damaged: ").c_str()), Error);
  CHECK_THROWS_WITH_AS(load_config(folder / "none"), doctest::Contains("cannot open"), Error);
}

TEST_CASE("errors of generation") {
  const Model model(tiny("ea-6"));
  check_error([&] { model.generate({some_tokens(2), {}}); }, "generate: expected prompts of 1 token or more");
  check_error([&] { model.generate({some_tokens(30)}, {.tokens = 20}); },
              "generate: expected prompt and new tokens to be at most 40 positions, got 30 and 20");
  CHECK(model.generate({some_tokens(30)}, {.tokens = 11})[0].size() == 11);
  check_error([&] { model.generate({some_tokens(2)}, {.sampling = {.top_p = 2}}); },
              "sampling: expected a top-p above 0, at most 1, got 2");
  CHECK_THROWS_WITH_AS(model.generate({{kVocabulary}}, {.tokens = 1}),
                       doctest::Contains("index 23 at 0 is outside [0, 23)"), Error);
  GenerationState state = model.make_state(2);
  check_error([&] { model.step(on_device({1}, {1}), state); },
              "bert: expected a token for each of 2 rows, got [1]");
  check_error(
      [&] {
        model.loss(on_device({1, 2}, {1, 2}), on_device({1}, {1, 1}));
      },
      "decoder: expected a target for each of the tokens [1, 2], got [1, 1]");
  const Tensor mask = to(from_vector<bool>({true, true, false, false}, {2, 2}), test_device());
  check_error(
      [&] {
        model.prefill(on_device({1, 2, 3, 4}, {2, 2}), mask, state);
      },
      "decoder: expected a visible token in each prompt, row 1 has none");
  check_error([&] { state.set_tensors({}); }, "generation state: positions are missing");
  const Decoder training(tiny("ea-6"));
  check_error([&] { training.generate({some_tokens(2)}, {.tokens = 1}); },
              "attention: a state is for inference: expected eval() before");
}

}  // namespace
}  // namespace elwise::models
