#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>

#include "core/error.h"

namespace elwise {

/// The most dimensions that a tensor can have.
inline constexpr int kMaxRank = 8;

/// The sizes of a tensor's dimensions, outermost first. An empty shape is a scalar. A plain value, no heap.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}
  /// Throws Error for a negative size or more than kMaxRank dimensions.
  explicit Shape(std::span<const int64_t> sizes);

  int rank() const { return rank_; }
  /// Number of elements. Throws Error where the product does not fit int64_t.
  int64_t count() const;

  /// Size of dimension `dim`; a negative one counts from the end. Throws Error when out of range.
  int64_t operator[](int dim) const { return sizes_[static_cast<size_t>(normalize(dim))]; }
  /// `dim` as an index in [0, rank). Throws Error when out of range.
  int normalize(int dim) const;

  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + rank_; }

  /// Product of the sizes before `dim`, and after it.
  int64_t count_before(int dim) const;
  int64_t count_after(int dim) const;

  /// Copies with dimension `dim` set to `size`, taken away, or put in before `dim` (dim may be rank()).
  Shape with(int dim, int64_t size) const;
  Shape without(int dim) const;
  Shape inserted(int dim, int64_t size) const;

  bool operator==(const Shape& other) const;

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

/// Writes "[2, 3]".
std::ostream& operator<<(std::ostream& out, const Shape& shape);

/// The shape that a and b broadcast to, aligned at the end, a size of 1 being repeated (as in NumPy). Throws
/// Error, naming `op`, where the sizes differ and neither is 1.
Shape broadcast(const char* op, const Shape& a, const Shape& b);

}  // namespace elwise
