#include "core/shape.h"

#include <algorithm>

namespace elwise {
namespace {

void check_size(int64_t size) {
  ELWISE_CHECK(size >= 0, "shape: expected sizes of 0 or more, got ", size);
}

}  // namespace

Shape::Shape(std::span<const int64_t> sizes) : rank_(static_cast<int>(sizes.size())) {
  ELWISE_CHECK(sizes.size() <= kMaxRank, "shape: expected at most ", kMaxRank, " dimensions, got ",
               sizes.size());
  for (const int64_t size : sizes) check_size(size);
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
}

int64_t Shape::count() const {
  int64_t product = 1;
  for (const int64_t size : *this) {
    ELWISE_CHECK(!__builtin_mul_overflow(product, size, &product), "shape: ", *this,
                 " has too many elements");
  }
  return product;
}

int Shape::normalize(int dim) const {
  ELWISE_CHECK(dim >= -rank_ && dim < rank_, "shape: dimension ", dim, " is out of range for ", *this);
  return dim < 0 ? dim + rank_ : dim;
}

int64_t Shape::count_before(int dim) const {
  int64_t product = 1;
  for (int i = 0, last = normalize(dim); i < last; ++i) product *= (*this)[i];
  return product;
}

int64_t Shape::count_after(int dim) const {
  int64_t product = 1;
  for (int i = normalize(dim) + 1; i < rank_; ++i) product *= (*this)[i];
  return product;
}

Shape Shape::with(int dim, int64_t size) const {
  check_size(size);
  Shape result = *this;
  result.sizes_[static_cast<size_t>(normalize(dim))] = size;
  return result;
}

Shape Shape::without(int dim) const {
  Shape result = *this;
  const auto position = result.sizes_.begin() + normalize(dim);
  std::copy(position + 1, result.sizes_.end(), position);
  --result.rank_;
  return result;
}

Shape Shape::inserted(int dim, int64_t size) const {
  check_size(size);
  ELWISE_CHECK(rank_ < kMaxRank, "shape: ", *this, " already has ", kMaxRank, " dimensions");
  ELWISE_CHECK(dim >= 0 && dim <= rank_, "shape: cannot insert a dimension at ", dim, " in ", *this);
  Shape result = *this;
  const auto position = result.sizes_.begin() + dim;
  std::copy_backward(position, result.sizes_.end() - 1, result.sizes_.end());
  *position = size;
  ++result.rank_;
  return result;
}

bool Shape::operator==(const Shape& other) const {
  return std::equal(begin(), end(), other.begin(), other.end());
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  const char* separator = "";
  for (const int64_t size : shape) {
    out << separator << size;
    separator = ", ";
  }
  return out << ']';
}

Shape broadcast(const char* op, const Shape& a, const Shape& b) {
  Shape result = a.rank() >= b.rank() ? a : b;
  const Shape& shorter = a.rank() >= b.rank() ? b : a;
  for (int dim = -1; dim >= -shorter.rank(); --dim) {
    const int64_t x = a[dim], y = b[dim];
    ELWISE_CHECK(x == y || x == 1 || y == 1, op, ": shapes ", a, " and ", b, " do not broadcast");
    result = result.with(dim, x == 1 ? y : x);
  }
  return result;
}

}  // namespace elwise
