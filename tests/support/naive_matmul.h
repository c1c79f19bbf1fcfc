#pragma once

#include <cstdint>
#include <vector>

namespace elwise::naive {

/// op(a) op(b), [m, n]. a is [m, k], stored [k, m] when transpose_a; b is [k, n], stored [n, k] when
/// transpose_b.
inline std::vector<double> matmul(const std::vector<double>& a, const std::vector<double>& b, int64_t m,
                                  int64_t n, int64_t k, bool transpose_a = false, bool transpose_b = false) {
  std::vector<double> c(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) {
        const double x = a[static_cast<size_t>(transpose_a ? p * m + i : i * k + p)];
        const double y = b[static_cast<size_t>(transpose_b ? j * k + p : p * n + j)];
        sum += x * y;
      }
      c[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return c;
}

/// `batch` products: a [batch, m, k], b [batch, k, n] (each matrix stored as in matmul), the result [batch,
/// m, n].
inline std::vector<double> batched_matmul(const std::vector<double>& a, const std::vector<double>& b,
                                          int64_t batch, int64_t m, int64_t n, int64_t k,
                                          bool transpose_a = false, bool transpose_b = false) {
  std::vector<double> c;
  for (int64_t item = 0; item < batch; ++item) {
    const std::vector<double> one =
        matmul({a.begin() + item * m * k, a.begin() + (item + 1) * m * k},
               {b.begin() + item * k * n, b.begin() + (item + 1) * k * n}, m, n, k, transpose_a, transpose_b);
    c.insert(c.end(), one.begin(), one.end());
  }
  return c;
}

}  // namespace elwise::naive
