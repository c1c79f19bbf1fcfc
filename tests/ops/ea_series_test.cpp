#include "ops/ea_series.h"

#include <algorithm>
#include <cmath>

#include "ops/ea.h"
#include "ops/elementwise.h"
#include "ops/view.h"
#include "tests/support/ea_series_attention.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

constexpr bool kCausal[] = {false, true};

void check_both_ways(const OpTest& test) {
  check_op(test);
  check_direction(test);
}

TEST_CASE("values and gradients for every mask") {
  for (const int order : {2, 6}) {
    for (const bool causal : kCausal) {
      for (const Visible visible : kVisible) {
        for (const Shape& shape : kAttentionShapes) {
          check_both_ways(attention_test(ea_series_attention(order), shape, causal, visible, kModerate));
        }
      }
    }
  }
}

TEST_CASE("every order") {
  for (int order = 0; order <= 16; order += 2) {
    for (const bool causal : kCausal) {
      for (const Visible visible : kVisible) {
        for (const Shape& shape : {Shape{2, 3, 5}, Shape{2, 33, 17}}) {
          check_both_ways(attention_test(ea_series_attention(order), shape, causal, visible, kModerate));
        }
      }
      check_both_ways(
          attention_test(ea_series_attention(order), {1, 129, 3}, causal, Visible::random, kModerate));
      check_op_variants(
          attention_test(ea_series_attention(order), {2, 5, 3}, causal, Visible::all, kModerate));
    }
  }
}

TEST_CASE("unaligned inputs, and each differentiated alone") {
  for (const int order : {2, 6, 12}) {
    for (const bool causal : kCausal) {
      for (const Shape& shape : {Shape{2, 33, 17}, Shape{1, 129, 33}}) {
        check_op_variants(
            attention_test(ea_series_attention(order), shape, causal, Visible::left_padded, kModerate));
      }
    }
  }
}

TEST_CASE("channels of many vectors") {
  for (const bool causal : kCausal) {
    check_both_ways(attention_test(ea_series_attention(6), {2, 5, 1027}, causal, Visible::random, kModerate));
  }
}

TEST_CASE("later tokens, other batch entries and hidden keys do not matter") {
  for (const int order : {6, 0, 2, 16}) {
    check_attention_properties(ea_series_attention(order));
    if (test_device() != kCpu) break;  // all orders are one source; an emulated GPU is slow
  }
}

TEST_CASE("a NaN stays in its channel") {
  for (const int order : {2, 6, 16}) check_nan_stays_in_head(ea_series_attention(order));
}

TEST_CASE("tends to EA as the order grows") {
  const Shape shape{2, 133, 17};
  const Tensor q = uniform(shape, -1, 1), k = uniform(shape, -1, 1), v = uniform(shape, -1, 1);
  for (const bool causal : kCausal) {
    for (const Visible visible : kVisible) {
      const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, shape[0], shape[1])};
      const Values limit = values_of(ea(q, k, v, options));
      double bound = 2 * std::exp(4), previous = INFINITY;
      for (int order = 0; order <= 16; order += 2) {
        // The remainder of exp(x), |x| <= 2, relative to exp(x): exp(2 + 2) 2^(order + 1) / (order + 1)!.
        bound *= order == 0 ? 2 : 4.0 / (order * (order + 1));
        const Values y = values_of(ea_series(q, k, v, order, options));
        double error = 0;
        for (size_t i = 0; i < y.size(); ++i) error = std::max(error, std::fabs(y[i] - limit[i]));
        CHECK_MESSAGE(error <= bound, "order ", order);
        CHECK_MESSAGE((error < previous || error == 0), "order ", order);
        previous = error;
      }
    }
  }
}

TEST_CASE("order 0 is the mean weighted by exp(-k^2)") {
  const Tensor k = from_vector<double>({0, 1, 2}, {1, 3, 1}), v = from_vector<double>({3, 5, 7}, {1, 3, 1});
  const double near = std::exp(-1), far = std::exp(-4), mean = (3 + 5 * near + 7 * far) / (1 + near + far);
  check_close(values_of(ea_series(uniform({1, 3, 1}), k, v, 0)), {mean, mean, mean}, kF64Tolerance, "mean");
}

TEST_CASE("the composed form: values and gradients") {
  for (int order = 0; order <= 16; order += 2) {
    for (const bool causal : kCausal) {
      for (const Visible visible : {Visible::all, Visible::right_padded}) {
        for (const Shape& shape : {Shape{2, 5, 3}, Shape{1, 33, 17}}) {
          OpTest test = attention_test(ea_series_attention(order, ea_series_composed), shape, causal, visible,
                                       kModerate);
          test.in_bf16 = false;  // powers that are rounded one by one leave few digits
          check_op(test);
        }
      }
    }
  }
}

