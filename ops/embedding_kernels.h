#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

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

/// dx[o, index[j]] += dy[o, j] in the order of j, so the same bits for any thread count. dx holds zeros or an
/// earlier gradient.
struct IndexSelectBackward {
  DType dtype;
  const void* dy;        // [outer, count, inner]
  const int64_t* index;  // [count]
  void* dx;              // [outer, size, inner]
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

/// dx[o, index[o, j, i], i] += dy[o, j, i] in the order of j. dx holds zeros or an earlier gradient.
struct GatherBackward {
  DType dtype;
  const void* dy;        // [outer, count, inner]
  const int64_t* index;  // [outer, count, inner]
  void* dx;              // [outer, size, inner]
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
