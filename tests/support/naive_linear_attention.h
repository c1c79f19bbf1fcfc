#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/naive_ea.h"

// Linear attention as plain loops over pairs, to check the kernels of ops/linear_attention_kernels.h against.

namespace elwise::naive {

/// y, and the gradients of sum(y * dy), [batch, length, channels] each.
struct LinearAttentionResult {
  std::vector<double> y, dq, dk, dv;
};

/// One head of one batch entry, channels first .. first + head - 1.
struct LinearAttentionHead {
  const EaShape& shape;
  int64_t b, first, head;

  int64_t index(int64_t row, int64_t c = 0) const { return shape.index(b, row, first + c); }

  /// phi(x) exp(-shift) for a row of x, phi(x) = elu(x) + 1. A long double holds exp(-1e4).
  std::vector<long double> features(const std::vector<double>& x, int64_t row, double shift) const {
    std::vector<long double> result;
    for (int64_t c = 0; c < head; ++c) {
      const long double value = x[index(row, c)];
      result.push_back((1 + std::max(value, 0.0L)) * std::exp(std::min(value, 0.0L) - shift));
    }
    return result;
  }

  /// The derivatives of ln phi at a row of x.
  std::vector<long double> slopes(const std::vector<double>& x, int64_t row) const {
    std::vector<long double> result;
    for (int64_t c = 0; c < head; ++c) result.push_back(1 / (1 + std::max<long double>(x[index(row, c)], 0)));
    return result;
  }

  /// The largest exponent among a row's features, for the shift: a factor of all of them cancels.
  double exponent(const std::vector<double>& x, int64_t row) const {
    return std::min(0.0, *std::max_element(x.begin() + index(row), x.begin() + index(row) + head));
  }
};

/// eq. 18 of arXiv 2501.05730 for `heads` heads, side by side in the channels; queries and keys up to 1e4.
inline LinearAttentionResult linear_attention(const EaShape& shape, int64_t heads,
                                              const std::vector<double>& q, const std::vector<double>& k,
                                              const std::vector<double>& v, const std::vector<double>& dy) {
  std::vector<long double> y(shape.count()), dq(shape.count()), dk(shape.count()), dv(shape.count());
  const int64_t head = shape.channels / heads;
  for (int64_t pair = 0; pair < shape.batch * heads; ++pair) {
    const LinearAttentionHead of{shape, pair / heads, pair % heads * head, head};
    std::vector<std::vector<long double>> keys, key_slopes;
    for (int64_t j = 0; j < shape.length; ++j) {
      keys.push_back(of.features(k, j, 0));
      key_slopes.push_back(of.slopes(k, j));
    }
    for (int64_t i = 0; i < shape.length; ++i) {
      const std::vector<long double> query = of.features(q, i, of.exponent(q, i)),
                                     query_slopes = of.slopes(q, i);
      std::vector<long double> weight(shape.length, 0);
      long double sum = 0;
      for (int64_t j = 0; j < shape.length; ++j) {
        if (!shape.sees(of.b, i, j)) continue;
        for (int64_t c = 0; c < head; ++c) weight[j] += query[c] * keys[j][c];
        sum += weight[j];
      }
      for (int64_t j = 0; j < shape.length; ++j) {
        if (!shape.sees(of.b, i, j)) continue;
        const long double share = weight[j] / sum;
        for (int64_t c = 0; c < head; ++c) y[of.index(i, c)] += share * v[of.index(j, c)];
      }
      for (int64_t j = 0; j < shape.length; ++j) {
        if (!shape.sees(of.b, i, j)) continue;
        long double change = 0;  // of sum(y * dy), for a unit of weight
        for (int64_t c = 0; c < head; ++c) {
          change += dy[of.index(i, c)] * (v[of.index(j, c)] - y[of.index(i, c)]);
        }
        change /= sum;
        const long double share = weight[j] / sum;
        for (int64_t c = 0; c < head; ++c) {
          const int64_t at_i = of.index(i, c), at_j = of.index(j, c);
          const long double moved = query[c] * keys[j][c] * change;
          dv[at_j] += share * dy[at_i];
          dq[at_i] += moved * query_slopes[c];
          dk[at_j] += moved * key_slopes[j][c];
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
