#include "tests/support/cuda/cublas_lt_product.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/dtype.h"

namespace emulation {
namespace {

using elwise::BFloat16;

float rounded_to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x1000U) & ~0x1FFFU);
}

double gelu(double x) {
  constexpr double kSqrtTwoOverPi = 0.7978845608028654;
  return 0.5 * x * (1 + std::tanh(kSqrtTwoOverPi * (x + 0.044715 * x * x * x)));
}

/// One product of a batch. T is the elements' type in memory, Number the one that they are numbers in.
template <class T, class Number>
class ReferenceProduct {
 public:
  ReferenceProduct(const Work& work, int64_t item)
      : work_(work),
        rows_(work.d.rows),
        cols_(work.d.cols),
        depth_((work.depth() + kStep - 1) / kStep * kStep),
        left_(depth_ * rows_),
        right_(cols_ * depth_),
        sums_(cols_ * rows_),
        item_(item) {}

  void run() {
    pack(element(work_.a, work_.a_data), work_.a, work_.desc.transpose_a == CUBLAS_OP_N, left_, rows_);
    pack(element(work_.b, work_.b_data), work_.b, work_.desc.transpose_b == CUBLAS_OP_N, right_, depth_);
    for (size_t begin = 0; begin < depth_; begin += kBlock) {
      for (size_t col = 0; col < cols_; ++col) add_block(col, begin, std::min(begin + kBlock, depth_));
    }
    for (size_t col = 0; col < cols_; ++col) store(col);
  }

 private:
  static constexpr size_t kStep = 4;    // terms that are added at a time
  static constexpr size_t kBlock = 64;  // of k: these rows of `left_` stay in the cache

  const T* element(const Layout& layout, const void* data) const {
    return static_cast<const T*>(data) + item_ * layout.batch_stride;
  }

  double number(T value) const {
    const auto x = static_cast<Number>(value);
    if (work_.desc.compute != CUBLAS_COMPUTE_32F_FAST_TF32) return static_cast<double>(x);
    return static_cast<double>(rounded_to_tf32(static_cast<float>(x)));
  }

  /// Element (row, col) of `from` goes to [col][row] where `as_stored`, else to [row][col], rows `width`
  /// apart.
  void pack(const T* from, const Layout& layout, bool as_stored, std::vector<double>& to,
            size_t width) const {
    for (size_t col = 0; col < layout.cols; ++col) {
      const T* column = from + static_cast<int64_t>(col) * layout.ld;
      double* target = to.data() + col * (as_stored ? width : 1);
      for (size_t row = 0; row < layout.rows; ++row)
        target[row * (as_stored ? 1 : width)] = number(column[row]);
    }
  }

  /// Adds the terms [begin, end) of k, a multiple of kStep, to a column's sums.
  void add_block(size_t col, size_t begin, size_t end) {
    double* sums = sums_.data() + col * rows_;
    for (size_t p = begin; p < end; p += kStep) {
      const double* left = left_.data() + p * rows_;
      const double* right = right_.data() + col * depth_ + p;
      for (size_t row = 0; row < rows_; ++row) {
        sums[row] += left[row] * right[0] + left[row + rows_] * right[1] + left[row + 2 * rows_] * right[2] +
                     left[row + 3 * rows_] * right[3];
      }
    }
  }

  void store(size_t col) const {
    const T* c = element(work_.c, work_.c_data) + static_cast<int64_t>(col) * work_.c.ld;
    T* d = const_cast<T*>(element(work_.d, work_.d_data)) + static_cast<int64_t>(col) * work_.d.ld;
    for (size_t row = 0; row < rows_; ++row) {
      double value = work_.alpha * sums_[col * rows_ + row];
      if (work_.beta != 0) value += work_.beta * static_cast<double>(static_cast<Number>(c[row]));
      if (work_.has_bias()) {
        value += static_cast<double>(static_cast<Number>(static_cast<const T*>(work_.desc.bias)[row]));
      }
      if ((work_.desc.epilogue & CUBLASLT_EPILOGUE_GELU) != 0) value = gelu(value);
      d[row] = T(static_cast<Number>(value));
    }
  }

  const Work& work_;
  size_t rows_, cols_, depth_;
  std::vector<double> left_;   // op(a) as [k][rows]; zero beyond the last k
  std::vector<double> right_;  // op(b) as [cols][k]
  std::vector<double> sums_;   // [cols][rows]
  int64_t item_;
};

}  // namespace

void multiply(const Work& work) {
  // A kernel leaves its partial sums there.
  if (work.workspace_bytes > 0) std::memset(work.workspace, 0xFF, work.workspace_bytes);
  for (int64_t item = 0; item < work.d.batch; ++item) {
    if (work.d.type == CUDA_R_64F) {
      ReferenceProduct<double, double>(work, item).run();
    } else if (work.d.type == CUDA_R_32F) {
      ReferenceProduct<float, float>(work, item).run();
    } else {
      ReferenceProduct<BFloat16, float>(work, item).run();
    }
  }
}

}  // namespace emulation
