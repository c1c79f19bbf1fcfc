#include "ops/feed_forward.h"

#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "tests/support/naive_elementwise.h"
#include "tests/support/naive_matmul.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

constexpr uint64_t kSeed = 20250105;

struct Sizes {
  Shape x;
  int64_t inner, outputs;

  int64_t rows() const { return x.count_before(-1); }
};

void add_bias(Values& y, const Values& bias) {
  if (bias.empty()) return;
  for (size_t i = 0; i < y.size(); ++i) y[i] += bias[i % bias.size()];
}

Values naive_feed_forward(const std::vector<Values>& in, const Sizes& sizes, double dropout) {
  const int64_t rows = sizes.rows(), inputs = sizes.x[-1];
  Values h = naive::matmul(in[0], in[1], rows, sizes.inner, inputs, false, true);
  add_bias(h, in[2]);
  const RandomStream stream{kSeed, 0};
  for (size_t i = 0; i < h.size(); ++i) {
    const bool dropped = dropout > 0 && static_cast<double>(uniform01(stream.word(i))) < dropout;
    h[i] = dropped ? 0 : naive::unary(UnaryOp::gelu, h[i]) / (1 - dropout);
  }
  Values y = naive::matmul(h, in[3], rows, sizes.outputs, sizes.inner, false, true);
  add_bias(y, in[4]);
  return y;
}

OpTest feed_forward_test(const Sizes& sizes, bool has_bias, const FeedForwardOptions& options) {
  const auto weight = [](int64_t outputs, int64_t inputs) { return uniform({outputs, inputs}, -1, 1); };
  const auto bias = [=](int64_t size) { return has_bias ? uniform({size}) : Tensor(); };
  return {
      .name = detail::concatenate("feed_forward ", sizes.x, " ", sizes.inner, " ", sizes.outputs,
                                  has_bias ? " bias" : "", " dropout ", options.dropout,
                                  options.keep_inner ? "" : " again"),
      .op =
          [=](const std::vector<Tensor>& in) {
            Generator generator(kSeed);
            return feed_forward(in[0], in[1], in[2], in[3], in[4], options, generator);
          },
      .inputs = {uniform(sizes.x, -1, 1), weight(sizes.inner, sizes.x[-1]), bias(sizes.inner),
                 weight(sizes.outputs, sizes.inner), bias(sizes.outputs)},
      .naive = [=](const std::vector<Values>& in) { return naive_feed_forward(in, sizes, options.dropout); }};
}

const FeedForwardOptions kAllOptions[] = {
    {}, {.keep_inner = false}, {.dropout = 0.3}, {.dropout = 0.3, .keep_inner = false}};

TEST_CASE("feed_forward, with and without biases and dropout, GELU's input kept and not") {
  const Sizes shapes[] = {{{7}, 5, 3},          {{1, 1}, 1, 1}, {{2, 3, 31}, 33, 5}, {{33, 2}, 63, 31},
                          {{130, 96}, 131, 97}, {{2, 0}, 3, 2}, {{0, 3}, 4, 2},      {{3, 5}, 0, 2}};
  for (const Sizes& sizes : shapes) {
    for (const FeedForwardOptions& options : kAllOptions) {
      for (const bool has_bias : {false, true}) check_op(feed_forward_test(sizes, has_bias, options));
    }
  }
  check_op_variants(feed_forward_test({{9, 4}, 5, 3}, true, {.dropout = 0.3}));
  check_op_variants(feed_forward_test({{9, 4}, 5, 3}, true, {.keep_inner = false}));
}

TEST_CASE("feed_forward over several blocks of rows") {
  for (const int64_t rows : {2048, 2049, 5001}) {
    for (const FeedForwardOptions& options : kAllOptions) {
      if (test_device() != kCpu && (rows != 2049 || options.dropout == 0))
        continue;  // an emulated GPU is slow
      const OpTest test = feed_forward_test({{rows, 3}, 5, 2}, true, options);
      check_op(test);
      check_direction(test);
    }
  }
}