TEST_CASE("fused and composed agree, forward and backward") {
  const Shape shape{2, 261, 19};
  for (int order = 0; order <= 16; order += 2) {
    for (const bool causal : kCausal) {
      for (const Visible visible : {Visible::all, Visible::right_padded}) {
        const Tensor q = uniform(shape, -1, 1), k = uniform(shape, -1, 1), v = uniform(shape);
        const Tensor dy = uniform(shape);
        const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, shape[0], shape[1])};
        for (const DType dtype : {DType::f64, DType::f32}) {
          const AttentionResult fused =
              run_attention(ea_series_attention(order), q, k, v, dy, dtype, options);
          const AttentionResult composed =
              run_attention(ea_series_attention(order, ea_series_composed), q, k, v, dy, dtype, options);
          const Tolerance tolerance = dtype == DType::f64 ? kF64Tolerance : kF32Tolerance;
          const std::string what = detail::concatenate("order ", order, causal ? " causal " : " ",
                                                       name_of(dtype), " ", static_cast<int>(visible));
          check_close(fused.y, composed.y, tolerance, what + " y");
          check_close(fused.dq, composed.dq, tolerance, what + " dq");
          check_close(fused.dk, composed.dk, tolerance, what + " dk");
          check_close(fused.dv, composed.dv, tolerance, what + " dv");
        }
      }
    }
  }
}

TEST_CASE("the composed form gives NaN to a query that sees no key") {
  const Tensor x = uniform({2, 3, 1}, -1, 1), mask = key_mask(Visible::none, 2, 3);
  for (const double y : values_of(ea_series_composed(x, x, x, 2, {.key_mask = mask}))) CHECK(std::isnan(y));
  for (const double y : values_of(ea_series(x, x, x, 2, {.key_mask = mask}))) CHECK(y == 0);
}

TEST_CASE("outputs too large for the cache are the same as small ones") {
  const Shape shape{1, 4101, 512};  // just above 8 MiB in f32
  const int64_t half = 256;
  const Tensor q = uniform(shape, -1, 1), k = uniform(shape, -1, 1), v = uniform(shape), dy = uniform(shape);
  const auto first_half = [&](const Tensor& x) { return slice(x, 2, 0, half); };
  for (const bool causal : kCausal) {
    const AttentionOptions options{.causal = causal, .key_mask = key_mask(Visible::random, 1, shape[1])};
    const AttentionResult whole = run_attention(ea_series_attention(2), q, k, v, dy, DType::f32, options);
    const AttentionResult part = run_attention(ea_series_attention(2), first_half(q), first_half(k),
                                               first_half(v), first_half(dy), DType::f32, options);
    for (Values AttentionResult::*const member :
         {&AttentionResult::y, &AttentionResult::dq, &AttentionResult::dk, &AttentionResult::dv}) {
      CHECK(values_of(first_half(from_vector(whole.*member, shape))) == part.*member);
    }
  }
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3, 4}), flat = uniform({3, 4}), longer = uniform({2, 5, 4});
  const Tensor index = zeros({2, 3, 4}, {.dtype = DType::i64}), narrow = cast(x, DType::f32);
  for (const auto& [name, function] : {std::pair{std::string("ea_series"), &ea_series},
                                       {std::string("ea_series_composed"), &ea_series_composed}}) {
    const auto run = [&, f = function](const Tensor& q, const Tensor& k, const Tensor& v, int order = 2,
                                       const Tensor& mask = {}) {
      return [=] { f(q, k, v, order, {.key_mask = mask}); };
    };
    for (const auto& [order, text] : {std::pair{1, "1"}, {7, "7"}, {-1, "-1"}, {-2, "-2"}, {18, "18"}}) {
      check_error(run(x, x, x, order), name + ": expected an even order in 0 .. 16, got " + text +
                                           " (the polynomial of an odd order is not positive)");
    }
    check_error(run(index, index, index), name + ": expected q of dtype f32, f64 or bf16, got i64");
    check_error(run(flat, flat, flat), name + ": expected q [batch, length, channels], got [3, 4]");
    check_error(run(x, narrow, x), name + ": expected k of f64 on cpu like q, got f32 on cpu");
    check_error(run(x, x, longer), name + ": expected v of shape [2, 3, 4], got [2, 5, 4]");
    check_error(run(x, x, x, 2, ones({2, 3})), name + ": expected key_mask of bool on cpu, got f32 on cpu");
    check_error(run(x, x, x, 2, key_mask(Visible::random, 2, 4)),
                name + ": expected key_mask of shape [2, 3], got [2, 4]");
  }
}

}  // namespace
}  // namespace elwise::testing
