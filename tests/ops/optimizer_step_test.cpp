#include "ops/optimizer_step.h"

#include <cmath>

#include "core/parallel.h"
#include "ops/elementwise.h"
#include "tests/support/naive_optimizer.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

/// Long enough for several threads; for several blocks of an emulated GPU.
const int64_t kLargeCount = test_device() == kCpu ? 200'003 : 40'002;

std::vector<int64_t> counts() {
  std::vector<int64_t> counts(std::begin(kOddSizes), std::end(kOddSizes));
  counts.insert(counts.end(), {0, kLargeCount});
  return counts;
}

/// A copy of `values` within a buffer of sevens: aligned where their count is even, else not.
class Guarded {
 public:
  Guarded(const Values& values, DType dtype)
      : count_(static_cast<int64_t>(values.size())),
        buffer_(full({count_ + 2}, 7, {.dtype = dtype, .device = test_device()})),
        view_(buffer_.alias({count_}, offset())) {
    view_.copy_from(to(cast(from_vector(values, {count_}), dtype), test_device()));
  }

  const Tensor& get() const { return view_; }
  Values values() const { return values_of(view_); }
  bool is_intact() const {
    Values all = values_of(buffer_);
    all.erase(all.begin() + offset(), all.begin() + offset() + count_);
    return all == Values{7, 7};
  }

 private:
  int64_t offset() const { return count_ % 2; }

  int64_t count_;
  Tensor buffer_, view_;
};

Tensor on_device(const Tensor& x, DType dtype) {
  return cast(to(x, test_device()), dtype);
}

void naive_step(AdamKind kind, naive::AdamState& state, const Values& grad, const AdamOptions& options) {
  const naive::AdamOptions same{options.lr, options.beta1, options.beta2, options.eps, options.weight_decay};
  if (kind == AdamKind::radam) {
    naive::radam_step(state, grad, same);
  } else {
    naive::adam_step(state, grad, same, kind == AdamKind::adamw);
  }
}

TEST_CASE("adam_step: Adam, AdamW and RAdam over the steps where they differ") {
  const AdamOptions all_options[] = {
      {},
      {.lr = 0.1, .weight_decay = 0.01},
      {.lr = 0.01, .beta1 = 0.5, .beta2 = 0.9, .eps = 1e-3, .weight_decay = 0.1},
      {.lr = 0.01, .beta1 = 0, .beta2 = 0.99}};
  for (const AdamKind kind : {AdamKind::adam, AdamKind::adamw, AdamKind::radam}) {
    for (const AdamOptions& options : all_options) {
      for (const int64_t count : counts()) {
        for (const DType dtype : test_dtypes()) {
          const Values initial = values_of(cast(uniform({count}), dtype));
          naive::AdamState expected(initial);
          const Guarded param(initial, dtype);
          const Guarded m(expected.m, accumulation_dtype(dtype)), v(expected.v, accumulation_dtype(dtype));
          const int64_t steps = count == kLargeCount ? 2 : 9;  // RAdam turns adaptive at its sixth
          for (int64_t step = 1; step <= steps; ++step) {
            const Tensor grad = on_device(uniform({count}), dtype);
            const int64_t version = param.get().storage()->version();
            adam_step(kind, options, step, param.get(), grad, m.get(), v.get());
            CHECK(param.get().storage()->version() > version);
            naive_step(kind, expected, values_of(grad), options);
          }
          const std::string what = "adam_step " + std::to_string(static_cast<int>(kind));
          check_close(param.values(), expected.param, tolerance_of(dtype), what);
          check_close(m.values(), expected.m, tolerance_of(dtype), what + " m");
          check_close(v.values(), expected.v, tolerance_of(dtype), what + " v");
          CHECK((param.is_intact() && m.is_intact() && v.is_intact()));
        }
      }
    }
  }
}

