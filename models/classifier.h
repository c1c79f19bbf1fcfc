#pragma once

#include <vector>

#include "nn/activation.h"
#include "nn/encoder.h"
#include "nn/linear.h"

namespace elwise::models {

/// How the rows of a series become tokens.
enum class SeriesEmbedding : uint8_t {
  conv,  // each from its row and the two beside it, the Time Series Library's (TSL): with Pooling::flatten on
         // a circle of the padded series, as there; with Pooling::mean as if zeros stood around the series
  linear,  // each from its own row
};

/// How the tokens of a series become one vector.
enum class Pooling : uint8_t {
  flatten,  // all of them, padding as 0, side by side: TSL's; the series have one (padded) length
  mean,     // the mean of those that are not padding: series of any length
};

/// The sizes of the paper's classification experiments (arXiv 2501.05730, table 3), which are TSL's.
struct ClassifierConfig {
  int64_t inputs = 1;  // dimensions of a series
  int64_t classes = 2;
  int64_t positions = 0;  // the longest series, padded; with Pooling::flatten the length of all
  nn::Mechanism attention = {};
  int64_t hidden = 128;
  int64_t layers = 3;
  int64_t heads = 8;  // of SA and LA
  int64_t intermediate = 256;
  double dropout =
      0.1;  // of embeddings, GELU's and blocks' outputs, SA's weights and pooled tokens, in training
  SeriesEmbedding embedding = SeriesEmbedding::conv;
  Pooling pooling = Pooling::flatten;
  double projection_scale = 1;  // multiplies the query and key projections at first
  TensorOptions options = {};
};

/// A classifier of time series with any attention mechanism, as the Time Series Library's Transformer (Wang
/// et al., arXiv 2407.13278): embedded rows plus sinusoidal positions, a Post-LN encoder, LayerNorm, GELU,
/// padding zeroed, and a linear layer on all tokens or on their mean. Linear layers start as PyTorch's do.
/// Unlike TSL's, its attention does not see padding.
class Classifier : public nn::Module {
 public:
  /// Throws Error for sizes that are not positive, and as nn::SelfAttention does.
  explicit Classifier(const ClassifierConfig& config);

  /// x [batch, length, inputs], 0 where padded; key_mask bool [batch, length] (true = visible; padding on the
  /// right) or undefined -> logits [batch, classes]. Throws Error for other shapes and a length above
  /// `positions`, with Pooling::flatten for any other than that. `hidden_states`, if given, receives the
  /// encoder's input and each layer's output, [batch, longest visible length, hidden].
  Tensor forward(const Tensor& x, const Tensor& key_mask = {},
                 std::vector<Tensor>* hidden_states = nullptr) const;

  const ClassifierConfig& config() const { return config_; }

 private:
  // `lengths`: the visible rows of each series.
  Tensor embed(const Tensor& x, const std::vector<int64_t>& lengths) const;
  Tensor pool(const Tensor& hidden, const std::vector<int64_t>& lengths, int64_t padded) const;

  ClassifierConfig config_;
  nn::Linear tokens_;
  Tensor positions_;  // [positions, hidden], fixed
  nn::Dropout dropout_;
  nn::Encoder encoder_;
  nn::LayerNorm norm_;
  nn::Linear classes_;
};

}  // namespace elwise::models
