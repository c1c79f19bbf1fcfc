#include "models/forecaster.h"

#include <doctest/doctest.h>

#include <cmath>

#include "autograd/grad_mode.h"
#include "nn/optimizer.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/view.h"
#include "tests/support/op_test.h"

namespace elwise::models {
namespace {

using testing::check_close;
using testing::check_error;
using testing::kF64Tolerance;
using testing::test_device;
using testing::tolerance_of;
using testing::Values;
using testing::values_of;

const std::vector<std::string> kMechanisms{"sa", "sa-tiled", "la", "aft", "ea", "ea-2", "ea-6", "none"};

ForecasterConfig tiny(const std::string& attention, DType dtype = DType::f64) {
  return {.length = 7,
          .horizon = 3,
          .hidden = 12,
          .layers = 2,
          .heads = 3,
          .intermediate = 20,
          .marks = {CalendarMark::hour, CalendarMark::weekday},
          .attention = nn::Mechanism::parse(attention),
          .options = {.dtype = dtype, .device = test_device()}};
}

/// A model in eval(), the same for the same config.
struct Model : Forecaster {
  explicit Model(const ForecasterConfig& config) : Forecaster((manual_seed(5), config)) { eval(); }
};

/// Hours and weekdays that follow one another, and a value for each.
ForecasterInput some_input(const ForecasterConfig& config, int64_t batch, int64_t length) {
  std::vector<double> values;
  std::vector<std::vector<int64_t>> marks(config.marks.size());
  for (int64_t row = 0; row < batch; ++row) {
    for (int64_t i = 0; i < length; ++i) {
      const int64_t hour = 19 + 5 * row + i;
      values.push_back(std::sin(0.7 * static_cast<double>(hour)) + 0.1 * static_cast<double>(row));
      for (size_t mark = 0; mark < marks.size(); ++mark) marks[mark].push_back(hour % (mark == 0 ? 24 : 7));
    }
  }
  const Shape shape{batch, length};
  const auto [dtype, device] = config.options;
  ForecasterInput input{.values = to(cast(from_vector(values, shape), dtype), device), .marks = {}};
  for (const auto& mark : marks) input.marks.push_back(to(from_vector(mark, shape), device));
  return input;
}

/// Positions begin .. end - 1 of every row.
ForecasterInput part(const ForecasterInput& input, int64_t begin, int64_t end) {
  ForecasterInput result{.values = slice(input.values, 1, begin, end), .marks = {}};
  for (const Tensor& mark : input.marks) result.marks.push_back(slice(mark, 1, begin, end));
  return result;
}

/// One position, as step() takes it.
ForecasterInput column(const ForecasterInput& input, int64_t position) {
  ForecasterInput result = part(input, position, position + 1);
  result.values = reshape(result.values, {-1});
  for (Tensor& mark : result.marks) mark = reshape(mark, {-1});
  return result;
}

TEST_CASE("a forecast is made from the values before it alone, with every mechanism") {
  const NoGradGuard inference;
  for (const std::string& name : kMechanisms) {
    CAPTURE(name);
    const ForecasterConfig config = tiny(name);
    const Model model(config);
    const ForecasterInput input = some_input(config, 2, 7);
    const Tensor all = model.forecast_after_each(input);
    CHECK(all.shape() == Shape{2, 7, 3});
    for (int64_t seen = 1; seen <= 7; ++seen) {
      const Tensor expected = slice(all, 1, seen - 1, seen);
      check_close(values_of(model.forward(part(input, 0, seen))), values_of(expected), kF64Tolerance, name);
    }
    ForecasterInput changed = input;
    changed.values = concat({slice(input.values, 1, 0, 5), mul(slice(input.values, 1, 5, 7), -3)}, 1);
    const Tensor after = model.forecast_after_each(changed);
    CHECK(values_of(slice(after, 1, 0, 5)) == values_of(slice(all, 1, 0, 5)));
    CHECK(values_of(slice(after, 1, 5, 6)) != values_of(slice(all, 1, 5, 6)));
  }
}

TEST_CASE("without attention the last value is all that a forecast depends on; with any other it is not") {
  const NoGradGuard inference;
  for (const std::string& name : kMechanisms) {
    CAPTURE(name);
    const ForecasterConfig config = tiny(name);
    const Model model(config);
    const ForecasterInput input = some_input(config, 1, 7);
    ForecasterInput changed = input;
    changed.values = concat({mul(slice(input.values, 1, 0, 6), -1), slice(input.values, 1, 6, 7)}, 1);
    const bool same = values_of(model.forward(changed)) == values_of(model.forward(input));
    CHECK(same == (name == "none"));
  }
}

TEST_CASE("prefill and steps give what forward gives after every value") {
  const NoGradGuard inference;
  for (const std::string& name : kMechanisms) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const bool embedding_norm : {true, false}) {
        ForecasterConfig config = tiny(name, dtype);
        config.embedding_norm = embedding_norm;
        const Model model(config);
        const ForecasterInput input = some_input(config, 2, 7);
        const Tensor expected = model.forecast_after_each(input);
        GenerationState state = model.make_state(2);
        Tensor forecast = model.prefill(part(input, 0, 3), state);
        for (int64_t i = 3; i < 7; ++i) {
          check_close(values_of(forecast), values_of(slice(expected, 1, i - 1, i)), tolerance_of(dtype),
                      name);
          forecast = model.step(column(input, i), state);
        }
        check_close(values_of(forecast), values_of(slice(expected, 1, 6, 7)), tolerance_of(dtype), name);
        CHECK(state.positions == std::vector<int64_t>{7, 7});
      }
    }
  }
}

