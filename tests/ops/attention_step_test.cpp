#include "ops/attention_step.h"

#include <cmath>
#include <functional>
#include <utility>

#include "autograd/grad_mode.h"
#include "core/safetensors.h"
#include "ops/elementwise.h"
#include "ops/linear_attention.h"
#include "ops/softmax_attention.h"
#include "ops/view.h"
#include "tests/support/attention_properties.h"
#include "tests/support/naive_aft.h"
#include "tests/support/naive_linear_attention.h"
#include "tests/support/temporary_folder.h"

// Generation with a cache of keys and values, and with the state of linear attention.

namespace elwise::testing {
namespace {

constexpr int64_t kPositions = 300;

Tensor token(const Tensor& x, int64_t i) {
  return reshape(slice(x, 1, i, i + 1), {x.size(0), x.size(2)});
}

using CachedStep = std::function<Tensor(const Tensor&, const Tensor&, const Tensor&, KeyValueCache&)>;

/// A step of each mechanism that has a cache, and the parallel form as its reference.
struct CachedMechanism {
  std::string name;
  CachedStep step;
  decltype(Attention::naive) naive;
};

CachedMechanism cached_softmax(int64_t heads) {
  return {.name = detail::concatenate("softmax ", heads, " heads"),
          .step = [=](const Tensor& q, const Tensor& k, const Tensor& v,
                      KeyValueCache& cache) { return softmax_attention_step(q, k, v, heads, cache); },
          .naive =
              [=](const AttentionShape& shape, const Values& q, const Values& k, const Values& v) {
                const Shape sizes{shape.batch, shape.length, shape.channels};
                return values_of(softmax_attention(from_vector(q, sizes), from_vector(k, sizes),
                                                   from_vector(v, sizes), heads,
                                                   {.causal = true, .key_mask = {}}));
              }};
}

CachedMechanism cached_ea() {
  return {.name = "ea", .step = ea_step, .naive = naive::ea_forward};
}

CachedMechanism cached_aft() {
  const Tensor bias = rounded_to(uniform({kPositions, kPositions}), DType::bf16);
  return {.name = "aft",
          .step =
              [=](const Tensor& q, const Tensor& k, const Tensor& v, KeyValueCache& cache) {
                return aft_step(q, k, v, to(cast(bias, q.dtype()), q.device()), cache);
              },
          .naive =
              [=](const AttentionShape& shape, const Values& q, const Values& k, const Values& v) {
                return naive::aft(shape, kPositions, q, k, v, values_of(bias), Values(q.size(), 0)).y;
              }};
}

std::vector<CachedMechanism> cached_mechanisms(int64_t heads) {
  return {cached_softmax(heads), cached_ea(), cached_aft()};
}

/// Adds the first `prompt` tokens to the cache at once, then steps.
Tensor generate(const CachedStep& step, const Tensor& q, const Tensor& k, const Tensor& v,
                KeyValueCache& cache, int64_t prompt) {
  if (prompt > 0) append(cache, slice(k, 1, 0, prompt), slice(v, 1, 0, prompt));
  std::vector<Tensor> rows;
  for (int64_t i = prompt; i < q.size(1); ++i) {
    rows.push_back(reshape(step(token(q, i), token(k, i), token(v, i), cache), {q.size(0), 1, q.size(2)}));
  }
  return concat(rows, 1);
}

/// The mechanism's answers from row `prompt` on.
OpTest cached_test(const CachedMechanism& mechanism, const Shape& shape, int64_t prompt) {
  Attention attention{
      .name = detail::concatenate("cached ", mechanism.name, " prompt ", prompt),
      .run =
          [=](const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions&) {
            KeyValueCache cache = key_value_cache(q.size(0), q.size(2), q.options());
            return generate(mechanism.step, q, k, v, cache, prompt);
          },
      .naive =
          [=](const AttentionShape& sizes, const Values& q, const Values& k, const Values& v) {
            const Values all = mechanism.naive(sizes, q, k, v);
            return values_of(slice(from_vector(all, shape), 1, prompt, shape[1]));
          }};
  OpTest test = attention_test(attention, shape, /*causal=*/true, Visible::all, 2);
  test.gradients = false;
  return test;
}

TEST_CASE("steps over a cache answer as the parallel form") {
  for (const CachedMechanism& mechanism : cached_mechanisms(3)) {
    for (const Shape& shape : {Shape{2, 5, 51}, Shape{1, 37, 3}, Shape{3, 70, 33}}) {
      check_op(cached_test(mechanism, shape, 0));
    }
    check_op(cached_test(mechanism, {2, 265, 48}, 250));  // the cache grows
    check_op(cached_test(mechanism, {1, 259, 192}, 257));
  }
}

TEST_CASE("prompts of different lengths: each entry goes on as if it were alone") {
  const Shape shape{3, 40, 24};
  const int64_t prompt = 33;
  const Tensor mask = key_mask(Visible::right_padded, shape[0], prompt);
  const Values shown = values_of(mask);
  for (const DType dtype : test_dtypes()) {
    const TensorOptions options{.dtype = dtype, .device = test_device()};
    const auto input = [&] { return to(cast(uniform(shape), dtype), test_device()); };
    const Tensor q = input(), k = input(), v = input();
    for (const CachedMechanism& mechanism : cached_mechanisms(2)) {
      KeyValueCache together = key_value_cache(shape[0], shape[2], options);
      append(together, slice(k, 1, 0, prompt), slice(v, 1, 0, prompt), to(mask, test_device()));
      const Tensor y = generate(mechanism.step, slice(q, 1, prompt, shape[1]), slice(k, 1, prompt, shape[1]),
                                slice(v, 1, prompt, shape[1]), together, 0);
      for (int64_t b = 0; b < shape[0]; ++b) {
        int64_t length = 0;
        while (length < prompt && shown[static_cast<size_t>(b * prompt + length)] != 0) ++length;
        const auto entry = [b](const Tensor& x, int64_t begin, int64_t end) {
          return slice(slice(x, 0, b, b + 1), 1, begin, end);
        };
        KeyValueCache alone = key_value_cache(1, shape[2], options);
        append(alone, entry(k, 0, length), entry(v, 0, length));
        const Tensor expected = generate(mechanism.step, entry(q, prompt, shape[1]),
                                         entry(k, prompt, shape[1]), entry(v, prompt, shape[1]), alone, 0);
        CHECK_MESSAGE(values_of(entry(y, 0, shape[1] - prompt)) == values_of(expected), mechanism.name);
      }
    }
  }
}

TEST_CASE("far and large keys: exact and finite") {
  const Shape shape{1, 45, 6};
  for (const double largest : {1e2, 1e4}) {
    for (const DType dtype : test_dtypes()) {
      const Tensor q = rounded_to(uniform(shape, -largest, largest), dtype),
                   k = rounded_to(uniform(shape, -largest, largest), dtype),
                   v = rounded_to(uniform(shape), dtype);
      const auto input = [&](const Tensor& x) { return to(cast(x, dtype), test_device()); };
      for (const CachedMechanism& mechanism : {cached_ea(), cached_aft()}) {
        KeyValueCache cache = key_value_cache(1, shape[2], {dtype, test_device()});
        const Tensor y = generate(mechanism.step, input(q), input(k), input(v), cache, 0);
        const Values expected = mechanism.naive(attention_shape(q, {.causal = true, .key_mask = {}}),
                                                values_of(q), values_of(k), values_of(v));
        check_close(values_of(y), expected, tolerance_of(dtype),
                    detail::concatenate(mechanism.name, " up to ", largest, " ", name_of(dtype)));
      }
    }
  }
}

TEST_CASE("a cache grows in blocks, and goes on with the same bits once restored") {
  const TemporaryFolder folder;
  const Shape shape{2, 258, 8};
  const Tensor x = to(cast(uniform(shape), DType::f32), test_device());
  KeyValueCache cache = key_value_cache(2, 8, x.options());
  CHECK(cache.bytes() == 2 * 8);
  append(cache, x, x);
  CHECK(cache.k.size(1) == 512);
  CHECK(cache.bytes() == 2 * 2 * 512 * 8 * 4 + 2 * 8);
  save_safetensors(folder / "cache.safetensors",
                   {{"k", on_host(cache.k)}, {"v", on_host(cache.v)}, {"lengths", on_host(cache.lengths)}});
  auto tensors = load_safetensors(folder / "cache.safetensors");
  KeyValueCache restored{to(tensors.at("k"), test_device()), to(tensors.at("v"), test_device()),
                         to(tensors.at("lengths"), test_device()), cache.longest};
  const Tensor one = token(x, 0);
  for (int step = 0; step < 2; ++step) {
    CHECK(values_of(softmax_attention_step(one, one, one, 2, cache)) ==
          values_of(softmax_attention_step(one, one, one, 2, restored)));
  }
  CHECK(cache.longest == 260);
}

Attention recurrent_linear(int64_t heads, int64_t prompt) {
  return {.name = detail::concatenate("linear steps, ", heads, " heads, prompt ", prompt),
          .run =
              [=](const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options) {
                const int64_t first = std::min(prompt, q.size(1));
                LinearAttentionState state = linear_attention_state(q.size(0), q.size(2), heads, q.options());
                const auto piece = [first](const Tensor& x) { return slice(x, 1, 0, first); };
                const Tensor mask = options.key_mask.defined() ? piece(options.key_mask) : Tensor();
                std::vector<Tensor> rows{linear_attention_prefill(piece(q), piece(k), piece(v), state, mask)};
                for (int64_t i = first; i < q.size(1); ++i) {
                  rows.push_back(reshape(linear_attention_step(token(q, i), token(k, i), token(v, i), state),
                                         q.shape().with(1, 1)));
                }
                return concat(rows, 1);
              },
          .naive =
              [=](const AttentionShape& shape, const Values& q, const Values& k, const Values& v) {
                return naive::linear_attention(shape, heads, q, k, v, Values(v.size(), 0)).y;
              }};
}

TEST_CASE("linear attention: prefill and steps answer as the parallel form") {
  for (const int64_t heads : {1, 3}) {
    for (const Shape& shape : {Shape{2, 5, 51}, Shape{1, 37, 3}, Shape{2, 66, 96}}) {
      for (const int64_t prompt : {0, 1, 40}) {
        OpTest test = attention_test(recurrent_linear(heads, prompt), shape, true, Visible::all, 2);
        test.gradients = false;
        check_op(test);
      }
      for (const Visible visible : kVisible) {
        OpTest test = attention_test(recurrent_linear(heads, shape[1]), shape, true, visible, 2);
        test.gradients = false;
        check_op(test);
      }
    }
  }
}

TEST_CASE("linear attention: a prompt in pieces, some longer than a chunk") {
  constexpr int64_t kHeads = 2;
  const Attention pieces{
      .name = "linear prompt in pieces",
      .run =
          [=](const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options) {
            LinearAttentionState state = linear_attention_state(q.size(0), q.size(2), kHeads, q.options());
            std::vector<Tensor> rows;
            for (const auto& [begin, end] : {std::pair{0, 150}, {150, 151}, {151, 300}}) {
              const auto piece = [&](const Tensor& x) { return slice(x, 1, begin, end); };
              const Tensor mask = options.key_mask.defined() ? piece(options.key_mask) : Tensor();
              rows.push_back(linear_attention_prefill(piece(q), piece(k), piece(v), state, mask));
            }
            return concat(rows, 1);
          },
      .naive =
          [=](const AttentionShape& shape, const Values& q, const Values& k, const Values& v) {
            return naive::linear_attention(shape, kHeads, q, k, v, Values(v.size(), 0)).y;
          }};
  for (const Visible visible : {Visible::all, Visible::left_padded, Visible::random}) {
    OpTest test = attention_test(pieces, {2, 300, 10}, true, visible, 2);
    test.gradients = false;
    check_op(test);
  }
}

TEST_CASE("linear attention answers where all features of a query are tiny") {
  const Shape shape{1, 9, 4};
  const Tensor q = uniform(shape, -1e4, -9e3), k = uniform(shape), v = uniform(shape);
  LinearAttentionState state = linear_attention_state(1, 4, 2, {DType::f64, test_device()});
  const auto input = [](const Tensor& x) { return to(x, test_device()); };
  check_close(values_of(linear_attention_prefill(input(q), input(k), input(v), state)),
              values_of(linear_attention(q, k, v, 2, {.causal = true, .key_mask = {}})), kF64Tolerance, "y");
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 6}), sequence = uniform({2, 3, 6}), narrow = cast(x, DType::f32);
  const TensorOptions options{.dtype = DType::f64};
  KeyValueCache cache = key_value_cache(2, 6, options), other = key_value_cache(2, 5, options), none;
  check_error([&] { ea_step(sequence, sequence, sequence, cache); },
              "ea_step: expected q [batch, channels], got [2, 3, 6]");
  check_error([&] { ea_step(x, narrow, x, cache); },
              "ea_step: expected k of f64 on cpu like q, got f32 on cpu");
  check_error([&] { ea_step(x, x, x, none); }, "ea_step: expected a cache made by key_value_cache");
  check_error([&] { ea_step(x, x, x, other); },
              "ea_step: expected the cache's k of shape [2, 0, 6], got [2, 0, 5]");
  check_error([&] { append(cache, x, x); }, "append: expected q [batch, length, channels], got [2, 6]");
  check_error([&] { softmax_attention_step(x, x, x, 4, cache); },
              "softmax_attention_step: expected heads that divide 6 channels, got 4");
  check_error(
      [&] {
        aft_step(x, x, x, uniform({0, 0}), cache);
      },
      "aft_step: expected position_bias [positions, positions] for 1 positions or more, got [0, 0]");
  CHECK(cache.longest == 0);
  const Tensor parameter = leaf(values_of(x), x.shape());
  check_error([&] { ea_step(x, x, parameter, cache); },
              "ea_step: has no gradient, but an input requires one (call it under NoGradGuard)");
  LinearAttentionState state = linear_attention_state(2, 6, 2), empty_state;
  check_error([&] { linear_attention_state(2, 6, 4); },
              "linear_attention_state: expected heads that divide 6 channels, got 4");
  check_error([&] { linear_attention_step(x, x, x, state); },
              "linear_attention_step: expected s of f64 on cpu, got f32 on cpu");
  check_error([&] { linear_attention_step(x, x, x, empty_state); },
              "linear_attention_step: expected a state made by linear_attention_state");
  const NoGradGuard guard;
  CHECK(!ea_step(x, x, parameter, cache).requires_grad());
}

}  // namespace
}  // namespace elwise::testing
