#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace elwise::nn {

/// A part of a model: named parameters and named parts of its own. A module is built in place and never
/// moves; a parameter's handle stays valid until to() replaces it, so make optimizers after to().
class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// All parameters with their dotted names ("encoder.layer.0.output.dense.weight"), own ones first, then the
  /// parts' in the order of registration.
  std::vector<std::pair<std::string, Tensor>> named_parameters() const;
  std::vector<Tensor> parameters() const;
  /// Number of values in all parameters.
  int64_t parameter_count() const;

  /// Switches dropout on (true) or off, here and in all parts.
  void train(bool training = true);
  void eval() { train(false); }
  bool is_training() const { return training_; }

  /// Clears all gradients.
  void zero_grad() const;

  /// Replaces every parameter by its copy on `device`.
  void to(Device device);

 protected:
  /// Makes `parameter` (a member of the derived class) a trained parameter called `name`.
  void add_parameter(std::string name, Tensor& parameter);
  /// Makes `part` (which must live as long as this module) a part called `name`.
  void add_module(std::string name, Module& part);

 private:
  template <class Visitor>
  void visit(const std::string& prefix, const Visitor& visitor) const;

  std::vector<std::pair<std::string, Tensor*>> parameters_;
  std::vector<std::pair<std::string, Module*>> modules_;
  bool training_ = true;
};

}  // namespace elwise::nn
