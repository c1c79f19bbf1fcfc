#include "ops/attention_step.h"

#include <cmath>

#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/attention_options.h"
#include "ops/attention_step_kernels.h"
#include "ops/elementwise.h"
#include "ops/linear_attention_kernels.h"
#include "ops/view.h"

namespace elwise {
namespace {

/// Throws Error unless the cache is sound and holds what q, k and v [batch, .., channels] are made of.
void check_cache(const char* op, const Tensor& q, const KeyValueCache& cache) {
  ELWISE_CHECK(cache.k.defined() && cache.v.defined() && cache.lengths.defined() && cache.k.rank() == 3, op,
               ": expected a cache made by key_value_cache");
  check_same_kind(op, "q", q, "the cache's k", cache.k);
  check_same_kind(op, "q", q, "the cache's v", cache.v);
  check_shape(op, "the cache's k", cache.k, {q.size(0), cache.k.size(1), q.size(-1)});
  check_shape(op, "the cache's v", cache.v, cache.k.shape());
  check_index(op, "the cache's lengths", cache.lengths, q);
  check_shape(op, "the cache's lengths", cache.lengths, {q.size(0)});
  ELWISE_CHECK(cache.longest >= 0 && cache.longest <= cache.k.size(1), op,
               ": expected a longest entry of 0 .. ", cache.k.size(1), " rows, got ", cache.longest);
}

/// Checks a step's arguments and adds its key to the cache.
CachePointers append_token(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                           KeyValueCache& cache) {
  check_attention_step(op, q, k, v);
  check_not_recorded(op, {q, k, v});
  check_cache(op, q, cache);
  const Shape row{q.size(0), 1, q.size(1)};
  append(cache, k.alias(row), v.alias(row));
  return {.k = cache.k.data(),
          .v = cache.v.data(),
          .lengths = static_cast<const int64_t*>(cache.lengths.data()),
          .batch = cache.k.size(0),
          .capacity = cache.k.size(1),
          .channels = cache.k.size(2),
          .longest = cache.longest};
}

/// Scratch for `sums` partial sums of every batch entry and split.
Tensor partial_sums(const CachePointers& cache, int64_t sums, const Tensor& q) {
  return empty({cache.batch, cache_splits(cache.longest), sums},
               {.dtype = accumulation_dtype(q.dtype()), .device = q.device()});
}

void check_heads(const char* op, int64_t channels, int64_t heads) {
  ELWISE_CHECK(heads > 0 && channels % heads == 0, op, ": expected heads that divide ", channels,
               " channels, got ", heads);
}

/// With room for `length` rows more.
void grow(KeyValueCache& cache, int64_t length) {
  const int64_t missing = cache.longest + length - cache.k.size(1);
  if (missing <= 0) return;
  const int64_t rows = (missing + kCacheBlock - 1) / kCacheBlock * kCacheBlock;
  for (Tensor* tensor : {&cache.k, &cache.v}) {
    *tensor = concat({*tensor, empty(tensor->shape().with(1, rows), tensor->options())}, 1);
  }
}

/// Runs the recurrence over q, k, v with `length` rows a batch entry.
Tensor run_linear_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, int64_t length,
                            LinearAttentionState& state, const Tensor& key_mask) {
  check_not_recorded(op, {q, k, v});
  ELWISE_CHECK(state.s.defined() && state.z.defined() && state.s.rank() == 4, op,
               ": expected a state made by linear_attention_state");
  const int64_t batch = q.size(0), heads = state.s.size(1);
  check_heads(op, q.size(-1), heads);
  const int64_t head = q.size(-1) / heads;
  check_shape(op, "s", state.s, {batch, heads, head, head});
  check_shape(op, "z", state.z, {batch, heads, head});
  check_statistics(op, "s", state.s, q);
  check_statistics(op, "z", state.z, q);
  const Tensor y = empty(q.shape(), q.options());
  const int64_t chunks = length > 1 ? linear_attention_chunks(length, head) : 0;
  const Tensor sums = empty({batch, heads, chunks, head + 1, head}, state.s.options());
  ELWISE_DISPATCH(q.device(), linear_attention_step,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .k = k.data(),
                   .v = v.data(),
                   .y = y.data(),
                   .s = state.s.data(),
                   .z = state.z.data(),
                   .sums = sums.data(),
                   .batch = batch,
                   .length = length,
                   .heads = heads,
                   .head = head,
                   .key_mask = key_mask_data({.key_mask = key_mask})});
  for (const Tensor& changed : {state.s, state.z}) changed.storage()->bump_version();
  return y;
}

}  // namespace

