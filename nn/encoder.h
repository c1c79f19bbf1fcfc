#pragma once

#include <deque>

#include "nn/activation.h"
#include "nn/attention.h"
#include "nn/layer_norm.h"

namespace elwise::nn {

/// Where a layer normalises: after adding the residual (BERT), or before each block (more stable in deep
/// models).
enum class NormPlacement : uint8_t { post, pre };

struct EncoderConfig {
  AttentionConfig attention = {};
  int64_t intermediate = 3072;
  double dropout = 0.1;  // after each block's output projection, while training
  double eps = 1e-12;    // of the layer norms
  NormPlacement norm = NormPlacement::post;
};

/// One Transformer encoder layer: self-attention and a GELU feed-forward network, each with residual and
/// LayerNorm. Parameter names are those of a layer of Hugging Face's BERT.
class EncoderLayer : public Module {
 public:
  explicit EncoderLayer(const EncoderConfig& config);

  /// x [batch, length, hidden], key_mask bool [batch, length] (true = visible) or undefined -> x's shape.
  Tensor forward(const Tensor& x, const Tensor& key_mask = {}) const;

 private:
  /// A dense layer and a LayerNorm under the names "dense" and "LayerNorm".
  struct Output : Module {
    Output(int64_t inputs, const EncoderConfig& config);
    Linear dense;
    LayerNorm norm;
  };
  struct Attention : Module {
    explicit Attention(const EncoderConfig& config);
    SelfAttention self;
    Output output;
  };
  struct Intermediate : Module {
    explicit Intermediate(const EncoderConfig& config);
    Linear dense;
  };

  Tensor feed_forward(const Tensor& x) const;

  NormPlacement norm_;
  Dropout dropout_;
  Attention attention_;
  Intermediate intermediate_;
  Output output_;
};

/// A stack of encoder layers, named layer.0, layer.1, ..
class Encoder : public Module {
 public:
  Encoder(const EncoderConfig& config, int64_t layers);

  /// Runs all layers. With `checkpoint_layers`, each layer's activations are recomputed in backward.
  /// `layer_outputs`, if given, receives each layer's output.
  Tensor forward(Tensor x, const Tensor& key_mask = {}, bool checkpoint_layers = false,
                 std::vector<Tensor>* layer_outputs = nullptr) const;

 private:
  std::deque<EncoderLayer> layers_;  // a deque: modules do not move
};

}  // namespace elwise::nn
