#include <cmath>

#include "ops/elementwise.h"
#include "ops/view.h"
#include "tests/support/op_variants.h"
#include "tests/support/softmax_attention_heads.h"

namespace elwise::testing {
namespace {

constexpr uint64_t kSeed = 20250106;
constexpr DType kDTypes[] = {DType::f64, DType::f32};

Attention tiled_heads(int64_t heads, double dropout_p = 0) {
  return softmax_attention_heads("softmax_attention_tiled", softmax_attention_tiled, heads, dropout_p, kSeed);
}

/// All masks or, on an emulated GPU, which is slow, a few of them.
std::vector<Visible> masks() {
  if (test_device() == kCpu) return {std::begin(kVisible), std::end(kVisible)};
  return {Visible::all, Visible::random};
}

TEST_CASE("values and gradients for every mask, one head") {
  for (const bool causal : {false, true}) {
    for (const Visible visible : masks()) {
      for (const Shape& shape : kAttentionShapes) {
        const OpTest test = attention_test(tiled_heads(1), shape, causal, visible, 2);
        check_op(test);
        check_direction(test);
      }
      check_op_variants(attention_test(tiled_heads(1), {2, 33, 15}, causal, visible, 2));
    }
  }
}

TEST_CASE("values and gradients for every mask, several heads, of whole and of broken tiles") {
  struct Case {
    Shape shape;
    int64_t heads;
  };
  for (const bool causal : {false, true}) {
    for (const Visible visible : masks()) {
      for (const auto& [shape, heads] :
           {Case{{2, 1, 4}, 2}, Case{{2, 5, 12}, 4}, Case{{1, 97, 64}, 2}, Case{{2, 48, 32}, 2},
            Case{{1, 192, 48}, 3}, Case{{1, 33, 300}, 2}}) {
        const OpTest test = attention_test(tiled_heads(heads), shape, causal, visible, 2);
        check_op(test);
        check_direction(test);
      }
      check_op_variants(attention_test(tiled_heads(2), {2, 3, 8}, causal, visible, 2));
      check_op_variants(attention_test(tiled_heads(2), {1, 24, 32}, causal, visible, 2));
    }
  }
}

TEST_CASE("more queries and keys than a block holds, heads of the usual sizes and a large one") {
  const int64_t length = test_device() == kCpu ? 411 : 75;
  for (const bool causal : {false, true}) {
    for (const Visible visible : {Visible::all, Visible::left_padded, Visible::random}) {
      for (const int64_t head : {int64_t{64}, int64_t{80}, int64_t{200}}) {
        if (head == 80 && test_device() != kCpu) continue;
        if (head != 64 && visible != Visible::random) continue;  // masks know nothing of the head's size
        const OpTest test = attention_test(tiled_heads(2), {1, length, 2 * head}, causal, visible, 1);
        check_op(test);
        check_direction(test);
      }
    }
  }
}

TEST_CASE("dropout: weight n is kept by word n of the stream, in backward too") {
  for (const double p : {0.1, 0.5}) {
    if (p == 0.5 && test_device() != kCpu) continue;
    for (const bool causal : {false, true}) {
      for (const Visible visible : masks()) {
        if (p == 0.5 && visible != Visible::random) continue;
        for (const Shape& shape : {Shape{2, 3, 8}, Shape{2, 33, 20}, Shape{1, 100, 4}, Shape{1, 202, 4}}) {
          if (shape[1] > 50 && test_device() != kCpu) continue;  // an emulated GPU takes minutes
          const OpTest test = attention_test(tiled_heads(4, p), shape, causal, visible, 2);
          if (shape[1] <= 50) {
            check_op_variants(test);
          } else {
            check_op(test);
            check_direction(test);
          }
        }
      }
    }
  }
}

TEST_CASE("dropout draws anew at every call, as many words as the materialised form, on meta too") {
  const Tensor x = to(uniform({2, 5, 12}), test_device()), meta = to(x, kMeta);
  for (const Tensor& input : {x, meta}) {
    Generator tiled(kSeed), materialised(kSeed);
    softmax_attention_tiled(input, input, input, 4, {}, 0.5, tiled);
    softmax_attention(input, input, input, 4, {}, 0.5, materialised);
    CHECK(tiled.state().offset == materialised.state().offset);
    softmax_attention_tiled(input, input, input, 4, {}, 0, tiled);
    CHECK(tiled.state().offset == materialised.state().offset);
  }
  Generator generator(kSeed);
  CHECK(values_of(softmax_attention_tiled(x, x, x, 4, {}, 0.5, generator)) !=
        values_of(softmax_attention_tiled(x, x, x, 4, {}, 0.5, generator)));
}

TEST_CASE("views that start between two 16-byte boundaries, and heads that end there") {
  for (const DType dtype : test_dtypes()) {
    for (const int64_t head : {5, 8}) {
      const int64_t length = 37, channels = 2 * head, count = length * channels;
      const Shape shape{1, length, channels};
      std::vector<Tensor> q, k, v;  // aligned ones and views of the same elements
      for (std::vector<Tensor>* inputs : {&q, &k, &v}) {
        const Tensor whole = cast(to(uniform({count + 1}), test_device()), dtype).detach();
        const Tensor view = whole.alias(shape, 1);
        *inputs = {clone(view), view};
      }
      const auto run = [&](size_t i) {
        const auto leaf = [&](const std::vector<Tensor>& from) {
          return from[i].detach().set_requires_grad();
        };
        const Tensor a = leaf(q), b = leaf(k), c = leaf(v);
        const Tensor y = softmax_attention_tiled(a, b, c, 2);
        y.backward(q[i]);
        return std::vector{values_of(y.detach()), values_of(a.grad()), values_of(b.grad()),
                           values_of(c.grad())};
      };
      CHECK(run(0) == run(1));
    }
  }
}

TEST_CASE("equals the materialised form at odd lengths") {
  for (const DType dtype : kDTypes) {
    const Tolerance tolerance = dtype == DType::f64 ? kF64Tolerance : kF32Tolerance;
    for (const int64_t length : kOddSizes) {
      if (length > 100 && test_device() != kCpu) continue;  // an emulated GPU takes a minute
      for (const bool causal : {false, true}) {
        for (const Visible visible : {Visible::all, Visible::random}) {
          for (const double p : {0.0, 0.3}) {
            const Shape shape{1, length, 128};
            const Tensor q = rounded_to(uniform(shape), dtype), k = rounded_to(uniform(shape), dtype),
                         v = rounded_to(uniform(shape), dtype), dy = rounded_to(uniform(shape), dtype);
            const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, 1, length)};
            const Attention materialised =
                softmax_attention_heads("softmax_attention", softmax_attention, 2, p, kSeed);
            check_result(run_attention(tiled_heads(2, p), q, k, v, dy, dtype, options),
                         run_attention(materialised, q, k, v, dy, dtype, options), q, k, tolerance, tolerance,
                         detail::concatenate(name_of(dtype), " length ", length, causal ? " causal" : "",
                                             " mask ", static_cast<int>(visible), " dropout ", p));
          }
        }
      }
    }
  }
}

