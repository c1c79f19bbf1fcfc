#include "tests/support/attention_properties.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "autograd/grad_mode.h"
#include "core/parallel.h"
#include "ops/elementwise.h"
#include "ops/view.h"

namespace elwise::testing {
namespace {

constexpr bool kCausal[] = {false, true};

Tensor on_test_device(const Tensor& x, DType dtype) {
  return to(cast(x, dtype), test_device());
}

AttentionOptions on_test_device(AttentionOptions options) {
  if (options.key_mask.defined()) options.key_mask = to(options.key_mask, test_device());
  return options;
}

std::string name_of_case(const Attention& attention, DType dtype, const AttentionOptions& options) {
  return detail::concatenate(attention.name, " ", name_of(dtype), options.causal ? " causal" : "",
                             options.key_mask.defined() ? " masked" : "");
}

/// The values of rows [begin, end) of x [batch, length, channels].
Values rows_of(const Values& x, const Shape& shape, int64_t begin, int64_t end) {
  return values_of(slice(from_vector(x, shape), 1, begin, end));
}

bool all_zero(const Values& values) {
  return std::ranges::all_of(values, [](double value) { return value == 0; });
}

/// x with rows [begin, ..) of dimension `dim` taken from y.
Tensor joined(const Tensor& x, const Tensor& y, int dim, int64_t begin) {
  return concat({slice(x, dim, 0, begin), slice(y, dim, begin, y.size(dim))}, dim);
}

void check_later_tokens(const Attention& attention, DType dtype, Visible visible) {
  const Shape shape{2, 257, 17};
  const Tensor q = uniform(shape), k = uniform(shape), v = uniform(shape), dy = uniform(shape);
  const AttentionOptions options{.causal = true, .key_mask = key_mask(visible, shape[0], shape[1])};
  const Values y = run_attention(attention, q, k, v, dy, dtype, options).y;
  for (const int64_t cut : {1, 31, 128, 129, 256}) {
    AttentionOptions changed = options;
    if (options.key_mask.defined()) {
      changed.key_mask = joined(options.key_mask, key_mask(Visible::random, shape[0], shape[1]), 1, cut);
    }
    const AttentionResult other =
        run_attention(attention, joined(q, uniform(shape), 1, cut), joined(k, uniform(shape), 1, cut),
                      joined(v, uniform(shape), 1, cut), joined(dy, zeros_like(dy), 1, cut), dtype, changed);
    const std::string what = name_of_case(attention, dtype, options) + ": rows before " + std::to_string(cut);
    CHECK_MESSAGE(rows_of(other.y, shape, 0, cut) == rows_of(y, shape, 0, cut), what,
                  " depend on later ones");
    for (const Values* gradient : {&other.dq, &other.dk, &other.dv}) {
      CHECK_MESSAGE(all_zero(rows_of(*gradient, shape, cut, shape[1])), what, " give later ones a gradient");
    }
  }
}

void check_batch_entries(const Attention& attention, DType dtype, const AttentionOptions& options) {
  const Shape shape{3, options.key_mask.defined() ? options.key_mask.size(1) : 33, 17};
  const int64_t entry = shape[1] * shape[2];
  const Tensor inputs[] = {uniform(shape), uniform(shape), uniform(shape), uniform(shape)};
  Tensor spoilt[4];
  for (int i = 0; i < 4; ++i) {
    spoilt[i] = clone(inputs[i]);
    std::fill_n(spoilt[i].data<double>() + entry, entry, NAN);
  }
  const AttentionResult expected =
      run_attention(attention, inputs[0], inputs[1], inputs[2], inputs[3], dtype, options);
  const AttentionResult actual =
      run_attention(attention, spoilt[0], spoilt[1], spoilt[2], spoilt[3], dtype, options);
  for (Values AttentionResult::*const member :
       {&AttentionResult::y, &AttentionResult::dq, &AttentionResult::dk, &AttentionResult::dv}) {
    const Values &a = actual.*member, &b = expected.*member;
    CHECK_MESSAGE((std::equal(a.begin(), a.begin() + entry, b.begin()) &&
                   std::equal(a.begin() + 2 * entry, a.end(), b.begin() + 2 * entry)),
                  name_of_case(attention, dtype, options), ": a batch entry depends on another");
  }
}

/// Hidden keys do not matter and get no gradient; queries that see none have outputs and gradients of 0.
void check_unseen(const Attention& attention, DType dtype, const AttentionOptions& options) {
  const Shape shape{options.key_mask.size(0), options.key_mask.size(1), 17};
  const AttentionShape sizes = attention_shape(empty(shape), options);
  const Tensor q = uniform(shape), k = uniform(shape), v = uniform(shape), dy = uniform(shape);
  const Tensor shown = reshape(options.key_mask, {shape[0], shape[1], 1});
  const std::string what = name_of_case(attention, dtype, options);
  const AttentionResult expected = run_attention(attention, q, k, v, dy, dtype, options);
  for (const double hidden : {0.0, -50.0}) {
    const Tensor filler = full(shape, hidden, {.dtype = DType::f64});
    const AttentionResult actual =
        run_attention(attention, q, where(shown, k, filler), where(shown, v, filler), dy, dtype, options);
    CHECK_MESSAGE((actual.y == expected.y && actual.dq == expected.dq && actual.dk == expected.dk &&
                   actual.dv == expected.dv),
                  what, ": hidden keys matter");
  }
  for (int64_t b = 0; b < shape[0]; ++b) {
    for (int64_t row = 0; row < shape[1]; ++row) {
      bool sees = false, seen = false;
      for (int64_t other = 0; other < shape[1]; ++other) {
        sees |= sizes.sees(b, row, other);
        seen |= sizes.sees(b, other, row);
      }
      const auto is_zero = [&](const Values& values) {
        const auto first = values.begin() + sizes.index(b, row, 0);
        return all_zero({first, first + shape[2]});
      };
      if (!sees) CHECK_MESSAGE((is_zero(expected.y) && is_zero(expected.dq)), what, ": query ", row);
      if (!seen) CHECK_MESSAGE((is_zero(expected.dk) && is_zero(expected.dv)), what, ": key ", row);
    }
  }
}

void check_without_gradients(const Attention& attention, DType dtype, const AttentionOptions& options) {
  const Shape shape{3, options.key_mask.defined() ? options.key_mask.size(1) : 33, 17};
  const Tensor q = uniform(shape), k = uniform(shape), v = uniform(shape);
  const Values with = run_attention(attention, q, k, v, ones_like(q), dtype, options).y;
  const NoGradGuard no_grad;
  const Tensor y = attention.run(on_test_device(q, dtype), on_test_device(k, dtype), on_test_device(v, dtype),
                                 on_test_device(options));
  CHECK(!y.requires_grad());
  CHECK_MESSAGE(values_of(y) == with, name_of_case(attention, dtype, options),
                ": other values without gradients");
}

void check_empty(const Attention& attention, DType dtype, bool causal) {
  for (const Shape& shape : {Shape{0, 3, 17}, Shape{2, 0, 17}, Shape{2, 3, 0}}) {
    const Tensor x = uniform(shape);
    const AttentionOptions options{.causal = causal,
                                   .key_mask = key_mask(Visible::random, shape[0], shape[1])};
    const AttentionResult result = run_attention(attention, x, x, x, x, dtype, options);
    CHECK(result.y.empty());
    CHECK(result.dq.empty());
  }
}

}  // namespace

Tensor key_mask(Visible visible, int64_t batch, int64_t length) {
  if (visible == Visible::all) return {};
  const Values random = values_of(uniform({batch, length}, -1, 1));
  std::vector<bool> mask;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t padding = std::min(length - 1, length * (b + 1) / (batch + 2) + 1);
    for (int64_t j = 0; j < length; ++j) {
      mask.push_back(visible == Visible::right_padded  ? j < length - padding
                     : visible == Visible::left_padded ? j >= padding
                     : visible == Visible::random      ? random[b * length + j] > 0
                                                       : false);
    }
  }
  return from_vector(mask, {batch, length});
}

