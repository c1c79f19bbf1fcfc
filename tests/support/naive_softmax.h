#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace elwise::naive {

/// Which columns a row of a softmax sees. Row r belongs to batch entry r / (rows / batch) and is query
/// r % queries.
struct SoftmaxMask {
  int64_t batch = 1;
  int64_t queries = 1;
  std::vector<bool> key_mask = {};  // [batch, cols], true = visible; empty = all visible
  bool causal = false;              // query i sees columns 0 .. i

  bool visible(int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    if (causal && col > row % queries) return false;
    return key_mask.empty() || key_mask[row / (rows / batch) * cols + col];
  }
};

/// exp(x) / sum(exp(x)) over the visible columns of each row, 0 elsewhere. A NaN in a visible column makes
/// the row's visible weights NaN, and so do visible columns that are all -inf.
inline std::vector<double> softmax(const std::vector<double>& x, int64_t rows, int64_t cols,
                                   const SoftmaxMask& mask = {}) {
  std::vector<double> y(x.size(), 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t c = 0; c < cols; ++c) {
      if (mask.visible(r, rows, c, cols)) largest = std::max(largest, x[r * cols + c]);
    }
    for (int64_t c = 0; c < cols; ++c) {
      if (mask.visible(r, rows, c, cols)) sum += y[r * cols + c] = std::exp(x[r * cols + c] - largest);
    }
    for (int64_t c = 0; c < cols; ++c) {
      if (mask.visible(r, rows, c, cols)) y[r * cols + c] /= sum;
    }
  }
  return y;
}

/// dx = y * (dy - sum(y * dy)) for each row.
inline std::vector<double> softmax_backward(const std::vector<double>& y, const std::vector<double>& dy,
                                            int64_t rows, int64_t cols) {
  std::vector<double> dx(y.size());
  for (int64_t r = 0; r < rows; ++r) {
    double dot = 0;
    for (int64_t i = r * cols; i < (r + 1) * cols; ++i) dot += y[i] * dy[i];
    for (int64_t i = r * cols; i < (r + 1) * cols; ++i) dx[i] = y[i] * (dy[i] - dot);
  }
  return dx;
}

/// The rows that count: those whose target is not ignore_index.
inline int64_t counted_rows(const std::vector<int64_t>& target, int64_t ignore_index) {
  return static_cast<int64_t>(target.size()) - std::count(target.begin(), target.end(), ignore_index);
}

/// Mean of -log(softmax(logits)[target]) over the counted rows; 0 when there is none.
inline double cross_entropy(const std::vector<double>& logits, const std::vector<int64_t>& target,
                            int64_t classes, int64_t ignore_index) {
  const int64_t rows = static_cast<int64_t>(target.size());
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (target[r] == ignore_index) continue;
    const auto row = logits.begin() + r * classes;
    const double largest = *std::max_element(row, row + classes);
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(row[c] - largest);
    total += largest + std::log(sum) - row[target[r]];
  }
  const int64_t counted = counted_rows(target, ignore_index);
  return counted == 0 ? 0 : total / static_cast<double>(counted);
}

/// The gradient of cross_entropy with respect to the logits, times dloss.
inline std::vector<double> cross_entropy_backward(const std::vector<double>& logits,
                                                  const std::vector<int64_t>& target, int64_t classes,
                                                  int64_t ignore_index, double dloss) {
  const int64_t rows = static_cast<int64_t>(target.size());
  const double scale = dloss / static_cast<double>(counted_rows(target, ignore_index));
  std::vector<double> dlogits = softmax(logits, rows, classes);
  for (int64_t r = 0; r < rows; ++r) {
    const bool ignored = target[r] == ignore_index;
    if (!ignored) dlogits[r * classes + target[r]] -= 1;
    for (int64_t c = 0; c < classes; ++c) {
      dlogits[r * classes + c] = ignored ? 0 : dlogits[r * classes + c] * scale;
    }
  }
  return dlogits;
}

inline double mse_loss(const std::vector<double>& x, const std::vector<double>& target) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += (x[i] - target[i]) * (x[i] - target[i]);
  return sum / static_cast<double>(x.size());
}

inline std::vector<double> mse_loss_backward(const std::vector<double>& x, const std::vector<double>& target,
                                             double dloss) {
  std::vector<double> dx(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    dx[i] = dloss * 2 * (x[i] - target[i]) / static_cast<double>(x.size());
  return dx;
}

inline double l1_loss(const std::vector<double>& x, const std::vector<double>& target) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += std::fabs(x[i] - target[i]);
  return sum / static_cast<double>(x.size());
}

/// The derivative of |u| at 0 is taken as 0.
inline std::vector<double> l1_loss_backward(const std::vector<double>& x, const std::vector<double>& target,
                                            double dloss) {
  std::vector<double> dx(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double sign = x[i] > target[i] ? 1 : x[i] < target[i] ? -1 : 0;
    dx[i] = dloss * sign / static_cast<double>(x.size());
  }
  return dx;
}

}  // namespace elwise::naive
