#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/tensor.h"

namespace elwise {

class Node;
struct Edge;

/// Sees a gradient, and replaces it where it returns a defined tensor.
using GradientHook = std::function<Tensor(const Tensor& gradient)>;

/// The gradient after all hooks, in their order. Throws Error for a replacement of another shape or dtype.
Tensor run_hooks(const std::vector<GradientHook>& hooks, Tensor gradient);

/// What a tensor knows of autograd.
struct AutogradState {
  bool leaf_requires_grad = false;
  Tensor grad;                      // of a leaf
  std::shared_ptr<Node> node;       // the op that made the tensor; null for a leaf
  int output = 0;                   // which of the op's outputs it is
  std::vector<GradientHook> hooks;  // of a leaf; an op's outputs keep theirs in the node
  std::function<void(const Tensor& leaf)> complete_gradient_hook;  // of a leaf
};

/// A tensor kept for backward. Reading it back fails if it was changed in place since.
class SavedTensor {
 public:
  SavedTensor() = default;
  /// Keeps the elements, not the graph. An undefined tensor stays undefined.
  explicit SavedTensor(const Tensor& tensor);

  /// Throws Error, naming the op whose backward runs, when the storage was changed in place since.
  const Tensor& get() const;

 private:
  Tensor tensor_;
  int64_t version_ = 0;
};

/// Gives what BackwardContext::sum_so_far does, for an edge.
using GradientSums = std::function<Tensor(const Edge&)>;

/// What an op's backward function is given.
class BackwardContext {
 public:
  BackwardContext(std::vector<Tensor> gradients, const Node& node, const GradientSums& sums)
      : gradients_(std::move(gradients)), node_(node), sums_(sums) {}

  /// The gradient of output `i`; undefined where nothing depends on that output (only ops with several
  /// outputs).
  const Tensor& gradient(int i = 0) const { return gradients_[static_cast<size_t>(i)]; }

  /// gradient(i), given up: once the op lets go of it it is freed. Where is_unique() holds for the result, no
  /// one else sees it, and it may be overwritten with the op's own result.
  Tensor take_gradient(int i = 0) const { return std::move(gradients_[static_cast<size_t>(i)]); }

  /// True where the gradient of input `i` is wanted; for others return an undefined tensor.
  bool needs(int i) const;

  /// What other ops have added up for input `i` so far, where it may be changed in place: an op can add its
  /// own gradient to it and return this tensor, which saves a buffer and a pass over memory. Undefined where
  /// there is nothing yet, or where the buffer has other users: the op then returns its own gradient, as
  /// ever.
  Tensor sum_so_far(int i) const;

 private:
  mutable std::vector<Tensor> gradients_;  // what is taken is gone
  const Node& node_;
  const GradientSums& sums_;
};

/// Computes the gradients of an op's inputs, in their order, from those of its outputs.
using BackwardFunction = std::function<std::vector<Tensor>(const BackwardContext&)>;

/// Where a gradient flows on to: an output of another op, or a leaf.
struct Edge {
  std::shared_ptr<Node> node;
  int output = 0;
  Tensor leaf;
  Shape shape;
  DType dtype = DType::f32;

  bool defined() const { return node != nullptr || leaf.defined(); }
};

/// One recorded op.
class Node {
 public:
  Node(const char* op, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
       BackwardFunction function);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  const char* op() const { return op_; }
  /// Grows with every node made: a node's inputs have smaller numbers.
  uint64_t sequence() const { return sequence_; }
  const std::vector<Edge>& edges() const { return edges_; }
  int outputs() const { return static_cast<int>(hooks_.size()); }

  void add_hook(int output, GradientHook hook);

  /// Says that the backward function runs a backward() of its own, to leaves that no edge names.
  void set_reaches_other_leaves() { reaches_other_leaves_ = true; }
  bool reaches_other_leaves() const { return reaches_other_leaves_; }

  /// Runs the hooks and the backward function, then frees what it had saved. Throws Error the second time.
  std::vector<Tensor> run(std::vector<Tensor> gradients, const GradientSums& sums);

 private:
  const char* op_;
  uint64_t sequence_;
  std::vector<Edge> edges_;
  std::vector<std::vector<GradientHook>> hooks_;  // per output
  BackwardFunction function_;                     // empty once it has run
  bool reaches_other_leaves_ = false;
};

/// True where an op on these inputs must be recorded: recording is on and an input requires its gradient.
/// Undefined inputs count as not requiring one.
bool needs_gradient(std::initializer_list<Tensor> inputs);
bool needs_gradient(const std::vector<Tensor>& inputs);

/// Records an op: `outputs` were computed from `inputs` (undefined ones allowed), and `backward` returns one
/// gradient (or an undefined tensor) per input. Does nothing unless needs_gradient(inputs). `op` is a string
/// literal. This is all that a new differentiable op needs; see any file in ops/.
void record(const char* op, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
            BackwardFunction backward);

/// As above for one output, which it returns.
Tensor record(const char* op, const std::vector<Tensor>& inputs, Tensor output, BackwardFunction backward);

}  // namespace elwise
