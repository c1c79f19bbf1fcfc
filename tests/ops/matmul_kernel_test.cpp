#include "core/parallel.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/matmul_run.h"
#include "tests/support/op_test.h"

// What the ops ask of the kernels beside plain products: strides, sums in place, TF32.

namespace elwise::testing {
namespace {

constexpr int64_t kGap = 3;  // elements between rows that belong to no matrix

/// Where the matrices [rows, cols] of a problem lie: one behind the other, heads side by side in the rows of
/// a batch, or one matrix for all products.
enum class Placement : uint8_t { behind, side_by_side, repeated };

struct Operand {
  int64_t ld = 0, outer = 0, inner = 0, count = 0;

  Operand(Placement placement, int64_t rows, int64_t cols, int64_t outers, int64_t inners) {
    switch (placement) {
      case Placement::behind:
        ld = cols + kGap;
        inner = rows * ld;
        outer = inners * inner;
        count = outers * outer;
        break;
      case Placement::side_by_side:
        ld = inners * cols + kGap;
        inner = cols;
        outer = rows * ld;
        count = outers * outer;
        break;
      case Placement::repeated:
        ld = cols + kGap;
        count = rows * ld;
    }
  }
  int64_t at(int64_t o, int64_t i, int64_t row, int64_t col) const {
    return o * outer + i * inner + row * ld + col;
  }
};

struct Problem {
  int64_t m, n, k;
  int64_t outer = 1, inner = 1;
  Placement a = Placement::behind, b = Placement::behind, c = Placement::behind;
  bool transpose_a = false, transpose_b = false;
  bool bias = false, accumulate = false;
  double scale = 1;

