#include "ops/embedding_kernels.h"

#include <cstdint>

#include "cuda/input_fault.cuh"
#include "cuda/launch.cuh"
#include "cuda/loop_nest.cuh"
#include "cuda/vector.cuh"

// index_select and gather forward: they move bytes, so an element is any type of its size, and neighbours
// move 16 bytes at a time where they can.

namespace elwise::cuda {
namespace {

/// y[o, j] = x[o, index[j]] in items, of which a row has `inner`. An index out of range gives a row of zero
/// bytes.
template <class Item>
__global__ void index_select_kernel(const Item* x, const int64_t* index, Item* y, int64_t items,
                                    Divisor inner, Divisor count, CheckedIndex checked) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < items; i += stride) {
    const Divisor::Result row = inner.divide(i), place = count.divide(row.quotient);
    const int64_t from = index[place.remainder];
    Item item{};
    if (checked.is_valid(from, place.remainder)) {
      item = x[(place.quotient * checked.size + from) * inner.value() + row.remainder];
    }
    y[i] = item;
  }
}

/// y[o, j, i] = x[o, index[o, j, i], i]; 0 where that is out of range.
template <class Item>
__global__ void gather_kernel(const Item* x, const int64_t* index, Item* y, int64_t items,
                              Divisor outer_stride, Divisor inner, CheckedIndex checked) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < items; i += stride) {
    const int64_t from = index[i];
    Item item{};
    if (checked.is_valid(from, i)) {
      const int64_t row = outer_stride.divide(i).quotient * checked.size + from;
      item = x[row * inner.value() + inner.divide(i).remainder];
    }
    y[i] = item;
  }
}

/// Calls function.operator()<Item>() with a type of `bytes` (a power of two up to 16).
template <class Function>
void dispatch_size(int64_t bytes, const Function& function) {
  switch (bytes) {
    case 1:
      return function.template operator()<uint8_t>();
    case 2:
      return function.template operator()<uint16_t>();
    case 4:
      return function.template operator()<uint32_t>();
    case 8:
      return function.template operator()<uint64_t>();
    default:
      return function.template operator()<uint4>();
  }
}

}  // namespace

void index_select_forward(const IndexSelectForward& args) {
  if (args.outer * args.count * args.inner == 0) return;
  const int64_t row_bytes = args.inner * size_of(args.dtype);
  const bool wide = is_aligned(args.x, args.y) && row_bytes % kVectorBytes == 0;
  const int64_t item_bytes = wide ? kVectorBytes : size_of(args.dtype), inner = row_bytes / item_bytes;
  dispatch_size(item_bytes, [&]<class Item>() {
    const int64_t items = args.outer * args.count * inner;
    launch<index_select_kernel<Item>>({.grid = grid_for(items), .block = kThreads},
                                      static_cast<const Item*>(args.x), args.index,
                                      static_cast<Item*>(args.y), items, Divisor(inner), Divisor(args.count),
                                      CheckedIndex{input_fault(), IndexKernel::index_select, args.size});
  });
}

void gather_forward(const GatherForward& args) {
  const int64_t items = args.outer * args.count * args.inner;
  if (items == 0) return;
  dispatch_size(size_of(args.dtype), [&]<class Item>() {
    launch<gather_kernel<Item>>({.grid = grid_for(items), .block = kThreads},
                                static_cast<const Item*>(args.x), args.index, static_cast<Item*>(args.y),
                                items, Divisor(args.count * args.inner), Divisor(args.inner),
                                CheckedIndex{input_fault(), IndexKernel::gather, args.size});
  });
}

}  // namespace elwise::cuda
