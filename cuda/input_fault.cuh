#pragma once

#include "cuda/runtime.h"

namespace elwise::cuda {

/// An index of a kernel that takes those in [0, size).
struct CheckedIndex {
  InputFault* fault;  // input_fault()
  IndexKernel kernel;
  int64_t size;

  /// Whether `index`, at `position` of the kernel's indices, is in range. The first that is not is reported.
  __device__ __forceinline__ bool is_valid(int64_t index, int64_t position) const {
    if (static_cast<uint64_t>(index) < static_cast<uint64_t>(size)) return true;
    report(index, position);
    return false;
  }

 private:
  __device__ __forceinline__ void report(int64_t index, int64_t position) const {
    if (atomicCAS(&fault->claimed, 0U, 1U) != 0) return;
    fault->kernel = static_cast<int>(kernel);
    fault->index = index;
    fault->position = position;
    fault->size = size;
    __threadfence_system();
    atomicExch(&fault->found, 1U);
  }
};

}  // namespace elwise::cuda
