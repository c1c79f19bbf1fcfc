#include <cmath>
#include <cstring>
#include <limits>

#include "autograd/grad_mode.h"
#include "core/safetensors.h"
#include "ops/elementwise.h"
#include "ops/view.h"
#include "tests/support/ea_series_attention.h"
#include "tests/support/temporary_folder.h"

// The recurrent form of EA-series: a state, prefill and single steps.

namespace elwise::testing {
namespace {

/// Token `i` of x [batch, length, channels].
Tensor token(const Tensor& x, int64_t i) {
  return reshape(slice(x, 1, i, i + 1), {x.size(0), x.size(2)});
}

EaSeriesState state_for(const Tensor& q, int order) {
  return ea_series_state(q.size(0), q.size(-1), order, q.options());
}

/// A prefill of the first `prompt` tokens, then single steps.
Tensor generate(const Tensor& q, const Tensor& k, const Tensor& v, EaSeriesState& state, int64_t prompt) {
  const Shape row = q.shape().with(1, 1);
  std::vector<Tensor> rows;
  const auto first = [prompt](const Tensor& x) { return slice(x, 1, 0, prompt); };
  if (prompt > 0) rows.push_back(ea_series_prefill(first(q), first(k), first(v), state));
  for (int64_t i = prompt; i < q.size(1); ++i) {
    rows.push_back(reshape(ea_series_step(token(q, i), token(k, i), token(v, i), state), row));
  }
  return concat(rows, 1);
}

/// Causal EA-series by prefill and steps, as a mechanism under test.
Attention recurrent(int order, int64_t prompt) {
  Attention attention = ea_series_attention(order);
  attention.name = detail::concatenate("recurrent order ", order, " prompt ", prompt);
  attention.run = [order, prompt](const Tensor& q, const Tensor& k, const Tensor& v,
                                  const AttentionOptions&) {
    EaSeriesState state = state_for(q, order);
    return generate(q, k, v, state, std::min(prompt, q.size(1)));
  };
  return attention;
}

void check_without_gradients(const Attention& attention, const Shape& shape, Visible visible,
                             double magnitude) {
  OpTest test = attention_test(attention, shape, /*causal=*/true, visible, magnitude);
  test.gradients = false;
  check_op(test);
}

/// The two states hold the same bits.
bool same_state(const EaSeriesState& a, const EaSeriesState& b) {
  return values_of(a.s) == values_of(b.s) && values_of(a.z) == values_of(b.z) &&
         values_of(a.kappa) == values_of(b.kappa);
}

Tensor on_device(const Tensor& x, DType dtype = DType::f64) {
  return to(cast(x, dtype), test_device());
}

TEST_CASE("steps, a prefill, and both in turn answer as the parallel form") {
  for (const int order : {0, 2, 6, 16}) {
    for (const int64_t prompt : {int64_t{0}, int64_t{1}, int64_t{129}, std::numeric_limits<int64_t>::max()}) {
      for (const Shape& shape : {Shape{2, 5, 33}, Shape{1, 133, 3}, Shape{3, 131, 17}}) {
        check_without_gradients(recurrent(order, prompt), shape, Visible::all, kModerate);
      }
    }
  }
}

TEST_CASE("a prompt in pieces, with hidden keys, answers as the parallel form") {
  for (const int order : {2, 6}) {
    for (const Visible visible : kVisible) {
      Attention pieces = ea_series_attention(order);
      pieces.name = detail::concatenate("prefill in pieces, order ", order);
      pieces.run = [order](const Tensor& q, const Tensor& k, const Tensor& v,
                           const AttentionOptions& options) {
        EaSeriesState state = state_for(q, order);
        std::vector<Tensor> rows;
        const int64_t cuts[] = {0, 1, 33, 161, 300};
        for (size_t i = 0; i + 1 < std::size(cuts); ++i) {
          const auto piece = [&](const Tensor& x) { return slice(x, 1, cuts[i], cuts[i + 1]); };
          const Tensor mask = options.key_mask.defined() ? piece(options.key_mask) : Tensor();
          rows.push_back(ea_series_prefill(piece(q), piece(k), piece(v), state, mask));
        }
        return concat(rows, 1);
      };
      check_without_gradients(pieces, {2, 300, 5}, visible, kModerate);
    }
  }
}

TEST_CASE("padding on the right leaves the state that the prompt alone leaves") {
  const Shape shape{3, 140, 19};
  const Tensor q = uniform(shape, -1, 1), v = uniform(shape);
  const Tensor mask = key_mask(Visible::right_padded, shape[0], shape[1]);
  const Tensor visible = reshape(mask, {shape[0], shape[1], 1});
  const Tensor k = where(visible, uniform(shape, -1, 1), full({}, NAN, {.dtype = DType::f64}));
  for (const DType dtype : {DType::f64, DType::f32}) {
    EaSeriesState together = ea_series_state(shape[0], shape[2], 6, {dtype, test_device()});
    ea_series_prefill(on_device(q, dtype), on_device(k, dtype), on_device(v, dtype), together,
                      to(mask, test_device()));
    const Values shown = values_of(mask);
    for (int64_t b = 0; b < shape[0]; ++b) {
      int64_t length = 0;
      while (length < shape[1] && shown[static_cast<size_t>(b * shape[1] + length)] != 0) ++length;
      const auto alone = [&](const Tensor& x) {
        return on_device(slice(slice(x, 0, b, b + 1), 1, 0, length), dtype);
      };
      EaSeriesState single = ea_series_state(1, shape[2], 6, {dtype, test_device()});
      ea_series_prefill(alone(q), alone(k), alone(v), single);
      const auto entry = [b](const Tensor& x) { return slice(x, 0, b, b + 1); };
      CHECK(same_state({entry(together.s), entry(together.z), entry(together.kappa)}, single));
    }
  }
}

TEST_CASE("large and far inputs: exact, whatever the order of their magnitudes") {
  const Shape shape{1, 67, 6};
  for (const EaSeriesAccuracy& accuracy : kEaSeriesAccuracy) {
    if (accuracy.order > 6) continue;  // magnitudes up to 1e4 are promised so far
    for (const double largest : {1.0, 5.0, 30.0, 1000.0, 1e4}) {
      for (const DType dtype : {DType::f64, DType::f32}) {
        const auto input = [&](double magnitude) {
          return rounded_to(uniform(shape, -magnitude, magnitude), dtype);
        };
        const Tensor q = input(largest), k = input(largest), v = input(1);
        const naive::EaSeriesShape problem =
            ea_series_shape(attention_shape(q, {.causal = true, .key_mask = {}}), accuracy.order);
        const Values expected = naive::ea_series(problem, values_of(q), values_of(k), values_of(v));
        const Tolerance base = dtype == DType::f64 ? kF64Tolerance : kF32Tolerance;
        const Tolerance tolerance{base.absolute + accuracy.output(dtype), base.relative};
        for (const int64_t prompt : {0, 33}) {
          EaSeriesState state = ea_series_state(shape[0], shape[2], accuracy.order, {dtype, test_device()});
          const Tensor y =
              generate(on_device(q, dtype), on_device(k, dtype), on_device(v, dtype), state, prompt);
          check_close(values_of(y), expected, tolerance,
                      detail::concatenate("order ", accuracy.order, " up to ", largest, " ", name_of(dtype)));
        }
      }
    }
  }
}

/// The largest error of f32 steps against f64 ones of the same numbers, with keys and values that come round
/// every `period` tokens, as queries do.
double drift(int order, int64_t steps, int64_t period) {
  const Shape shape{1, period, 32};
  const Tensor narrow[] = {on_device(uniform(shape, -1, 1), DType::f32),
                           on_device(uniform(shape, -1, 1), DType::f32),
                           on_device(uniform(shape, 0, 2), DType::f32)};
  std::vector<Tensor> tokens[2][3];
  for (int i = 0; i < 3; ++i) {
    for (int64_t p = 0; p < period; ++p) {
      tokens[0][i].push_back(token(narrow[i], p));
      tokens[1][i].push_back(cast(tokens[0][i].back(), DType::f64));
    }
  }
  EaSeriesState states[] = {state_for(tokens[0][0][0], order), state_for(tokens[1][0][0], order)};
  double worst = 0;
  for (int64_t i = 0; i < steps; ++i) {
    const auto at = static_cast<size_t>(i % period);
    Tensor y[2];
    for (int wide = 0; wide < 2; ++wide) {
      y[wide] = ea_series_step(tokens[wide][0][at], tokens[wide][1][at], tokens[wide][2][at], states[wide]);
    }
    if (i % 997 != 0 && i + period < steps) continue;
    const Values actual = values_of(y[0]), exact = values_of(y[1]);
    for (size_t c = 0; c < actual.size(); ++c) worst = std::max(worst, std::fabs(actual[c] - exact[c]));
  }
  return worst;
}

TEST_CASE("100,000 steps do not drift, even where tokens repeat") {
  const int64_t steps = test_device() == kCpu ? 100'000 : 3'000;
  for (const EaSeriesAccuracy& accuracy : kEaSeriesAccuracy) {
    if (accuracy.order != 2 && accuracy.order != 6) continue;
    for (const int64_t period : {1, 8, 1009}) {
      // A random walk of roundings; rounding to nearest goes straight where the period is short.
      const double allowed = 2 * accuracy.condition * EaSeriesAccuracy::epsilon(DType::f32) *
                             std::sqrt(static_cast<double>(steps));
      const double error = drift(accuracy.order, steps, period);
      CHECK_MESSAGE(error <= allowed, "order ", accuracy.order, " period ", period, ": ", error, ", allowed ",
                    allowed);
    }
  }
}

TEST_CASE("a state saved and restored goes on with the same bits") {
  const TemporaryFolder folder;
  const Shape shape{2, 12, 21};
  const Tensor q = on_device(uniform(shape), DType::f32), k = on_device(uniform(shape), DType::f32),
               v = on_device(uniform(shape), DType::f32);
  EaSeriesState state = state_for(q, 6);
  for (int64_t i = 0; i < 6; ++i) ea_series_step(token(q, i), token(k, i), token(v, i), state);
  save_safetensors(folder.path() / "state.safetensors",
                   {{"s", on_host(state.s)}, {"z", on_host(state.z)}, {"kappa", on_host(state.kappa)}});
  auto tensors = load_safetensors(folder.path() / "state.safetensors");
  EaSeriesState restored{to(tensors.at("s"), test_device()), to(tensors.at("z"), test_device()),
                         to(tensors.at("kappa"), test_device())};
  for (int64_t i = 6; i < 12; ++i) {
    const Tensor y = ea_series_step(token(q, i), token(k, i), token(v, i), state);
    CHECK(values_of(ea_series_step(token(q, i), token(k, i), token(v, i), restored)) == values_of(y));
  }
  CHECK(same_state(state, restored));
}

TEST_CASE("the size of a state depends on the order only") {
  CHECK(ea_series_state(1, 768, 6).bytes() == 768 * (2 * 7 + 1) * 4);
  CHECK(ea_series_state(8, 768, 2, {.dtype = DType::f64}).bytes() == 8 * 768 * (2 * 3 + 1) * 8);
  CHECK(ea_series_state(1, 768, 6, {.dtype = DType::bf16, .device = kMeta}).s.dtype() == DType::f32);
}

TEST_CASE("errors") {
  const Tensor x = uniform({2, 4}), sequence = uniform({2, 3, 4});
  EaSeriesState state = ea_series_state(2, 4, 2, {.dtype = DType::f64});
  EaSeriesState narrow = ea_series_state(2, 4, 2), wide = ea_series_state(2, 5, 2, {.dtype = DType::f64}),
                none;
  check_error(
      [] { ea_series_state(2, 4, 3); },
      "ea_series_state: expected an even order in 0 .. 16, got 3 (the polynomial of an odd order is not "
      "positive)");
  check_error([&] { ea_series_step(sequence, sequence, sequence, state); },
              "ea_series_step: expected q [batch, channels], got [2, 3, 4]");
  check_error([&] { ea_series_prefill(x, x, x, state); },
              "ea_series_prefill: expected q [batch, length, channels], got [2, 4]");
  check_error([&] { ea_series_step(x, x, x, narrow); },
              "ea_series_step: expected s of f64 on cpu, got f32 on cpu");
  check_error([&] { ea_series_step(x, x, x, wide); },
              "ea_series_step: expected s of shape [2, 4, 3], got [2, 5, 3]");
  check_error([&] { ea_series_step(x, x, x, none); },
              "ea_series_step: expected a state made by ea_series_state");
  const Tensor parameter = leaf(values_of(x), x.shape());
  check_error([&] { ea_series_step(parameter, x, x, state); },
              "ea_series_step: has no gradient, but an input requires one (call it under NoGradGuard)");
  const NoGradGuard guard;
  CHECK(!ea_series_step(parameter, x, x, state).requires_grad());
}

}  // namespace
}  // namespace elwise::testing
