#include "nn/attention_state.h"

#include <cmath>

#include "autograd/grad_mode.h"
#include "core/safetensors.h"
#include "nn/encoder.h"
#include "ops/elementwise.h"
#include "ops/view.h"
#include "tests/support/op_test.h"
#include "tests/support/temporary_folder.h"

// Generation: prompts and steps against the causal forward, for every mechanism.

namespace elwise::nn {
namespace {

using testing::check_close;
using testing::check_error;
using testing::kF64Tolerance;
using testing::tolerance_of;
using testing::uniform;
using testing::Values;
using testing::values_of;

constexpr int64_t kBatch = 3, kLength = 9, kHidden = 6, kPositions = 300;

const std::vector<std::string> kNames{
    "sa", "sa-tiled", "la", "aft", "ea", "ea-0", "ea-2", "ea-6", "ea-series-composed-2", "none"};

AttentionConfig config_of(const std::string& name, DType dtype = DType::f64) {
  return {.mechanism = Mechanism::parse(name),
          .hidden = kHidden,
          .heads = 2,
          .positions = kPositions,
          .causal = true,
          .options = {.dtype = dtype}};
}

Tensor input(DType dtype, int64_t length = kLength) {
  return cast(uniform({kBatch, length, kHidden}), dtype).detach();
}

Tensor token(const Tensor& x, int64_t i) {
  return reshape(slice(x, 1, i, i + 1), {x.size(0), x.size(2)});
}

/// Rows [begin, end) of batch entry b.
Tensor entry(const Tensor& x, int64_t b, int64_t begin, int64_t end) {
  return slice(slice(x, 0, b, b + 1), 1, begin, end);
}

/// The answers to x, the first `prompt` tokens at once and then one by one. `Model` is an attention, a layer
/// or an encoder, `State` its state.
template <class Model, class State>
Tensor generate(const Model& model, const Tensor& x, int64_t prompt, State& state) {
  std::vector<Tensor> rows;
  if (prompt > 0) rows.push_back(model.prefill(slice(x, 1, 0, prompt), {}, state));
  for (int64_t i = prompt; i < x.size(1); ++i) {
    rows.push_back(reshape(model.step(token(x, i), state), x.shape().with(1, 1)));
  }
  return concat(rows, 1);
}

TEST_CASE("prompts and steps give what forward gives at every position") {
  const NoGradGuard inference;
  for (const std::string& name : kNames) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      SelfAttention attention(config_of(name, dtype));
      attention.eval();
      const Tensor x = input(dtype);
      const Values expected = values_of(attention.forward(x));
      for (const int64_t prompt : {int64_t{0}, int64_t{1}, int64_t{5}, kLength}) {
        AttentionState state = attention.make_state(kBatch);
        check_close(values_of(generate(attention, x, prompt, state)), expected, tolerance_of(dtype), name);
      }
    }
  }
}

TEST_CASE("prompts of different lengths: each row goes on as if it were alone") {
  const NoGradGuard inference;
  const int64_t prompt = 5, lengths[kBatch] = {5, 1, 3};
  std::vector<uint8_t> shown;
  for (const int64_t length : lengths) {
    for (int64_t i = 0; i < prompt; ++i) shown.push_back(i < length);
  }
  Tensor mask = empty({kBatch, prompt}, {.dtype = DType::boolean});
  std::copy(shown.begin(), shown.end(), mask.data<bool>());
  for (const std::string& name : kNames) {
    SelfAttention attention(config_of(name));
    attention.eval();
    const Tensor x = input(DType::f64);
    AttentionState together = attention.make_state(kBatch);
    const Tensor answers = attention.prefill(slice(x, 1, 0, prompt), mask, together);
    const Tensor steps = generate(attention, slice(x, 1, prompt, kLength), 0, together);
    for (int64_t b = 0; b < kBatch; ++b) {
      AttentionState alone = attention.make_state(1);
      const Tensor its = concat({entry(x, b, 0, lengths[b]), entry(x, b, prompt, kLength)}, 1);
      const Tensor expected = generate(attention, its, lengths[b], alone);
      const Tensor actual =
          concat({entry(answers, b, 0, lengths[b]), entry(steps, b, 0, kLength - prompt)}, 1);
      check_close(values_of(actual), values_of(expected), kF64Tolerance, name);
    }
  }
}

