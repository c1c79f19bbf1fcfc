#include "autograd/engine.h"

#include <algorithm>
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "autograd/grad_mode.h"
#include "autograd/node.h"

namespace elwise {
namespace {

/// Adds `gradient` to `sum`. A buffer that nobody else holds is added to in place.
void add_gradient(Tensor& sum, Tensor gradient) {
  if (!sum.defined()) {
    sum = std::move(gradient);
    return;
  }
  if (!sum.is_unique()) {
    Tensor copy = empty(sum.shape(), sum.options());
    copy.copy_from(sum);
    sum = std::move(copy);
  }
  accumulate(sum, gradient);
}

/// Adds to a leaf's grad(), whose buffer is counted under `gradients`.
void add_to_leaf(const Tensor& leaf, Tensor gradient) {
  Tensor& sum = leaf.autograd_state()->grad;
  if (sum.defined()) {
    accumulate(sum, gradient);  // in place even where it is shared: whoever holds grad() sees the sum
    return;
  }
  if (!gradient.is_unique()) {  // the buffer is another gradient too
    Tensor copy = empty(gradient.shape(), gradient.options());
    copy.copy_from(gradient);
    gradient = std::move(copy);
  }
  gradient.storage()->set_tag(MemoryTag::gradients);
  sum = std::move(gradient);
}

/// Calls leaves' complete_gradient_hook, for one outermost backward().
class CompleteGradients {
 public:
  /// Counts the uses of leaves with a hook by the nodes at `edge` and below it.
  void expect(const Edge& edge) {
    std::vector<Node*> found;
    const auto visit = [&](const Edge& to) {
      if (to.leaf.defined() && to.leaf.has_complete_gradient_hook())
        ++leaves_[to.leaf.autograd_state().get()].uses;
      if (to.node != nullptr && seen_.insert(to.node.get()).second) found.push_back(to.node.get());
    };
    visit(edge);
    while (!found.empty()) {
      const Node& node = *found.back();
      found.pop_back();
      if (node.reaches_other_leaves()) ++unknown_;
      for (const Edge& to : node.edges()) visit(to);
    }
  }

  /// A gradient was added to the leaf, here or in a backward() within this one.
  void received(const Tensor& leaf) {
    if (leaf.has_complete_gradient_hook()) leaves_[leaf.autograd_state().get()].leaf = leaf;
  }

  /// The node has run: calls the hooks of leaves to which nothing more can come.
  void done(const Node& node) {
    if (node.reaches_other_leaves()) --unknown_;
    if (leaves_.empty()) return;
    for (const Edge& edge : node.edges()) {
      if (!edge.leaf.defined() || !edge.leaf.has_complete_gradient_hook()) continue;
      Waiting& waiting = leaves_[edge.leaf.autograd_state().get()];
      if (--waiting.uses == 0 && unknown_ == 0) complete(waiting);
    }
  }

  /// Everything has run.
  void finish() {
    auto leaves = std::move(leaves_);  // a hook may run a backward() of its own
    for (auto& [state, waiting] : leaves) complete(waiting);
  }

 private:
  struct Waiting {
    Tensor leaf;  // undefined while it has received nothing
    int64_t uses = 0;
  };

  static void complete(Waiting& waiting) {
    const Tensor leaf = std::move(waiting.leaf);
    if (leaf.defined()) leaf.autograd_state()->complete_gradient_hook(leaf);
  }

  std::unordered_map<const AutogradState*, Waiting> leaves_;
  std::unordered_set<const Node*> seen_;
  int64_t unknown_ = 0;  // nodes to come that may reach any leaf
};

/// One run of backward: gradients wait at their nodes, and the node made last goes first, so that all its
/// gradients are there.
class BackwardRun {
 public:
  BackwardRun() {
    if (complete_ == nullptr) complete_ = &own_complete_;
  }
  ~BackwardRun() {
    if (is_outermost()) complete_ = nullptr;
  }
  BackwardRun(const BackwardRun&) = delete;
  BackwardRun& operator=(const BackwardRun&) = delete;