TEST_CASE("feed_forward adds to gradients that are there: of an input and of weights used twice") {
  for (const bool keep_inner : {true, false}) {
    const auto run = [=](bool fused) {
      Generator values(kSeed);
      const auto leaf_of = [&](const Shape& shape) {
        const TensorOptions options{.dtype = DType::f64, .device = test_device()};
        return randn(shape, options, values).set_requires_grad();
      };
      const Tensor x = leaf_of({33, 6}), w1 = leaf_of({5, 6}), b1 = leaf_of({5}), w2 = leaf_of({6, 5}),
                   b2 = leaf_of({6});
      const auto network = [&](const Tensor& input) {
        if (fused) return feed_forward(input, w1, b1, w2, b2, {.keep_inner = keep_inner});
        return linear(gelu(linear(input, w1, b1)), w2, b2);
      };
      const Tensor y = add(network(x), network(network(x)));
      y.backward(ones_like(y));
      std::vector<Values> results{values_of(y)};
      for (const Tensor& tensor : {x, w1, b1, w2, b2}) results.push_back(values_of(tensor.grad()));
      return results;
    };
    const auto actual = run(true), expected = run(false);
    for (size_t i = 0; i < actual.size(); ++i)
      check_close(actual[i], expected[i], kF64Tolerance, "result " + std::to_string(i));
  }
}

TEST_CASE("feed_forward keeps GELU's input and nothing else of the inner size, or not even that") {
  constexpr int64_t kRows = 1 << 14, kInputs = 64, kInner = 256, kBlockRows = 2048;
  const TensorOptions options{.device = kMeta};
  const auto leaf_of = [&](const Shape& shape) { return empty(shape, options).set_requires_grad(); };
  const Tensor x = leaf_of({kRows, kInputs}), w1 = leaf_of({kInner, kInputs}),
               w2 = leaf_of({kInputs, kInner});
  const auto bytes = [](int64_t elements) { return 4 * elements; };
  for (const bool keep_inner : {true, false}) {
    const int64_t before = memory_stats(kMeta).total.now;
    const Tensor y = feed_forward(x, w1, {}, w2, {}, {.keep_inner = keep_inner});
    CHECK(memory_stats(kMeta).total.now - before == bytes(kRows * (kInputs + (keep_inner ? kInner : 0))));
    const Tensor dy = empty(y.shape(), options);
    const int64_t kept = memory_stats(kMeta).total.now;
    reset_memory_peak(kMeta);
    y.backward(dy);
    CHECK(memory_stats(kMeta).total.peak - kept <
          bytes(kRows * kInputs + 2 * kBlockRows * kInner) + (25 << 20));
    for (Tensor leaf : {x, w1, w2}) leaf.set_grad({});
  }
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 3}), w1 = uniform({5, 3}), w2 = uniform({4, 5}), b1 = uniform({5}),
               b2 = uniform({4});
  check_error([&] { feed_forward(arange(3), w1, b1, w2, b2); },
              "feed_forward: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { feed_forward(uniform({}), w1, b1, w2, b2); },
              "feed_forward: expected x [.., inputs], got []");
  check_error([&] { feed_forward(x, w2, b1, w2, b2); },
              "feed_forward: expected inner_weight [.., 3] for x [2, 3], got [4, 5]");
  check_error([&] { feed_forward(x, w1, b1, w1, b2); },
              "feed_forward: expected outer_weight [.., 5] for x [2, 3], got [5, 3]");
  check_error([&] { feed_forward(x, w1, b2, w2, b2); },
              "feed_forward: expected inner_bias of shape [5], got [4]");
  check_error([&] { feed_forward(x, w1, b1, w2, b1); },
              "feed_forward: expected outer_bias of shape [4], got [5]");
  check_error([&] { feed_forward(x, w1, b1, cast(w2, DType::f32), b2); },
              "feed_forward: expected outer_weight of f64 on cpu like x, got f32 on cpu");
  check_error([&] { feed_forward(x, w1, b1, w2, b2, {.dropout = 1}); },
              "feed_forward: expected 0 <= dropout < 1, got 1");
}

}  // namespace
}  // namespace elwise::testing
