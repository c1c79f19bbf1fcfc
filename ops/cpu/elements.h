#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "core/parallel.h"
#include "ops/elementwise_kernels.h"

namespace elwise::cpu {

/// Calls function.template operator()<T>() with the element type of any dtype.
template <class Function>
void dispatch_any(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::f32:
      return function.template operator()<float>();
    case DType::f64:
      return function.template operator()<double>();
    case DType::bf16:
      return function.template operator()<BFloat16>();
    case DType::i64:
      return function.template operator()<int64_t>();
    case DType::i16:
      return function.template operator()<int16_t>();
    case DType::boolean:
      return function.template operator()<bool>();
  }
}

/// Splits [0, count) among threads in whole blocks of 1024 elements, so that threads share no cache line, and
/// calls body(begin, end). Small counts run on the caller.
template <class Body>
void parallel_elements(int64_t count, const Body& body) {
  constexpr int64_t kBlock = 1024;
  parallel_for((count + kBlock - 1) / kBlock, 16,
               [&](int64_t begin, int64_t end) { body(begin * kBlock, std::min(count, end * kBlock)); });
}

/// Walks elements [begin, end) of a loop nest, in order, as runs along the innermost dimension. For each run
/// calls body(offsets, first, n): the offset in each of the K operands of the run's first element, that
/// element's number, and the length of the run.
template <size_t K, class Body>
void for_each_run(const Extents& extents, const std::array<Strides, K>& strides, int64_t begin, int64_t end,
                  const Body& body) {
  std::array<int64_t, K> offsets{};
  if (extents.rank == 0) {  // a scalar
    if (begin < end) body(offsets, begin, int64_t{1});
    return;
  }
  const size_t inner = static_cast<size_t>(extents.rank) - 1;
  std::array<int64_t, kMaxRank> index{};
  int64_t rest = begin;
  for (size_t i = inner + 1; i-- > 0 && rest > 0;) {
    index[i] = rest % extents.size[i];
    rest /= extents.size[i];
    for (size_t k = 0; k < K; ++k) offsets[k] += index[i] * strides[k][i];
  }
  for (int64_t first = begin; first < end;) {
    const int64_t n = std::min(extents.size[inner] - index[inner], end - first);
    body(offsets, first, n);
    first += n;
    // The run ended at the end of the innermost dimension, or this was the last.
    for (size_t k = 0; k < K; ++k) offsets[k] -= index[inner] * strides[k][inner];
    index[inner] = 0;
    for (size_t i = inner; i-- > 0;) {
      for (size_t k = 0; k < K; ++k) offsets[k] += strides[k][i];
      if (++index[i] < extents.size[i]) break;
      for (size_t k = 0; k < K; ++k) offsets[k] -= extents.size[i] * strides[k][i];
      index[i] = 0;
    }
  }
}

}  // namespace elwise::cpu