TEST_CASE("sgd_step: momentum, Nesterov, weight decay") {
  const SgdOptions all_options[] = {{},
                                    {.lr = 0.1, .weight_decay = 0.01},
                                    {.lr = 0.1, .momentum = 0.9},
                                    {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.01},
                                    {.lr = 0.1, .momentum = 0.5, .weight_decay = 0.01, .nesterov = true}};
  for (const SgdOptions& options : all_options) {
    for (const int64_t count : counts()) {
      for (const DType dtype : test_dtypes()) {
        Values expected = values_of(cast(uniform({count}), dtype)), expected_velocity;
        const Guarded param(expected, dtype);
        // The first step takes nothing from it.
        const Guarded velocity(Values(expected.size(), NAN), accumulation_dtype(dtype));
        const bool moving = options.momentum != 0;
        for (int64_t step = 1; step <= 4; ++step) {
          const Tensor grad = on_device(uniform({count}), dtype);
          sgd_step(options, step, param.get(), grad, moving ? velocity.get() : Tensor());
          naive::sgd_step(expected, expected_velocity, values_of(grad),
                          {options.lr, options.momentum, options.weight_decay, options.nesterov});
        }
        check_close(param.values(), expected, tolerance_of(dtype), "sgd_step");
        CHECK(param.is_intact());
        if (moving) {
          check_close(velocity.values(), expected_velocity, tolerance_of(dtype), "sgd_step velocity");
          CHECK(velocity.is_intact());
        }
      }
    }
  }
}

TEST_CASE("with a remainder the steps are those of f32, and the bf16 parameter is that rounded") {
  const AdamOptions options{.lr = 1e-3, .weight_decay = 0.01};
  const auto check = [](const Guarded& param, const Guarded& remainder, const Values& expected) {
    const Tensor master_tensor = master_copy(param.get(), remainder.get());
    const Values master = values_of(master_tensor), rounded = param.values(),
                 to_even = values_of(cast(to(master_tensor, kCpu), DType::bf16));
    check_close(master, expected, kF32Tolerance, "master");
    for (size_t i = 0; i < master.size(); ++i) {  // ties may differ
      CHECK(std::abs(rounded[i] - master[i]) == std::abs(to_even[i] - master[i]));
    }
    CHECK((param.is_intact() && remainder.is_intact()));
  };
  for (const int64_t count : counts()) {
    const Values initial = values_of(cast(uniform({count}), DType::bf16)), none(initial.size());
    for (const AdamKind kind : {AdamKind::adam, AdamKind::adamw, AdamKind::radam}) {
      naive::AdamState expected(initial);
      const Guarded param(initial, DType::bf16), remainder(none, DType::i16);
      const Guarded m(expected.m, DType::f32), v(expected.v, DType::f32);
      for (int64_t step = 1; step <= 2; ++step) {
        const Tensor grad = on_device(uniform({count}), DType::bf16);
        const int64_t version = remainder.get().storage()->version();
        adam_step(kind, options, step, param.get(), grad, m.get(), v.get(), remainder.get());
        CHECK(remainder.get().storage()->version() > version);
        naive_step(kind, expected, values_of(grad), options);
      }
      check(param, remainder, expected.param);
    }
    const Guarded param(initial, DType::bf16), remainder(none, DType::i16);
    const Tensor grad = on_device(uniform({count}), DType::bf16);
    Values expected = initial, velocity;
    sgd_step({.lr = 1e-3}, 1, param.get(), grad, {}, remainder.get());
    naive::sgd_step(expected, velocity, values_of(grad),
                    {.lr = 1e-3, .momentum = 0, .weight_decay = 0, .nesterov = false});
    check(param, remainder, expected);
  }
}

/// The f32 number of a bf16 parameter and its remainder after a step that adds `change` to it.
float moved(float parameter, int16_t remainder, float change, Values* words = nullptr) {
  const Tensor param = on_device(full({33}, parameter), DType::bf16);
  const Tensor rest = on_device(full({33}, remainder), DType::i16);
  sgd_step({.lr = 1}, 1, param, on_device(full({33}, -change), DType::bf16), {}, rest);
  if (words != nullptr) *words = {values_of(param)[0], values_of(rest)[0]};
  const Values result = values_of(master_copy(param, rest));
  for (const double value : result) CHECK((value == result[0] || std::isnan(value)));  // vector and rest
  return static_cast<float>(result[0]);
}

