// Kernels that move elements about, as benchmarks: embedding lookups and transposes.

#include "ops/elementwise.h"
#include "ops/embedding_kernels.h"
#include "ops/view_kernels.h"
#include "tests/support/naive_embedding.h"
#include "tools/bench_case.h"

namespace elwise::tools {
namespace {

constexpr int64_t kVocabulary = 30522, kHidden = 768, kTokens = 512;

/// Some columns of a lookup, which is the same for every column.
struct LookupColumns {
  std::vector<int64_t> sample = spread(kHidden, 16);
  naive::LookupShape shape{1, kVocabulary, kTokens, static_cast<int64_t>(sample.size())};

  Values of(const Tensor& x) const { return values_at(x, x.count() / kHidden, kHidden, 1, sample); }
};

KernelCall lookup(const Tensor& table, Operands operands) {
  operands.shared(table);
  const Tensor index = operands.indices(kTokens, kVocabulary), y = operands.output({kTokens, kHidden});
  const IndexSelectForward arguments{.dtype = DType::f32,
                                     .x = table.data(),
                                     .index = index.data<int64_t>(),
                                     .y = y.data(),
                                     .outer = 1,
                                     .size = kVocabulary,
                                     .count = kTokens,
                                     .inner = kHidden};
  return operands.call(cpu::index_select_forward, arguments, [=] {
    const LookupColumns columns;
    return difference(
        "y", columns.of(y),
        naive::index_select_forward(columns.shape, columns.of(table), index.to_vector<int64_t>()));
  });
}

KernelCall lookup_gradient(const Tensor& table, Operands operands) {
  operands.updated(table);
  const Tensor index = operands.indices(kTokens, kVocabulary), dy = operands.uniform({kTokens, kHidden});
  const IndexSelectBackward arguments{.dtype = DType::f32,
                                      .dy = dy.data(),
                                      .index = index.data<int64_t>(),
                                      .dx = table.data(),
                                      .order = nullptr,
                                      .partials = nullptr,
                                      .outer = 1,
                                      .size = kVocabulary,
                                      .count = kTokens,
                                      .inner = kHidden};
  return operands.call(cpu::index_select_backward, arguments, [=] {
    const LookupColumns columns;
    return difference(
        "dx", columns.of(table),
        naive::index_select_backward(columns.shape, columns.of(dy), index.to_vector<int64_t>(),
                                     Values(static_cast<size_t>(kVocabulary * columns.shape.inner))));
  });
}

/// y [outer, b, a, inner] from x [outer, a, b, inner].
KernelCall swap(const Shape& shape, Operands operands) {
  const int64_t outer = shape[0], a = shape[1], b = shape[2], inner = shape[3];
  const Tensor x = operands.uniform(shape), y = operands.output(shape);
  const StridedCopy arguments{.dtype = DType::f32,
                              .x = x.data(),
                              .y = y.data(),
                              .extents = {.rank = 4, .size = {outer, b, a, inner}},
                              .x_strides = {a * b * inner, inner, b * inner, 1},
                              .y_strides = {a * b * inner, a * inner, inner, 1}};
  return operands.call(cpu::strided_copy, arguments, [=] {
    const Values from = values_of(x);
    Values expected;
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t j = 0; j < b; ++j) {
        for (int64_t i = 0; i < a; ++i) {
          const auto run = from.begin() + ((o * a + i) * b + j) * inner;
          expected.insert(expected.end(), run, run + inner);
        }
      }
    }
    return difference("y", values_of(y), expected);
  });
}

}  // namespace

std::vector<BenchCase> lookup_bench_cases() {
  // All calls look things up in one table, each at its own places: a table for each would take gigabytes.
  const auto over_table = [](Tensor (*make_table)(), KernelCall (*make)(const Tensor&, Operands)) {
    return [=]() -> CallMaker {
      return [make, table = make_table()](Operands operands) { return make(table, std::move(operands)); };
    };
  };
  const auto lookup_table = [] { return Operands(0).uniform({kVocabulary, kHidden}); };
  const auto gradient_table = [] { return zeros({kVocabulary, kHidden}); };
  const Shape shape{kTokens, kVocabulary, kHidden};
  std::vector<BenchCase> cases;
  cases.push_back({case_name("index_select_forward", shape, ""), over_table(lookup_table, lookup)});
  cases.push_back(
      {case_name("index_select_backward", shape, ""), over_table(gradient_table, lookup_gradient)});
  cases.push_back(bench_case("strided_copy", {768, 3072}, "transpose", [](Operands operands) {
    return swap({1, 768, 3072, 1}, std::move(operands));
  }));
  cases.push_back(bench_case("strided_copy", {4, 512, 12, 64}, "heads", [](Operands operands) {
    return swap({4, 512, 12, 64}, std::move(operands));
  }));
  return cases;
}

}  // namespace elwise::tools
