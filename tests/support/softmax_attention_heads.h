#pragma once

#include "ops/softmax_attention.h"
#include "tests/support/attention_properties.h"
#include "tests/support/naive_softmax_attention.h"

namespace elwise::testing {

/// Softmax attention in the form of `op`, which is softmax_attention or one that must equal it, dropout drawn
/// from a generator of this seed.
inline Attention softmax_attention_heads(const char* name, decltype(&softmax_attention) op, int64_t heads,
                                         double dropout_p, uint64_t seed) {
  return {.name = detail::concatenate(name, " ", heads, " heads dropout ", dropout_p),
          .run =
              [=](const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options) {
                Generator generator(seed);
                return op(q, k, v, heads, options, dropout_p, generator);
              },
          .naive =
              [=](const AttentionShape& shape, const Values& q, const Values& k, const Values& v) {
                return naive::softmax_attention({shape, heads, dropout_p, {seed, 0}}, q, k, v);
              }};
}

}  // namespace elwise::testing
