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

SelfAttention::Projections SelfAttention::project(const Tensor& x) const {
  const Tensor v = value_.forward(x);
  if (config_.mechanism.kind == Mechanism::Kind::none) return {.q = {}, .k = {}, .v = v};
  return {.q = query_->forward(x), .k = key_->forward(x), .v = v};
}

Tensor SelfAttention::forward(const Tensor& x, const Tensor& key_mask) const {
  return attend(project(x), key_mask);
}

Tensor SelfAttention::attend(const Projections& of, const Tensor& key_mask) const {
  const auto& [q, k, v] = of;
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

void SelfAttention::check_generates() const {
  ELWISE_CHECK(config_.causal, "attention: only a causal one has a state, ", config_.mechanism.name(),
               " here is not");
  ELWISE_CHECK(!is_training(), "attention: a state is for inference: expected eval() before");
}

template <class Memory>
Memory& SelfAttention::memory_of(AttentionState& state) const {
  auto* memory = std::get_if<Memory>(&state.memory);
  ELWISE_CHECK(memory != nullptr, "attention: expected a state made by make_state() of ",
               config_.mechanism.name());
  return *memory;
}

AttentionState SelfAttention::make_state(int64_t batch) const {
  check_generates();
  switch (config_.mechanism.kind) {
    case Mechanism::Kind::sa:
    case Mechanism::Kind::sa_tiled:
    case Mechanism::Kind::aft:
    case Mechanism::Kind::ea:
      return {key_value_cache(batch, config_.hidden, config_.options)};
    case Mechanism::Kind::la:
      return {linear_attention_state(batch, config_.hidden, config_.heads, config_.options)};
    case Mechanism::Kind::ea_series:
    case Mechanism::Kind::ea_series_composed:
      return {ea_series_state(batch, config_.hidden, config_.mechanism.order, config_.options)};
    case Mechanism::Kind::none:
      break;
  }
  return {};
}

Tensor SelfAttention::prefill(const Tensor& x, const Tensor& key_mask, AttentionState& state) const {
  check_generates();
  const Projections of = project(x);
  const auto& [q, k, v] = of;
  switch (config_.mechanism.kind) {
    case Mechanism::Kind::sa:
    case Mechanism::Kind::sa_tiled:
    case Mechanism::Kind::aft:
    case Mechanism::Kind::ea:
      break;
    case Mechanism::Kind::la:
      return linear_attention_prefill(q, k, v, memory_of<LinearAttentionState>(state), key_mask);
    case Mechanism::Kind::ea_series:
    case Mechanism::Kind::ea_series_composed:
      return ea_series_prefill(q, k, v, memory_of<EaSeriesState>(state), key_mask);
    case Mechanism::Kind::none:
      memory_of<std::monostate>(state);
      return v;
  }
  auto& cache = memory_of<KeyValueCache>(state);
  ELWISE_CHECK(cache.longest == 0, "attention: expected an empty cache before a prefill, got one with ",
               cache.longest, " keys");
  const Tensor y = attend(of, key_mask);
  append(cache, k, v, key_mask);
  return y;
}

Tensor SelfAttention::step(const Tensor& x, AttentionState& state) const {
  check_generates();
  const auto& [q, k, v] = project(x);
  switch (config_.mechanism.kind) {
    case Mechanism::Kind::sa:
    case Mechanism::Kind::sa_tiled:
      return softmax_attention_step(q, k, v, config_.heads, memory_of<KeyValueCache>(state));
    case Mechanism::Kind::la:
      return linear_attention_step(q, k, v, memory_of<LinearAttentionState>(state));
    case Mechanism::Kind::aft:
      return aft_step(q, k, v, position_bias_, memory_of<KeyValueCache>(state));
    case Mechanism::Kind::ea:
      return ea_step(q, k, v, memory_of<KeyValueCache>(state));
    case Mechanism::Kind::ea_series:
    case Mechanism::Kind::ea_series_composed:
      return ea_series_step(q, k, v, memory_of<EaSeriesState>(state));
    case Mechanism::Kind::none:
      memory_of<std::monostate>(state);
      break;
  }
  return v;
}

void SelfAttention::skip(int64_t tokens, AttentionState& state) const {
  check_generates();
  ELWISE_CHECK(tokens >= 0, "attention: expected to skip 0 tokens or more, got ", tokens);
  if (tokens == 0 || config_.mechanism.kind == Mechanism::Kind::none) return;
  const auto random_rows = [&](int64_t batch, int64_t length) {
    return randn({batch, length, config_.hidden}, config_.options);
  };
  if (auto* cache = std::get_if<KeyValueCache>(&state.memory)) {
    const Tensor rows = random_rows(cache->lengths.size(0), tokens);
    append(*cache, rows, rows);
  } else if (config_.mechanism.kind == Mechanism::Kind::la) {
    auto& sums = memory_of<LinearAttentionState>(state);
    const Tensor row = random_rows(sums.s.size(0), 1);
    linear_attention_prefill(row, row, row, sums);
  } else {
    auto& moments = memory_of<EaSeriesState>(state);
    const Tensor row = random_rows(moments.s.size(0), 1);
    ea_series_prefill(row, row, row, moments);
  }
}

}  // namespace elwise::nn
