#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/naive_ea.h"

// The Attention Free Transformer as plain loops, to check the kernels of ops/aft_kernels.h against.

namespace elwise::naive {

/// p_j = exp(w_ij + k_j) / sum_j exp(w_ij + k_j) over the keys j that query i sees; 0 for the others, and for
/// all keys where it sees none. w: [positions, positions].
inline std::vector<long double> aft_probabilities(const EaShape& shape, int64_t positions,
                                                  const std::vector<double>& k, const std::vector<double>& w,
                                                  int64_t b, int64_t i, int64_t c) {
  std::vector<long double> p(shape.length, 0);
  const auto exponent = [&](int64_t j) {
    return static_cast<long double>(w[i * positions + j]) + k[shape.index(b, j, c)];
  };
  long double largest = -INFINITY, sum = 0;
  for (int64_t j = 0; j < shape.length; ++j) {
    if (shape.sees(b, i, j)) largest = std::max(largest, exponent(j));
  }
  for (int64_t j = 0; j < shape.length; ++j) {
    if (shape.sees(b, i, j)) sum += p[j] = std::exp(exponent(j) - largest);
  }
  for (int64_t j = 0; j < shape.length; ++j) {
    if (shape.sees(b, i, j)) p[j] /= sum;
  }
  return p;
}

/// y, and the gradients of sum(y * dy): [batch, length, channels], and dw [positions, positions].
struct AftResult {
  std::vector<double> y, dq, dk, dv, dw;
};

/// y_i = sigmoid(q_i) sum_j p_j v_j (arXiv 2105.14103).
inline AftResult aft(const EaShape& shape, int64_t positions, const std::vector<double>& q,
                     const std::vector<double>& k, const std::vector<double>& v, const std::vector<double>& w,
                     const std::vector<double>& dy) {
  std::vector<double> y(shape.count()), dq(shape.count());
  std::vector<long double> dk(shape.count()), dv(shape.count()), dw(positions * positions);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t i = 0; i < shape.length; ++i) {
      for (int64_t c = 0; c < shape.channels; ++c) {
        const auto p = aft_probabilities(shape, positions, k, w, b, i, c);
        const int64_t at_i = shape.index(b, i, c);
        const long double gate = 1 / (1 + std::exp(-static_cast<long double>(q[at_i])));
        long double mean = 0;
        for (int64_t j = 0; j < shape.length; ++j) {
          if (shape.sees(b, i, j)) mean += p[j] * v[shape.index(b, j, c)];
        }
        y[at_i] = static_cast<double>(gate * mean);
        dq[at_i] = static_cast<double>(dy[at_i] * mean * gate * (1 - gate));
        for (int64_t j = 0; j < shape.length; ++j) {
          if (!shape.sees(b, i, j)) continue;
          const int64_t at_j = shape.index(b, j, c);
          const long double change = p[j] * gate * dy[at_i];
          dv[at_j] += change;
          dk[at_j] += change * (v[at_j] - mean);
          dw[i * positions + j] += change * (v[at_j] - mean);
        }
      }
    }
  }
  const auto rounded = [](const std::vector<long double>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  return {y, dq, rounded(dk), rounded(dv), rounded(dw)};
}

}  // namespace elwise::naive
