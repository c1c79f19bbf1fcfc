#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/random.h"
#include "tests/support/naive_ea.h"
#include "tests/support/naive_matmul.h"
#include "tests/support/naive_softmax.h"

// Softmax attention as plain loops, to check ops/softmax_attention.h and its kernels against.

namespace elwise::naive {

/// The sizes and masks of all attention, and what softmax attention has besides.
struct SoftmaxAttentionShape : EaShape {
  int64_t heads = 1;
  double dropout_p = 0;
  RandomStream stream = {};  // weight n in [batch, heads, length, length] is dropped by its word n

  int64_t head() const { return channels / heads; }
  double scale() const { return 1 / std::sqrt(static_cast<double>(head())); }
};

/// One head of one batch entry.
struct SoftmaxHead {
  SoftmaxHead(const SoftmaxAttentionShape& all, int64_t entry, int64_t number)
      : shape(all), b(entry), head(number) {}

  /// Its part of x [batch, length, channels], as [length, head].
  std::vector<double> of(const std::vector<double>& x) const {
    std::vector<double> part;
    for (int64_t i = 0; i < shape.length; ++i) {
      const auto first = x.begin() + shape.index(b, i, head * shape.head());
      part.insert(part.end(), first, first + shape.head());
    }
    return part;
  }
  void put(const std::vector<double>& part, std::vector<double>& x) const {
    for (int64_t i = 0; i < shape.length; ++i) {
      std::copy_n(part.begin() + i * shape.head(), shape.head(),
                  x.begin() + shape.index(b, i, head * shape.head()));
    }
  }

  SoftmaxMask mask() const {
    SoftmaxMask result{.queries = shape.length, .causal = shape.causal};
    if (!shape.key_mask.empty()) {
      const auto first = shape.key_mask.begin() + b * shape.length;
      result.key_mask = {first, first + shape.length};
    }
    return result;
  }

  /// q k^T / sqrt(head), [length, length].
  std::vector<double> scores(const std::vector<double>& q, const std::vector<double>& k) const {
    std::vector<double> result = matmul(of(q), of(k), shape.length, shape.length, shape.head(), false, true);
    for (double& score : result) score *= shape.scale();
    return result;
  }

  std::vector<double> weights(const std::vector<double>& q, const std::vector<double>& k) const {
    return softmax(scores(q, k), shape.length, shape.length, mask());
  }

  /// What dropout makes of x [length, length]: weights, or their gradients.
  std::vector<double> dropped(std::vector<double> x) const {
    if (shape.dropout_p == 0) return x;
    uint64_t word = static_cast<uint64_t>((b * shape.heads + head) * shape.length * shape.length);
    for (double& value : x) {
      const bool kept = static_cast<double>(uniform01(shape.stream.word(word++))) >= shape.dropout_p;
      value = kept ? value / (1 - shape.dropout_p) : 0;
    }
    return x;
  }

  const SoftmaxAttentionShape& shape;
  int64_t b, head;
};

/// y of eq. 17 (arXiv 2501.05730); q, k, v and y are [batch, length, channels].
inline std::vector<double> softmax_attention(const SoftmaxAttentionShape& shape, const std::vector<double>& q,
                                             const std::vector<double>& k, const std::vector<double>& v) {
  std::vector<double> y(v.size());
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t number = 0; number < shape.heads; ++number) {
      const SoftmaxHead head(shape, b, number);
      head.put(matmul(head.dropped(head.weights(q, k)), head.of(v), shape.length, shape.head(), shape.length),
               y);
    }
  }
  return y;
}

/// log sum_j exp(score_ij) over the keys j that query i sees, [batch, heads, length].
inline std::vector<double> softmax_attention_logsumexp(const SoftmaxAttentionShape& shape,
                                                       const std::vector<double>& q,
                                                       const std::vector<double>& k) {
  std::vector<double> result;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t number = 0; number < shape.heads; ++number) {
      const std::vector<double> scores = SoftmaxHead(shape, b, number).scores(q, k);
      for (int64_t i = 0; i < shape.length; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < shape.length; ++j) {
          if (shape.sees(b, i, j)) sum += std::exp(scores[i * shape.length + j]);
        }
        result.push_back(std::log(sum));
      }
    }
  }
  return result;
}

/// The gradients of sum(y * dy).
inline EaGradients softmax_attention_backward(const SoftmaxAttentionShape& shape,
                                              const std::vector<double>& q, const std::vector<double>& k,
                                              const std::vector<double>& v, const std::vector<double>& dy) {
  EaGradients result{std::vector<double>(q.size()), std::vector<double>(q.size()),
                     std::vector<double>(q.size())};
  const int64_t length = shape.length, size = shape.head();
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t number = 0; number < shape.heads; ++number) {
      const SoftmaxHead head(shape, b, number);
      const std::vector<double> weights = head.weights(q, k);
      head.put(matmul(head.dropped(weights), head.of(dy), length, size, length, true), result.dv);
      std::vector<double> dscores = softmax_backward(
          weights, head.dropped(matmul(head.of(dy), head.of(v), length, length, size, false, true)), length,
          length);
      for (double& value : dscores) value *= shape.scale();
      head.put(matmul(dscores, head.of(k), length, size, length), result.dq);
      head.put(matmul(dscores, head.of(q), length, size, length, true), result.dk);
    }
  }
  return result;
}

}  // namespace elwise::naive
