#include "nn/attention.h"

#include <charconv>

#include "ops/aft.h"
#include "ops/dropout.h"
#include "ops/ea.h"
#include "ops/ea_series.h"
#include "ops/linear_attention.h"
#include "ops/softmax_attention.h"

namespace elwise::nn {
namespace {

constexpr int kLargestOrder = 16;
constexpr double kPositionBiasDeviation = 0.02;

/// The order in "<prefix>N", if `name` has that form.
std::optional<int> order_after(std::string_view prefix, std::string_view name) {
  if (!name.starts_with(prefix)) return std::nullopt;
  const std::string_view digits = name.substr(prefix.size());
  int order = -1;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), order);
  if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size()) return std::nullopt;
  ELWISE_CHECK(order >= 0 && order <= kLargestOrder && order % 2 == 0, "attention: '", name, "' has order ",
               order, ", expected an even one in 0 .. ", kLargestOrder,
               " (the polynomial of an odd order is not positive)");
  return order;
}

}  // namespace

Mechanism Mechanism::parse(const std::string& name) {
  if (name == "sa") return {Kind::sa};
  if (name == "sa-tiled") return {Kind::sa_tiled};
  if (name == "la") return {Kind::la};
  if (name == "aft") return {Kind::aft};
  if (name == "ea") return {Kind::ea};
  if (name == "none") return {Kind::none};
  if (const auto order = order_after("ea-series-composed-", name)) return {Kind::ea_series_composed, *order};
  if (const auto order = order_after("ea-", name)) return {Kind::ea_series, *order};
  fail("attention: expected sa, sa-tiled, la, aft, ea, ea-N or ea-series-composed-N (N even, 0 .. ",
       kLargestOrder, "), or none, got '", name, "'");
}

std::string Mechanism::name() const {
  switch (kind) {
    case Kind::sa:
      return "sa";
    case Kind::sa_tiled:
      return "sa-tiled";
    case Kind::la:
      return "la";
    case Kind::aft:
      return "aft";
    case Kind::ea:
      return "ea";
    case Kind::ea_series:
      return "ea-" + std::to_string(order);
    case Kind::ea_series_composed:
      return "ea-series-composed-" + std::to_string(order);
    case Kind::none:
      return "none";
  }
  return "?";
}

SelfAttention::SelfAttention(const AttentionConfig& config)
    : config_(config), value_(config.hidden, config.hidden, config.options) {
  ELWISE_CHECK(config.heads > 0 && config.hidden % config.heads == 0,
               "attention: expected heads that divide hidden size ", config.hidden, ", got ", config.heads);
  if (config.mechanism.kind != Mechanism::Kind::none) {
    add_module("query", query_.emplace(config.hidden, config.hidden, config.options));
    add_module("key", key_.emplace(config.hidden, config.hidden, config.options));
  }
  add_module("value", value_);
  if (config.mechanism.kind != Mechanism::Kind::aft) return;
  ELWISE_CHECK(config.positions > 0 && config.positions <= kLongestPositionBias,
               "attention: aft learns a bias for each pair of positions: expected 1 .. ",
               kLongestPositionBias, " positions, got ", config.positions);
  position_bias_ = empty({config.positions, config.positions}, config.options);
  fill_normal(position_bias_, 0, kPositionBiasDeviation);
  add_parameter("position_bias", position_bias_);
}

Tensor SelfAttention::forward(const Tensor& x, const Tensor& key_mask) const {
  const Tensor v = value_.forward(x);
  if (config_.mechanism.kind == Mechanism::Kind::none) return v;
  const Tensor q = query_->forward(x), k = key_->forward(x);
  const AttentionOptions options{.causal = config_.causal, .key_mask = key_mask};
  const double dropout = is_training() ? config_.dropout : 0;
  switch (config_.mechanism.kind) {
    case Mechanism::Kind::sa:
      return softmax_attention(q, k, v, config_.heads, options, dropout);
    case Mechanism::Kind::sa_tiled:
      return softmax_attention_tiled(q, k, v, config_.heads, options, dropout);
    case Mechanism::Kind::la:
      return linear_attention(q, k, v, config_.heads, options);
    case Mechanism::Kind::aft:
      return aft(q, k, v, position_bias_, options);
    case Mechanism::Kind::ea:
      return ea(q, k, v, options);
    case Mechanism::Kind::ea_series:
      return ea_series(q, k, v, config_.mechanism.order, options);
    case Mechanism::Kind::ea_series_composed:
      return ea_series_composed(q, k, v, config_.mechanism.order, options);
    case Mechanism::Kind::none:
      break;
  }
  return v;
}

}  // namespace elwise::nn