TEST_CASE("a state that never grows takes up a prompt in pieces, a cache wants it whole") {
  const NoGradGuard inference;
  for (const std::string name : {"la", "ea-6", "none"}) {
    SelfAttention attention(config_of(name));
    attention.eval();
    const Tensor x = input(DType::f64);
    AttentionState state = attention.make_state(kBatch);
    const Tensor first = attention.prefill(slice(x, 1, 0, 4), {}, state);
    const Tensor rest = attention.prefill(slice(x, 1, 4, kLength), {}, state);
    check_close(values_of(concat({first, rest}, 1)), values_of(attention.forward(x)), kF64Tolerance, name);
  }
  for (const std::string name : {"sa", "aft", "ea"}) {
    SelfAttention attention(config_of(name));
    attention.eval();
    AttentionState state = attention.make_state(kBatch);
    attention.prefill(input(DType::f64), {}, state);
    check_error([&] { attention.prefill(input(DType::f64), {}, state); },
                "attention: expected an empty cache before a prefill, got one with 9 keys");
  }
}

TEST_CASE("a state's size: moments keep theirs, a cache grows by 256 rows") {
  const NoGradGuard inference;
  const std::map<std::string, std::pair<int64_t, int64_t>> expected{
      {"ea-6", {kBatch * kHidden * (2 * 7 + 1) * 4, kBatch * kHidden * (2 * 7 + 1) * 4}},
      {"la", {kBatch * 2 * (3 * 3 + 3) * 4, kBatch * 2 * (3 * 3 + 3) * 4}},
      {"sa", {kBatch * 8, kBatch * (8 + 2 * 256 * kHidden * 4)}},
      {"none", {0, 0}}};
  for (const auto& [name, bytes] : expected) {
    SelfAttention attention(config_of(name, DType::f32));
    attention.eval();
    AttentionState state = attention.make_state(kBatch);
    CHECK_MESSAGE(state.bytes() == bytes.first, name);
    generate(attention, input(DType::f32), 2, state);
    CHECK_MESSAGE(state.bytes() == bytes.second, name);
  }
}

TEST_CASE("skipped tokens count as seen, and what comes after them is finite") {
  const NoGradGuard inference;
  for (const std::string& name : kNames) {
    SelfAttention attention(config_of(name, DType::f32));
    attention.eval();
    AttentionState state = attention.make_state(kBatch);
    attention.skip(0, state);
    attention.skip(257, state);
    if (const auto* cache = std::get_if<KeyValueCache>(&state.memory)) {
      CHECK(cache->longest == 257);
      CHECK(values_of(cache->lengths) == Values(kBatch, 257));
    } else {
      CHECK(state.bytes() == attention.make_state(kBatch).bytes());
    }
    const Tensor x = token(input(DType::f32), 0);
    for (const double value : values_of(attention.step(x, state))) CHECK(std::isfinite(value));
  }
}

TEST_CASE("every mechanism steps on meta") {
  const NoGradGuard inference;
  for (const std::string& name : kNames) {
    AttentionConfig config = config_of(name, DType::f32);
    config.options.device = kMeta;
    SelfAttention attention(config);
    attention.eval();
    AttentionState state = attention.make_state(kBatch);
    CHECK(attention.prefill(empty({kBatch, kLength, kHidden}, config.options), {}, state).shape() ==
          Shape{kBatch, kLength, kHidden});
    attention.skip(20, state);
    CHECK(attention.step(empty({kBatch, kHidden}, config.options), state).shape() == Shape{kBatch, kHidden});
  }
}

EncoderConfig encoder_config(const std::string& name, NormPlacement norm, DType dtype = DType::f64) {
  return {.attention = config_of(name, dtype), .intermediate = 10, .dropout = 0.1, .norm = norm};
}

