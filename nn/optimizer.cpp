#include "nn/optimizer.h"

#include "autograd/grad_mode.h"
#include "ops/elementwise.h"

namespace elwise::nn {
namespace {

constexpr const char *kStepsSuffix = ".steps", *kRemainderSuffix = ".remainder";

}  // namespace

Optimizer::Optimizer(const Module& module, double learning_rate, std::vector<std::string> moments)
    : learning_rate_(learning_rate), moments_(std::move(moments)) {
  for (const auto& [name, parameter] : module.named_parameters())
    slots_.push_back({.name = name, .parameter = parameter});
}

Optimizer::~Optimizer() {
  for (const Slot& slot : slots_) {
    if (slot.in_backward) slot.parameter.set_complete_gradient_hook({});
  }
}

void Optimizer::make_state(Slot& slot) const {
  const MemoryTagGuard tag(MemoryTag::optimizer);
  const Tensor& parameter = slot.parameter;
  const TensorOptions options{.dtype = accumulation_dtype(parameter.dtype()), .device = parameter.device()};
  for (size_t i = 0; i < moments_.size(); ++i) slot.state.push_back(zeros(parameter.shape(), options));
  if (parameter.dtype() == DType::bf16) {
    slot.remainder = zeros(parameter.shape(), {.dtype = DType::i16, .device = parameter.device()});
  }
}

std::vector<std::pair<std::string, Tensor>> Optimizer::named_state(const Slot& slot) const {
  std::vector<std::pair<std::string, Tensor>> result;
  for (size_t i = 0; i < slot.state.size(); ++i)
    result.emplace_back(slot.name + "." + moments_[i], slot.state[i]);
  if (slot.remainder.defined()) result.emplace_back(slot.name + kRemainderSuffix, slot.remainder);
  return result;
}

void Optimizer::step(Slot& slot) {
  const Tensor gradient = slot.parameter.grad();
  if (!gradient.defined()) return;
  if (slot.steps++ == 0) make_state(slot);
  update(slot.parameter, gradient, slot.state, slot.remainder, slot.steps);
}

void Optimizer::step() {
  const NoGradGuard no_grad;
  ++steps_;
  for (Slot& slot : slots_) step(slot);
}

void Optimizer::step_in_backward() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].parameter.set_complete_gradient_hook([this, i](const Tensor& parameter) {
      step(slots_[i]);
      parameter.set_grad({});
    });
    slots_[i].in_backward = true;
  }
}

void Optimizer::zero_grad() {
  for (const Slot& slot : slots_) slot.parameter.set_grad({});
}

std::map<std::string, Tensor> Optimizer::state() const {
  std::map<std::string, Tensor> result;
  for (const Slot& slot : slots_) {
    if (slot.steps == 0) continue;
    result.emplace(slot.name + kStepsSuffix, from_vector(std::vector{slot.steps}, {}));
    for (const auto& [name, tensor] : named_state(slot)) result.emplace(name, tensor);
  }
  return result;
}

void Optimizer::load_state(const std::map<std::string, Tensor>& state, int64_t steps) {
  size_t used = 0;
  std::vector<Slot> slots = slots_;  // these change only where all of `state` fits
  for (Slot& slot : slots) {
    slot.state.clear();
    slot.remainder = {};
    slot.steps = 0;
    const auto count = state.find(slot.name + kStepsSuffix);
    if (count == state.end()) continue;
    ELWISE_CHECK(count->second.count() == 1, "optimizer: expected one element in ", count->first, ", got ",
                 count->second.shape());
    slot.steps = static_cast<int64_t>(count->second.item());
    ++used;
    make_state(slot);
    for (auto [name, tensor] : named_state(slot)) {
      ++used;
      const auto found = state.find(name);
      ELWISE_CHECK(found != state.end(), "optimizer: the saved state lacks ", name);
      ELWISE_CHECK(found->second.shape() == slot.parameter.shape(), "optimizer: expected ", name,
                   " of shape ", slot.parameter.shape(), ", got ", found->second.shape());
      tensor.copy_from(to(found->second, slot.parameter.device()));
    }
  }
  ELWISE_CHECK(used == state.size(), "optimizer: the saved state has ", state.size(), " tensors, of which ",
               used, " belong to this model");
  slots_ = std::move(slots);
  steps_ = steps;
}

Adam::Adam(const Module& module, AdamKind kind, const AdamOptions& options)
    : Optimizer(module, options.lr, {"m", "v"}), kind_(kind), options_(options) {}

void Adam::update(const Tensor& parameter, const Tensor& gradient, const std::vector<Tensor>& state,
                  const Tensor& remainder, int64_t step) {
  options_.lr = learning_rate();
  adam_step(kind_, options_, step, parameter, gradient, state[0], state[1], remainder);
}

Sgd::Sgd(const Module& module, const SgdOptions& options)
    : Optimizer(module, options.lr,
                options.momentum != 0 ? std::vector<std::string>{"velocity"} : std::vector<std::string>{}),
      options_(options) {}

void Sgd::update(const Tensor& parameter, const Tensor& gradient, const std::vector<Tensor>& state,
                 const Tensor& remainder, int64_t step) {
  options_.lr = learning_rate();
  sgd_step(options_, step, parameter, gradient, state.empty() ? Tensor() : state[0], remainder);
}

double clip_gradient_norm(const Module& module, double max_norm) {
  std::vector<Tensor> gradients;
  for (const Tensor& parameter : module.parameters()) {
    ELWISE_CHECK(!parameter.has_complete_gradient_hook(),
                 "clip_gradient_norm: expected gradients to last until the step, but an optimizer steps in "
                 "backward");
    gradients.push_back(parameter.grad());
  }
  return elwise::clip_gradient_norm(gradients, max_norm);
}

}  // namespace elwise::nn
