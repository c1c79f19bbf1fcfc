#include "models/decoder.h"

#include <algorithm>

#include "autograd/grad_mode.h"
#include "core/random.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/loss.h"
#include "ops/view.h"

namespace elwise::models {
namespace {

BertConfig decoder_config(BertConfig config) {
  config.causal = true;
  config.token_types = 0;
  config.pooler = false;
  return config;
}

/// Prompts in one tensor, padded on the right.
struct Padded {
  Tensor tokens;    // i64 [batch, length]
  Tensor key_mask;  // bool [batch, length]
};

Padded pad(const std::vector<std::vector<int64_t>>& prompts, Device device) {
  size_t length = 0;
  for (const auto& prompt : prompts) length = std::max(length, prompt.size());
  const Shape shape{static_cast<int64_t>(prompts.size()), static_cast<int64_t>(length)};
  std::vector<int64_t> tokens;
  std::vector<bool> visible;
  for (const auto& prompt : prompts) {
    tokens.insert(tokens.end(), prompt.begin(), prompt.end());
    visible.insert(visible.end(), prompt.size(), true);
    tokens.resize(tokens.size() + length - prompt.size(), 0);
    visible.resize(tokens.size(), false);
  }
  return {.tokens = to(from_vector(tokens, shape), device),
          .key_mask = to(from_vector(visible, shape), device)};
}

/// Number `step` of a row's own stream of uniform numbers in [0, 1), with 53 bits.
double uniform_number(uint64_t seed, size_t row, int64_t step) {
  constexpr uint64_t kRowStride = uint64_t{1} << 40;
  const Philox4 bits = philox(seed, row * kRowStride + static_cast<uint64_t>(step));
  return static_cast<double>(((uint64_t{bits.word[0]} << 32) | bits.word[1]) >> 11) * 0x1p-53;
}

std::vector<double> on_host_in_double(const Tensor& logits) {
  return on_host(cast(logits, DType::f64)).to_vector<double>();
}

}  // namespace

Decoder::Decoder(BertConfig config) : bert_(decoder_config(std::move(config))), head_(bert_.config()) {
  add_module("bert", bert_);
  if (this->config().norm == nn::NormPlacement::pre) {
    add_module("LayerNorm", norm_.emplace(this->config().hidden, this->config().eps, this->config().options));
  }
  add_module("cls", head_);
}

Tensor Decoder::score(const Tensor& hidden) const {
  return head_.forward(norm_ ? norm_->forward(hidden) : hidden, bert_.token_table());
}

Tensor Decoder::forward(const Tensor& tokens, const Tensor& key_mask) const {
  const Tensor hidden = bert_.forward({.tokens = tokens, .token_types = {}, .key_mask = key_mask});
  return reshape(score(reshape(hidden, {-1, config().hidden})),
                 {tokens.size(0), tokens.size(1), config().vocabulary});
}

Tensor Decoder::loss(const Tensor& tokens, const Tensor& targets, bool checkpoint_layers) const {
  ELWISE_CHECK(targets.shape() == tokens.shape(), "decoder: expected a target for each of the tokens ",
               tokens.shape(), ", got ", targets.shape());
  const Tensor hidden =
      bert_.forward({.tokens = tokens, .token_types = {}, .key_mask = {}}, checkpoint_layers);
  return cross_entropy(score(reshape(hidden, {-1, config().hidden})), reshape(targets, {-1}), kNoTarget);
}

Tensor Decoder::prefill(const Tensor& tokens, const Tensor& key_mask, GenerationState& state) const {
  const NoGradGuard inference;
  std::vector<int64_t> last = state.positions;
  const Tensor hidden = bert_.prefill({.tokens = tokens, .token_types = {}, .key_mask = key_mask}, state);
  const int64_t length = tokens.size(1);
  for (size_t row = 0; row < last.size(); ++row) {
    const int64_t visible = state.positions[row] - last[row];
    ELWISE_CHECK(visible > 0, "decoder: expected a visible token in each prompt, row ", row, " has none");
    last[row] = static_cast<int64_t>(row) * length + visible - 1;
  }
  const Tensor index = elwise::to(from_vector(last, {static_cast<int64_t>(last.size())}), hidden.device());
  return score(index_select(reshape(hidden, {-1, config().hidden}), 0, index));
}

Tensor Decoder::step(const Tensor& tokens, GenerationState& state) const {
  const NoGradGuard inference;
  return score(bert_.step(tokens, state));
}

void Decoder::skip(int64_t tokens, GenerationState& state) const {
  const NoGradGuard inference;
  bert_.skip(tokens, state);
}

std::vector<std::vector<int64_t>> Decoder::generate(const std::vector<std::vector<int64_t>>& prompts,
                                                    const GenerateOptions& options) const {
  Sampler sampler(options.sampling);
  for (const auto& prompt : prompts)
    ELWISE_CHECK(!prompt.empty(), "generate: expected prompts of 1 token or more");
  std::vector<std::vector<int64_t>> result(prompts.size());
  if (prompts.empty() || options.tokens <= 0) return result;
  const Device device = config().options.device;
  const Padded padded = pad(prompts, device);
  const int64_t longest = padded.tokens.size(1);
  ELWISE_CHECK(longest + options.tokens - 1 <= config().positions,  // the last one is not read again
               "generate: expected prompt and new tokens to be at most ", config().positions,
               " positions, got ", longest, " and ", options.tokens);
  GenerationState state = make_state(static_cast<int64_t>(prompts.size()));
  Tensor logits = prefill(padded.tokens, padded.key_mask, state);
  std::vector<int64_t> next(prompts.size());
  std::vector<bool> ended(prompts.size(), false);
  std::vector<double> row_logits(static_cast<size_t>(config().vocabulary));
  for (int64_t step_number = 0;; ++step_number) {
    const std::vector<double> values = on_host_in_double(logits);
    for (size_t row = 0; row < prompts.size(); ++row) {
      if (ended[row]) continue;
      const auto begin = values.begin() + static_cast<int64_t>(row) * config().vocabulary;
      std::copy(begin, begin + config().vocabulary, row_logits.begin());
      next[row] = sampler.draw(row_logits, uniform_number(options.seed, row, step_number));
      result[row].push_back(next[row]);
      if (options.on_token) options.on_token(row, next[row]);
      ended[row] = next[row] == options.stop;
    }
    const bool all_ended = std::find(ended.begin(), ended.end(), false) == ended.end();
    if (all_ended || step_number + 1 == options.tokens) return result;
    logits = step(elwise::to(from_vector(next, {static_cast<int64_t>(next.size())}), device), state);
  }
}

}  // namespace elwise::models