TEST_CASE("an encoder generates what it computes in parallel, Post-LN and Pre-LN") {
  const NoGradGuard inference;
  for (const std::string name : {"sa", "ea-6"}) {
    for (const NormPlacement norm : {NormPlacement::post, NormPlacement::pre}) {
      Encoder encoder(encoder_config(name, norm), 2);
      encoder.eval();
      const Tensor x = input(DType::f64);
      std::vector<AttentionState> states = encoder.make_states(kBatch);
      check_close(values_of(generate(encoder, x, 4, states)), values_of(encoder.forward(x)), kF64Tolerance,
                  name);
      const int64_t before = state_bytes(states);
      encoder.skip(1, states);
      CHECK(state_bytes(states) == before);
    }
  }
}

TEST_CASE("a model's states, in one file, go on with the same bits") {
  const TemporaryFolder folder;
  const NoGradGuard inference;
  for (const std::string name : {"sa", "la", "aft", "ea", "ea-6", "none"}) {
    Encoder encoder(encoder_config(name, NormPlacement::post, DType::f32), 2);
    encoder.eval();
    const Tensor x = input(DType::f32);
    std::vector<AttentionState> states = encoder.make_states(kBatch), restored = encoder.make_states(kBatch);
    generate(encoder, slice(x, 1, 0, 6), 4, states);
    save_safetensors(folder / "states.safetensors", named_tensors(states));
    const auto tensors = load_safetensors(folder / "states.safetensors");
    set_tensors(restored, tensors);
    for (int64_t i = 6; i < kLength; ++i) {
      CHECK_MESSAGE(
          values_of(encoder.step(token(x, i), restored)) == values_of(encoder.step(token(x, i), states)),
          name);
    }
    std::vector<AttentionState> again = encoder.make_states(kBatch);
    set_tensors(again, tensors);  // the steps have not touched what was loaded
    CHECK(values_of(encoder.step(token(x, 6), again)).size() == kBatch * kHidden);
    for (const auto& [key, tensor] : named_tensors(again)) CHECK(key.find('.') == 1);
  }
}

TEST_CASE("errors of states") {
  AttentionConfig config = config_of("ea-6");
  config.causal = false;
  SelfAttention both_ways(config), attention(config_of("ea-6")), softmax(config_of("sa"));
  both_ways.eval();
  check_error([&] { both_ways.make_state(1); }, "attention: only a causal one has a state, ea-6 here is not");
  check_error([&] { attention.make_state(1); },
              "attention: a state is for inference: expected eval() before");
  attention.eval();
  softmax.eval();
  AttentionState state = attention.make_state(2), cache = softmax.make_state(2);
  const Tensor x = uniform({2, kHidden});
  check_error([&] { attention.step(x, cache); }, "attention: expected a state made by make_state() of ea-6");
  check_error([&] { attention.step(x, state); },
              "ea_series_step: has no gradient, but an input requires one (call it under NoGradGuard)");
  const NoGradGuard inference;
  check_error([&] { attention.skip(-1, state); }, "attention: expected to skip 0 tokens or more, got -1");
  check_error([&] { state.set_tensors({{"s", x}}); }, "attention state: expected 3 tensors, got 1");
  check_error([&] { cache.set_tensors(state.named_tensors()); }, "attention state: k is missing");
  auto tensors = state.named_tensors();
  tensors.at("kappa") = cast(x, DType::f32);
  check_error([&] { state.set_tensors(tensors); },
              "attention state: expected kappa of shape [2, 6] and dtype f64, got [2, 6] and f32");
  auto rows = cache.named_tensors();
  rows.at("v") = uniform({2, 4, kHidden});
  check_error([&] { cache.set_tensors(rows); },
              "attention state: expected k and v of one shape, got [2, 0, 6] and [2, 4, 6]");

  Encoder encoder(encoder_config("ea-6", NormPlacement::post), 2);
  encoder.eval();
  std::vector<AttentionState> states = encoder.make_states(2), one{state};
  check_error([&] { encoder.step(x, one); }, "Encoder: expected a state for each of 2 layers, got 1");
  check_error([&] { set_tensors(states, {{"2.s", x}}); }, "attention state: 2.s belongs to none of 2 layers");
}

}  // namespace
}  // namespace elwise::nn
