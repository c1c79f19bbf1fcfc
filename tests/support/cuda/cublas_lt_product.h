#pragma once

#include <cublasLt.h>

namespace emulation {

using Layout = cublasLtMatrixLayoutOpaque_t;
using Description = cublasLtMatmulDescOpaque_t;

/// A product d = alpha op(a) op(b) + beta c and its epilogue.
struct Product {
  Description desc;
  Layout a, b, c, d;

  bool has_bias() const { return (desc.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0; }
  uint64_t depth() const { return desc.transpose_a == CUBLAS_OP_N ? a.cols : a.rows; }
};

/// A product with its operands, as it waits in a stream.
struct Work : Product {
  const void *a_data, *b_data, *c_data;
  void* d_data;
  double alpha, beta;
  void* workspace;
  size_t workspace_bytes;
};

/// Computes in double and rounds in the end.
void multiply(const Work& work);

}  // namespace emulation