/// d loss / d parameter by central differences.
Values numeric_gradient(const Tensor& parameter, const std::function<double()>& loss) {
  constexpr double kStep = 1e-5;
  Values gradient;
  for (int64_t i = 0; i < parameter.count(); ++i) {
    double& value = parameter.data<double>()[i];
    const double before = value;
    value = before + kStep;
    const double above = loss();
    value = before - kStep;
    gradient.push_back((above - loss()) / (2 * kStep));
    value = before;
  }
  return gradient;
}

TEST_CASE("the gradient of every parameter agrees with central differences") {
  for (const std::string name : {"ea-6", "ea-2", "sa", "none"}) {
    ForecasterConfig config = tiny(name);
    config.options.device = kCpu;
    config.length = 4;
    config.horizon = 2;
    config.hidden = 4;
    config.heads = 2;
    config.intermediate = 5;
    config.marks = {CalendarMark::hour};
    const Model model(config);
    const ForecasterInput input = some_input(config, 2, 4);
    const Tensor target = full({2, 2}, 0.3, config.options);
    mse_loss(model.forward(input), target).backward();
    const NoGradGuard inference;
    const auto loss = [&] { return mse_loss(model.forward(input), target).item(); };
    for (const auto& [parameter_name, parameter] : model.named_parameters()) {
      REQUIRE(parameter.grad().defined());
      check_close(values_of(parameter.grad()), numeric_gradient(parameter, loss), {1e-8, 1e-6},
                  name + " " + parameter_name);
    }
  }
}

TEST_CASE("a few steps of Adam learn a sine, with and without the embedding's LayerNorm") {
  for (const std::string name : {"ea-6", "sa"}) {
    for (const bool embedding_norm : {true, false}) {
      ForecasterConfig config = tiny(name, DType::f32);
      config.embedding_norm = embedding_norm;
      Model model(config);
      model.train();
      nn::Adam optimizer(model, AdamKind::adam, {.lr = 1e-2});
      const ForecasterInput longer = some_input(config, 4, 10);
      const Tensor target = slice(longer.values, 1, 7, 10);
      double first = 0, last = 0;
      for (int step = 0; step < 60; ++step) {
        optimizer.zero_grad();
        const Tensor loss = mse_loss(model.forward(part(longer, 0, 7)), target);
        last = loss.item();
        if (step == 0) first = last;
        loss.backward();
        optimizer.step();
      }
      CAPTURE(name);
      CHECK(last < 0.05 * first);
    }
  }
}

TEST_CASE("errors of the forecaster") {
  ForecasterConfig config = tiny("ea-6");
  config.embedding = ValueEmbedding::conv;
  check_error([&] { Forecaster{config}; },
              "forecaster: a circular convolution reads the value after each, and the last one before the "
              "first: it looks into the future and has no recurrent form; a causal model needs the linear "
              "embedding");
  config = tiny("ea-6");
  config.horizon = 0;
  check_error([&] { Forecaster{config}; },
              "forecaster: expected a length and a horizon of 1 value or more, got 7 and 0");
  config = tiny("ea-6");
  const Model model(config);
  check_error([&] { model.forward(some_input(config, 1, 8)); },
              "forecaster: expected at most 7 values, got 8");
  ForecasterInput input = some_input(config, 2, 7);
  input.marks.pop_back();
  check_error([&] { model.forward(input); }, "forecaster: expected 2 calendar marks, got 1");
  input = some_input(config, 2, 7);
  input.marks[1] = slice(input.marks[1], 1, 0, 6);
  check_error([&] { model.forward(input); },
              "forecaster: expected a weekday for each of the values [2, 7], got [2, 6]");
  check_error([&] { model.forward({.values = full({7}, 0, config.options), .marks = {}}); },
              "forecaster: expected values [batch, length], got [7]");
  GenerationState state = model.make_state(2);
  check_error([&] { model.step(column(some_input(config, 3, 1), 0), state); },
              "forecaster: expected a value for each of 2 rows, got [3]");
  check_error([] { parse_calendar_mark("second"); },
              "calendar mark: expected month, day, weekday, hour or minute, got 'second'");
  const Forecaster training(config);
  check_error([&] { training.make_state(1); }, "attention: a state is for inference: expected eval() before");
  for (const CalendarMark mark : {CalendarMark::month, CalendarMark::day, CalendarMark::weekday,
                                  CalendarMark::hour, CalendarMark::minute}) {
    CHECK(parse_calendar_mark(name_of(mark)) == mark);
  }
}

}  // namespace
}  // namespace elwise::models
