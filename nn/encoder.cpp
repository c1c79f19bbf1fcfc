#include "nn/encoder.h"

#include "autograd/checkpoint.h"
#include "ops/feed_forward.h"

namespace elwise::nn {
namespace {

/// A checkpointed layer keeps GELU's input, from its second forward pass to its backward, up to this many
/// bytes: beyond, one product more is worth less than the memory.
constexpr int64_t kMostKeptInner = int64_t{256} << 20;

}  // namespace

EncoderLayer::Output::Output(int64_t inputs, const EncoderConfig& config)
    : dense(inputs, config.attention.hidden, config.attention.options),
      norm(config.attention.hidden, config.eps, config.attention.options) {
  add_module("dense", dense);
  add_module("LayerNorm", norm);
}

EncoderLayer::Attention::Attention(const EncoderConfig& config)
    : self(config.attention), output(config.attention.hidden, config) {
  add_module("self", self);
  add_module("output", output);
}

EncoderLayer::Intermediate::Intermediate(const EncoderConfig& config)
    : dense(config.attention.hidden, config.intermediate, config.attention.options),
      dropout(config.intermediate_dropout) {
  add_module("dense", dense);
  add_module("dropout", dropout);
}

EncoderLayer::EncoderLayer(const EncoderConfig& config)
    : norm_(config.norm),
      dropout_(config.dropout),
      attention_(config),
      intermediate_(config),
      output_(config.intermediate, config) {
  add_module("dropout", dropout_);
  add_module("attention", attention_);
  add_module("intermediate", intermediate_);
  add_module("output", output_);
}

Tensor EncoderLayer::feed_forward(const Tensor& x, bool keep_inner) const {
  const Linear &inner = intermediate_.dense, &outer = output_.dense;
  return dropout_.forward(
      elwise::feed_forward(x, inner.weight(), inner.bias(), outer.weight(), outer.bias(),
                           {.dropout = intermediate_.dropout.rate(), .keep_inner = keep_inner}));
}

template <class Attend>
Tensor EncoderLayer::run(const Tensor& x, const Attend& attend, bool keep_inner) const {
  const auto attention_block = [&](const Tensor& input) {
    return dropout_.forward(attention_.output.dense.forward(attend(input)));
  };
  if (norm_ == NormPlacement::post) {
    const Tensor attended = attention_.output.norm.forward_add(attention_block(x), x).normalized;
    return output_.norm.forward_add(feed_forward(attended, keep_inner), attended).normalized;
  }
  const Tensor attended = attention_block(attention_.output.norm.forward(x));
  const AddLayerNormResult inner = output_.norm.forward_add(attended, x);
  return add(feed_forward(inner.normalized, keep_inner), inner.sum);
}

Tensor EncoderLayer::forward(const Tensor& x, const Tensor& key_mask, bool keep_inner) const {
  return run(
      x, [&](const Tensor& input) { return attention_.self.forward(input, key_mask); }, keep_inner);
}

Tensor EncoderLayer::prefill(const Tensor& x, const Tensor& key_mask, AttentionState& state) const {
  return run(x, [&](const Tensor& input) { return attention_.self.prefill(input, key_mask, state); });
}

Tensor EncoderLayer::step(const Tensor& x, AttentionState& state) const {
  return run(x, [&](const Tensor& input) { return attention_.self.step(input, state); });
}

Encoder::Encoder(const EncoderConfig& config, int64_t layers) {
  ELWISE_CHECK(layers > 0, "Encoder: expected at least one layer, got ", layers);
  for (int64_t i = 0; i < layers; ++i) {
    add_module("layer." + std::to_string(i), layers_.emplace_back(config));
  }
}

Tensor Encoder::forward(Tensor x, const Tensor& key_mask, bool checkpoint_layers,
                        std::vector<Tensor>* layer_outputs) const {
  const int64_t inner_bytes =
      x.shape().count_before(-1) * layers_.front().intermediate() * size_of(x.dtype());
  const bool keep_inner = inner_bytes <= kMostKeptInner;
  for (const EncoderLayer& layer : layers_) {
    if (checkpoint_layers) {
      x = checkpoint(
          [&layer, key_mask, keep_inner](const std::vector<Tensor>& inputs) {
            return layer.forward(inputs[0], key_mask, keep_inner);
          },
          {x});
    } else {
      x = layer.forward(x, key_mask);
    }
    if (layer_outputs != nullptr) layer_outputs->push_back(x);
  }
  return x;
}

std::vector<AttentionState> Encoder::make_states(int64_t batch) const {
  std::vector<AttentionState> states;
  for (const EncoderLayer& layer : layers_) states.push_back(layer.make_state(batch));
  return states;
}

void Encoder::check_states(const std::vector<AttentionState>& states) const {
  ELWISE_CHECK(states.size() == layers_.size(), "Encoder: expected a state for each of ", layers_.size(),
               " layers, got ", states.size());
}

Tensor Encoder::prefill(Tensor x, const Tensor& key_mask, std::vector<AttentionState>& states) const {
  check_states(states);
  for (size_t i = 0; i < states.size(); ++i) x = layers_[i].prefill(x, key_mask, states[i]);
  return x;
}

Tensor Encoder::step(Tensor x, std::vector<AttentionState>& states) const {
  check_states(states);
  for (size_t i = 0; i < states.size(); ++i) x = layers_[i].step(x, states[i]);
  return x;
}

void Encoder::skip(int64_t tokens, std::vector<AttentionState>& states) const {
  check_states(states);
  for (size_t i = 0; i < states.size(); ++i) layers_[i].skip(tokens, states[i]);
}

}  // namespace elwise::nn
