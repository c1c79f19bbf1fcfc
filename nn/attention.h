#pragma once

#include <optional>
#include <string>

#include "nn/attention_state.h"
#include "nn/linear.h"

namespace elwise::nn {

/// An attention mechanism, by the string that chooses it.
struct Mechanism {
  enum class Kind : uint8_t { sa, sa_tiled, la, aft, ea, ea_series, ea_series_composed, none };
  Kind kind = Kind::sa;
  int order = 0;  // of an EA-series

  /// "sa" (softmax), "sa-tiled" (the same in O(length) memory), "la" (linear), "aft" (attention free), "ea"
  /// (full element-wise), "ea-N" (EA-series of even order N in 0 .. 16), "ea-series-composed-N" (the same
  /// from public ops), "none" (the value projection alone: a control). Throws Error that lists them for any
  /// other.
  static Mechanism parse(const std::string& name);
  /// The string that parse() takes.
  std::string name() const;

  bool operator==(const Mechanism&) const = default;
};

struct AttentionConfig {
  Mechanism mechanism = {};
  int64_t hidden = 768;
  int64_t heads = 12;       // of SA and LA; must divide hidden
  int64_t positions = 512;  // of AFT, which learns a bias for each pair: the longest sequence
  bool causal = false;
  double dropout = 0;  // of SA's weights while training; element-wise attention has none
  TensorOptions options = {};
};

/// The most positions that AFT learns biases for: 256 MiB of them in f32.
inline constexpr int64_t kLongestPositionBias = 8192;

/// Self-attention: the query, key and value projections and a mechanism between them. What mixes its result
/// (the output projection) is the encoder layer's.
class SelfAttention : public Module {
 public:
  /// Throws Error unless heads divides hidden, and for AFT unless positions is in 1 .. kLongestPositionBias.
  explicit SelfAttention(const AttentionConfig& config);

  /// x [batch, length, hidden], key_mask bool [batch, length] (true = visible) or undefined -> x's shape.
  Tensor forward(const Tensor& x, const Tensor& key_mask = {}) const;

  // Generation: the same function as the causal forward, a piece at a time, without a gradient. Each throws
  // Error unless the attention is causal and in eval(), where something would have to be recorded, and for a
  // state of another mechanism.

  /// The state of `batch` rows that have seen no token.
  AttentionState make_state(int64_t batch) const;

  /// forward(x, key_mask), from `state` on and leaving it behind the last visible token of each row: padding
  /// (key_mask false) on the right leaves a row's state at its own length. Throws Error for a cache that is
  /// not empty.
  Tensor prefill(const Tensor& x, const Tensor& key_mask, AttentionState& state) const;

  /// One token more for every row: x [batch, hidden] -> the same shape.
  Tensor step(const Tensor& x, AttentionState& state) const;

  /// Puts `state` where `tokens` more tokens would, without computing them: a cache receives as many keys and
  /// values, standard normal ones from the default generator; moments and sums, whose size and cost do not
  /// depend on the position, take up a single one. For timing a step at a position.
  void skip(int64_t tokens, AttentionState& state) const;

 private:
  /// Queries, keys and values of x; v alone with `none`.
  struct Projections {
    Tensor q, k, v;
  };
  Projections project(const Tensor& x) const;
  Tensor attend(const Projections& of, const Tensor& key_mask) const;
  void check_generates() const;
  template <class Memory>
  Memory& memory_of(AttentionState& state) const;

  AttentionConfig config_;
  std::optional<Linear> query_;  // with any mechanism but `none`
  std::optional<Linear> key_;
  Linear value_;
  Tensor position_bias_;  // [positions, positions], of AFT
};

}  // namespace elwise::nn
