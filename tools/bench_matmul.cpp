// Matrix products of a BERT-base layer, as benchmarks.

#include <fmt/core.h>

#include "ops/matmul_kernels.h"
#include "tests/support/naive_matmul.h"
#include "tools/bench_case.h"

namespace elwise::tools {
namespace {

/// One matrix operand of a product of `inner` heads: [rows, cols] as stored.
struct Stored {
  int64_t rows, cols;
  bool by_token;  // [rows, inner * cols], heads side by side; else [inner, rows, cols]

  int64_t leading(int64_t inner) const { return by_token ? inner * cols : cols; }
  int64_t step() const { return by_token ? cols : rows * cols; }
  Shape shape(int64_t inner) const { return {inner * rows * cols}; }

  /// Rows of one head's matrix.
  Values values(const Tensor& x, int64_t inner, int64_t head) const {
    Values result;
    for (int64_t row = 0; row < rows; ++row) {
      const float* first = x.data<float>() + head * step() + row * leading(inner);
      result.insert(result.end(), first, first + cols);
    }
    return result;
  }
};

struct Product {
  int64_t inner, m, n, k;
  bool transpose_a, transpose_b;
  bool a_by_token, b_by_token, c_by_token;
  bool bias;

  Stored a() const { return transpose_a ? Stored{k, m, a_by_token} : Stored{m, k, a_by_token}; }
  Stored b() const { return transpose_b ? Stored{n, k, b_by_token} : Stored{k, n, b_by_token}; }
  Stored c() const { return {m, n, c_by_token}; }
};

/// Rows of op(a), of which a product's row is made, as a dense matrix.
Values rows_of_a(const Product& product, const Values& a, const std::vector<int64_t>& rows) {
  Values result;
  for (const int64_t row : rows) {
    for (int64_t p = 0; p < product.k; ++p)
      result.push_back(a[product.transpose_a ? p * product.m + row : row * product.k + p]);
  }
  return result;
}

/// Some rows of the first and the last head's product.
std::string compare(const Product& product, const Tensor& a, const Tensor& b, const Tensor& c,
                    const Tensor& bias) {
  const std::vector<int64_t> rows = spread(product.m, 24);
  const Values offset = product.bias ? values_of(bias) : Values(static_cast<size_t>(product.n), 0);
  Values actual, expected;
  for (const int64_t head : spread(product.inner, 2)) {
    const Values left = rows_of_a(product, product.a().values(a, product.inner, head), rows);
    const Values right = product.b().values(b, product.inner, head);
    const Values sums = naive::matmul(left, right, static_cast<int64_t>(rows.size()), product.n, product.k,
                                      false, product.transpose_b);
    const Values all = product.c().values(c, product.inner, head);
    for (size_t i = 0; i < rows.size(); ++i) {
      for (int64_t j = 0; j < product.n; ++j) {
        actual.push_back(all[rows[i] * product.n + j]);
        expected.push_back(sums[static_cast<int64_t>(i) * product.n + j] + offset[j]);
      }
    }
  }
  return difference("c", actual, expected);
}

KernelCall matmul(const Product& product, Operands operands) {
  const Stored left = product.a(), right = product.b(), result = product.c();
  const int64_t inner = product.inner;
  const Tensor a = operands.uniform(left.shape(inner)), b = operands.uniform(right.shape(inner)),
               c = operands.output(result.shape(inner));
  const Tensor bias = product.bias ? operands.uniform({product.n}) : Tensor();
  const Tensor workspace = operands.shared(empty({kMatmulWorkspaceBytes / size_of(DType::f32)}));
  const Matmul arguments{.dtype = DType::f32,
                         .a = a.data(),
                         .b = b.data(),
                         .c = c.data(),
                         .m = product.m,
                         .n = product.n,
                         .k = product.k,
                         .lda = left.leading(inner),
                         .ldb = right.leading(inner),
                         .ldc = result.leading(inner),
                         .transpose_a = product.transpose_a,
                         .transpose_b = product.transpose_b,
                         .workspace = workspace.data(),
                         .inner = inner,
                         .a_inner = left.step(),
                         .b_inner = right.step(),
                         .c_inner = result.step(),
                         .bias = product.bias ? bias.data() : nullptr};
  return operands.call(cpu::matmul, arguments, [=] { return compare(product, a, b, c, bias); });
}

BenchCase matmul_case(const Product& product, const Shape& shape) {
  const std::string transposes =
      fmt::format("{}{}", product.transpose_a ? 'T' : 'N', product.transpose_b ? 'T' : 'N');
  return bench_case("matmul", shape, transposes + (product.bias ? "/bias" : ""),
                    [product](Operands operands) { return matmul(product, std::move(operands)); });
}

}  // namespace

/// Named MxNxK, and HEADSxMxNxK for attention's products.
std::vector<BenchCase> matmul_bench_cases() {
  constexpr int64_t kTokens = 512, kHidden = 768, kIntermediate = 3072, kHeads = 12, kHead = 64;
  std::vector<BenchCase> cases;
  const auto add = [&](int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b, bool bias) {
    cases.push_back(
        matmul_case({1, m, n, k, transpose_a, transpose_b, false, false, false, bias}, {m, n, k}));
  };
  const std::pair<int64_t, int64_t> layers[] = {
      {kHidden, kHidden}, {kIntermediate, kHidden}, {kHidden, kIntermediate}};
  for (const auto& [outputs, inputs] : layers) {
    add(kTokens, outputs, inputs, false, true, true);    // y = x W^T + bias
    add(kTokens, inputs, outputs, false, false, false);  // dx = dy W
    add(outputs, inputs, kTokens, true, false, false);   // dW = dy^T x
  }
  constexpr int64_t kMasked = 77, kVocabulary = 30522;  // 15 % of the tokens are predicted
  add(kMasked, kVocabulary, kHidden, false, true, true);

  const auto add_heads = [&](const Product& product) {
    cases.push_back(matmul_case(product, {product.inner, product.m, product.n, product.k}));
  };
  add_heads({kHeads, kTokens, kTokens, kHead, false, true, true, true, false, false});   // q k^T, dy v^T
  add_heads({kHeads, kTokens, kHead, kTokens, false, false, false, true, true, false});  // weights v, dq
  add_heads({kHeads, kTokens, kHead, kTokens, true, false, false, true, true, false});   // dv, dk

  const int64_t pairs = 2 * kHidden;                  // AFT: a column for v and one for 1 in each channel
  add(kTokens, pairs, kTokens, false, false, false);  // weights and keys
  add(kTokens, pairs, kTokens, true, false, false);   // gradients of keys
  add(kTokens, kTokens, pairs, false, true, false);   // gradients of weights
  return cases;
}

}  // namespace elwise::tools