OpTest attention_test(const Attention& attention, const Shape& shape, bool causal, Visible visible,
                      double magnitude) {
  const auto input = [&] { return uniform(shape, -magnitude, magnitude); };
  OpTest test{
      .name = detail::concatenate(attention.name, " ", shape, causal ? " causal" : "", " mask ",
                                  static_cast<int>(visible)),
      .op =
          [=](const std::vector<Tensor>& in) {
            return attention.run(in[0], in[1], in[2], {.causal = causal, .key_mask = in[3]});
          },
      .inputs = {input(), input(), input(), key_mask(visible, shape[0], shape[1])},
      .naive =
          [=](const std::vector<Values>& in) {
            const AttentionShape sizes{shape[0], shape[1], shape[2], causal, {in[3].begin(), in[3].end()}};
            return attention.naive(sizes, in[0], in[1], in[2]);
          }};
  test.bf16_terms = magnitude;
  return test;
}

AttentionResult run_attention(const Attention& attention, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& dy, DType dtype, const AttentionOptions& options) {
  std::vector<Tensor> leaves;
  for (const Tensor& x : {q, k, v}) {
    leaves.push_back(on_test_device(x, dtype).detach().set_requires_grad());
  }
  const Tensor y = attention.run(leaves[0], leaves[1], leaves[2], on_test_device(options));
  y.backward(on_test_device(dy, dtype));
  return {values_of(y), values_of(leaves[0].grad()), values_of(leaves[1].grad()),
          values_of(leaves[2].grad())};
}

