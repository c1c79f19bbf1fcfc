#include <cmath>

#include "ops/ea_series_kernels.h"
#include "ops/elementwise.h"
#include "ops/view.h"
#include "tests/support/ea_series_attention.h"

// EA-series over a length that the CPU's kernels cut in pieces. Enough channels beside those under test leave
// it uncut: what other tests hold against the naive form is the reference here, where that would take
// minutes.

namespace elwise::testing {
namespace {

constexpr int64_t kLength = 4 * kEaSeriesPiece + 1;  // the last piece has one row
constexpr int64_t kChannels = 19;
constexpr int64_t kUncutChannels = 1024;
static_assert(ea_series_pieces(1, kLength, kChannels, true) == 5);
static_assert(ea_series_pieces(1, kLength, kChannels, false) == 5);
static_assert(ea_series_pieces(1, kLength, kUncutChannels, true) == 1);
static_assert(ea_series_pieces(1, kLength, kUncutChannels, false) == 1);

struct Inputs {
  Tensor q, k, v, dy;
};

template <class Function>
Inputs each(const Inputs& in, const Function& function) {
  return {function(in.q), function(in.k), function(in.v), function(in.dy)};
}

AttentionResult run_series(const Inputs& in, int order, DType dtype, const AttentionOptions& options) {
  return run_attention(ea_series_attention(order), in.q, in.k, in.v, in.dy, dtype, options);
}

/// The result without a cut, in f64.
AttentionResult run_uncut(const Inputs& in, int order, const AttentionOptions& options) {
  const Inputs wide = each(in, [](const Tensor& x) {
    return concat({x, zeros({1, kLength, kUncutChannels - kChannels}, x.options())}, 2);
  });
  AttentionResult result = run_series(wide, order, DType::f64, options);
  for (Values* values : {&result.y, &result.dq, &result.dk, &result.dv}) {
    *values = values_of(slice(from_vector(*values, {1, kLength, kUncutChannels}), 2, 0, kChannels));
  }
  return result;
}

/// Keys whose magnitude falls from `from` to `to` along the length, or rises, of either sign.
Tensor sloping_keys(double from, double to) {
  Values values = values_of(uniform({1, kLength, kChannels}, -1, 1));
  for (size_t i = 0; i < values.size(); ++i) {
    const double place = static_cast<double>(i / kChannels) / kLength;
    values[i] = std::copysign(from + (to - from) * place, values[i]);
  }
  return from_vector(values, {1, kLength, kChannels});
}

/// Only the keys [begin, end) can be seen.
Tensor visible_from(int64_t begin, int64_t end = kLength) {
  std::vector<bool> mask(kLength);
  for (int64_t i = begin; i < end; ++i) mask[static_cast<size_t>(i)] = true;
  return from_vector<bool>(mask, {1, kLength});
}

/// The last of `dtypes` has the fewest digits: all see the same numbers.
void check_cut(const Tensor& k, double largest_query, int order, const Tensor& mask, const std::string& what,
               const std::vector<DType>& dtypes = {DType::f64, DType::f32}) {
  const Shape shape = k.shape();
  const Inputs in{uniform(shape, -largest_query, largest_query), k, uniform(shape, -1, 1),
                  uniform(shape, -1, 1)};
  const EaSeriesAccuracy& accuracy = kEaSeriesAccuracy[order / 2];
  const Inputs rounded = each(in, [&](const Tensor& x) { return rounded_to(x, dtypes.back()); });
  for (const bool causal : {false, true}) {
    const AttentionOptions options{.causal = causal, .key_mask = mask};
    const AttentionResult uncut = run_uncut(rounded, order, options);
    for (const DType dtype : dtypes) {
      const AttentionResult cut = run_series(rounded, order, dtype, options);
      const Tolerance base = tolerance_of(dtype);
      const Tolerance output{base.absolute + accuracy.output(dtype), base.relative},
          gradient{base.absolute + accuracy.gradient(dtype), base.relative};
      const std::string name = detail::concatenate(what, causal ? " causal " : " ", name_of(dtype), " ");
      check_close(cut.y, uncut.y, output, name + "y");
      check_close(cut.dq, uncut.dq, gradient, name + "dq");
      check_close(cut.dk, uncut.dk, gradient, name + "dk");
      check_close(cut.dv, uncut.dv, gradient, name + "dv");
    }
  }
}

TEST_CASE("what is cut, and the tasks that 64 threads find") {
  // BERT-base: batch 1 at 512 and 4096, batch 4.
  CHECK(ea_series_tasks(1, 512, 768, false) == 48);
  CHECK(ea_series_tasks(1, 4096, 768, false) == 192);
  CHECK(ea_series_tasks(4, 2048, 768, false) == 192);
  // Causal, 48 tasks are so many that a cut gains nothing.
  CHECK(ea_series_tasks(1, 4096, 768, true) == 48);
  CHECK(ea_series_tasks(1, 4095, 256, true) == 16);
  CHECK(ea_series_tasks(1, 4096, 256, true) == 64);
  CHECK(ea_series_tasks(2, 4097, 256, true) == 2 * 16 * 5);
  CHECK(ea_series_pieces(1, kEaSeriesPiece, 1, false) == 1);
  CHECK(ea_series_pieces(1, kEaSeriesPiece + 1, 1, false) == 2);
}

TEST_CASE("pieces compute what the whole does") {
  if (test_device() != kCpu) return;  // a GPU always cuts
  const Tensor moderate = uniform({1, kLength, kChannels}, -kModerate, kModerate);
  for (const int order : {2, 6}) {
    check_cut(moderate, kModerate, order, {}, detail::concatenate("order ", order), test_dtypes());
  }
  check_cut(moderate, kModerate, 6, key_mask(Visible::random, 1, kLength), "hidden keys");
  check_cut(moderate, kModerate, 6, visible_from(3 * kEaSeriesPiece + 5), "no key in the first pieces");
  check_cut(moderate, kModerate, 6, visible_from(kEaSeriesPiece, 2 * kEaSeriesPiece), "keys in one piece");
  check_cut(moderate, kModerate, 6, visible_from(kLength), "no key");
}

TEST_CASE("pieces at scales that move from one to the next") {
  if (test_device() != kCpu) return;
  // In f32, a gradient's digits go with |k|.
  check_cut(sloping_keys(1000, 0), 4, 6, {}, "falling", {DType::f64});
  check_cut(sloping_keys(6, 3), 40, 2, key_mask(Visible::random, 1, kLength), "falling past the limit");
  check_cut(sloping_keys(0.5, 30), 1000, 6, {}, "rising");
}

TEST_CASE("pieces have the same bits with each thread count") {
  check_same_bits_with_threads(ea_series_attention(6), {1, kLength, kChannels}, {1, 2, 3, 7});
}

TEST_CASE("a prefill in pieces goes on from a state and leaves one") {
  if (test_device() != kCpu) return;
  const int64_t prompt = 5, last = kLength - 1;
  const Tensor q = uniform({1, kLength, kChannels}, -1, 1), k = sloping_keys(7, 2),
               v = uniform({1, kLength, kChannels});
  const Tensor y = ea_series(q, k, v, 6, {.causal = true, .key_mask = {}});
  EaSeriesState state = ea_series_state(1, kChannels, 6, q.options());
  const auto part = [](const Tensor& x, int64_t begin, int64_t end) { return slice(x, 1, begin, end); };
  const auto token = [&](const Tensor& x) { return reshape(part(x, last, kLength), {1, kChannels}); };
  const Tolerance tolerance{kF64Tolerance.absolute + kEaSeriesAccuracy[3].output(DType::f64),
                            kF64Tolerance.relative};
  const auto prefill = [&](int64_t begin, int64_t end) {
    const Tensor piece =
        ea_series_prefill(part(q, begin, end), part(k, begin, end), part(v, begin, end), state);
    check_close(values_of(piece), values_of(part(y, begin, end)), tolerance, "prefill");
  };
  prefill(0, prompt);
  prefill(prompt, last);
  const Tensor next = ea_series_step(token(q), token(k), token(v), state);
  check_close(values_of(next), values_of(token(y)), tolerance, "the step after");
}

}  // namespace
}  // namespace elwise::testing
