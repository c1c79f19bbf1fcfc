#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace elwise::naive {

struct LayerNorm {
  std::vector<double> h;     // [rows, cols]: x + residual
  std::vector<double> y;     // [rows, cols]
  std::vector<double> mean;  // [rows]
  std::vector<double> rstd;  // [rows]
};

/// y = (h - mean) / sqrt(variance + eps) * weight + bias for each row of h = x + residual, with the biased
/// variance. An empty residual, weight or bias stands for none.
inline LayerNorm layer_norm(const std::vector<double>& x, int64_t rows, int64_t cols, double eps,
                            const std::vector<double>& residual = {}, const std::vector<double>& weight = {},
                            const std::vector<double>& bias = {}) {
  LayerNorm out{.h = x, .y = std::vector<double>(x.size()), .mean = {}, .rstd = {}};
  for (size_t i = 0; i < residual.size(); ++i) out.h[i] += residual[i];
  for (int64_t r = 0; r < rows; ++r) {
    const double* h = out.h.data() + r * cols;
    double sum = 0;
    for (int64_t c = 0; c < cols; ++c) sum += h[c];
    const double mean = sum / static_cast<double>(cols);
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) squares += (h[c] - mean) * (h[c] - mean);
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(cols) + eps);
    for (int64_t c = 0; c < cols; ++c) {
      out.y[r * cols + c] =
          (h[c] - mean) * rstd * (weight.empty() ? 1 : weight[c]) + (bias.empty() ? 0 : bias[c]);
    }
    out.mean.push_back(mean);
    out.rstd.push_back(rstd);
  }
  return out;
}

struct LayerNormGradients {
  std::vector<double> dx;       // [rows, cols]: of h, so of x and of residual
  std::vector<double> dweight;  // [cols]
  std::vector<double> dbias;    // [cols]
};

/// With n = (h - mean) * rstd and g = dy * weight, the gradient of h is
/// rstd * (g - mean(g) - n * mean(g * n)), plus dsum where h is used elsewhere too.
inline LayerNormGradients layer_norm_backward(const std::vector<double>& h, const std::vector<double>& dy,
                                              int64_t rows, int64_t cols, double eps,
                                              const std::vector<double>& weight = {},
                                              const std::vector<double>& dsum = {}) {
  const LayerNorm forward = layer_norm(h, rows, cols, eps);
  LayerNormGradients out{.dx = std::vector<double>(h.size()),
                         .dweight = std::vector<double>(cols),
                         .dbias = std::vector<double>(cols)};
  for (int64_t r = 0; r < rows; ++r) {
    const double* n = forward.y.data() + r * cols;
    std::vector<double> g(cols);
    double mean_g = 0, mean_gn = 0;
    for (int64_t c = 0; c < cols; ++c) {
      g[c] = dy[r * cols + c] * (weight.empty() ? 1 : weight[c]);
      mean_g += g[c] / static_cast<double>(cols);
      mean_gn += g[c] * n[c] / static_cast<double>(cols);
      out.dweight[c] += dy[r * cols + c] * n[c];
      out.dbias[c] += dy[r * cols + c];
    }
    for (int64_t c = 0; c < cols; ++c) {
      out.dx[r * cols + c] =
          forward.rstd[r] * (g[c] - mean_g - n[c] * mean_gn) + (dsum.empty() ? 0 : dsum[r * cols + c]);
    }
  }
  return out;
}

}  // namespace elwise::naive
