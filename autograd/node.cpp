#include "autograd/node.h"

#include <atomic>

#include "autograd/grad_mode.h"

namespace elwise {
namespace {

std::atomic<uint64_t> nodes_made = 0;
thread_local const char* running_op = "backward";

Edge edge_to(const Tensor& input) {
  if (!input.defined() || !input.requires_grad()) return {};
  const std::shared_ptr<AutogradState>& state = input.autograd_state();
  Edge edge{.node = state->node,
            .output = state->output,
            .leaf = {},
            .shape = input.shape(),
            .dtype = input.dtype()};
  if (edge.node == nullptr) edge.leaf = input;
  return edge;
}

}  // namespace

Tensor run_hooks(const std::vector<GradientHook>& hooks, Tensor gradient) {
  for (const GradientHook& hook : hooks) {
    Tensor replaced = hook(gradient);
    if (!replaced.defined()) continue;
    ELWISE_CHECK(replaced.shape() == gradient.shape() && replaced.dtype() == gradient.dtype(),
                 "hook: expected a gradient of ", gradient.shape(), " ", gradient.dtype(), ", got ",
                 replaced.shape(), " ", replaced.dtype());
    gradient = std::move(replaced);
  }
  return gradient;
}

SavedTensor::SavedTensor(const Tensor& tensor) {
  if (!tensor.defined()) return;
  tensor_ = tensor.detach();
  version_ = tensor.storage()->version();
}

const Tensor& SavedTensor::get() const {
  if (tensor_.defined()) {
    ELWISE_CHECK(tensor_.storage()->version() == version_, running_op, " backward: a tensor of shape ",
                 tensor_.shape(), " that forward saved was changed in place since (version ",
                 tensor_.storage()->version(), ", expected ", version_, "); clone it before changing it");
  }
  return tensor_;
}

bool BackwardContext::needs(int i) const {
  return node_.edges()[static_cast<size_t>(i)].defined();
}

Tensor BackwardContext::sum_so_far(int i) const {
  return needs(i) ? sums_(node_.edges()[static_cast<size_t>(i)]) : Tensor();
}

Node::Node(const char* op, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
           BackwardFunction function)
    : op_(op), sequence_(++nodes_made), hooks_(outputs.size()), function_(std::move(function)) {
  edges_.reserve(inputs.size());
  for (const Tensor& input : inputs) edges_.push_back(edge_to(input));
}

Node::~Node() {
  // A chain of nodes is freed in a loop: recursion would overflow the stack on a long one.
  std::vector<std::shared_ptr<Node>> chain;
  const auto take_inputs = [&chain](Node& node) {
    node.function_ = nullptr;
    for (Edge& edge : node.edges_) {
      if (edge.node != nullptr) chain.push_back(std::move(edge.node));
    }
  };
  take_inputs(*this);
  while (!chain.empty()) {
    const std::shared_ptr<Node> node = std::move(chain.back());
    chain.pop_back();
    if (node.use_count() == 1) take_inputs(*node);
  }
}

void Node::add_hook(int output, GradientHook hook) {
  hooks_[static_cast<size_t>(output)].push_back(std::move(hook));
}

std::vector<Tensor> Node::run(std::vector<Tensor> gradients, const GradientSums& sums) {
  ELWISE_CHECK(function_, "backward: the graph through ", op_,
               " was freed by an earlier backward(); compute the forward pass again");
  for (size_t i = 0; i < hooks_.size(); ++i) {
    if (gradients[i].defined()) gradients[i] = run_hooks(hooks_[i], std::move(gradients[i]));
  }
  const BackwardFunction function = std::move(function_);
  function_ = nullptr;
  const char* const caller = running_op;
  running_op = op_;
  struct Restore {
    const char* caller;
    ~Restore() { running_op = caller; }
  } restore{caller};
  std::vector<Tensor> results = function(BackwardContext(std::move(gradients), *this, sums));
  ELWISE_CHECK(results.size() == edges_.size(), op_, " backward: expected ", edges_.size(),
               " gradients, got ", results.size());
  return results;
}

bool needs_gradient(std::initializer_list<Tensor> inputs) {
  return needs_gradient(std::vector<Tensor>(inputs));
}

bool needs_gradient(const std::vector<Tensor>& inputs) {
  if (!grad_enabled()) return false;
  for (const Tensor& input : inputs) {
    if (input.defined() && input.requires_grad()) return true;
  }
  return false;
}

void record(const char* op, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
            BackwardFunction backward) {
  if (!needs_gradient(inputs)) return;
  const auto node = std::make_shared<Node>(op, inputs, outputs, std::move(backward));
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto state = std::make_shared<AutogradState>();
    state->node = node;
    state->output = static_cast<int>(i);
    outputs[i].autograd_state() = std::move(state);
  }
}

Tensor record(const char* op, const std::vector<Tensor>& inputs, Tensor output, BackwardFunction backward) {
  record(op, inputs, std::vector<Tensor>{output}, std::move(backward));
  return output;
}

}  // namespace elwise
