#include "ops/cumsum.h"

#include <cmath>

#include "ops/elementwise.h"
#include "tests/support/naive_elementwise.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

OpTest cumsum_test(const Shape& shape, int dim, bool reverse) {
  return {.name = reverse ? "cumsum reverse" : "cumsum",
          .op = [=](const std::vector<Tensor>& in) { return cumsum(in[0], dim, reverse); },
          .inputs = {uniform(shape)},
          .naive =
              [=](const std::vector<Values>& in) {
                return naive::cumsum(in[0], shape.count_before(dim), shape[dim], shape.count_after(dim),
                                     reverse);
              }};
}

TEST_CASE("values and gradients, along every dimension") {
  for (const bool reverse : {false, true}) {
    for (const int64_t size : kOddSizes) {
      for (const Shape& shape :
           {Shape{size}, Shape{size, 3}, Shape{2, size}, Shape{2, 3, size}, Shape{3, size, 2}}) {
        for (int dim = 0; dim < shape.rank(); ++dim) check_op_variants(cumsum_test(shape, dim, reverse));
      }
    }
    check_op(cumsum_test({2, 3, 5}, -2, reverse));
    for (const Shape& shape : {Shape{51, 1027}, Shape{1027, 51}, Shape{17, 1027, 3}, Shape{3, 700, 64}}) {
      for (int dim = 0; dim < shape.rank(); ++dim) check_op(cumsum_test(shape, dim, reverse));
    }
    check_op(cumsum_test({52'377}, 0, reverse));
    for (int dim = 0; dim < 3; ++dim) check_op(cumsum_test({2, 0, 3}, dim, reverse));
  }
}

TEST_CASE("a NaN spoils only what comes after it in its own line") {
  for (const DType dtype : test_dtypes()) {
    for (const bool reverse : {false, true}) {
      Values values(3 * 63, 1);
      values[63 + 20] = NAN;
      const Tensor x = cast(to(from_vector(values, {3, 63}), test_device()), dtype);
      const Values y = values_of(cumsum(x, 1, reverse));
      for (int64_t row = 0; row < 3; ++row) {
        for (int64_t i = 0; i < 63; ++i) {
          const bool spoilt = row == 1 && (reverse ? i <= 20 : i >= 20);
          CHECK(std::isnan(y[static_cast<size_t>(row * 63 + i)]) == spoilt);
        }
      }
    }
  }
}

TEST_CASE("errors") {
  check_error([] { cumsum(arange(3), 0); }, "cumsum: expected x of dtype f32, f64 or bf16, got i64");
  check_error([] { cumsum(uniform({2, 3}), 2); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([] { cumsum(uniform({}), 0); }, "shape: dimension 0 is out of range for []");
}

}  // namespace
}  // namespace elwise::testing