TEST_CASE("later tokens, other batch entries and hidden keys do not matter") {
  check_attention_properties(tiled_heads(1));
  if (test_device() == kCpu) check_attention_properties(tiled_heads(17));
}

TEST_CASE("outputs lie between the values, however large the scores are") {
  check_large_scores(tiled_heads(4), {2, test_device() == kCpu ? 131 : 67, 12});
}

TEST_CASE("scores of one size: each query's weights add up, however large they are") {
  // All scores of a query are equal, so that y is the mean of v, whatever the maximum that is subtracted.
  const Shape shape{1, 300, 4};
  const Tensor v = uniform(shape);
  for (const double score : {-1e4, -80.0, 0.0, 80.0, 1e4}) {
    for (const DType dtype : kDTypes) {
      const Tensor q = full(shape, score, {.dtype = dtype, .device = test_device()});
      const Tensor k = full(shape, 0.5, {.dtype = dtype, .device = test_device()});
      const Tensor narrow = to(cast(v, dtype), test_device());
      check_close(values_of(softmax_attention_tiled(q, k, narrow, 1)),
                  values_of(softmax_attention(q, k, narrow, 1)),
                  dtype == DType::f64 ? kF64Tolerance : kF32Tolerance, detail::concatenate("score ", score));
    }
  }
}

TEST_CASE("the same bits however many threads share a head") {
  check_same_bits_with_threads(tiled_heads(1, 0.1), {1, 1300, 16}, {1, 2, 5, 16});  // seven blocks of queries
}

TEST_CASE("memory is linear in the length") {
  constexpr int64_t kBatch = 2, kChannels = 768, kHeads = 12, kLength = 1 << 15;
  struct Bytes {
    int64_t saved, peak;
  };
  const auto bytes_at = [](int64_t length) {
    const TensorOptions options{.device = kMeta};
    const auto leaf = [&] { return empty({kBatch, length, kChannels}, options).set_requires_grad(); };
    const Tensor q = leaf(), k = leaf(), v = leaf();
    const int64_t before = memory_stats(kMeta).total.now;
    reset_memory_peak(kMeta);
    const Tensor y = softmax_attention_tiled(q, k, v, kHeads, {.causal = true, .key_mask = {}});
    const int64_t saved = memory_stats(kMeta).total.now - before;
    y.backward(empty(y.shape(), options));
    return Bytes{saved, memory_stats(kMeta).total.peak - before};
  };
  const Bytes one = bytes_at(kLength), two = bytes_at(2 * kLength), four = bytes_at(4 * kLength);
  CHECK(one.saved == kBatch * kLength * (kChannels + kHeads) * 4);  // y and logsumexp
  CHECK(two.saved == 2 * one.saved);
  // y, dy, dq, dk, dv; logsumexp and delta.
  CHECK(two.peak - one.peak == kBatch * kLength * (5 * kChannels + 2 * kHeads) * 4);
  CHECK(four.peak - two.peak == 2 * (two.peak - one.peak));
}

TEST_CASE("a NaN stays in its head") {
  constexpr int64_t kHead = 7;
  check_nan_stays_in_head(tiled_heads(kNanChannels / kHead), kHead, /*weighs_hidden=*/true);
}

TEST_CASE("errors name this op") {
  const Tensor x = uniform({2, 3, 4}), longer = uniform({2, 5, 4});
  check_error([&] { softmax_attention_tiled(x, longer, x, 1); },
              "softmax_attention_tiled: expected k of shape [2, 3, 4], got [2, 5, 4]");
  check_error([&] { softmax_attention_tiled(x, x, x, 3); },
              "softmax_attention_tiled: expected heads that divide 4 channels, got 3");
  check_error([&] { softmax_attention_tiled(x, x, x, 2, {}, 1); },
              "softmax_attention_tiled: expected 0 <= dropout_p < 1, got 1");
}

}  // namespace
}  // namespace elwise::testing
