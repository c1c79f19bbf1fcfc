#include "models/bert.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

BertConfig BertConfig::for_length(int64_t length) const {
  BertConfig config = *this;
  config.positions = std::max(length, positions);
  config.sinusoidal = sinusoidal || config.positions > kLongestPositionTable;
  return config;
}

Bert::Embeddings::Embeddings(const BertConfig& config)
    : words(config.vocabulary, config.hidden, config.options),
      types(config.token_types, config.hidden, config.options),
      norm(config.hidden, config.eps, config.options),
      dropout(config.dropout) {
  add_module("word_embeddings", words);
  if (config.sinusoidal) {
    const MemoryTagGuard tag(MemoryTag::parameters);
    fixed_positions = nn::sinusoidal_positions(config.positions, config.hidden, config.options);
  } else {
    add_module("position_embeddings", positions.emplace(config.positions, config.hidden, config.options));
  }
  add_module("token_type_embeddings", types);
  add_module("LayerNorm", norm);
  add_module("dropout", dropout);
}

Bert::Pooler::Pooler(const BertConfig& config) : dense(config.hidden, config.hidden, config.options) {
  add_module("dense", dense);
}

Bert::Bert(const BertConfig& config)
    : config_(config), embeddings_(config), encoder_(encoder_config(config), config.layers), pooler_(config) {
  add_module("embeddings", embeddings_);
  add_module("encoder", encoder_);
  add_module("pooler", pooler_);
  nn::initialize_bert(*this, config.initializer_deviation);
}

Tensor Bert::embed(const BertInput& input) const {
  const Tensor& tokens = input.tokens;
  ELWISE_CHECK(tokens.rank() == 2 && tokens.size(1) > 0, "bert: expected tokens [batch, length], got ",
               tokens.shape());
  const int64_t length = tokens.size(1);
  ELWISE_CHECK(length <= config_.positions, "bert: expected at most ", config_.positions, " tokens, got ",
               length, " (BertConfig::for_length makes room)");
  const Tensor positions = slice(embeddings_.position_table(), 0, 0, length);
  Tensor types;
  if (input.token_types.defined()) {
    types = embeddings_.types.forward(input.token_types);
  } else {
    types = slice(embeddings_.types.weight(), 0, 0, 1);
  }
  const Tensor summed = add(add(embeddings_.words.forward(tokens), positions), types);
  return embeddings_.dropout.forward(embeddings_.norm.forward(summed));
}

Tensor Bert::forward(const BertInput& input, bool checkpoint_layers,
                     std::vector<Tensor>* hidden_states) const {
  const Tensor embedded = embed(input);
  if (hidden_states != nullptr) hidden_states->push_back(embedded);
  return encoder_.forward(embedded, input.key_mask, checkpoint_layers, hidden_states);
}

Tensor Bert::pool(const Tensor& hidden) const {
  const Tensor first = reshape(slice(hidden, 1, 0, 1), {hidden.size(0), hidden.size(2)});
  return tanh(pooler_.dense.forward(first));
}

MaskedLmHead::Transform::Transform(const BertConfig& config)
    : dense(config.hidden, config.hidden, config.options), norm(config.hidden, config.eps, config.options) {
  add_module("dense", dense);
  add_module("LayerNorm", norm);
}

MaskedLmHead::Predictions::Predictions(const BertConfig& config)
    : transform(config), bias(zeros({config.vocabulary}, config.options)) {
  add_module("transform", transform);
  add_parameter("bias", bias);
}

MaskedLmHead::MaskedLmHead(const BertConfig& config) : predictions_(config) {
  add_module("predictions", predictions_);
  nn::initialize_bert(*this, config.initializer_deviation);
}

Tensor MaskedLmHead::forward(const Tensor& hidden, const Tensor& token_table) const {
  const Transform& transform = predictions_.transform;
  return linear(transform.norm.forward(gelu(transform.dense.forward(hidden))), token_table,
                predictions_.bias);
}

BertForMaskedLm::BertForMaskedLm(const BertConfig& config) : bert_(config), head_(config) {
  add_module("bert", bert_);
  add_module("cls", head_);
}

Tensor BertForMaskedLm::loss(const BertInput& input, const Tensor& masked, const Tensor& labels,
                             bool checkpoint_layers) const {
  const Tensor hidden = bert_.forward(input, checkpoint_layers);
  const Tensor chosen = index_select(reshape(hidden, {-1, hidden.size(2)}), 0, masked);
  return cross_entropy(head_.forward(chosen, bert_.token_table()), labels);
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
