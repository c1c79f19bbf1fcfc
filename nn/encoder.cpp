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
    : dense(config.attention.hidden, config.intermediate, config.attention.options) {
  add_module("dense", dense);
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
  return dropout_.forward(output_.dense.forward(gelu(intermediate_.dense.forward(x))));
}

Tensor EncoderLayer::forward(const Tensor& x, const Tensor& key_mask) const {
  const auto attend = [&](const Tensor& input) {
    return dropout_.forward(attention_.output.dense.forward(attention_.self.forward(input, key_mask)));
  };
  if (norm_ == NormPlacement::post) {
    const Tensor attended = attention_.output.norm.forward_add(attend(x), x).normalized;
    return output_.norm.forward_add(feed_forward(attended), attended).normalized;
  }
  const Tensor attended = attend(attention_.output.norm.forward(x));
  const AddLayerNormResult inner = output_.norm.forward_add(attended, x);
  return add(feed_forward(inner.normalized), inner.sum);
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

}  // namespace elwise::nn
