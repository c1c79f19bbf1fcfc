#pragma once

#include <optional>
#include <string>

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

 private:
  AttentionConfig config_;
  std::optional<Linear> query_;  // with any mechanism but `none`
  std::optional<Linear> key_;
  Linear value_;
  Tensor position_bias_;  // [positions, positions], of AFT
};

}  // namespace elwise::nn
