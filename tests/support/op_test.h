#pragma once

#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "core/random.h"
#include "core/tensor.h"
#include "tests/support/closeness.h"

// The one way to test an op (DESIGN: "Tests").

namespace elwise::testing {

/// The elements as doubles (f32, f64, i64, bool).
Values values_of(const Tensor& tensor);

/// A leaf of these values that requires its gradient.
Tensor leaf(const Values& values, const Shape& shape, DType dtype = DType::f64, Device device = kCpu);

/// An f64 tensor uniform in [low, high), from a generator that all tests of a program share.
Tensor uniform(const Shape& shape, double low = -2, double high = 2);

/// Checks that mismatch() (tests/support/closeness.h) finds nothing.
void check_close(const Values& actual, const Values& expected, Tolerance tolerance, const std::string& what,
                 double terms = 0);

/// A differentiable op, its inputs and what it must compute.
struct OpTest {
  std::string name;
  std::function<Tensor(const std::vector<Tensor>&)> op;
  std::vector<Tensor>
      inputs;  // f64 tensors are differentiated; others and undefined ones are passed on as they are
  /// The reference: the inputs' elements (empty for an undefined one) -> the output's.
  std::function<Values(const std::vector<Values>&)> naive;
  bool gradients = true;  // check them
  bool in_bf16 = true;    // check it in bf16, too
  double bf16_terms = 0;  // the magnitude of what the output is a mean of, where more than its own: it has
                          // that magnitude's digits
  std::vector<int64_t> bf16_uses = {};  // for each gradient: the outputs whose terms meet in one element,
                                        // where more than there are outputs for each element
};

/// Checks, in f64 and f32: the values against `naive`; the gradients, in f64 by central differences (the full
/// Jacobian, where it has at most kJacobianEntries entries) and in f32 against those in f64; the same bits
/// with 1, 2 and 3 threads; the shape on meta. In bf16: values and gradients against those in f64, and the
/// same bits. Everything runs on NaN-filled fresh memory (ELWISE_POISON=1). Where test_device() is a GPU:
/// values and gradients there against the CPU's, in f64, f32 and bf16, and the same bits in a second run.
void check_op(const OpTest& test);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// They look for other faults, and take tens of times as long.
inline constexpr int64_t kJacobianEntries = 2'000;
#else
inline constexpr int64_t kJacobianEntries = 40'000;
#endif

/// Where tests compute: the CPU or, with ELWISE_TEST_DEVICE=cuda in the environment, cuda:0.
Device test_device();
/// The dtypes that ops compute in: f64, f32 and bf16.
std::vector<DType> test_dtypes();

/// Sizes around the widths of vectors and blocks, and an odd large one.
inline constexpr int64_t kOddSizes[] = {1, 31, 32, 33, 63, 1027};

/// Checks that `call` throws Error with exactly this message.
void check_error(const std::function<void()>& call, const std::string& message);

}  // namespace elwise::testing
