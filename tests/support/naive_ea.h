#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

// Full element-wise attention as plain loops, to check the kernels of ops/ea_kernels.h against.

namespace elwise::naive {

/// The sizes and masks of one call. `key_mask` is empty or [batch, length], true = visible.
struct EaShape {
  int64_t batch;
  int64_t length;
  int64_t channels;
  bool causal = false;
  std::vector<bool> key_mask = {};

  int64_t count() const { return batch * length * channels; }
  int64_t index(int64_t b, int64_t i, int64_t c) const { return (b * length + i) * channels + c; }
  bool sees(int64_t b, int64_t query, int64_t key) const {
    return (!causal || key <= query) && (key_mask.empty() || key_mask[b * length + key]);
  }
};

/// p_j = exp(-(q_i - k_j)^2) / sum_j exp(-(q_i - k_j)^2) over the keys j that query i sees; 0 for the others,
/// and for all keys where it sees none. The exponents are taken relative to the nearest key r, as the product
/// (q - r)^2 - (q - k)^2 = (k - r) ((q - r) + (q - k)): large squares would cancel.
inline std::vector<long double> ea_probabilities(const EaShape& shape, const std::vector<double>& q,
                                                 const std::vector<double>& k, int64_t b, int64_t i,
                                                 int64_t c) {
  const long double query = q[shape.index(b, i, c)];
  const auto key = [&](int64_t j) -> long double { return k[shape.index(b, j, c)]; };
  const auto exponent = [&](long double r, int64_t j) {
    return (key(j) - r) * ((query - r) + (query - key(j)));
  };
  std::vector<int64_t> seen;
  for (int64_t j = 0; j < shape.length; ++j) {
    if (shape.sees(b, i, j)) seen.push_back(j);
  }
  std::vector<long double> p(shape.length, 0);
  if (seen.empty()) return p;

  long double nearest = key(seen[0]), sum = 0;
  for (const int64_t j : seen) {
    if (exponent(nearest, j) > 0) nearest = key(j);
  }
  for (const int64_t j : seen) sum += p[j] = std::exp(exponent(nearest, j));
  for (const int64_t j : seen) p[j] /= sum;
  return p;
}

/// y of eq. 2 (arXiv 2501.05730); q, k, v and y are [batch, length, channels].
inline std::vector<double> ea_forward(const EaShape& shape, const std::vector<double>& q,
                                      const std::vector<double>& k, const std::vector<double>& v) {
  std::vector<double> y(shape.count());
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t i = 0; i < shape.length; ++i) {
      for (int64_t c = 0; c < shape.channels; ++c) {
        const auto p = ea_probabilities(shape, q, k, b, i, c);
        long double sum = 0;
        for (int64_t j = 0; j < shape.length; ++j) {
          if (shape.sees(b, i, j)) sum += p[j] * v[shape.index(b, j, c)];
        }
        y[shape.index(b, i, c)] = static_cast<double>(sum);
      }
    }
  }
  return y;
}

/// [batch, length, channels] each.
struct EaGradients {
  std::vector<double> dq, dk, dv;
};

/// The gradients of sum(y * dy).
inline EaGradients ea_backward(const EaShape& shape, const std::vector<double>& q,
                               const std::vector<double>& k, const std::vector<double>& v,
                               const std::vector<double>& dy) {
  std::vector<long double> dq(shape.count()), dk(shape.count()), dv(shape.count());
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t i = 0; i < shape.length; ++i) {
      for (int64_t c = 0; c < shape.channels; ++c) {
        const auto p = ea_probabilities(shape, q, k, b, i, c);
        const int64_t at_i = shape.index(b, i, c);
        long double y = 0;
        for (int64_t j = 0; j < shape.length; ++j) {
          if (shape.sees(b, i, j)) y += p[j] * v[shape.index(b, j, c)];
        }
        for (int64_t j = 0; j < shape.length; ++j) {
          if (!shape.sees(b, i, j)) continue;
          const int64_t at_j = shape.index(b, j, c);
          const long double distance = static_cast<long double>(q[at_i]) - k[at_j];
          const long double e = p[j] * dy[at_i] * (v[at_j] - y);
          dq[at_i] -= 2 * e * distance;
          dk[at_j] += 2 * e * distance;
          dv[at_j] += p[j] * dy[at_i];
        }
      }
    }
  }
  const auto rounded = [](const std::vector<long double>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  return {rounded(dq), rounded(dk), rounded(dv)};
}

}  // namespace elwise::naive
