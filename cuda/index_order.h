#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace elwise::cuda {

/// index [outer, count, inner]: element (o, j, i) goes to destination (o * size + index[o, j, i]) * inner +
/// i.
struct Destinations {
  IndexKernel kernel;
  const int64_t* index;
  int64_t outer;
  int64_t size;
  int64_t count;
  int64_t inner;

  int64_t elements() const { return outer * count * inner; }
  int64_t destinations() const { return outer * size * inner; }
};

/// The elements of an index sorted by their destination, those of one destination in their own order.
struct IndexOrder {
  const uint32_t* destination;  // [elements]; destinations() for an index out of range, which is reported
  const uint32_t* element;      // [elements], its number in the index
};

/// `scratch` [index_order_size(elements)] i64 is what the result lies in.
IndexOrder sort_index(const Destinations& index, void* scratch);

}  // namespace elwise::cuda
