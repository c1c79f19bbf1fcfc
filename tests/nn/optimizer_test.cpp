#include "nn/optimizer.h"

#include <cmath>
#include <memory>

#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/view.h"
#include "tests/support/naive_optimizer.h"
#include "tests/support/op_test.h"

namespace elwise::nn {
namespace {

using testing::check_close;
using testing::check_error;
using testing::Values;
using testing::values_of;

constexpr int kSteps = 10;  // RAdam rectifies from the 6th on

/// Two parameters, "weight" and "bias".
class Model : public Module {
 public:
  explicit Model(DType dtype = DType::f64)
      : weight(cast(from_vector<double>({0.5, -1, 2, 0.25, -0.75, 3}, {2, 3}), dtype)),
        bias(cast(from_vector<double>({1, -1}, {2}), dtype)) {
    add_parameter("weight", weight);
    add_parameter("bias", bias);
  }
  Tensor weight, bias;
};

/// The gradient of a parameter at a step: some numbers that vary in sign and size.
Values gradient_values(int64_t count, int step) {
  Values values;
  for (int64_t i = 0; i < count; ++i) {
    const double x = static_cast<double>(i);
    values.push_back(std::sin(3 * x + step) * (x + 1));
  }
  return values;
}

void set_gradient(const Tensor& parameter, int step) {
  const Tensor wide = from_vector(gradient_values(parameter.count(), step), parameter.shape());
  parameter.set_grad(cast(wide, parameter.dtype()));
}

void set_gradients(const Model& model, int step) {
  for (const Tensor& parameter : model.parameters()) set_gradient(parameter, step);
}

double rate_at(int step) {
  return step < 5 ? 0.1 : 0.03;
}

/// Ten steps, the learning rate changing on the way, against `naive_step(parameter index, gradient, rate)`,
/// which returns the parameter's new values.
template <class NaiveStep>
void check_steps(Model& model, Optimizer& optimizer, const std::string& name, NaiveStep naive_step) {
  const DType dtype = model.weight.dtype();
  for (int step = 0; step < kSteps; ++step) {
    set_gradients(model, step);
    optimizer.set_learning_rate(rate_at(step));
    optimizer.step();
    CHECK(optimizer.steps() == step + 1);
    const std::vector<Tensor> parameters = model.parameters();
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Values expected = naive_step(i, gradient_values(parameters[i].count(), step), rate_at(step));
      check_close(values_of(parameters[i]), expected,
                  dtype == DType::f64 ? testing::kF64Tolerance : testing::kF32Tolerance,
                  name + " step " + std::to_string(step));
    }
  }
}

TEST_CASE("Adam, AdamW and RAdam follow the reference over ten steps") {
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const AdamKind kind : {AdamKind::adam, AdamKind::adamw, AdamKind::radam}) {
      for (const double decay : {0.0, 0.1}) {
        Model model(dtype);
        Adam optimizer(model, kind, {.beta1 = 0.8, .beta2 = 0.99, .weight_decay = decay});
        std::vector<naive::AdamState> states;
        for (const Tensor& parameter : model.parameters()) states.emplace_back(values_of(parameter));
        check_steps(model, optimizer, "kind " + std::to_string(static_cast<int>(kind)),
                    [&](size_t i, const Values& gradient, double rate) {
                      const naive::AdamOptions options{
                          .lr = rate, .beta1 = 0.8, .beta2 = 0.99, .weight_decay = decay};
                      if (kind == AdamKind::radam) {
                        naive::radam_step(states[i], gradient, options);
                      } else {
                        naive::adam_step(states[i], gradient, options, kind == AdamKind::adamw);
                      }
                      return states[i].param;
                    });
      }
    }
  }
}

TEST_CASE("SGD follows the reference over ten steps") {
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const naive::SgdOptions& options :
         {naive::SgdOptions{}, naive::SgdOptions{.weight_decay = 0.1}, naive::SgdOptions{.momentum = 0.9},
          naive::SgdOptions{.momentum = 0.9, .weight_decay = 0.1, .nesterov = true}}) {
      Model model(dtype);
      Sgd optimizer(
          model,
          {.momentum = options.momentum, .weight_decay = options.weight_decay, .nesterov = options.nesterov});
      std::vector<Values> values{values_of(model.weight), values_of(model.bias)}, velocities(2);
      check_steps(model, optimizer, "SGD", [&](size_t i, const Values& gradient, double rate) {
        naive::SgdOptions now = options;
        now.lr = rate;
        naive::sgd_step(values[i], velocities[i], gradient, now);
        return values[i];
      });
    }
  }
}

TEST_CASE("a parameter without a gradient is left alone and has no state") {
  Model model;
  Adam optimizer(model, AdamKind::adamw, {.lr = 0.1, .weight_decay = 0.1});
  const Values before = values_of(model.bias);
  set_gradient(model.weight, 0);
  optimizer.step();
  CHECK(values_of(model.bias) == before);
  CHECK(optimizer.state().size() == 3);
  CHECK(optimizer.state().contains("weight.m"));
  CHECK(optimizer.state().contains("weight.v"));
  CHECK(optimizer.state().at("weight.steps").item() == 1);
}