  /// Where the run starts.
  void start(const Edge& edge, Tensor gradient) {
    if (is_outermost()) complete_->expect(edge);
    deliver(edge, std::move(gradient), "backward");
  }

  void run() {
    const GradientSums sums = [this](const Edge& edge) { return sum_so_far(edge); };
    while (!nodes_.empty()) {
      auto last = nodes_.extract(std::prev(nodes_.end()));
      const std::shared_ptr<Node> node = std::move(last.mapped().node);
      std::vector<Tensor> results = node->run(std::move(last.mapped().gradients), sums);
      for (size_t i = 0; i < results.size(); ++i) {
        const Edge& edge = node->edges()[i];
        if (edge.defined() && results[i].defined()) deliver(edge, std::move(results[i]), node->op());
      }
      lent_.clear();
      if (is_outermost()) complete_->done(*node);
    }
    for (auto& [leaf, gradient] : hooked_leaves_) {
      add_to_leaf(leaf, run_hooks(leaf.autograd_state()->hooks, std::move(gradient)));
      complete_->received(leaf);
    }
    if (is_outermost()) complete_->finish();
  }

 private:
  bool is_outermost() const { return complete_ == &own_complete_; }

  void deliver(const Edge& edge, Tensor gradient, const char* op) {
    ELWISE_CHECK(gradient.shape() == edge.shape && gradient.dtype() == edge.dtype, op,
                 " backward: expected a gradient of ", edge.shape, " ", edge.dtype, ", got ",
                 gradient.shape(), " ", gradient.dtype());
    const bool to_leaf = edge.node == nullptr && edge.leaf.autograd_state()->hooks.empty();
    if (to_leaf) complete_->received(edge.leaf);
    if (was_added(gradient)) return;
    if (edge.node != nullptr) {
      Waiting& waiting = nodes_[edge.node->sequence()];
      if (waiting.node == nullptr) {
        waiting.node = edge.node;
        waiting.gradients.resize(static_cast<size_t>(edge.node->outputs()));
      }
      add_gradient(waiting.gradients[static_cast<size_t>(edge.output)], std::move(gradient));
    } else if (to_leaf) {
      add_to_leaf(edge.leaf, std::move(gradient));
    } else {
      for (auto& [leaf, sum] : hooked_leaves_) {
        if (leaf.is_same(edge.leaf)) return add_gradient(sum, std::move(gradient));
      }
      hooked_leaves_.emplace_back(edge.leaf, std::move(gradient));
    }
  }

  /// BackwardContext::sum_so_far for the node that runs.
  Tensor sum_so_far(const Edge& edge) {
    Tensor sum;
    if (edge.node == nullptr) {
      const AutogradState& state = *edge.leaf.autograd_state();
      if (state.hooks.empty())
        sum = state.grad;  // a hook sees the sum of this run alone, which waits elsewhere
    } else if (const auto found = nodes_.find(edge.node->sequence()); found != nodes_.end()) {
      const Tensor& waiting = found->second.gradients[static_cast<size_t>(edge.output)];
      if (waiting.defined() && waiting.is_unique()) sum = waiting;
    }
    if (sum.defined()) lent_.push_back(sum);
    return sum;
  }

  /// True where `gradient` is a sum that was lent: the op has added to it.
  bool was_added(const Tensor& gradient) const {
    const bool lent = std::ranges::any_of(lent_, [&](const Tensor& sum) { return sum.is_same(gradient); });
    if (lent) gradient.storage()->bump_version();
    return lent;
  }

