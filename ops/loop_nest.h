#pragma once

#include "ops/elementwise_kernels.h"

namespace elwise {

/// The loops of an elementwise kernel and the strides of its operands, dimensions of size 1 left out and
/// adjacent ones merged wherever every operand allows it: dense operands give a single loop.
template <size_t kOperands>
struct LoopNest {
  Extents extents;
  std::array<Strides, kOperands> strides{};

  LoopNest(const Shape& shape, const std::array<Strides, kOperands>& operands) {
    for (int dim = 0; dim < shape.rank(); ++dim) {
      const int64_t size = shape[dim];
      if (size == 1) continue;
      const auto from = static_cast<size_t>(dim);
      if (extents.rank > 0 && merges(operands, from, size)) {
        const auto last = static_cast<size_t>(extents.rank - 1);
        extents.size[last] *= size;
        for (size_t i = 0; i < kOperands; ++i) strides[i][last] = operands[i][from];
      } else {
        const auto next = static_cast<size_t>(extents.rank++);
        extents.size[next] = size;
        for (size_t i = 0; i < kOperands; ++i) strides[i][next] = operands[i][from];
      }
    }
    if (extents.rank == 0) {
      extents.rank = 1;
      extents.size[0] = 1;
    }
  }

 private:
  bool merges(const std::array<Strides, kOperands>& operands, size_t dim, int64_t size) const {
    for (size_t i = 0; i < kOperands; ++i) {
      if (strides[i][static_cast<size_t>(extents.rank - 1)] != operands[i][dim] * size) return false;
    }
    return true;
  }
};

/// Strides of a dense tensor of this shape.
inline Strides dense_strides(const Shape& shape) {
  Strides strides{};
  int64_t stride = 1;
  for (int dim = shape.rank() - 1; dim >= 0; --dim) {
    strides[static_cast<size_t>(dim)] = stride;
    stride *= shape[dim];
  }
  return strides;
}

/// Strides that walk a dense tensor of shape `from` over its broadcast to `to`: 0 where it repeats.
inline Strides broadcast_strides(const Shape& from, const Shape& to) {
  const Strides dense = dense_strides(from);
  Strides strides{};
  for (int dim = 0; dim < from.rank(); ++dim) {
    if (from[dim] != 1)
      strides[static_cast<size_t>(dim + to.rank() - from.rank())] = dense[static_cast<size_t>(dim)];
  }
  return strides;
}

}  // namespace elwise
