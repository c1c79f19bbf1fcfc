#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/dispatch.h"
#include "core/random.h"
#include "core/tensor.h"
#include "tests/support/closeness.h"

// The kernels that tools/bench_ops times: their operands and their naive forms.

namespace elwise::tools {

using testing::Values;

/// One kernel on operands of its own (f32).
struct KernelCall {
  DType dtype;  // that it computes in
  KernelCost cost;
  std::function<void()> run;
  /// How the outputs differ from the naive form once run() was called a single time; empty where they do not.
  /// Changes nothing.
  std::function<std::string()> compare;
  std::vector<Tensor> outputs;   // NaN before run(), but for those that it updates
  std::vector<Tensor> operands;  // the others
};

/// What is wrong with the outputs after a single run(): an element that is not finite, since outputs start as
/// NaN, or compare()'s difference. Empty where nothing is.
std::string fault_of(const KernelCall& call);

/// The operands of one call, kept alive by it. Equal seeds give equal elements.
class Operands {
 public:
  explicit Operands(uint64_t seed) : generator_(seed) {}

  Tensor uniform(const Shape& shape, double low = -1, double high = 1);
  /// i64, uniform in [0, size).
  Tensor indices(int64_t count, int64_t size);
  /// What the kernel overwrites.
  Tensor output(const Shape& shape);
  /// What it writes for its own use, or for another kernel's.
  Tensor scratch(const Shape& shape);
  /// Names an operand that the kernel updates in place as an output too.
  Tensor updated(const Tensor& operand);
  /// Keeps a tensor made elsewhere.
  Tensor shared(const Tensor& operand);
  RandomStream random(int64_t count) { return generator_.reserve(static_cast<uint64_t>(count)); }

  /// The call of `kernel`. To be called last.
  template <class Arguments>
  KernelCall call(void (*kernel)(const Arguments&), const Arguments& arguments,
                  std::function<std::string()> compare) {
    return {.dtype = elwise::detail::dtype_of_kernel(arguments),
            .cost = arguments.cost(),
            .run = [=] { kernel(arguments); },
            .compare = std::move(compare),
            .outputs = std::move(outputs_),
            .operands = std::move(operands_)};
  }

 private:
  Generator generator_;
  std::vector<Tensor> outputs_, operands_;
};

/// Makes one call.
using CallMaker = std::function<KernelCall(Operands operands)>;

/// One line of the benchmark.
struct BenchCase {
  std::string name;                      // KERNEL/dtype/shape, and what else sets it apart
  std::function<CallMaker()> make = {};  // makes what all calls share, which lives as long as the maker
};

/// A case whose calls share nothing; `form` may be empty.
BenchCase bench_case(const std::string& kernel, const Shape& shape, const std::string& form, CallMaker maker);

/// KERNEL/f32/4x2048x768/form.
std::string case_name(const std::string& kernel, const Shape& shape, const std::string& form);

/// Calls of the case on operands of their own, as many as must move `bytes` in all, at least one.
std::vector<KernelCall> make_calls(const BenchCase& bench, double bytes);

/// Every case, at the shapes of BERT-base.
std::vector<BenchCase> bench_cases();
std::vector<BenchCase> attention_bench_cases();
std::vector<BenchCase> linear_attention_bench_cases();
std::vector<BenchCase> aft_bench_cases();
std::vector<BenchCase> matmul_bench_cases();
std::vector<BenchCase> row_bench_cases();
std::vector<BenchCase> elementwise_bench_cases();
std::vector<BenchCase> lookup_bench_cases();

// ---- For comparisons

/// At most `samples` of the numbers below `count`, evenly spread, the first and the last among them.
std::vector<int64_t> spread(int64_t count, int64_t samples);

/// All elements of an f32 tensor.
Values values_of(const Tensor& x);
/// Those of x, seen as [outer, size, inner], at `indices` of the middle dimension, in that order.
Values values_at(const Tensor& x, int64_t outer, int64_t size, int64_t inner,
                 const std::vector<int64_t>& indices);

/// mismatch() with the tests' tolerance for f32. The element that it names is one of the sample.
std::string difference(const std::string& what, const Values& actual, const Values& expected,
                       double terms = 0);
/// The first that is not empty.
std::string first_of(std::initializer_list<std::string> differences);

}  // namespace elwise::tools