TEST_CASE("an optimizer has the learning rate of its options, and zero_grad clears the gradients") {
  Model model;
  Sgd optimizer(model, {.lr = 0.25});
  CHECK(optimizer.learning_rate() == 0.25);
  CHECK(optimizer.steps() == 0);
  set_gradients(model, 0);
  optimizer.zero_grad();
  CHECK_FALSE(model.weight.grad().defined());
  CHECK_FALSE(model.bias.grad().defined());
}

TEST_CASE("state is counted under the optimizer tag and recorded by no graph") {
  const int64_t before = memory_stats(kCpu)[MemoryTag::optimizer].now;
  {
    Model model;
    Adam optimizer(model, AdamKind::adam);
    set_gradients(model, 0);
    CHECK(memory_stats(kCpu)[MemoryTag::optimizer].now == before);
    optimizer.step();
    CHECK(memory_stats(kCpu)[MemoryTag::optimizer].now == before + 4 * 64);
    CHECK(model.weight.requires_grad());
    CHECK_FALSE(optimizer.state().at("weight.m").requires_grad());
  }
  CHECK(memory_stats(kCpu)[MemoryTag::optimizer].now == before);
}

/// A copy of the state, as a file would hold it.
std::map<std::string, Tensor> copy_of(const std::map<std::string, Tensor>& state) {
  std::map<std::string, Tensor> copies;
  for (const auto& [name, tensor] : state) {
    Tensor copy = empty(tensor.shape(), tensor.options());
    copy.copy_from(tensor);
    copies.emplace(name, copy);
  }
  return copies;
}

TEST_CASE("a restored optimizer goes on as if it had not stopped") {
  const auto check = [](auto make) {
    Model model, resumed;
    auto optimizer = make(model), other = make(resumed);
    for (int step = 0; step < 4; ++step) {
      set_gradients(model, step);
      optimizer.step();
    }
    for (size_t i = 0; i < 2; ++i) resumed.parameters()[i].copy_from(model.parameters()[i]);
    other.load_state(copy_of(optimizer.state()), optimizer.steps());
    CHECK(other.steps() == 4);
    for (int step = 4; step < 8; ++step) {
      for (Model* each : {&model, &resumed}) set_gradients(*each, step);
      optimizer.step();
      other.step();
    }
    CHECK(values_of(model.weight) == values_of(resumed.weight));
    CHECK(values_of(model.bias) == values_of(resumed.bias));
  };
  check([](const Model& model) { return Adam(model, AdamKind::radam, {.lr = 0.1}); });
  check([](const Model& model) { return Sgd(model, {.lr = 0.1, .momentum = 0.9}); });
  check([](const Model& model) { return Sgd(model, {.lr = 0.1}); });
}

TEST_CASE("state that does not fit is refused and changes nothing") {
  Model model;
  Adam optimizer(model, AdamKind::adam);
  set_gradients(model, 0);
  optimizer.step();
  const std::map<std::string, Tensor> good = copy_of(optimizer.state());
  const auto check_refused = [&](const std::map<std::string, Tensor>& state, const std::string& message) {
    check_error([&] { optimizer.load_state(state, 99); }, message);
    CHECK(optimizer.steps() == 1);
    for (const auto& [name, tensor] : good) CHECK(values_of(optimizer.state().at(name)) == values_of(tensor));
  };
  auto state = copy_of(good);
  state.erase("bias.v");
  check_refused(state, "optimizer: the saved state lacks bias.v");
  state = copy_of(good);
  state["weight.m"] = zeros({3, 2}, model.weight.options());
  check_refused(state, "optimizer: expected weight.m of shape [2, 3], got [3, 2]");
  state = copy_of(good);
  state["other.m"] = zeros({2}, model.weight.options());
  check_refused(state, "optimizer: the saved state has 7 tensors, of which 6 belong to this model");
  Sgd plain(model);
  check_error([&] { plain.load_state(good, 1); },
              "optimizer: the saved state has 6 tensors, of which 2 belong to this model");
}

TEST_CASE("a parameter's bias corrections count from its own first gradient") {
  Model late, fresh;
  for (const AdamKind kind : {AdamKind::adam, AdamKind::radam}) {
    Adam of_late(late, kind), of_fresh(fresh, kind);
    for (int step = 0; step < kSteps; ++step) {
      set_gradient(late.weight, step);
      of_late.step();
    }
    late.bias.copy_from(fresh.bias);
    for (int step = 0; step < kSteps; ++step) {
      set_gradient(late.bias, step);
      set_gradient(fresh.bias, step);
      of_late.step();
      of_fresh.step();
      CHECK(values_of(late.bias) == values_of(fresh.bias));
    }
    late.zero_grad();
  }
}

TEST_CASE("a step works on meta, with state that is counted") {
  Model model;
  model.to(kMeta);
  Adam optimizer(model, AdamKind::adamw);
  for (const Tensor& parameter : model.parameters()) parameter.set_grad(zeros_like(parameter));
  optimizer.step();
  CHECK(optimizer.state().at("bias.v").device() == kMeta);
  CHECK(clip_gradient_norm(model, 1) == 0);
}

