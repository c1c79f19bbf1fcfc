#pragma once

#include <algorithm>

#include "ops/elementwise.h"
#include "ops/matmul_run.h"

// Ops that take their rows a block at a time, so that what lies between their products need not exist whole.

namespace elwise {

/// Rows `begin` .. `begin + count - 1` of a matrix, or these elements of a vector.
inline Tensor rows_of(const Tensor& tensor, int64_t begin, int64_t count) {
  if (tensor.rank() == 1) return tensor.alias({count}, begin);
  return tensor.alias({count, tensor.size(1)}, begin * tensor.size(1));
}

/// Calls body(begin, count) for each block of at most `block_rows` of `rows` rows; once where there are none,
/// so that every gradient is written.
template <class Body>
void for_each_block(int64_t rows, int64_t block_rows, const Body& body) {
  int64_t begin = 0;
  do {
    body(begin, std::min(block_rows, rows - begin));
    begin += block_rows;
  } while (begin < rows);
}

/// total += block; the first block becomes the total.
inline void add_block(Tensor& total, const Tensor& block) {
  total.defined() ? accumulate(total, block) : void(total = block);
}

/// A weight's gradient, the sum of the blocks' products.
class ProductSum {
 public:
  /// Nothing is added up unless `wanted`. `so_far` is BackwardContext::sum_so_far, to which the sum is added.
  ProductSum(bool wanted, const Tensor& so_far, const Shape& shape, TensorOptions options)
      : begun_(so_far.defined()),
        total_(!wanted  ? Tensor()
               : begun_ ? so_far
                        : empty(shape, options)) {}

  /// += a^T b.
  void add(const Tensor& a, const Tensor& b) {
    if (!total_.defined()) return;
    product_into(total_, a, true, b, false, {.accumulate = begun_});
    begun_ = true;
  }
  const Tensor& total() const { return total_; }

 private:
  bool begun_;
  Tensor total_;
};

}  // namespace elwise
