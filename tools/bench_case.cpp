#include "tools/bench_case.h"

#include <algorithm>
#include <cmath>

#include "ops/dropout.h"
#include "ops/elementwise.h"

namespace elwise::tools {

std::string fault_of(const KernelCall& call) {
  for (size_t i = 0; i < call.outputs.size(); ++i) {
    const float* first = call.outputs[i].data<float>();
    const float* end = first + call.outputs[i].count();
    const float* bad = std::find_if(first, end, [](float value) { return !std::isfinite(value); });
    if (bad != end) {
      return elwise::detail::concatenate("output ", i, ": element ", bad - first, " is ", *bad,
                                         ": not written, or not finite");
    }
  }
  return call.compare();
}

Tensor Operands::uniform(const Shape& shape, double low, double high) {
  const Tensor x = shared(empty(shape));
  fill_uniform(x, low, high, generator_);
  return x;
}

Tensor Operands::indices(int64_t count, int64_t size) {
  const RandomStream stream = random(count);
  std::vector<int64_t> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<int64_t>(stream.word(static_cast<uint64_t>(i))) % size);
  return shared(from_vector(values, {count}));
}

Tensor Operands::output(const Shape& shape) {
  return updated(full(shape, NAN));
}

Tensor Operands::scratch(const Shape& shape) {
  return shared(full(shape, NAN));
}

Tensor Operands::updated(const Tensor& operand) {
  return outputs_.emplace_back(operand);
}

Tensor Operands::shared(const Tensor& operand) {
  return operands_.emplace_back(operand);
}

std::string case_name(const std::string& kernel, const Shape& shape, const std::string& form) {
  std::string name = kernel + "/f32/";
  for (int dim = 0; dim < shape.rank(); ++dim) name += (dim > 0 ? "x" : "") + std::to_string(shape[dim]);
  return form.empty() ? name : name + "/" + form;
}

BenchCase bench_case(const std::string& kernel, const Shape& shape, const std::string& form,
                     CallMaker maker) {
  return {case_name(kernel, shape, form), [maker = std::move(maker)] { return maker; }};
}

std::vector<KernelCall> make_calls(const BenchCase& bench, double bytes) {
  const CallMaker maker = bench.make();
  std::vector<KernelCall> calls;
  double moved = 0;
  do {
    calls.push_back(maker(Operands(calls.size())));
    moved += calls.back().cost.bytes();
  } while (moved < bytes);
  return calls;
}

std::vector<BenchCase> bench_cases() {
  std::vector<BenchCase> cases;
  for (const auto& group :
       {attention_bench_cases(), linear_attention_bench_cases(), aft_bench_cases(), matmul_bench_cases(),
        row_bench_cases(), elementwise_bench_cases(), lookup_bench_cases()}) {
    cases.insert(cases.end(), group.begin(), group.end());
  }
  return cases;
}

std::vector<int64_t> spread(int64_t count, int64_t samples) {
  std::vector<int64_t> result;
  if (count <= samples) {
    for (int64_t i = 0; i < count; ++i) result.push_back(i);
  } else {
    for (int64_t i = 0; i < samples; ++i)
      result.push_back(i * (count - 1) / std::max<int64_t>(samples - 1, 1));
  }
  return result;
}

Values values_of(const Tensor& x) {
  const float* first = x.data<float>();
  return Values(first, first + x.count());
}

Values values_at(const Tensor& x, int64_t outer, int64_t size, int64_t inner,
                 const std::vector<int64_t>& indices) {
  ELWISE_CHECK(outer * size * inner == x.count(), "values_at: expected ", outer * size * inner,
               " elements, got ", x.count());
  const float* first = x.data<float>();
  Values values;
  values.reserve(static_cast<size_t>(outer * inner) * indices.size());
  for (int64_t o = 0; o < outer; ++o) {
    for (const int64_t index : indices) {
      const float* run = first + (o * size + index) * inner;
      values.insert(values.end(), run, run + inner);
    }
  }
  return values;
}

std::string difference(const std::string& what, const Values& actual, const Values& expected, double terms) {
  return testing::mismatch(actual, expected, testing::kF32Tolerance, what, terms);
}

std::string first_of(std::initializer_list<std::string> differences) {
  for (const std::string& difference : differences) {
    if (!difference.empty()) return difference;
  }
  return {};
}

}  // namespace elwise::tools