  struct Waiting {
    std::shared_ptr<Node> node;
    std::vector<Tensor> gradients;
  };
  std::map<uint64_t, Waiting> nodes_;  // by sequence number
  std::vector<std::pair<Tensor, Tensor>> hooked_leaves_;
  std::vector<Tensor> lent_;  // sums that the running node was given
  CompleteGradients own_complete_;
  static thread_local CompleteGradients* complete_;  // of the outermost run on this thread
};

thread_local CompleteGradients* BackwardRun::complete_ = nullptr;

AutogradState& state_of(const Tensor& tensor) {
  std::shared_ptr<AutogradState>& state = tensor.autograd_state();
  if (state == nullptr) state = std::make_shared<AutogradState>();
  return *state;
}

}  // namespace

void backward(std::vector<Tensor> outputs, std::vector<Tensor> gradients) {
  ELWISE_CHECK(outputs.size() == gradients.size(), "backward: expected one gradient for each of ",
               outputs.size(), " outputs, got ", gradients.size());
  const NoGradGuard no_grad;
  BackwardRun run;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& output = outputs[i];
    ELWISE_CHECK(
        output.defined() && output.requires_grad(),
        "backward: expected an output that requires its gradient; it was computed from no leaf that does, or "
        "under NoGradGuard, or it is itself a gradient (which cannot be differentiated again)");
    Tensor gradient = gradients[i];
    if (!gradient.defined()) {
      ELWISE_CHECK(output.count() == 1, "backward: expected a one-element output or a gradient for it, got ",
                   output.shape());
      gradient = ones_like(output);
    }
    ELWISE_CHECK(gradient.shape() == output.shape() && gradient.dtype() == output.dtype(),
                 "backward: expected a gradient of ", output.shape(), " ", output.dtype(), ", got ",
                 gradient.shape(), " ", gradient.dtype());
    const AutogradState& state = state_of(output);
    const Edge edge{.node = state.node,
                    .output = state.output,
                    .leaf = state.node == nullptr ? output : Tensor(),
                    .shape = output.shape(),
                    .dtype = output.dtype()};
    run.start(edge, gradient.detach());
  }
  outputs.clear();
  gradients.clear();
  run.run();
}

bool Tensor::requires_grad() const {
  const std::shared_ptr<AutogradState>& state = autograd_state();
  return state != nullptr && (state->node != nullptr || state->leaf_requires_grad);
}

Tensor& Tensor::set_requires_grad(bool value) {
  AutogradState& state = state_of(*this);
  ELWISE_CHECK(state.node == nullptr,
               "set_requires_grad: expected a leaf, got the result of a recorded op; use detach()");
  ELWISE_CHECK(!value || is_floating(dtype()), "set_requires_grad: expected a floating dtype, got ", dtype());
  state.leaf_requires_grad = value;
  return *this;
}

Tensor Tensor::grad() const {
  return autograd_state() == nullptr ? Tensor() : autograd_state()->grad;
}

void Tensor::set_grad(Tensor gradient) const {
  ELWISE_CHECK(!gradient.defined() || (gradient.shape() == shape() && gradient.dtype() == dtype()),
               "set_grad: expected ", shape(), " ", dtype(), ", got ", gradient.shape(), " ",
               gradient.dtype());
  state_of(*this).grad = std::move(gradient);
}

void Tensor::backward(const Tensor& gradient) const {
  elwise::backward({*this}, {gradient});
}

void Tensor::register_hook(std::function<Tensor(const Tensor&)> hook) const {
  ELWISE_CHECK(requires_grad(), "register_hook: expected a tensor that requires its gradient");
  AutogradState& state = state_of(*this);
  if (state.node != nullptr) {
    state.node->add_hook(state.output, std::move(hook));
  } else {
    state.hooks.push_back(std::move(hook));
  }
}

bool Tensor::has_complete_gradient_hook() const {
  return autograd_state() != nullptr && autograd_state()->complete_gradient_hook != nullptr;
}

void Tensor::set_complete_gradient_hook(std::function<void(const Tensor&)> hook) const {
  AutogradState& state = state_of(*this);
  ELWISE_CHECK(state.node == nullptr,
               "set_complete_gradient_hook: expected a leaf, got the result of a recorded op");
  ELWISE_CHECK(!hook || !state.complete_gradient_hook,
               "set_complete_gradient_hook: expected a leaf without one, such as another optimizer's");
  state.complete_gradient_hook = std::move(hook);
}

}  // namespace elwise
