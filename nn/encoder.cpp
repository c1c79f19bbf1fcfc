#include "nn/encoder.h"

#include "autograd/checkpoint.h"

namespace elwise::nn {

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

Tensor EncoderLayer::feed_forward(const Tensor& x) const {
  const Tensor inner = intermediate_.dropout.forward(gelu(intermediate_.dense.forward(x)));
  return dropout_.forward(output_.dense.forward(inner));
}

template <class Attend>
Tensor EncoderLayer::run(const Tensor& x, const Attend& attend) const {
  const auto attention_block = [&](const Tensor& input) {
    return dropout_.forward(attention_.output.dense.forward(attend(input)));
  };
  if (norm_ == NormPlacement::post) {
    const Tensor attended = attention_.output.norm.forward_add(attention_block(x), x).normalized;
    return output_.norm.forward_add(feed_forward(attended), attended).normalized;
  }
  const Tensor attended = attention_block(attention_.output.norm.forward(x));
  const AddLayerNormResult inner = output_.norm.forward_add(attended, x);
  return add(feed_forward(inner.normalized), inner.sum);
}

Tensor EncoderLayer::forward(const Tensor& x, const Tensor& key_mask) const {
  return run(x, [&](const Tensor& input) { return attention_.self.forward(input, key_mask); });
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
  for (const EncoderLayer& layer : layers_) {
    if (checkpoint_layers) {
      x = checkpoint([&layer, key_mask](
                         const std::vector<Tensor>& inputs) { return layer.forward(inputs[0], key_mask); },
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
