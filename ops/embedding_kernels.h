#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

// The backwards add many elements of dy to one of dx. On a GPU they sort the elements by where they go, then
// add runs of neighbours, then the sums of runs that belong together: for that they need the scratch below.
// On the CPU they sort bf16 only: what goes to one place is added in f32 and rounded once.

/// Elements of a run.
inline constexpr int64_t kIndexRun = 32;

constexpr int64_t index_runs(int64_t count) {
  return (count + kIndexRun - 1) / kIndexRun;
}

/// Indices that a block sorts.
inline constexpr int64_t kIndexTile = 1024;

/// The scratch, as a count of i64, for sorting `count` indices: keys and positions, old and new, of 32 bits;
/// and 256 sums of 32 bits for each tile.
constexpr int64_t index_order_size(int64_t count) {
  return 2 * count + 128 * ((count + kIndexTile - 1) / kIndexTile);
}

/// y[o, j] = x[o, index[j]], each a run of `inner` elements. An embedding lookup is outer = 1, x = the table.
/// Throws Error for an index outside [0, size).
struct IndexSelectForward {
  DType dtype;
  const void* x;         // [outer, size, inner]
  const int64_t* index;  // [count]
  void* y;               // [outer, count, inner]
  int64_t outer;
  int64_t size;
  int64_t count;
  int64_t inner;

  KernelCost cost() const {
    const double bytes = static_cast<double>(outer * count * inner * size_of(dtype));
    return {.flops = 0, .bytes_read = bytes + 8.0 * static_cast<double>(count), .bytes_written = bytes};
  }
};

/// dx[o, index[j]] += dy[o, j] in the order of j (on a GPU, by runs of them), so the same bits for any thread
/// count. dx holds zeros or an earlier gradient.
struct IndexSelectBackward {
  DType dtype;
  const void* dy;        // [outer, count, inner]
  const int64_t* index;  // [count]
  void* dx;              // [outer, size, inner]
  void* order;           // [index_order_size(count)] i64, scratch
  void* partials;        // [2, index_runs(count), outer, inner], f64 for f64, else f32: for a GPU
  int64_t outer;
  int64_t size;
  int64_t count;
  int64_t inner;

  KernelCost cost() const {
    const double n = static_cast<double>(outer * count * inner),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n, .bytes_read = 2 * bytes + 8.0 * static_cast<double>(count), .bytes_written = bytes};
  }
};

/// y[o, j, i] = x[o, index[o, j, i], i]. Throws Error for an index outside [0, size).
struct GatherForward {
  DType dtype;
  const void* x;         // [outer, size, inner]
  const int64_t* index;  // [outer, count, inner]
  void* y;               // [outer, count, inner]
  int64_t outer;
  int64_t size;
  int64_t count;
  int64_t inner;

  KernelCost cost() const {
    const double n = static_cast<double>(outer * count * inner),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 0, .bytes_read = bytes + 8 * n, .bytes_written = bytes};
  }
};

/// Whether a GPU sorts the index of a GatherBackward: for few columns (o, i) of many elements j each, and for
/// sums in bf16 (the CPU too), which would lose what it adds one by one. Else a thread walks down each
/// column.
constexpr bool gather_backward_sorts(DType dtype, int64_t outer, int64_t count, int64_t inner) {
  return (count > 256 && outer * inner < 4096) || (dtype == DType::bf16 && count > 1);
}

/// dx[o, index[o, j, i], i] += dy[o, j, i] in the order of j, or by runs as above. dx holds zeros or an
/// earlier gradient.
struct GatherBackward {
  DType dtype;
  const void* dy;        // [outer, count, inner]
  const int64_t* index;  // [outer, count, inner]
  void* dx;              // [outer, size, inner]
  void* order;           // [index_order_size(outer * count * inner)] i64, scratch where gather_backward_sorts
  void* partials;        // [2, index_runs(outer * count * inner)], f64 for f64, else f32: likewise
  int64_t outer;
  int64_t size;
  int64_t count;
  int64_t inner;

  KernelCost cost() const {
    const double n = static_cast<double>(outer * count * inner),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n, .bytes_read = 2 * bytes + 8 * n, .bytes_written = bytes};
  }
};

namespace cpu {
void index_select_forward(const IndexSelectForward&);
void index_select_backward(const IndexSelectBackward&);
void gather_forward(const GatherForward&);
void gather_backward(const GatherBackward&);
}  // namespace cpu
namespace cuda {
void index_select_forward(const IndexSelectForward&);
void index_select_backward(const IndexSelectBackward&);
void gather_forward(const GatherForward&);
void gather_backward(const GatherBackward&);
}  // namespace cuda

}  // namespace elwise
