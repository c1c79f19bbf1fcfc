#include "nn/optimizer.h"

#include "autograd/grad_mode.h"
#include "ops/elementwise.h"

namespace elwise::nn {

Optimizer::Optimizer(const Module& module, double learning_rate, std::vector<std::string> moments)
    : learning_rate_(learning_rate), moments_(std::move(moments)) {
  for (const auto& [name, parameter] : module.named_parameters()) slots_.push_back({name, parameter, {}});
}

void Optimizer::make_state(Slot& slot) const {
  const MemoryTagGuard tag(MemoryTag::optimizer);
  for (size_t i = 0; i < moments_.size(); ++i) slot.state.push_back(zeros_like(slot.parameter));
}

void Optimizer::step() {
  const NoGradGuard no_grad;
  ++steps_;
  for (Slot& slot : slots_) {
    const Tensor gradient = slot.parameter.grad();
    if (!gradient.defined()) continue;
    if (slot.state.empty()) make_state(slot);
    update(slot.parameter, gradient, slot.state);
  }
}

void Optimizer::zero_grad() {
  for (const Slot& slot : slots_) slot.parameter.set_grad({});
}

std::map<std::string, Tensor> Optimizer::state() const {
  std::map<std::string, Tensor> result;
  for (const Slot& slot : slots_) {
    for (size_t i = 0; i < slot.state.size(); ++i)
      result.emplace(slot.name + "." + moments_[i], slot.state[i]);
  }
  return result;
}

void Optimizer::load_state(const std::map<std::string, Tensor>& state, int64_t steps) {
  size_t used = 0;
  std::vector<Slot> slots = slots_;  // these change only where all of `state` fits
  for (Slot& slot : slots) {
    slot.state.clear();
    if (moments_.empty() || !state.contains(slot.name + "." + moments_.front())) continue;
    make_state(slot);
    for (size_t i = 0; i < moments_.size(); ++i, ++used) {
      const std::string name = slot.name + "." + moments_[i];
      const auto found = state.find(name);
      ELWISE_CHECK(found != state.end(), "optimizer: the saved state lacks ", name);
      ELWISE_CHECK(found->second.shape() == slot.parameter.shape(), "optimizer: expected ", name,
                   " of shape ", slot.parameter.shape(), ", got ", found->second.shape());
      slot.state[i].copy_from(to(found->second, slot.parameter.device()));
    }
  }
  ELWISE_CHECK(used == state.size(), "optimizer: the saved state has ", state.size(), " tensors, of which ",
               used, " belong to this model");
  slots_ = std::move(slots);
  steps_ = steps;
}

Adam::Adam(const Module& module, AdamKind kind, const AdamOptions& options)
    : Optimizer(module, options.lr, {"m", "v"}), kind_(kind), options_(options) {}

void Adam::update(const Tensor& parameter, const Tensor& gradient, const std::vector<Tensor>& state) {
  options_.lr = learning_rate();
  adam_step(kind_, options_, steps(), parameter, gradient, state[0], state[1]);
}

Sgd::Sgd(const Module& module, const SgdOptions& options)
    : Optimizer(module, options.lr,
                options.momentum != 0 ? std::vector<std::string>{"velocity"} : std::vector<std::string>{}),
      options_(options) {}

void Sgd::update(const Tensor& parameter, const Tensor& gradient, const std::vector<Tensor>& state) {
  options_.lr = learning_rate();
  sgd_step(options_, steps(), parameter, gradient, state.empty() ? Tensor() : state[0]);
}

double clip_gradient_norm(const Module& module, double max_norm) {
  std::vector<Tensor> gradients;
  for (const Tensor& parameter : module.parameters()) gradients.push_back(parameter.grad());
  return elwise::clip_gradient_norm(gradients, max_norm);
}

}  // namespace elwise::nn
