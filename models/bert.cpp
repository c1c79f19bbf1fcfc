#include "models/bert.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/checkpoint.h"
#include "core/safetensors.h"
#include "nn/init.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/loss.h"
#include "ops/matmul.h"
#include "ops/view.h"

namespace elwise::models {
namespace {

nn::EncoderConfig encoder_config(const BertConfig& config) {
  return {.attention = {.mechanism = config.attention,
                        .hidden = config.hidden,
                        .heads = config.heads,
                        .positions = config.positions,
                        .causal = config.causal,
                        .dropout = config.attention_dropout,
                        .options = config.options},
          .intermediate = config.intermediate,
          .dropout = config.dropout,
          .eps = config.eps,
          .norm = config.norm};
}

/// The tokens of each row that are not padding. On meta all are.
std::vector<int64_t> visible_tokens(const Tensor& key_mask, int64_t batch, int64_t length) {
  std::vector<int64_t> result(static_cast<size_t>(batch), length);
  if (!key_mask.defined() || key_mask.device() == kMeta) return result;
  const std::vector<bool> visible = key_mask.to_vector<bool>();
  for (size_t row = 0; row < result.size(); ++row) {
    const auto begin = visible.begin() + static_cast<int64_t>(row) * length;
    result[row] = std::count(begin, begin + length, true);
  }
  return result;
}

}  // namespace

BertConfig BertConfig::for_length(int64_t length) const {
  BertConfig config = *this;
  config.positions = std::max(length, positions);
  config.sinusoidal = sinusoidal || config.positions > kLongestPositionTable;
  return config;
}

Bert::Embeddings::Embeddings(const BertConfig& config)
    : words(config.vocabulary, config.hidden, config.options),
      norm(config.hidden, config.eps, config.options),
      dropout(config.dropout) {
  add_module("word_embeddings", words);
  if (config.sinusoidal) {
    const MemoryTagGuard tag(MemoryTag::parameters);
    // As large as the token table, whose deviation this is.
    fixed_positions = mul(nn::sinusoidal_positions(config.positions, config.hidden, config.options),
                          std::numbers::sqrt2 * config.initializer_deviation);
  } else {
    add_module("position_embeddings", positions.emplace(config.positions, config.hidden, config.options));
  }
  if (config.token_types > 0) {
    add_module("token_type_embeddings", types.emplace(config.token_types, config.hidden, config.options));
  }
  add_module("LayerNorm", norm);
  add_module("dropout", dropout);
}

Bert::Pooler::Pooler(const BertConfig& config) : dense(config.hidden, config.hidden, config.options) {
  add_module("dense", dense);
}

Bert::Bert(const BertConfig& config)
    : config_(config), embeddings_(config), encoder_(encoder_config(config), config.layers) {
  add_module("embeddings", embeddings_);
  add_module("encoder", encoder_);
  if (config.pooler) add_module("pooler", pooler_.emplace(config));
  nn::initialize_bert(*this, config.initializer_deviation);
}

Tensor Bert::position_rows(const std::vector<int64_t>& seen, int64_t length) const {
  const auto [least, most] = std::minmax_element(seen.begin(), seen.end());
  ELWISE_CHECK(*most + length <= config_.positions, "bert: expected at most ", config_.positions,
               " tokens, got ", *most + length, " (BertConfig::for_length makes room)");
  const Tensor& table = embeddings_.position_table();
  if (*least == *most) return slice(table, 0, *most, *most + length);
  std::vector<int64_t> index;
  for (const int64_t before : seen) {
    for (int64_t i = 0; i < length; ++i) index.push_back(before + i);
  }
  const Shape shape{static_cast<int64_t>(seen.size()), length};
  return embedding(table, elwise::to(from_vector(index, shape), table.device()));
}

Tensor Bert::embed(const Tensor& tokens, const Tensor& token_types, const Tensor& positions) const {
  Tensor summed = add(embeddings_.words.forward(tokens), positions);
  if (embeddings_.types) {
    const nn::Embedding& types = *embeddings_.types;
    summed = add(summed, token_types.defined() ? types.forward(token_types) : slice(types.weight(), 0, 0, 1));
  } else {
    ELWISE_CHECK(!token_types.defined(), "bert: expected no token types, the model has no table of them");
  }
  return embeddings_.dropout.forward(embeddings_.norm.forward(summed));
}

Tensor Bert::embed(const BertInput& input, const std::vector<int64_t>& seen) const {
  const Tensor& tokens = input.tokens;
  ELWISE_CHECK(tokens.rank() == 2 && tokens.size(1) > 0, "bert: expected tokens [batch, length], got ",
               tokens.shape());
  return embed(tokens, input.token_types, position_rows(seen, tokens.size(1)));
}

Tensor Bert::forward(const BertInput& input, bool checkpoint_layers,
                     std::vector<Tensor>* hidden_states) const {
  const auto run_embeddings = [this, input](const std::vector<Tensor>&) { return embed(input, {0}); };
  const Tensor embedded = checkpoint_layers ? checkpoint(run_embeddings, {}) : run_embeddings({});
  if (hidden_states != nullptr) hidden_states->push_back(embedded);
  return encoder_.forward(embedded, input.key_mask, checkpoint_layers, hidden_states);
}

GenerationState Bert::make_state(int64_t batch) const {
  ELWISE_CHECK(batch > 0, "bert: expected a state of 1 row or more, got ", batch);
  return {.positions = std::vector<int64_t>(static_cast<size_t>(batch)),
          .layers = encoder_.make_states(batch)};
}

Tensor Bert::prefill(const BertInput& input, GenerationState& state) const {
  const Tensor hidden = encoder_.prefill(embed(input, state.positions), input.key_mask, state.layers);
  const int64_t length = input.tokens.size(1);
  const std::vector<int64_t> visible = visible_tokens(input.key_mask, input.tokens.size(0), length);
  for (size_t row = 0; row < visible.size(); ++row) state.positions[row] += visible[row];
  return hidden;
}

Tensor Bert::step(const Tensor& tokens, GenerationState& state) const {
  ELWISE_CHECK(tokens.shape() == Shape{static_cast<int64_t>(state.positions.size())},
               "bert: expected a token for each of ", state.positions.size(), " rows, got ", tokens.shape());
  const Tensor positions = reshape(position_rows(state.positions, 1), {-1, config_.hidden});
  const Tensor hidden = encoder_.step(embed(tokens, {}, positions), state.layers);
  for (int64_t& position : state.positions) ++position;
  return hidden;
}

void Bert::skip(int64_t tokens, GenerationState& state) const {
  encoder_.skip(tokens, state.layers);
  for (int64_t& position : state.positions) position += tokens;
}

Tensor Bert::pool(const Tensor& hidden) const {
  ELWISE_CHECK(pooler_.has_value(), "bert: this model has no pooler");
  const Tensor first = reshape(slice(hidden, 1, 0, 1), {hidden.size(0), hidden.size(2)});
  return tanh(pooler_->dense.forward(first));
}

LmHead::Transform::Transform(const BertConfig& config)
    : dense(config.hidden, config.hidden, config.options), norm(config.hidden, config.eps, config.options) {
  add_module("dense", dense);
  add_module("LayerNorm", norm);
}

LmHead::Predictions::Predictions(const BertConfig& config)
    : transform(config), bias(zeros({config.vocabulary}, config.options)) {
  add_module("transform", transform);
  add_parameter("bias", bias);
}

LmHead::LmHead(const BertConfig& config) : predictions_(config) {
  add_module("predictions", predictions_);
  nn::initialize_bert(*this, config.initializer_deviation);
}

Tensor LmHead::forward(const Tensor& hidden, const Tensor& token_table) const {
  return linear(predictions_.transform.forward(hidden), token_table, predictions_.bias);
}

Tensor LmHead::loss(const Tensor& hidden, const Tensor& token_table, const Tensor& labels) const {
  return linear_cross_entropy(predictions_.transform.forward(hidden), token_table, predictions_.bias, labels);
}

BertForMaskedLm::BertForMaskedLm(const BertConfig& config) : bert_(config), head_(config) {
  add_module("bert", bert_);
  add_module("cls", head_);
}

Tensor BertForMaskedLm::loss(const BertInput& input, const Tensor& masked, const Tensor& labels,
                             bool checkpoint_layers) const {
  const Tensor hidden = bert_.forward(input, checkpoint_layers);
  const Tensor chosen = index_select(reshape(hidden, {-1, hidden.size(2)}), 0, masked);
  return head_.loss(chosen, bert_.token_table(), labels);
}

BertForSequenceClassification::BertForSequenceClassification(const BertConfig& config, int64_t classes)
    : bert_(config), dropout_(config.dropout), classifier_(config.hidden, classes, config.options) {
  add_module("bert", bert_);
  add_module("dropout", dropout_);
  add_module("classifier", classifier_);
  nn::initialize_bert(classifier_, config.initializer_deviation);
}

Tensor BertForSequenceClassification::forward(const BertInput& input) const {
  return classifier_.forward(dropout_.forward(bert_.pool(bert_.forward(input))));
}

int64_t masked_positions(int64_t batch, int64_t length) {
  return std::max<int64_t>(1, std::llround(0.15 * static_cast<double>(batch * length)));
}

nn::LoadReport load_bert(const std::filesystem::path& path, const nn::Module& model) {
  constexpr std::string_view kPrefix = "bert.";
  const auto parameters = model.named_parameters();
  const auto has_prefix = [&](const auto& named) { return named.first.starts_with(kPrefix); };
  const bool model_has_prefix = std::any_of(parameters.begin(), parameters.end(), has_prefix);
  const std::map<std::string, Tensor> file = load_safetensors(path);
  const bool file_has_prefix = std::any_of(file.begin(), file.end(), has_prefix);

  const auto replace_ending = [](std::string& name, std::string_view from, std::string_view to) {
    if (name.ends_with(from)) name.replace(name.size() - from.size(), from.size(), to);
  };
  std::map<std::string, Tensor> renamed;
  for (const auto& [file_name, tensor] : file) {
    std::string name = file_name;
    if (name.ends_with("position_ids")) continue;  // a constant that some versions store
    if (!file_has_prefix && model_has_prefix) name.insert(0, kPrefix);
    if (file_has_prefix && !model_has_prefix && name.starts_with(kPrefix)) name.erase(0, kPrefix.size());
    replace_ending(name, "LayerNorm.gamma", "LayerNorm.weight");
    replace_ending(name, "LayerNorm.beta", "LayerNorm.bias");
    renamed.emplace(std::move(name), tensor);
  }
  return nn::load_parameters(model, renamed);
}

}  // namespace elwise::models
