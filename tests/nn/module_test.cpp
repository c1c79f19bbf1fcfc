#include "nn/module.h"

#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/support/op_test.h"

namespace elwise::nn {
namespace {

using testing::Values;
using testing::values_of;

class Leaf : public Module {
 public:
  explicit Leaf(int64_t size) : weight(ones({size})) { add_parameter("weight", weight); }
  Tensor weight;
};

class Branch : public Module {
 public:
  Branch() : scale(ones({3})), left(4), right(5) {
    add_module("left", left);
    add_parameter("scale", scale);
    add_module("right", right);
  }
  Tensor scale;
  Leaf left, right;
};

class Tree : public Module {
 public:
  Tree() {
    add_module("branch", branch);
    add_module("leaf", leaf);
  }
  Branch branch;
  Leaf leaf{2};
};

TEST_CASE("parameters have dotted names, own ones first, in the order of registration") {
  const Tree tree;
  std::vector<std::string> names;
  for (const auto& [name, parameter] : tree.named_parameters()) {
    names.push_back(name + " " + std::to_string(parameter.count()));
  }
  CHECK(names == std::vector<std::string>{"branch.scale 3", "branch.left.weight 4", "branch.right.weight 5",
                                          "leaf.weight 2"});
  CHECK(tree.parameters().size() == 4);
  CHECK(tree.parameters()[1].is_same(tree.branch.left.weight));
  CHECK(tree.parameter_count() == 14);
  CHECK(Module().parameter_count() == 0);
}

TEST_CASE("a parameter requires its gradient and counts as one") {
  const MemoryStats before = memory_stats(kCpu);
  const Tree tree;
  const MemoryStats after = memory_stats(kCpu);
  for (const Tensor& parameter : tree.parameters()) CHECK(parameter.requires_grad());
  CHECK(after[MemoryTag::parameters].now - before[MemoryTag::parameters].now == 4 * 64);
  CHECK(after[MemoryTag::activations].now == before[MemoryTag::activations].now);
}

TEST_CASE("train and eval reach every part") {
  Tree tree;
  CHECK(tree.is_training());
  tree.eval();
  CHECK_FALSE(tree.is_training());
  CHECK_FALSE(tree.branch.is_training());
  CHECK_FALSE(tree.branch.right.is_training());
  tree.train();
  CHECK(tree.branch.right.is_training());
  tree.branch.eval();
  CHECK(tree.is_training());
  CHECK(tree.leaf.is_training());
  CHECK_FALSE(tree.branch.left.is_training());
}

TEST_CASE("zero_grad clears every gradient") {
  const Tree tree;
  for (const Tensor& parameter : tree.parameters()) sum(parameter).backward();
  CHECK(values_of(tree.branch.scale.grad()) == Values{1, 1, 1});
  tree.zero_grad();
  for (const Tensor& parameter : tree.parameters()) CHECK_FALSE(parameter.grad().defined());
}

TEST_CASE("to() replaces the parameters by copies on the device") {
  const MemoryStats cpu_before = memory_stats(kCpu), meta_before = memory_stats(kMeta);
  Tree tree;
  const Tensor old = tree.leaf.weight;
  tree.to(kCpu);
  CHECK(tree.leaf.weight.is_same(old));
  tree.to(kMeta);
  CHECK_FALSE(tree.leaf.weight.is_same(old));
  CHECK(old.device() == kCpu);
  for (const Tensor& parameter : tree.parameters()) {
    CHECK(parameter.device() == kMeta);
    CHECK(parameter.requires_grad());
  }
  CHECK(tree.leaf.weight.shape() == Shape{2});
  CHECK(memory_stats(kMeta)[MemoryTag::parameters].now == meta_before[MemoryTag::parameters].now + 4 * 64);
  CHECK(memory_stats(kCpu)[MemoryTag::parameters].now == cpu_before[MemoryTag::parameters].now + 64);
}

}  // namespace
}  // namespace elwise::nn
