#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "models/bert.h"
#include "models/sampling.h"

namespace elwise::models {

/// The target of a token without a successor, or of padding: it counts for nothing in the loss.
inline constexpr int64_t kNoTarget = -100;

struct GenerateOptions {
  int64_t tokens = 128;  // new ones for each prompt, at most
  SamplingOptions sampling = {};
  uint64_t seed = 0;                 // the same seed draws the same tokens, whatever the other prompts are
  std::optional<int64_t> stop = {};  // a row ends with this token
  /// Called with each new token as soon as it is drawn, and the number of its prompt.
  std::function<void(size_t row, int64_t token)> on_token = {};
};

/// A causal language model with any attention mechanism: BERT's embeddings and encoder, causal, without token
/// types and pooler, and BERT's head, which shares the token table. With Pre-LN a last LayerNorm stands
/// before the head. BERT-base's size by default. Parameter names are those of Hugging Face's BertLMHeadModel
/// ("bert.", "cls.predictions.").
class Decoder : public nn::Module {
 public:
  /// Sets config.causal, .token_types and .pooler. Throws Error as Bert does.
  explicit Decoder(BertConfig config);

  /// Scores of the token after each: tokens i64 [batch, length], key_mask bool [batch, length] (true =
  /// visible) or undefined -> logits [batch, length, vocabulary].
  Tensor forward(const Tensor& tokens, const Tensor& key_mask = {}) const;

  /// Mean cross entropy, in nats, of the tokens that follow. targets: i64 [batch, length], the token after
  /// each of `tokens`, or kNoTarget. Padding on the right needs no mask: no token before it sees it.
  Tensor loss(const Tensor& tokens, const Tensor& targets, bool checkpoint_layers = false) const;

  // Generation; none of these records a gradient. Each throws Error before eval().

  GenerationState make_state(int64_t batch) const { return bert_.make_state(batch); }
  /// Takes up prompts [batch, length], padded on the right where key_mask is false: logits [batch,
  /// vocabulary] of the token after each row's last visible one.
  Tensor prefill(const Tensor& tokens, const Tensor& key_mask, GenerationState& state) const;
  /// One token more for every row, i64 [batch] -> logits [batch, vocabulary] of the next.
  Tensor step(const Tensor& tokens, GenerationState& state) const;
  /// See Bert::skip.
  void skip(int64_t tokens, GenerationState& state) const;

  /// New tokens for each prompt, all prompts in one batch. Throws Error for an empty prompt, a token outside
  /// the vocabulary, and more tokens than positions.
  std::vector<std::vector<int64_t>> generate(const std::vector<std::vector<int64_t>>& prompts,
                                             const GenerateOptions& options = {}) const;

  const BertConfig& config() const { return bert_.config(); }
  /// Embeddings and encoder, without the last LayerNorm of Pre-LN and the head.
  const Bert& bert() const { return bert_; }

 private:
  /// Logits of hidden states [n, hidden].
  Tensor score(const Tensor& hidden) const;

  Bert bert_;
  std::optional<nn::LayerNorm> norm_;  // with Pre-LN
  LmHead head_;
};

}  // namespace elwise::models
