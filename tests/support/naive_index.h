#pragma once

#include <cstdint>
#include <vector>

#include "core/shape.h"

// Arrays by multi-index, for the naive references of ops that move, repeat or reduce dimensions.

namespace elwise::naive {

/// One index per dimension, outermost first.
using Index = std::vector<int64_t>;

/// A dense row-major array.
struct Array {
  Shape shape;
  std::vector<double> values;

  /// The element at `index`. As in NumPy, dimensions are aligned at the end and a size of 1 is repeated.
  const double& operator()(const Index& index) const {
    const size_t extra = index.size() - static_cast<size_t>(shape.rank());
    int64_t position = 0;
    for (int dim = 0; dim < shape.rank(); ++dim) {
      position = position * shape[dim] + (shape[dim] == 1 ? 0 : index[extra + static_cast<size_t>(dim)]);
    }
    return values[static_cast<size_t>(position)];
  }
};

/// function(index) for every index of `shape`, in row-major order.
template <class Function>
std::vector<double> build(const Shape& shape, const Function& function) {
  std::vector<double> values;
  Index index(static_cast<size_t>(shape.rank()), 0);
  for (int64_t n = shape.count(); n > 0; --n) {
    values.push_back(function(index));
    for (int dim = shape.rank() - 1; dim >= 0; --dim) {
      if (++index[static_cast<size_t>(dim)] < shape[dim]) break;
      index[static_cast<size_t>(dim)] = 0;
    }
  }
  return values;
}

/// `index` with that of dimension `dim` replaced.
inline Index with(Index index, int dim, int64_t value) {
  index[static_cast<size_t>(dim)] = value;
  return index;
}

}  // namespace elwise::naive