TEST_CASE("remainders: ties, signs, overflow, and parameters that others wrote to") {
  Values words;
  CHECK(moved(1, 0x4000, 0) == 1 + 0x1p-9F);
  CHECK(moved(1, -0x4000, 0, &words) == 1 - 0x1p-10F);
  CHECK(words == Values{1, -0x4000});
  CHECK(moved(-1, 0x4000, 0) == -1 - 0x1p-9F);  // bits, so away from 0
  CHECK(moved(1, 0, 0x1p-8F, &words) == 1 + 0x1p-8F);
  CHECK(words == Values{1 + 0x1p-7, -0x8000});
  CHECK(moved(-1, 0, -0x1p-8F, &words) == -1 - 0x1p-8F);
  CHECK(words == Values{-1 - 0x1p-7, -0x8000});
  constexpr float kMax = std::numeric_limits<float>::max(),
                  kInfinity = std::numeric_limits<float>::infinity();
  CHECK(moved(kInfinity, -1, 0, &words) == kMax);
  CHECK(words == Values{kInfinity, -1});
  CHECK(moved(kInfinity, 0, 1) == kInfinity);
  CHECK(std::isnan(moved(NAN, 0, 1, &words)));
  CHECK((std::isnan(words[0]) && words[1] == 0));
  CHECK(moved(0, -0x4000, 0) == 0);
  CHECK(moved(0, -0x4000, 0.5F) == 0.5F);
  CHECK(moved(0, 0, 0x1p-133F) == 0x1p-133F);  // the least number of bf16
}

TEST_CASE("clip_gradient_norm scales all gradients by one factor") {
  for (const int64_t count : counts()) {
    for (const DType dtype : test_dtypes()) {
      const Values first = values_of(cast(uniform({count}), dtype)), second{3, -4, 12};
      double squares = 0;
      for (const Values& values : {first, second}) {
        for (const double value : values) squares += value * value;
      }
      const double norm = std::sqrt(squares);
      for (const double max_norm : {0.5, norm * 0.9, norm * 1.1}) {
        const Guarded a(first, dtype), b(second, dtype);
        const double returned = clip_gradient_norm({a.get(), Tensor(), b.get()}, max_norm);
        check_close({returned}, {norm}, tolerance_of(dtype), "the norm");
        const double factor = norm > max_norm ? max_norm / norm : 1;
        Values expected_a = first, expected_b = second;
        for (double& value : expected_a) value *= factor;
        for (double& value : expected_b) value *= factor;
        check_close(a.values(), expected_a, tolerance_of(dtype), "a clipped gradient");
        check_close(b.values(), expected_b, tolerance_of(dtype), "a clipped gradient");
        CHECK((a.is_intact() && b.is_intact()));
      }
    }
  }
  CHECK(clip_gradient_norm({}, 1) == 0);
  CHECK(clip_gradient_norm({Tensor()}, 1) == 0);
}

TEST_CASE("clip_gradient_norm of large and of spoilt gradients") {
  const TensorOptions options{.dtype = DType::f32, .device = test_device()};
  const Tensor large = full({33}, 1e15, options);
  CHECK(clip_gradient_norm({large}, 1) == doctest::Approx(1e15 * std::sqrt(33)).epsilon(1e-6));
  check_close(values_of(large), Values(33, 1 / std::sqrt(33)), kF32Tolerance, "a clipped gradient");
  CHECK(std::isnan(clip_gradient_norm({full({33}, NAN, options)}, 1)));
}

