#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/naive_ea.h"

// Linear attention as plain loops over pairs, to check the kernels of ops/linear_attention_kernels.h against.

namespace elwise::naive {

/// phi(x) = elu(x) + 1 = factor exp(exponent): the exponents of small features are added, not their products
/// formed, which would vanish.
struct LinearAttentionFeature {
  long double factor, exponent;

  explicit LinearAttentionFeature(long double x)
      : factor(1 + std::max(x, 0.0L)), exponent(std::min(x, 0.0L)) {}
};

/// For query i of one head: p[j][c] = phi(q_ic) phi(k_jc) / sum_jc phi(q_ic) phi(k_jc) over the keys j that
/// it sees and the head's channels c; 0 for other keys.
inline std::vector<std::vector<long double>> linear_attention_probabilities(const EaShape& shape,
                                                                            const std::vector<double>& q,
                                                                            const std::vector<double>& k,
                                                                            int64_t b, int64_t i,
                                                                            int64_t first, int64_t head) {
  std::vector<std::vector<long double>> p(shape.length, std::vector<long double>(head, 0));
  long double largest = -INFINITY, sum = 0;
  const auto exponent = [&](int64_t j, int64_t c) {
    return LinearAttentionFeature(q[shape.index(b, i, first + c)]).exponent +
           LinearAttentionFeature(k[shape.index(b, j, first + c)]).exponent;
  };
  const auto for_each_pair = [&](const auto& body) {
    for (int64_t j = 0; j < shape.length; ++j) {
      for (int64_t c = 0; c < head && shape.sees(b, i, j); ++c) body(j, c);
    }
  };
  for_each_pair([&](int64_t j, int64_t c) { largest = std::max(largest, exponent(j, c)); });
  for_each_pair([&](int64_t j, int64_t c) {
    sum += p[j][c] = LinearAttentionFeature(q[shape.index(b, i, first + c)]).factor *
                     LinearAttentionFeature(k[shape.index(b, j, first + c)]).factor *
                     std::exp(exponent(j, c) - largest);
  });
  for_each_pair([&](int64_t j, int64_t c) { p[j][c] /= sum; });
  return p;
}

/// y, and the gradients of sum(y * dy), [batch, length, channels] each.
struct LinearAttentionResult {
  std::vector<double> y, dq, dk, dv;
};

/// eq. 18 of arXiv 2501.05730 for `heads` heads, side by side in the channels.
inline LinearAttentionResult linear_attention(const EaShape& shape, int64_t heads,
                                              const std::vector<double>& q, const std::vector<double>& k,
                                              const std::vector<double>& v, const std::vector<double>& dy) {
  const int64_t head = shape.channels / heads;
  std::vector<long double> y(shape.count()), dq(shape.count()), dk(shape.count()), dv(shape.count());
  // The derivative of ln phi.
  const auto slope = [](double x) { return 1 / (1 + std::max<long double>(x, 0)); };
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t i = 0; i < shape.length; ++i) {
      for (int64_t first = 0; first < shape.channels; first += head) {
        const auto p = linear_attention_probabilities(shape, q, k, b, i, first, head);
        const int64_t at_i = shape.index(b, i, first);
        std::vector<long double> weight(shape.length, 0);
        for (int64_t j = 0; j < shape.length; ++j) {
          if (!shape.sees(b, i, j)) continue;
          for (const long double term : p[j]) weight[j] += term;
          for (int64_t e = 0; e < head; ++e) y[at_i + e] += weight[j] * v[shape.index(b, j, first + e)];
        }
        for (int64_t j = 0; j < shape.length; ++j) {
          if (!shape.sees(b, i, j)) continue;
          const int64_t at_j = shape.index(b, j, first);
          long double change = 0;  // of sum(y * dy) by ln weight[j], for a unit of weight
          for (int64_t e = 0; e < head; ++e) change += dy[at_i + e] * (v[at_j + e] - y[at_i + e]);
          for (int64_t e = 0; e < head; ++e) {
            dv[at_j + e] += weight[j] * dy[at_i + e];
            dq[at_i + e] += p[j][e] * change * slope(q[at_i + e]);
            dk[at_j + e] += p[j][e] * change * slope(k[at_j + e]);
          }
        }
      }
    }
  }
  const auto rounded = [](const std::vector<long double>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  return {rounded(y), rounded(dq), rounded(dk), rounded(dv)};
}

}  // namespace elwise::naive
