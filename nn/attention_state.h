#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "ops/attention_step.h"
#include "ops/ea_series.h"

namespace elwise::nn {

/// What a causal attention remembers of the tokens so far, for every row of a batch: nothing (mechanism
/// `none`), the moments of EA-series or linear attention's state, whose size never changes, or the keys and
/// values of SA, EA and AFT, which grow in blocks. SelfAttention::make_state makes one. A copy is a copy of
/// handles: a step through one changes both.
struct AttentionState {
  std::variant<std::monostate, EaSeriesState, LinearAttentionState, KeyValueCache> memory;

  /// Of the tensors, with the rows of a cache that are not in use yet.
  int64_t bytes() const;

  /// The tensors that are the whole state, on the CPU, by name: "s", "z", "kappa" (EA-series); "s", "z"
  /// (linear attention); "k", "v", "lengths" (a cache, of which k and v are cut to the rows in use).
  std::map<std::string, Tensor> named_tensors() const;
  /// Copies in what named_tensors() of such a state gave: steps go on with the same bits.
  /// Throws Error for names, shapes and dtypes of another state, before anything is changed.
  void set_tensors(const std::map<std::string, Tensor>& tensors);
};

/// Of all layers together.
int64_t state_bytes(const std::vector<AttentionState>& states);

/// named_tensors() of a model's layers, each under "<its number>.": with save_safetensors one file.
std::map<std::string, Tensor> named_tensors(const std::vector<AttentionState>& states);
/// Restores every layer of `states`. Throws Error as AttentionState::set_tensors, naming the tensor.
void set_tensors(std::vector<AttentionState>& states, const std::map<std::string, Tensor>& tensors);

}  // namespace elwise::nn