TEST_CASE("clipping scales all gradients to the norm and returns what it was") {
  Model model;
  model.weight.set_grad(full({2, 3}, 2, model.weight.options()));
  model.bias.set_grad(from_vector<double>({-6, 6}, {2}));  // together sqrt(6 * 4 + 72)
  const double norm = std::sqrt(96.0);
  CHECK(clip_gradient_norm(model, 100) == doctest::Approx(norm));
  CHECK(values_of(model.bias.grad()) == Values{-6, 6});
  CHECK(clip_gradient_norm(model, norm / 4) == doctest::Approx(norm));
  check_close(values_of(model.weight.grad()), Values(6, 0.5), testing::kF64Tolerance, "weight");
  check_close(values_of(model.bias.grad()), {-1.5, 1.5}, testing::kF64Tolerance, "bias");
  model.weight.set_grad({});
  CHECK(clip_gradient_norm(model, 1) == doctest::Approx(1.5 * std::sqrt(2.0)));
  model.bias.set_grad({});
  CHECK(clip_gradient_norm(model, 1) == 0);
  check_error([&] { clip_gradient_norm(model, 0); }, "clip_gradient_norm: expected max_norm > 0, got 0");
}

TEST_CASE("an optimizer that steps in backward leaves the parameters as it found them when it goes") {
  Model model;
  {
    Adam optimizer(model, AdamKind::adamw, {.lr = 0.1});
    optimizer.step_in_backward();
    check_error([&] { Sgd(model).step_in_backward(); },
                "set_complete_gradient_hook: expected a leaf without one, such as another optimizer's");
    check_error(
        [&] { clip_gradient_norm(model, 1); },
        "clip_gradient_norm: expected gradients to last until the step, but an optimizer steps in backward");
    const Values before = values_of(model.weight);
    sum(model.weight).backward();
    optimizer.step();
    CHECK(optimizer.steps() == 1);
    CHECK(optimizer.state().at("weight.steps").item() == 1);
    CHECK_FALSE(model.weight.grad().defined());
    CHECK(values_of(model.weight) != before);
  }
  sum(model.weight).backward();
  CHECK(values_of(model.weight.grad()) == Values(6, 1));
}

/// One parameter of 1: bf16 holds nothing between it and 1 - 2^-8.
class One : public Module {
 public:
  One() : weight(full({33}, 1, {.dtype = DType::bf16})) { add_parameter("weight", weight); }
  Tensor weight;
};

TEST_CASE("bf16: steps far below the spacing of a parameter add up in its remainder") {
  constexpr double kRate = 1e-4;
  const auto check = [](const char* name, auto make_optimizer) {
    One model;
    const std::unique_ptr<Optimizer> optimizer = make_optimizer(model);
    for (int step = 0; step < 100; ++step) {
      model.weight.set_grad(full({33}, 1, {.dtype = DType::bf16}));
      optimizer->step();
      if (step == 0) CHECK(values_of(model.weight) == Values(33, 1));
    }
    const Tensor master = master_copy(model.weight, optimizer->state().at("weight.remainder"));
    CHECK(master.dtype() == DType::f32);
    check_close(values_of(master), Values(33, 0.99), testing::kF32Tolerance, name);
    CHECK(values_of(model.weight) == values_of(cast(master, DType::bf16)));
  };
  check("sgd", [](const Module& model) { return std::make_unique<Sgd>(model, SgdOptions{.lr = kRate}); });
  for (const AdamKind kind : {AdamKind::adam, AdamKind::adamw}) {
    check("adam", [kind](const Module& model) {
      return std::make_unique<Adam>(model, kind, AdamOptions{.lr = kRate});
    });
  }
}

TEST_CASE("bf16: a run that is resumed from its saved state goes on bit for bit") {
  Model whole(DType::bf16), stopped(DType::bf16);
  Adam optimizer(whole, AdamKind::adamw, {.lr = 1e-3}), before(stopped, AdamKind::adamw, {.lr = 1e-3});
  const auto train = [](Model& model, Adam& with, int begin, int end) {
    for (int step = begin; step < end; ++step) {
      set_gradients(model, step);
      with.step();
    }
  };
  train(whole, optimizer, 0, 8);
  train(stopped, before, 0, 3);
  std::map<std::string, Tensor> saved;
  for (const auto& [name, tensor] : before.state()) saved.emplace(name, elwise::clone(tensor));
  Model resumed(DType::bf16);
  resumed.weight.copy_from(stopped.weight);
  resumed.bias.copy_from(stopped.bias);
  Adam after(resumed, AdamKind::adamw, {.lr = 1e-3});
  after.load_state(saved, before.steps());
  train(resumed, after, 3, 8);
  CHECK(values_of(resumed.weight) == values_of(whole.weight));
  const char* rest = "weight.remainder";
  CHECK(values_of(after.state().at(rest)) == values_of(optimizer.state().at(rest)));
  saved.erase("bias.remainder");
  check_error([&] { after.load_state(saved, 3); }, "optimizer: the saved state lacks bias.remainder");
}

}  // namespace
}  // namespace elwise::nn
