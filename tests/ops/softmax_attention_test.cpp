#include "ops/softmax_attention.h"

#include <cmath>

#include "ops/elementwise.h"
#include "tests/support/op_variants.h"
#include "tests/support/softmax_attention_heads.h"

namespace elwise::testing {
namespace {

constexpr uint64_t kSeed = 20250105;

Attention softmax_heads(int64_t heads, double dropout_p = 0) {
  return softmax_attention_heads("softmax_attention", softmax_attention, heads, dropout_p, kSeed);
}

TEST_CASE("values and gradients for every mask, one head") {
  for (const bool causal : {false, true}) {
    for (const Visible visible : kVisible) {
      for (const Shape& shape : kAttentionShapes) {
        const OpTest test = attention_test(softmax_heads(1), shape, causal, visible, 2);
        check_op(test);
        check_direction(test);
      }
      check_op_variants(attention_test(softmax_heads(1), {2, 33, 15}, causal, visible, 2));
    }
  }
}

TEST_CASE("values and gradients for every mask, several heads") {
  for (const bool causal : {false, true}) {
    for (const Visible visible : kVisible) {
      for (const int64_t heads : {2, 4}) {
        for (const Shape& shape :
             {Shape{2, 1, 4}, Shape{2, 5, 12}, Shape{2, 31, 60}, Shape{1, 129, 64}, Shape{2, 33, 128}}) {
          const OpTest test = attention_test(softmax_heads(heads), shape, causal, visible, 2);
          check_op(test);
          check_direction(test);
        }
        check_op_variants(attention_test(softmax_heads(heads), {2, 3, 8}, causal, visible, 2));
      }
    }
  }
}

TEST_CASE("dropout: weight n is kept by word n of the stream, in backward too") {
  for (const double p : {0.1, 0.5}) {
    for (const bool causal : {false, true}) {
      for (const Shape& shape : {Shape{2, 3, 8}, Shape{2, 33, 20}}) {
        for (const int64_t heads : {1, 4}) {
          check_op_variants(attention_test(softmax_heads(heads, p), shape, causal, Visible::right_padded, 2));
        }
      }
    }
  }
}

TEST_CASE("dropout preserves the mean, and draws anew at every call") {
  constexpr int64_t kBatch = 8, kLength = 64, kHeads = 4;
  const Shape shape{kBatch, kLength, kHeads};
  for (const double p : {0.1, 0.5, 0.9}) {
    Generator generator(kSeed);
    // Equal scores: each output is the share of kept weights, divided by 1 - p.
    const TensorOptions on_device{.device = test_device()};
    const Tensor zero = zeros(shape, on_device), one = ones(shape, on_device);
    const Values y = values_of(softmax_attention(zero, zero, one, kHeads, {}, p, generator));
    double mean = 0;
    for (const double value : y) mean += value / static_cast<double>(y.size());
    const double weights = static_cast<double>(shape.count() * kLength);
    CHECK(std::fabs(mean - 1) < 4 * std::sqrt(p / ((1 - p) * weights)));
    CHECK(generator.state().offset == static_cast<uint64_t>(shape.count() * kLength / 4));
    CHECK(values_of(softmax_attention(zero, zero, one, kHeads, {}, p, generator)) != y);

    Generator meta_generator(kSeed);
    const Tensor meta = to(zero, kMeta);
    softmax_attention(meta, meta, meta, kHeads, {}, p, meta_generator);
    softmax_attention(meta, meta, meta, kHeads, {}, p, meta_generator);
    CHECK(meta_generator.state().offset == generator.state().offset);
  }
}

TEST_CASE("dropout of 0 draws nothing; the default generator is the thread's own") {
  const Tensor x = to(uniform({1, 5, 4}), test_device());
  Generator generator(kSeed);
  softmax_attention(x, x, x, 2, {}, 0, generator);
  CHECK(generator.state().offset == 0);
  manual_seed(kSeed);
  CHECK(values_of(softmax_attention(x, x, x, 2, {}, 0.5)) ==
        values_of(softmax_attention(x, x, x, 2, {}, 0.5, generator)));
}

TEST_CASE("later tokens, other batch entries and hidden keys do not matter") {
  check_attention_properties(softmax_heads(1));
  if (test_device() == kCpu) check_attention_properties(softmax_heads(17));  // an emulated GPU takes a minute
}

TEST_CASE("outputs lie between the values, however large the scores are") {
  check_large_scores(softmax_heads(4), {2, 65, 12});
}

TEST_CASE("a NaN stays in its head") {
  constexpr int64_t kHead = 7;
  check_nan_stays_in_head(softmax_heads(kNanChannels / kHead), kHead, /*weighs_hidden=*/true);
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3, 4}), flat = uniform({3, 4}), longer = uniform({2, 5, 4});
  const Tensor index = zeros({2, 3, 4}, {.dtype = DType::i64}), narrow = cast(x, DType::f32);
  check_error([&] { softmax_attention(index, index, index, 1); },
              "softmax_attention: expected q of dtype f32, f64 or bf16, got i64");
  check_error([&] { softmax_attention(flat, flat, flat, 1); },
              "softmax_attention: expected q [batch, length, channels], got [3, 4]");
  check_error([&] { softmax_attention(x, x, narrow, 1); },
              "softmax_attention: expected v of f64 on cpu like q, got f32 on cpu");
  check_error([&] { softmax_attention(x, longer, x, 1); },
              "softmax_attention: expected k of shape [2, 3, 4], got [2, 5, 4]");
  check_error(
      [&] {
        softmax_attention(x, x, x, 1, {.key_mask = ones({2, 3})});
      },
      "softmax_attention: expected key_mask of bool on cpu, got f32 on cpu");
  check_error([&] { softmax_attention(x, x, x, 1, {.key_mask = key_mask(Visible::random, 2, 4)}); },
              "softmax_attention: expected key_mask of shape [2, 3], got [2, 4]");
  for (const int64_t heads : {3, 0, -2, 8}) {
    check_error([&] { softmax_attention(x, x, x, heads); },
                "softmax_attention: expected heads that divide 4 channels, got " + std::to_string(heads));
  }
  for (const auto& [p, text] : {std::pair{1.0, "1"}, {1.5, "1.5"}, {-0.1, "-0.1"}, {NAN, "nan"}}) {
    check_error([&, p = p] { softmax_attention(x, x, x, 2, {}, p); },
                std::string("softmax_attention: expected 0 <= dropout_p < 1, got ") + text);
  }
}

}  // namespace
}  // namespace elwise::testing
