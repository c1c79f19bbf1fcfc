#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/module.h"
#include "ops/optimizer_step.h"

namespace elwise::nn {

/// Updates a module's parameters from their gradients. State is made (counted under the optimizer tag) when a
/// parameter first has a gradient; parameters without one are left alone. A bf16 parameter's state has a
/// remainder too, which makes it f32 for the steps (ops/optimizer_step.h).
class Optimizer {
 public:
  virtual ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// One step with the current learning rate.
  void step();
  /// From now on backward() steps each parameter as soon as its gradient is complete, and frees the gradient:
  /// no more than a few exist at a time. Parameters change as they would otherwise, and the loop stays what
  /// it is: set the learning rate before backward(), and call step(), which counts and steps what still has a
  /// gradient. A parameter steps in each backward(), so gradients of several cannot be added up, and there is
  /// no clip_gradient_norm. Under checkpoint() gradients wait for the end. Throws Error where another
  /// optimizer does so with one of the parameters.
  void step_in_backward();
  void zero_grad();

  double learning_rate() const { return learning_rate_; }
  void set_learning_rate(double rate) { learning_rate_ = rate; }
  /// Steps done.
  int64_t steps() const { return steps_; }

  /// The state tensors by name ("<parameter>.<moment>", "<parameter>.remainder" of bf16 parameters, and
  /// "<parameter>.steps", one i64), to be saved. All but the last share storage with the optimizer's.
  std::map<std::string, Tensor> state() const;
  /// Restores what state() gave, and the number of steps. Throws Error for a name or shape that does not
  /// belong, and then changes nothing.
  void load_state(const std::map<std::string, Tensor>& state, int64_t steps);

 protected:
  /// `moments` names the state tensors of one parameter, beside its own count of steps.
  Optimizer(const Module& module, double learning_rate, std::vector<std::string> moments);

  /// Updates one parameter for the `step`-th time, counted from 1; `state` has one tensor per moment,
  /// `remainder` is undefined but for bf16.
  virtual void update(const Tensor& parameter, const Tensor& gradient, const std::vector<Tensor>& state,
                      const Tensor& remainder, int64_t step) = 0;

 private:
  struct Slot {
    std::string name;
    Tensor parameter;
    std::vector<Tensor> state = {};  // empty until the first gradient
    Tensor remainder = {};           // likewise, and but for bf16
    int64_t steps = 0;  // updates so far: as in PyTorch, bias corrections count from the first gradient
    bool in_backward = false;
  };
  void make_state(Slot& slot) const;
  void step(Slot& slot);
  /// The slot's state by its saved names.
  std::vector<std::pair<std::string, Tensor>> named_state(const Slot& slot) const;

  double learning_rate_;
  int64_t steps_ = 0;
  std::vector<std::string> moments_;
  std::vector<Slot> slots_;
};

/// Adam, AdamW or RAdam (see ops/optimizer_step.h); options.lr is the initial learning rate.
class Adam : public Optimizer {
 public:
  Adam(const Module& module, AdamKind kind, const AdamOptions& options = {});

 private:
  void update(const Tensor& parameter, const Tensor& gradient, const std::vector<Tensor>& state,
              const Tensor& remainder, int64_t step) override;
  AdamKind kind_;
  AdamOptions options_;
};

/// Stochastic gradient descent; options.lr is the initial learning rate.
class Sgd : public Optimizer {
 public:
  explicit Sgd(const Module& module, const SgdOptions& options = {});

 private:
  void update(const Tensor& parameter, const Tensor& gradient, const std::vector<Tensor>& state,
              const Tensor& remainder, int64_t step) override;
  SgdOptions options_;
};

/// Scales the gradients of all parameters so that their joint norm is at most max_norm; returns the norm
/// before. Throws Error under Optimizer::step_in_backward().
double clip_gradient_norm(const Module& module, double max_norm);

}  // namespace elwise::nn