void check_result(const AttentionResult& actual, const AttentionResult& expected, const Tensor& q,
                  const Tensor& k, Tolerance output, Tolerance gradient, const std::string& what) {
  double distance = 1;
  for (const Values& values : {values_of(q), values_of(k)}) {
    for (const double value : values) distance = std::max(distance, 2 * std::fabs(value));
  }
  const auto per_distance = [=](Values values) {
    for (double& value : values) value /= distance;
    return values;
  };
  check_close(actual.y, expected.y, output, what + " y");
  check_close(per_distance(actual.dq), per_distance(expected.dq), gradient, what + " dq by distance");
  check_close(per_distance(actual.dk), per_distance(expected.dk), gradient, what + " dk by distance");
  check_close(actual.dv, expected.dv, gradient, what + " dv");
}

void check_same_bits_with_threads(const Attention& attention, const Shape& shape,
                                  std::initializer_list<int> thread_counts) {
  if (test_device() != kCpu) return;
  const Tensor q = uniform(shape, -1, 1), k = uniform(shape, -1, 1), v = uniform(shape), dy = uniform(shape);
  const int threads = num_threads();
  for (const bool causal : kCausal) {
    std::optional<AttentionResult> first;
    for (const int count : thread_counts) {
      set_num_threads(count);
      const AttentionResult result =
          run_attention(attention, q, k, v, dy, DType::f32, {.causal = causal, .key_mask = {}});
      if (!first) first = result;
      CHECK(result.y == first->y);
      CHECK(result.dq == first->dq);
      CHECK(result.dk == first->dk);
      CHECK(result.dv == first->dv);
    }
  }
  set_num_threads(threads);
}

AttentionShape attention_shape(const Tensor& q, const AttentionOptions& options) {
  std::vector<bool> mask;
  if (options.key_mask.defined()) mask = options.key_mask.to_vector<bool>();
  return {q.size(0), q.size(1), q.size(2), options.causal, mask};
}

Tensor rounded_to(const Tensor& x, DType dtype) {
  return cast(cast(x, dtype), DType::f64);
}

void check_attention_properties(const Attention& attention) {
  for (const DType dtype : test_dtypes()) {
    for (const Visible visible : kVisible) {
      // The masks are the same code in bf16 as in f32.
      if (dtype == DType::bf16 && visible != Visible::random && test_device() == kCpu) continue;
      check_later_tokens(attention, dtype, visible);
      for (const bool causal : kCausal) {
        const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, 3, 133)};
        check_batch_entries(attention, dtype, options);
        check_without_gradients(attention, dtype, options);
        if (visible != Visible::all) check_unseen(attention, dtype, options);
      }
    }
    for (const bool causal : kCausal) check_empty(attention, dtype, causal);
  }
}

