#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace elwise::naive {

/// The problem that the EA-series functions below solve. All tensors are [batch, length, channels].
struct EaSeriesShape {
  int64_t batch = 1;
  int64_t length = 1;
  int64_t channels = 1;
  int order = 6;
  bool causal = false;              // query i sees keys 0 .. i
  std::vector<bool> key_mask = {};  // [batch, length], true = visible; empty = all visible

  int64_t at(int64_t b, int64_t row, int64_t channel) const {
    return (b * length + row) * channels + channel;
  }
  bool visible(int64_t b, int64_t query, int64_t key) const {
    if (causal && key > query) return false;
    return key_mask.empty() || key_mask[b * length + key];
  }
};

/// The first `terms` terms of the Taylor series of exp(x).
inline long double truncated_exp(long double x, int terms) {
  long double sum = 0, term = 1;
  for (int n = 0; n < terms; term *= x / ++n) sum += term;
  return sum;
}

/// What key j weighs for query i, and the derivatives by q and k. The weight exp(-k^2) is taken relative to
/// the smallest |k| that the query sees, which cancels in every quotient.
struct EaSeriesPair {
  int64_t key;  // offset of its element
  long double weight, by_q, by_k;
};

/// All pairs of one query: empty if it sees no key. With x = 2 q k and p the series up to x^t, a weight is
/// exp(-k^2) p(x); p'(x) is the series up to x^(t-1).
inline std::vector<EaSeriesPair> ea_series_pairs(const EaSeriesShape& shape, const std::vector<double>& q,
                                                 const std::vector<double>& k, int64_t b, int64_t query,
                                                 int64_t channel) {
  const long double q_i = q[shape.at(b, query, channel)];
  long double smallest = std::numeric_limits<long double>::infinity();
  for (int64_t j = 0; j < shape.length; ++j) {
    if (shape.visible(b, query, j))
      smallest = std::min(smallest, std::fabs(static_cast<long double>(k[shape.at(b, j, channel)])));
  }
  std::vector<EaSeriesPair> pairs;
  for (int64_t j = 0; j < shape.length; ++j) {
    if (!shape.visible(b, query, j)) continue;
    const long double k_j = k[shape.at(b, j, channel)];
    const long double e = std::exp((smallest - std::fabs(k_j)) * (smallest + std::fabs(k_j)));
    const long double p = truncated_exp(2 * q_i * k_j, shape.order + 1);
    const long double slope = truncated_exp(2 * q_i * k_j, shape.order);
    pairs.push_back(
        {shape.at(b, j, channel), e * p, e * slope * 2 * k_j, e * (slope * 2 * q_i - 2 * k_j * p)});
  }
  return pairs;
}

/// Calls body(element, pairs) for every query of every channel; `element` is the query's offset.
template <class Body>
void for_each_ea_series_query(const EaSeriesShape& shape, const std::vector<double>& q,
                              const std::vector<double>& k, Body body) {
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t i = 0; i < shape.length; ++i) {
      for (int64_t c = 0; c < shape.channels; ++c) {
        body(shape.at(b, i, c), ea_series_pairs(shape, q, k, b, i, c));
      }
    }
  }
}

/// The weighted mean of v: y_i = sum_j weight_ij v_j / sum_j weight_ij, 0 for a query that sees no key.
inline long double ea_series_mean(const std::vector<EaSeriesPair>& pairs, const std::vector<double>& v,
                                  long double* weight_sum) {
  long double sum = 0;
  *weight_sum = 0;
  for (const EaSeriesPair& pair : pairs) {
    sum += pair.weight * v[pair.key];
    *weight_sum += pair.weight;
  }
  return pairs.empty() ? 0 : sum / *weight_sum;
}

/// EA-series by its definition, all pairs in long double: O(length^2).
inline std::vector<double> ea_series(const EaSeriesShape& shape, const std::vector<double>& q,
                                     const std::vector<double>& k, const std::vector<double>& v) {
  std::vector<double> y(q.size());
  for_each_ea_series_query(shape, q, k, [&](int64_t element, const std::vector<EaSeriesPair>& pairs) {
    long double weight_sum;
    y[element] = static_cast<double>(ea_series_mean(pairs, v, &weight_sum));
  });
  return y;
}

struct EaSeriesGradient {
  std::vector<double> dq, dk, dv;
};

/// Its gradient by the quotient rule, pair by pair: dy_i/dw_ij = (v_j - y_i) / sum_j w_ij.
inline EaSeriesGradient ea_series_backward(const EaSeriesShape& shape, const std::vector<double>& q,
                                           const std::vector<double>& k, const std::vector<double>& v,
                                           const std::vector<double>& dy) {
  std::vector<long double> dq(q.size()), dk(q.size()), dv(q.size());
  for_each_ea_series_query(shape, q, k, [&](int64_t element, const std::vector<EaSeriesPair>& pairs) {
    long double weight_sum;
    const long double y = ea_series_mean(pairs, v, &weight_sum);
    for (const EaSeriesPair& pair : pairs) {
      const long double per_sum = dy[element] / weight_sum, by_weight = per_sum * (v[pair.key] - y);
      dq[element] += by_weight * pair.by_q;
      dk[pair.key] += by_weight * pair.by_k;
      dv[pair.key] += per_sum * pair.weight;
    }
  });
  return {{dq.begin(), dq.end()}, {dk.begin(), dk.end()}, {dv.begin(), dv.end()}};
}

}  // namespace elwise::naive
