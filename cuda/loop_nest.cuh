#pragma once

#include <bit>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "ops/elementwise_kernels.h"

// Loop nests (Extents and Strides of ops/elementwise_kernels.h) as kernels walk them: each thread finds the
// place of its elements in every operand from their number in the nest.

namespace elwise::cuda {

/// Divides by a number that only the host knows by a multiplication and a shift (Granlund and Montgomery,
/// "Division by Invariant Integers using Multiplication", 1994, figure 4.1).
class Divisor {
 public:
  Divisor() = default;
  /// divisor >= 1.
  explicit Divisor(int64_t divisor) : divisor_(divisor) {
    const auto d = static_cast<uint64_t>(divisor);
    shift_ = static_cast<int>(std::bit_width(d - 1));
    const auto excess = (uint64_t{1} << shift_) - d;  // less than d: the quotient fits
    multiplier_ = static_cast<uint64_t>((static_cast<unsigned __int128>(excess) << 64) / d) + 1;
  }

  struct Result {
    int64_t quotient, remainder;
  };
  /// n / divisor, for n >= 0.
  __device__ __forceinline__ Result divide(int64_t n) const {
    const auto dividend = static_cast<uint64_t>(n);
    const auto quotient = static_cast<int64_t>((__umul64hi(multiplier_, dividend) + dividend) >> shift_);
    return {quotient, n - quotient * divisor_};
  }
  __device__ __forceinline__ int64_t value() const { return divisor_; }

 private:
  int64_t divisor_ = 1;
  uint64_t multiplier_ = 1;
  int shift_ = 0;
};

/// A loop nest, not empty, over items of `width` elements that are neighbours in the innermost dimension.
template <int kOperands>
class DeviceLoopNest {
 public:
  /// With a width above 1, either the width divides the innermost dimension or there is no other; its stride
  /// is then 0 or 1 in each operand.
  DeviceLoopNest(const Extents& extents, const Strides* const (&strides)[kOperands], int width = 1)
      : rank_(extents.rank > 0 ? extents.rank : 1) {
    for (int i = 0; i < extents.rank; ++i) {
      const auto dim = static_cast<size_t>(i);
      const int64_t items = i + 1 < rank_ ? 1 : width;
      sizes_[i] = Divisor(ceil_div(extents.size[dim], items));
      for (int k = 0; k < kOperands; ++k) strides_[i][k] = (*strides[k])[dim] * items;
    }
  }

  /// The offsets, in elements, of item `number` in each operand.
  __device__ __forceinline__ void find(int64_t number, int64_t (&offsets)[kOperands]) const {
#pragma unroll
    for (int k = 0; k < kOperands; ++k) offsets[k] = 0;
    for (int i = rank_ - 1; i >= 0; --i) {
      const Divisor::Result at = i > 0 ? sizes_[i].divide(number) : Divisor::Result{0, number};
#pragma unroll
      for (int k = 0; k < kOperands; ++k) offsets[k] += at.remainder * strides_[i][k];
      number = at.quotient;
    }
  }

  /// Whether an item holds one element of operand k, `width` times.
  __device__ __forceinline__ bool repeats(int k) const {
    return strides_[rank_ - 1][k] == 0;
  }

 private:
  int rank_;
  Divisor sizes_[kMaxRank];
  int64_t strides_[kMaxRank][kOperands] = {};
};

/// An item of an operand that starts at `from`: the elements that lie before `count`, or the first one
/// repeated.
template <class T, int N>
__device__ __forceinline__ void load_item(const T* from, bool repeated, int64_t count, T (&values)[N]) {
  if (repeated) {
    const T value = *from;
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = value;
  } else {
    load_elements(from, 0, count, true, values);
  }
}

/// Whether a DeviceLoopNest may take `width` elements of the operand at a time: it repeats one of them, or
/// they are neighbours and every such group is aligned to its size.
template <class T>
bool allows_width(int width, const Extents& extents, const T* data, const Strides& strides) {
  if (extents.rank == 0) return false;
  const auto inner = static_cast<size_t>(extents.rank) - 1;
  if (extents.rank > 1 && extents.size[inner] % width != 0) return false;
  if (strides[inner] == 0) return true;
  if (strides[inner] != 1 || reinterpret_cast<uintptr_t>(data) % (sizeof(T) * width) != 0) return false;
  for (size_t i = 0; i < inner; ++i) {
    if (strides[i] % width != 0) return false;
  }
  return true;
}

}  // namespace elwise::cuda
