#pragma once

#include "nn/module.h"

namespace elwise::nn {

/// A learned table of `rows` vectors, standard normal at first.
class Embedding : public Module {
 public:
  Embedding(int64_t rows, int64_t width, TensorOptions options = {});

  /// index i64 of any shape -> [index shape.., width].
  Tensor forward(const Tensor& index) const;

  /// [rows, width]
  const Tensor& weight() const { return weight_; }

 private:
  Tensor weight_;
};

/// Sinusoidal positions (Vaswani et al., arXiv 1706.03762, section 3.5) for `length` tokens: [length, width];
/// column 2i is sin(p / 10000^(2i / width)), column 2i + 1 the cosine. No parameters.
Tensor sinusoidal_positions(int64_t length, int64_t width, TensorOptions options = {});

}  // namespace elwise::nn
