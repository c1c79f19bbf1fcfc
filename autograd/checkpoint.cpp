#include "autograd/checkpoint.h"

#include "autograd/engine.h"
#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "core/random.h"

namespace elwise {
namespace {

/// Sets the default generator's state until the end of the scope.
class RandomStateGuard {
 public:
  explicit RandomStateGuard(RandomStream state) : previous_(default_generator().state()) {
    default_generator().set_state(state);
  }
  ~RandomStateGuard() { default_generator().set_state(previous_); }
  RandomStateGuard(const RandomStateGuard&) = delete;
  RandomStateGuard& operator=(const RandomStateGuard&) = delete;

 private:
  RandomStream previous_;
};

}  // namespace

Tensor checkpoint(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                  const std::vector<Tensor>& inputs) {
  if (!grad_enabled()) return function(inputs);
  const RandomStream random_state = default_generator().state();
  Tensor output;
  {
    const NoGradGuard no_grad;
    output = function(inputs).detach();
  }
  std::vector<SavedTensor> saved(inputs.begin(), inputs.end());
  std::vector<Tensor> recorded = inputs;
  if (!needs_gradient(inputs)) {
    // The parameters inside may still need theirs: a leaf of no consequence makes the op recorded.
    recorded.push_back(empty({1}, output.options()).set_requires_grad());
  }
  const auto replay = [function, random_state, saved = std::move(saved),
                       extra = recorded.size() - inputs.size()](const BackwardContext& context) {
    std::vector<Tensor> again;
    for (size_t i = 0; i < saved.size(); ++i) {
      Tensor input = saved[i].get();
      if (input.defined()) input = input.detach();
      if (context.needs(static_cast<int>(i))) input.set_requires_grad();
      again.push_back(std::move(input));
    }
    Tensor result;
    {
      const RandomStateGuard random(random_state);
      const GradModeGuard grad(true);
      result = function(again);
    }
    if (result.requires_grad()) {
      std::vector<Tensor> outputs, gradients;  // moved: neither outlives its use in the function's backward
      outputs.push_back(std::move(result));
      gradients.push_back(context.take_gradient());
      backward(std::move(outputs), std::move(gradients));
    }
    std::vector<Tensor> gradients;
    for (const Tensor& input : again) gradients.push_back(input.defined() ? input.grad() : Tensor());
    gradients.resize(gradients.size() + extra);
    return gradients;
  };
  record("checkpoint", recorded, std::vector<Tensor>{output}, replay);
  output.autograd_state()->node->set_reaches_other_leaves();
  return output;
}

}  // namespace elwise