int64_t KeyValueCache::bytes() const {
  return (k.count() + v.count()) * size_of(k.dtype()) + lengths.count() * size_of(lengths.dtype());
}

KeyValueCache key_value_cache(int64_t batch, int64_t channels, TensorOptions options) {
  return {.k = empty({batch, 0, channels}, options),
          .v = empty({batch, 0, channels}, options),
          .lengths = zeros({batch}, {.dtype = DType::i64, .device = options.device}),
          .longest = 0};
}

void append(KeyValueCache& cache, const Tensor& k, const Tensor& v, const Tensor& key_mask) {
  check_attention("append", k, k, v, {.causal = true, .key_mask = key_mask});
  check_not_recorded("append", {k, v});
  check_cache("append", k, cache);
  const int64_t length = k.size(1);
  grow(cache, length);
  ELWISE_DISPATCH(k.device(), cache_append,
                  {.dtype = k.dtype(),
                   .k = k.data(),
                   .v = v.data(),
                   .cache_k = cache.k.data(),
                   .cache_v = cache.v.data(),
                   .lengths = static_cast<int64_t*>(cache.lengths.data()),
                   .batch = k.size(0),
                   .length = length,
                   .capacity = cache.k.size(1),
                   .channels = k.size(2),
                   .key_mask = key_mask_data({.key_mask = key_mask})});
  cache.longest += length;
  for (const Tensor& changed : {cache.k, cache.v, cache.lengths}) changed.storage()->bump_version();
}

Tensor softmax_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                              KeyValueCache& cache) {
  check_heads("softmax_attention_step", q.size(-1), heads);
  const CachePointers pointers = append_token("softmax_attention_step", q, k, v, cache);
  const Tensor y = empty(q.shape(), q.options()), partials = partial_sums(pointers, q.size(1) + 2 * heads, q);
  ELWISE_DISPATCH(q.device(), softmax_attention_step,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .y = y.data(),
                   .partials = partials.data(),
                   .cache = pointers,
                   .heads = heads,
                   .scale = 1 / std::sqrt(static_cast<double>(q.size(1) / heads))});
  return y;
}

Tensor ea_step(const Tensor& q, const Tensor& k, const Tensor& v, KeyValueCache& cache) {
  const CachePointers pointers = append_token("ea_step", q, k, v, cache);
  const Tensor y = empty(q.shape(), q.options()), partials = partial_sums(pointers, 3 * q.size(1), q);
  ELWISE_DISPATCH(
      q.device(), ea_step,
      {.dtype = q.dtype(), .q = q.data(), .y = y.data(), .partials = partials.data(), .cache = pointers});
  return y;
}

Tensor aft_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& position_bias,
                KeyValueCache& cache) {
  check_not_recorded("aft_step", {position_bias});
  check_same_kind("aft_step", "q", q, "position_bias", position_bias);
  ELWISE_CHECK(position_bias.rank() == 2 && position_bias.size(0) == position_bias.size(1) &&
                   position_bias.size(0) > cache.longest,
               "aft_step: expected position_bias [positions, positions] for ", cache.longest + 1,
               " positions or more, got ", position_bias.shape());
  const CachePointers pointers = append_token("aft_step", q, k, v, cache);
  const Tensor y = empty(q.shape(), q.options()), partials = partial_sums(pointers, 3 * q.size(1), q);
  ELWISE_DISPATCH(q.device(), aft_step,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .y = y.data(),
                   .partials = partials.data(),
                   .cache = pointers,
                   .position_bias = position_bias.data(),
                   .positions = position_bias.size(0)});
  return y;
}

int64_t LinearAttentionState::bytes() const {
  return (s.count() + z.count()) * size_of(s.dtype());
}

LinearAttentionState linear_attention_state(int64_t batch, int64_t channels, int64_t heads,
                                            TensorOptions options) {
  check_heads("linear_attention_state", channels, heads);
  options.dtype = accumulation_dtype(options.dtype);
  const int64_t head = channels / heads;
  return {.s = zeros({batch, heads, head, head}, options), .z = zeros({batch, heads, head}, options)};
}

Tensor linear_attention_prefill(const Tensor& q, const Tensor& k, const Tensor& v,
                                LinearAttentionState& state, const Tensor& key_mask) {
  check_attention("linear_attention_prefill", q, k, v, {.causal = true, .key_mask = key_mask});
  return run_linear_attention("linear_attention_prefill", q, k, v, q.size(1), state, key_mask);
}

Tensor linear_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, LinearAttentionState& state) {
  check_attention_step("linear_attention_step", q, k, v);
  return run_linear_attention("linear_attention_step", q, k, v, 1, state, {});
}

}  // namespace elwise