TEST_CASE("the same bits for any thread count, and run to run") {
  const int threads = num_threads();
  const Values initial = values_of(uniform({kLargeCount})), slope = values_of(uniform({kLargeCount}));
  for (const DType dtype : test_dtypes()) {
    std::vector<Values> results;
    for (const int count : {1, 2, 3}) {
      set_num_threads(count);
      const Guarded param(initial, dtype), grad(slope, dtype);
      const TensorOptions options{.dtype = accumulation_dtype(dtype), .device = test_device()};
      const Tensor m = zeros({kLargeCount}, options), v = zeros({kLargeCount}, options);
      const double norm = clip_gradient_norm({grad.get(), param.get()}, 1);
      adam_step(AdamKind::adamw, {.weight_decay = 0.1}, 1, param.get(), grad.get(), m, v);
      sgd_step({.momentum = 0.9}, 2, param.get(), grad.get(), m);
      results.push_back(param.values());
      results.back().push_back(norm);
    }
    CHECK(results[1] == results[0]);
    CHECK(results[2] == results[0]);
  }
  set_num_threads(threads);
}

TEST_CASE("meta runs nothing") {
  const Tensor x = empty({3}, {.device = kMeta});
  adam_step(AdamKind::radam, {}, 1, x, x, x, x);
  sgd_step({}, 1, x, x, {});
  CHECK(clip_gradient_norm({x}, 1) == 0);
}

TEST_CASE("errors") {
  const Tensor x = uniform({3}), other = uniform({4}), index = arange(3), narrow = cast(x, DType::f32);
  const auto adam = [](const Tensor& param, const Tensor& grad, const Tensor& m, const Tensor& v,
                       int64_t step) {
    return [=] { adam_step(AdamKind::adam, {}, step, param, grad, m, v); };
  };
  check_error(adam(index, x, x, x, 1), "adam_step: expected param of dtype f32, f64 or bf16, got i64");
  check_error(adam(x, narrow, x, x, 1), "adam_step: expected grad of f64 on cpu like param, got f32 on cpu");
  check_error(adam(x, other, x, x, 1), "adam_step: expected grad of shape [3], got [4]");
  check_error(adam(x, x, other, x, 1), "adam_step: expected m of shape [3], got [4]");
  check_error(adam(x, x, x, other, 1), "adam_step: expected v of shape [3], got [4]");
  check_error(adam(x, x, x, narrow, 1),
              "adam_step: expected v of f64 on cpu for param of f64, got f32 on cpu");
  check_error(adam(x, x, x, x, 0), "adam_step: expected step >= 1, got 0");
  check_error([&] { adam_step(AdamKind::adam, {}, 1, x, x, x, x, x); },
              "adam_step: expected param of bf16 beside a remainder, got f64");
  const Tensor half = cast(x, DType::bf16);
  check_error([&] { adam_step(AdamKind::adam, {}, 1, half, half, narrow, narrow, half); },
              "adam_step: expected remainder of i16 on cpu for param of bf16, got bf16 on cpu");
  check_error([&] { sgd_step({}, 1, half, half, {}, cast(other, DType::i16)); },
              "sgd_step: expected remainder of shape [3], got [4]");
  check_error([&] { master_copy(narrow, half); },
              "master_copy: expected param of bf16 beside a remainder, got f32");
  const auto sgd = [](const Tensor& param, const Tensor& grad, const Tensor& velocity, int64_t step) {
    return [=] { sgd_step({.momentum = 0.9}, step, param, grad, velocity); };
  };
  check_error(sgd(index, x, x, 1), "sgd_step: expected param of dtype f32, f64 or bf16, got i64");
  check_error(sgd(x, other, x, 1), "sgd_step: expected grad of shape [3], got [4]");
  check_error(sgd(x, x, other, 1), "sgd_step: expected velocity of shape [3], got [4]");
  check_error(sgd(x, x, narrow, 1),
              "sgd_step: expected velocity of f64 on cpu for param of f64, got f32 on cpu");
  check_error(sgd(x, x, {}, 1), "tensor: expected a defined tensor, got an undefined one");
  check_error(sgd(x, x, x, 0), "sgd_step: expected step >= 1, got 0");
  check_error([&] { clip_gradient_norm({x}, 0); }, "clip_gradient_norm: expected max_norm > 0, got 0");
  check_error([&] { clip_gradient_norm({index}, 1); },
              "clip_gradient_norm: expected gradient of dtype f32, f64 or bf16, got i64");
}

}  // namespace
}  // namespace elwise::testing