void check_within_values(const AttentionShape& shape, const Values& y, const Values& v, double slack,
                         const std::string& what) {
  double largest = 0;
  for (const double value : v) largest = std::max(largest, std::fabs(value));
  double worst = 0;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t i = 0; i < shape.length; ++i) {
      for (int64_t c = 0; c < shape.channels; ++c) {
        double low = INFINITY, high = -INFINITY;
        for (int64_t j = 0; j < shape.length; ++j) {
          if (!shape.sees(b, i, j)) continue;
          low = std::min(low, v[shape.index(b, j, c)]);
          high = std::max(high, v[shape.index(b, j, c)]);
        }
        if (low > high) low = high = 0;
        const double value = y[shape.index(b, i, c)];
        const double beyond = std::max(low - value, value - high);
        worst = std::isnan(value) ? INFINITY : std::max(worst, beyond);
      }
    }
  }
  CHECK_MESSAGE(worst <= slack * largest, what, ": an output lies ", worst, " beyond the values, allowed ",
                slack * largest);
}

void check_large_scores(const Attention& attention, const Shape& shape) {
  for (const double magnitude : {1.0, 30.0, 1e4}) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const bool causal : kCausal) {
        for (const Visible visible : kVisible) {
          const Tensor q = uniform(shape, -magnitude, magnitude), k = uniform(shape, -magnitude, magnitude);
          const Tensor v = rounded_to(uniform(shape), dtype);
          const AttentionOptions options{.causal = causal, .key_mask = key_mask(visible, shape[0], shape[1])};
          const AttentionResult result = run_attention(attention, q, k, v, uniform(shape), dtype, options);
          const std::string what =
              detail::concatenate(attention.name, " magnitude ", magnitude, " ", name_of(dtype));
          check_within_values(attention_shape(q, options), result.y, values_of(v),
                              tolerance_of(dtype).relative, what);
          for (const Values* gradient : {&result.dq, &result.dk, &result.dv}) {
            CHECK_MESSAGE(std::ranges::all_of(*gradient, [](double x) { return std::isfinite(x); }), what);
          }
        }
      }
    }
  }
}

void check_nan_stays_in_head(const Attention& attention, int64_t head, bool weighs_hidden) {
  constexpr int64_t kBatch = 2, kLength = 133, kChannels = kNanChannels, kEntry = 1, kRow = 70, kChannel = 18;
  const Shape shape{kBatch, kLength, kChannels};
  for (const DType dtype : test_dtypes()) {
    for (const bool causal : kCausal) {
      for (int spoilt = 0; spoilt < 3; ++spoilt) {
        if (spoilt == 2 && causal && weighs_hidden) continue;
        Tensor inputs[] = {uniform(shape), uniform(shape), uniform(shape)};
        const AttentionShape sizes{kBatch, kLength, kChannels, causal};
        inputs[spoilt].data<double>()[sizes.index(kEntry, kRow, kChannel)] = NAN;
        const Values y =
            values_of(attention.run(on_test_device(inputs[0], dtype), on_test_device(inputs[1], dtype),
                                    on_test_device(inputs[2], dtype), {.causal = causal, .key_mask = {}}));
        int64_t wrong = 0;
        for (int64_t b = 0; b < kBatch; ++b) {
          for (int64_t i = 0; i < kLength; ++i) {
            for (int64_t c = 0; c < kChannels; ++c) {
              const bool touched = spoilt == 0 ? i == kRow : sizes.sees(b, i, kRow);
              const bool near = spoilt == 2 ? c == kChannel : c / head == kChannel / head;
              const bool expected = b == kEntry && near && touched;
              wrong += std::isnan(y[sizes.index(b, i, c)]) != expected ? 1 : 0;
            }
          }
        }
        CHECK_MESSAGE(wrong == 0, name_of_case(attention, dtype, {.causal = causal, .key_mask = {}}),
                      ": a NaN in input ", spoilt, " makes ", wrong, " outputs what they should not be");
      }
    }
  }
}

}  // namespace elwise::testing
