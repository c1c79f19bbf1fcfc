#pragma once

#include <cstdint>
#include <vector>

// Lookups by index and their gradients as plain loops, to check the kernels of ops/embedding_kernels.h.

namespace elwise::naive {

/// Elements of x are [outer, size, inner]; count of them are taken along the middle dimension.
struct LookupShape {
  int64_t outer;
  int64_t size;
  int64_t count;
  int64_t inner;
};

/// Calls body(y's position, x's position) in the order of j. `index_at(o, j, i)` is the index.
template <class IndexAt, class Body>
void for_each_lookup(const LookupShape& shape, const IndexAt& index_at, const Body& body) {
  for (int64_t o = 0; o < shape.outer; ++o) {
    for (int64_t j = 0; j < shape.count; ++j) {
      for (int64_t i = 0; i < shape.inner; ++i) {
        body((o * shape.count + j) * shape.inner + i, (o * shape.size + index_at(o, j, i)) * shape.inner + i);
      }
    }
  }
}

/// y[o, j, i] = x[o, index[j], i].
inline std::vector<double> index_select_forward(const LookupShape& shape, const std::vector<double>& x,
                                                const std::vector<int64_t>& index) {
  std::vector<double> y(shape.outer * shape.count * shape.inner);
  for_each_lookup(
      shape, [&](int64_t, int64_t j, int64_t) { return index[j]; },
      [&](int64_t to, int64_t from) { y[to] = x[from]; });
  return y;
}

/// dx, starting from `dx`: dx[o, index[j], i] += dy[o, j, i].
inline std::vector<double> index_select_backward(const LookupShape& shape, const std::vector<double>& dy,
                                                 const std::vector<int64_t>& index, std::vector<double> dx) {
  for_each_lookup(
      shape, [&](int64_t, int64_t j, int64_t) { return index[j]; },
      [&](int64_t from, int64_t to) { dx[to] += dy[from]; });
  return dx;
}

/// y[o, j, i] = x[o, index[o, j, i], i].
inline std::vector<double> gather_forward(const LookupShape& shape, const std::vector<double>& x,
                                          const std::vector<int64_t>& index) {
  std::vector<double> y(shape.outer * shape.count * shape.inner);
  const auto index_at = [&](int64_t o, int64_t j, int64_t i) {
    return index[(o * shape.count + j) * shape.inner + i];
  };
  for_each_lookup(shape, index_at, [&](int64_t to, int64_t from) { y[to] = x[from]; });
  return y;
}

/// dx, starting from `dx`: dx[o, index[o, j, i], i] += dy[o, j, i].
inline std::vector<double> gather_backward(const LookupShape& shape, const std::vector<double>& dy,
                                           const std::vector<int64_t>& index, std::vector<double> dx) {
  const auto index_at = [&](int64_t o, int64_t j, int64_t i) {
    return index[(o * shape.count + j) * shape.inner + i];
  };
  for_each_lookup(shape, index_at, [&](int64_t from, int64_t to) { dx[to] += dy[from]; });
  return dx;
}

}  // namespace elwise::naive
