#include "models/classifier.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "nn/embedding.h"
#include "nn/init.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/view.h"

namespace elwise::models {
namespace {

constexpr int64_t kConvWidth = 3;

nn::EncoderConfig encoder_config(const ClassifierConfig& config) {
  return {.attention = {.mechanism = config.attention,
                        .hidden = config.hidden,
                        .heads = config.heads,
                        .positions = config.positions,
                        .causal = false,
                        .dropout = config.dropout,
                        .options = config.options},
          .intermediate = config.intermediate,
          .dropout = config.dropout,
          .intermediate_dropout = config.dropout,
          .eps = 1e-5,
          .norm = nn::NormPlacement::post};
}

int64_t inputs_of(const ClassifierConfig& config) {
  return config.embedding == SeriesEmbedding::conv ? kConvWidth * config.inputs : config.inputs;
}

int64_t pooled_size(const ClassifierConfig& config) {
  return config.pooling == Pooling::flatten ? config.positions * config.hidden : config.hidden;
}

const ClassifierConfig& checked(const ClassifierConfig& config) {
  ELWISE_CHECK(config.inputs > 0 && config.classes > 0 && config.positions > 0,
               "classifier: expected positive sizes, got ", config.inputs, " inputs, ", config.classes,
               " classes and ", config.positions, " positions");
  return config;
}

/// The visible rows of each series, one at least.
std::vector<int64_t> visible_lengths(const Tensor& key_mask, int64_t batch, int64_t length) {
  std::vector<int64_t> result(static_cast<size_t>(batch), length);
  if (!key_mask.defined() || key_mask.device() == kMeta) return result;
  const std::vector<bool> visible = key_mask.to_vector<bool>();
  for (size_t row = 0; row < result.size(); ++row) {
    const auto begin = visible.begin() + static_cast<int64_t>(row) * length;
    result[row] = std::max<int64_t>(1, std::count(begin, begin + length, true));
  }
  return result;
}

/// Each row of a series with the row before and the row after it, [batch, length, 3 * inputs]: on a circle of
/// all rows, or with zeros at both ends.
Tensor with_neighbours(const Tensor& x, bool circle) {
  const int64_t last = x.size(1) - 1;
  const Tensor nothing = zeros({x.size(0), 1, x.size(2)}, x.options());
  const Tensor before = concat({circle ? slice(x, 1, last, last + 1) : nothing, slice(x, 1, 0, last)}, 1);
  const Tensor after = concat({slice(x, 1, 1, last + 1), circle ? slice(x, 1, 0, 1) : nothing}, 1);
  return concat({before, x, after}, 2);
}

void scale(Tensor parameter, double factor) {
  parameter.copy_from(mul(parameter.detach(), factor));
}

}  // namespace

Classifier::Classifier(const ClassifierConfig& config)
    : config_(checked(config)),
      tokens_(inputs_of(config), config.hidden, config.options,
              /*with_bias=*/config.embedding == SeriesEmbedding::linear),
      positions_(nn::sinusoidal_positions(config.positions, config.hidden, config.options)),
      dropout_(config.dropout),
      encoder_(encoder_config(config), config.layers),
      norm_(config.hidden, 1e-5, config.options),
      classes_(pooled_size(config), config.classes, config.options) {
  add_module("tokens", tokens_);
  add_module("dropout", dropout_);
  add_module("encoder", encoder_);
  add_module("LayerNorm", norm_);
  add_module("classifier", classes_);
  if (config.embedding == SeriesEmbedding::conv) {
    nn::kaiming_normal(tokens_.weight(), std::numbers::sqrt2);
  }
  if (config.projection_scale == 1) return;
  for (const auto& [name, parameter] : named_parameters()) {
    const bool projects =
        name.find(".query.") != std::string::npos || name.find(".key.") != std::string::npos;
    if (projects) scale(parameter, config.projection_scale);
  }
}

Tensor Classifier::embed(const Tensor& x, const std::vector<int64_t>& lengths) const {
  Tensor rows = x;
  if (config_.embedding == SeriesEmbedding::conv) {
    // TSL's circle is of all that `flatten` sees: padding, mostly, stands between a series' ends. A mean must
    // not depend on how much of it there is.
    rows = with_neighbours(x, /*circle=*/config_.pooling == Pooling::flatten);
  }
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  const Tensor tokens = slice(tokens_.forward(rows), 1, 0, longest);
  return dropout_.forward(add(tokens, slice(positions_, 0, 0, longest)));
}

Tensor Classifier::pool(const Tensor& hidden, const std::vector<int64_t>& lengths, int64_t padded) const {
  const int64_t batch = hidden.size(0), length = hidden.size(1);
  const bool flatten = config_.pooling == Pooling::flatten;
  std::vector<double> weight;
  for (const int64_t visible : lengths) {
    const double each = flatten ? 1 : 1 / static_cast<double>(visible);
    for (int64_t i = 0; i < length; ++i) weight.push_back(i < visible ? each : 0);
  }
  const auto weights = [&](const Shape& shape) {
    return elwise::to(cast(from_vector(weight, shape), hidden.dtype()), hidden.device());
  };
  if (!flatten) return reshape(matmul(weights({batch, 1, length}), hidden), {batch, -1});
  const Tensor visible = mul(hidden, weights({batch, length, 1}));
  const Tensor rest = zeros({batch, padded - length, config_.hidden}, config_.options);
  return reshape(padded == length ? visible : concat({visible, rest}, 1), {batch, -1});
}

Tensor Classifier::forward(const Tensor& x, const Tensor& key_mask,
                           std::vector<Tensor>* hidden_states) const {
  ELWISE_CHECK(x.rank() == 3 && x.size(2) == config_.inputs && x.size(0) > 0 && x.size(1) > 0,
               "classifier: expected x [batch, length, ", config_.inputs, "], got ", x.shape());
  const int64_t batch = x.size(0), length = x.size(1);
  ELWISE_CHECK(!key_mask.defined() || key_mask.shape() == Shape({batch, length}),
               "classifier: expected key_mask [", batch, ", ", length, "], got ", key_mask.shape());
  const bool flatten = config_.pooling == Pooling::flatten;
  ELWISE_CHECK(flatten ? length == config_.positions : length <= config_.positions, "classifier: expected ",
               flatten ? "" : "at most ", config_.positions, " rows, got ", length);
  const std::vector<int64_t> lengths = visible_lengths(key_mask, batch, length);
  const Tensor tokens = embed(x, lengths);  // as many as the longest series has: no work for common padding
  const Tensor visible = key_mask.defined() ? slice(key_mask, 1, 0, tokens.size(1)) : key_mask;
  if (hidden_states != nullptr) hidden_states->push_back(tokens);
  const Tensor encoded = encoder_.forward(tokens, visible, /*checkpoint_layers=*/false, hidden_states);
  const Tensor hidden = dropout_.forward(gelu(norm_.forward(encoded)));
  return classes_.forward(pool(hidden, lengths, length));
}

}  // namespace elwise::models
