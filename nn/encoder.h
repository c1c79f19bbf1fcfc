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
  double dropout = 0.1;             // after each block's output projection, while training
  double intermediate_dropout = 0;  // after GELU, while training (the Time Series Library's layers have it)
  double eps = 1e-12;               // of the layer norms
  NormPlacement norm = NormPlacement::post;
};

/// One Transformer encoder layer: self-attention and a GELU feed-forward network, each with residual and
/// LayerNorm. Parameter names are those of a layer of Hugging Face's BERT.
class EncoderLayer : public Module {
 public:
  explicit EncoderLayer(const EncoderConfig& config);

  /// x [batch, length, hidden], key_mask bool [batch, length] (true = visible) or undefined -> x's shape.
  /// Backward has GELU's input kept for it or, without keep_inner, computes it again, a block of rows at a
  /// time.
  Tensor forward(const Tensor& x, const Tensor& key_mask = {}, bool keep_inner = true) const;

  // Generation, with the state, the results and the errors of SelfAttention's functions of the same name.
  AttentionState make_state(int64_t batch) const { return attention_.self.make_state(batch); }
  Tensor prefill(const Tensor& x, const Tensor& key_mask, AttentionState& state) const;
  Tensor step(const Tensor& x, AttentionState& state) const;
  void skip(int64_t tokens, AttentionState& state) const { attention_.self.skip(tokens, state); }

  /// Units of the feed-forward network.
  int64_t intermediate() const { return intermediate_.dense.weight().size(0); }

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
    Dropout dropout;
  };

  Tensor feed_forward(const Tensor& x, bool keep_inner) const;
  /// The layer around `attend`, a function from its input to the mechanism's output.
  template <class Attend>
  Tensor run(const Tensor& x, const Attend& attend, bool keep_inner = true) const;

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

  /// Runs all layers. With `checkpoint_layers`, each layer's activations are recomputed in backward; of long
  /// sequences the feed-forward network's are then never whole.
  /// `layer_outputs`, if given, receives each layer's output.
  Tensor forward(Tensor x, const Tensor& key_mask = {}, bool checkpoint_layers = false,
                 std::vector<Tensor>* layer_outputs = nullptr) const;

  // Generation with a state for each layer; otherwise as SelfAttention's functions of the same name.
  std::vector<AttentionState> make_states(int64_t batch) const;
  Tensor prefill(Tensor x, const Tensor& key_mask, std::vector<AttentionState>& states) const;
  Tensor step(Tensor x, std::vector<AttentionState>& states) const;
  void skip(int64_t tokens, std::vector<AttentionState>& states) const;

 private:
  void check_states(const std::vector<AttentionState>& states) const;

  std::deque<EncoderLayer> layers_;  // a deque: modules do not move
};

}  // namespace elwise::nn
