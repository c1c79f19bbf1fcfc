#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "models/generation_state.h"
#include "nn/checkpoint.h"
#include "nn/embedding.h"
#include "nn/encoder.h"

namespace elwise::models {

/// The longest sequence for which BertConfig::for_length learns positions.
inline constexpr int64_t kLongestPositionTable = 8192;

/// BERT (Devlin et al., arXiv 1810.04805) with any attention mechanism. The defaults are BERT-base's.
struct BertConfig {
  int64_t vocabulary = 30522;
  int64_t hidden = 768;
  int64_t layers = 12;
  int64_t heads = 12;
  int64_t intermediate = 3072;
  int64_t positions = 512;         // the longest sequence; AFT learns positions^2 biases in each layer
  bool sinusoidal = false;         // fixed positions without parameters, in place of the learned table
  int64_t token_types = 2;         // 0: no such table
  double dropout = 0.1;            // of embeddings and block outputs, while training
  double attention_dropout = 0.1;  // of SA's weights, while training
  double eps = 1e-12;
  double initializer_deviation = 0.02;
  nn::NormPlacement norm = nn::NormPlacement::post;
  nn::Mechanism attention = {};  // SA
  bool causal = false;
  bool pooler = true;
  TensorOptions options = {};

  /// The same model with at least `length` positions; above kLongestPositionTable they are sinusoidal.
  BertConfig for_length(int64_t length) const;
};

/// A batch of tokens. All [batch, length].
struct BertInput {
  Tensor tokens;       // i64 in [0, vocabulary)
  Tensor token_types;  // i64 in [0, token_types); undefined: all 0
  Tensor key_mask;     // bool, true = visible; undefined: all are
};

/// Embeddings, encoder and pooler; 109,482,240 parameters at the default size. Parameter names are those of
/// Hugging Face's bert-base-uncased, without the leading "bert.".
class Bert : public nn::Module {
 public:
  /// Throws Error for sizes that are not positive or heads that do not divide hidden.
  explicit Bert(const BertConfig& config);

  /// The last layer's hidden states [batch, length, hidden]. `hidden_states`, if given, receives the
  /// embedding output and each layer's. With `checkpoint_layers`, activations inside a layer are recomputed
  /// in backward. Throws Error for more tokens than positions.
  Tensor forward(const BertInput& input, bool checkpoint_layers = false,
                 std::vector<Tensor>* hidden_states = nullptr) const;

  /// tanh(dense(the first token's hidden state)): [batch, hidden]. Throws Error without a pooler.
  Tensor pool(const Tensor& hidden) const;

  // Generation: the causal forward, a piece at a time; see nn::SelfAttention, whose errors these are.

  /// The state of `batch` rows that have seen no token.
  GenerationState make_state(int64_t batch) const;
  /// forward(input) from `state` on, which is left behind the last visible token of each row: padding belongs
  /// on the right. Throws Error for more tokens than positions.
  Tensor prefill(const BertInput& input, GenerationState& state) const;
  /// One token more for every row, each at its own position: tokens i64 [batch] -> hidden states [batch,
  /// hidden].
  Tensor step(const Tensor& tokens, GenerationState& state) const;
  /// nn::SelfAttention::skip in every layer: for timing a step at a position.
  void skip(int64_t tokens, GenerationState& state) const;

  const BertConfig& config() const { return config_; }
  /// The token table [vocabulary, hidden], which the masked-language-model head shares.
  const Tensor& token_table() const { return embeddings_.words.weight(); }

 private:
  struct Embeddings : Module {
    explicit Embeddings(const BertConfig& config);
    nn::Embedding words;
    std::optional<nn::Embedding> positions;  // absent with sinusoidal positions
    Tensor fixed_positions;                  // [positions, hidden], with them
    const Tensor& position_table() const { return positions ? positions->weight() : fixed_positions; }
    std::optional<nn::Embedding> types;
    nn::LayerNorm norm;
    nn::Dropout dropout;
  };
  struct Pooler : Module {
    explicit Pooler(const BertConfig& config);
    nn::Linear dense;
  };

  Tensor embed(const Tensor& tokens, const Tensor& token_types, const Tensor& positions) const;
  Tensor embed(const BertInput& input, const std::vector<int64_t>& seen) const;
  Tensor position_rows(const std::vector<int64_t>& seen, int64_t length) const;

  BertConfig config_;
  Embeddings embeddings_;
  nn::Encoder encoder_;
  std::optional<Pooler> pooler_;
};

/// Scores every token of the vocabulary for chosen positions: BERT's masked-language-model head, which serves
/// a causal language model as well. dense, GELU, LayerNorm, the token table
/// transposed, a bias.
class LmHead : public nn::Module {
 public:
  explicit LmHead(const BertConfig& config);

  /// hidden [n, hidden], token_table [vocabulary, hidden] -> logits [n, vocabulary].
  Tensor forward(const Tensor& hidden, const Tensor& token_table) const;
  /// linear_cross_entropy of these logits, with its errors: the mean over the n labels i64 [n].
  Tensor loss(const Tensor& hidden, const Tensor& token_table, const Tensor& labels) const;

 private:
  struct Transform : Module {
    explicit Transform(const BertConfig& config);
    Tensor forward(const Tensor& hidden) const { return norm.forward(gelu(dense.forward(hidden))); }
    nn::Linear dense;
    nn::LayerNorm norm;
  };
  struct Predictions : Module {
    explicit Predictions(const BertConfig& config);
    Transform transform;
    Tensor bias;
  };
  Predictions predictions_;
};

/// BERT with the masked-language-model head ("bert." and "cls.predictions.").
class BertForMaskedLm : public nn::Module {
 public:
  explicit BertForMaskedLm(const BertConfig& config);

  /// Mean cross entropy at the masked positions only. masked: i64 [n], indices into the flattened [batch *
  /// length]; labels: i64 [n], the tokens that stood there.
  Tensor loss(const BertInput& input, const Tensor& masked, const Tensor& labels,
              bool checkpoint_layers = false) const;

  const Bert& bert() const { return bert_; }

 private:
  Bert bert_;
  LmHead head_;
};

/// BERT with dropout and a linear classifier on the pooled first token ("bert." and "classifier.").
class BertForSequenceClassification : public nn::Module {
 public:
  BertForSequenceClassification(const BertConfig& config, int64_t classes);

  /// Logits [batch, classes].
  Tensor forward(const BertInput& input) const;

 private:
  Bert bert_;
  nn::Dropout dropout_;
  nn::Linear classifier_;
};

/// Number of masked positions of a batch: round(0.15 batch length), at least 1.
int64_t masked_positions(int64_t batch, int64_t length);

/// Loads a Hugging Face BERT safetensors file into a model that holds a Bert as "bert" (or into a Bert).
/// Older names (gamma, beta) and files without the leading "bert." are understood. What did not match is
/// reported, not an error: heads differ.
nn::LoadReport load_bert(const std::filesystem::path& path, const nn::Module& model);

}  // namespace elwise::models