  Operand layout_a() const { return {a, transpose_a ? k : m, transpose_a ? m : k, outer, inner}; }
  Operand layout_b() const { return {b, transpose_b ? n : k, transpose_b ? k : n, outer, inner}; }
  Operand layout_c() const { return {c, m, n, outer, inner}; }
};

/// c as it was, but for the elements of the products.
Values expected_of(const Problem& problem, const Values& a, const Values& b, const Values& bias,
                   const Values& c) {
  const Operand in_a = problem.layout_a(), in_b = problem.layout_b(), in_c = problem.layout_c();
  const auto element = [](const Values& x, int64_t index) { return x[static_cast<size_t>(index)]; };
  Values result = c;
  for (int64_t o = 0; o < problem.outer; ++o) {
    for (int64_t i = 0; i < problem.inner; ++i) {
      for (int64_t row = 0; row < problem.m; ++row) {
        for (int64_t col = 0; col < problem.n; ++col) {
          double sum = 0;
          for (int64_t p = 0; p < problem.k; ++p) {
            sum += element(a, problem.transpose_a ? in_a.at(o, i, p, row) : in_a.at(o, i, row, p)) *
                   element(b, problem.transpose_b ? in_b.at(o, i, col, p) : in_b.at(o, i, p, col));
          }
          double& to = result[static_cast<size_t>(in_c.at(o, i, row, col))];
          to = problem.scale * sum + (problem.accumulate ? to : 0) + (problem.bias ? element(bias, col) : 0);
        }
      }
    }
  }
  return result;
}

/// The matrices are parts of larger buffers, `offset` elements from their starts.
void check_problem(const Problem& problem, DType dtype, Tolerance tolerance, int64_t offset) {
  const auto buffer = [&](int64_t count) { return cast(uniform({count + offset}), dtype); };
  const auto values = [&](const Tensor& x) { return values_of(x.alias({x.count() - offset}, offset)); };
  const Operand in_a = problem.layout_a(), in_b = problem.layout_b(), in_c = problem.layout_c();
  const Tensor a = buffer(in_a.count), b = buffer(in_b.count), bias = buffer(problem.n),
               c = buffer(in_c.count);
  const Values expected = expected_of(problem, values(a), values(b), values(bias), values(c));
  const std::string what =
      detail::concatenate(problem.outer, " x ", problem.inner, " x [", problem.m, ", ", problem.k, "] x [",
                          problem.k, ", ", problem.n, "], ", problem.transpose_a ? "T" : "N",
                          problem.transpose_b ? "T" : "N", problem.bias ? ", bias" : "",
                          problem.accumulate ? ", sum" : "", ", ", name_of(dtype), ", offset ", offset);
  std::vector<Tensor> on_device;
  for (const Tensor& x : {a, b, bias, c}) on_device.push_back(to(x, test_device()));
  const auto data = [&](int i) {
    const Tensor& x = on_device[static_cast<size_t>(i)];
    return x.alias({x.count() - offset}, offset).data();
  };
  run_matmul(test_device(), {.dtype = dtype,
                             .a = data(0),
                             .b = data(1),
                             .c = data(3),
                             .m = problem.m,
                             .n = problem.n,
                             .k = problem.k,
                             .lda = in_a.ld,
                             .ldb = in_b.ld,
                             .ldc = in_c.ld,
                             .transpose_a = problem.transpose_a,
                             .transpose_b = problem.transpose_b,
                             .workspace = nullptr,
                             .outer = problem.outer,
                             .inner = problem.inner,
                             .a_outer = in_a.outer,
                             .a_inner = in_a.inner,
                             .b_outer = in_b.outer,
                             .b_inner = in_b.inner,
                             .c_outer = in_c.outer,
                             .c_inner = in_c.inner,
                             .bias = problem.bias ? data(2) : nullptr,
                             .accumulate = problem.accumulate,
                             .scale = problem.scale});
  check_close(values(on_device[3]), expected, tolerance, what);
}

void check_everywhere(const Problem& problem) {
  for (const int64_t offset : {0, 1}) {
    check_problem(problem, DType::f64, kF64Tolerance, offset);
    check_problem(problem, DType::f32, kF32Tolerance, offset);
    check_problem(problem, DType::bf16, kBf16Tolerance, offset);
  }
}

TEST_CASE("sums in place, biases and scales together, for matrices with gaps between their rows") {
  struct Sizes {
    int64_t m, n, k;
  };
  for (const auto& [m, n, k] :
       {Sizes{1, 33, 31}, {5, 1, 7}, {33, 31, 63}, {130, 97, 96}, {7, 5, 0}, {4, 131, 37}, {8, 37, 131}}) {
    for (const int options : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}) {
      check_everywhere({.m = m,
                        .n = n,
                        .k = k,
                        .transpose_a = (options & 1) != 0,
                        .transpose_b = (options & 2) != 0,
                        .bias = (options & 4) != 0,
                        .accumulate = (options & 8) != 0,
                        .scale = (options & 1) != 0 ? 1 : -0.375});
    }
  }
}

TEST_CASE("batches whose strides collapse, and heads that are read in place") {
  constexpr Placement kPlacements[] = {Placement::behind, Placement::side_by_side, Placement::repeated};
  for (const Placement a : kPlacements) {
    for (const Placement b : kPlacements) {
      for (const Placement c : {Placement::behind, Placement::side_by_side}) {
        for (const auto& [outer, inner] : {std::pair{1, 3}, {3, 1}, {2, 3}, {4, 2}}) {
          const bool transpose = a == Placement::side_by_side;
          check_everywhere({.m = 7,
                            .n = 5,
                            .k = 9,
                            .outer = outer,
                            .inner = inner,
                            .a = a,
                            .b = b,
                            .c = c,
                            .transpose_a = transpose,
                            .transpose_b = b == Placement::side_by_side,
                            .bias = c == Placement::side_by_side,
                            .accumulate = outer > inner,
                            .scale = 0.125});
        }
      }
    }
  }
}

TEST_CASE("a batch longer than cuBLASLt takes at a time") {
  check_problem({.m = 1, .n = 2, .k = 1, .inner = 33'000, .bias = true}, DType::f32, kF32Tolerance, 0);
}

/// Allows TF32 until the end of the scope.
class Tf32Guard {
 public:
  Tf32Guard() { set_allow_tf32(true); }
  ~Tf32Guard() { set_allow_tf32(false); }
  Tf32Guard(const Tf32Guard&) = delete;
  Tf32Guard& operator=(const Tf32Guard&) = delete;
};

TEST_CASE("TF32 rounds the operands of f32 products on a GPU, only where it is allowed") {
  constexpr int64_t kSize = 128;
  const double fine = 1 + 0x1p-12;  // TF32 keeps 10 bits of the fraction
  const auto product = [&](DType dtype) {
    const Tensor a = to(cast(from_vector(Values(kSize * kSize, fine), {kSize, kSize}), dtype), test_device());
    const Tensor b = to(cast(from_vector(Values(kSize * kSize, 1), {kSize, kSize}), dtype), test_device());
    return values_of(matmul(a, b));
  };
  const Values exact(kSize * kSize, kSize * fine), rounded(kSize * kSize, kSize);
  CHECK_FALSE(tf32_allowed());
  CHECK(product(DType::f32) == exact);
  {
    const Tf32Guard allow;
    CHECK(tf32_allowed());
    CHECK(product(DType::f32) == (test_device() == kCpu ? exact : rounded));
    CHECK(product(DType::f64) == exact);
  }
  CHECK(product(DType::f32) == exact);
}

}  // namespace
}  // namespace elwise::testing
