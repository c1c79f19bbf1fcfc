#pragma once

#include "nn/attention_state.h"

namespace elwise::models {

/// What a causal BERT remembers of the tokens so far, for every row of a batch.
struct GenerationState {
  std::vector<int64_t> positions;  // tokens that each row has seen
  std::vector<nn::AttentionState> layers;

  /// Of the layers' tensors.
  int64_t bytes() const { return nn::state_bytes(layers); }
  /// "positions" (i64 [batch]) and each layer's, as nn::named_tensors: the whole state, for save_safetensors.
  std::map<std::string, Tensor> named_tensors() const;
  /// Restores what named_tensors() gave. Throws Error for another model's, before anything is changed.
  void set_tensors(std::map<std::string, Tensor> tensors);
};

}  // namespace elwise::models
