#include "nn/module.h"

#include "ops/elementwise.h"

namespace elwise::nn {

template <class Visitor>
void Module::visit(const std::string& prefix, const Visitor& visitor) const {
  for (const auto& [name, parameter] : parameters_) visitor(prefix + name, *parameter);
  for (const auto& [name, part] : modules_) part->visit(prefix + name + ".", visitor);
}

std::vector<std::pair<std::string, Tensor>> Module::named_parameters() const {
  std::vector<std::pair<std::string, Tensor>> result;
  visit("", [&](const std::string& name, const Tensor& parameter) { result.emplace_back(name, parameter); });
  return result;
}

std::vector<Tensor> Module::parameters() const {
  std::vector<Tensor> result;
  visit("", [&](const std::string&, const Tensor& parameter) { result.push_back(parameter); });
  return result;
}

int64_t Module::parameter_count() const {
  int64_t count = 0;
  visit("", [&](const std::string&, const Tensor& parameter) { count += parameter.count(); });
  return count;
}

void Module::train(bool training) {
  training_ = training;
  for (const auto& [name, part] : modules_) part->train(training);
}

void Module::zero_grad() const {
  visit("", [](const std::string&, const Tensor& parameter) { parameter.set_grad({}); });
}

void Module::to(Device device) {
  const MemoryTagGuard tag(MemoryTag::parameters);
  visit("", [device](const std::string&, Tensor& parameter) {
    if (parameter.device() != device) parameter = elwise::to(parameter.detach(), device).set_requires_grad();
  });
}

void Module::add_parameter(std::string name, Tensor& parameter) {
  parameter.storage()->set_tag(MemoryTag::parameters);
  parameter.set_requires_grad();
  parameters_.emplace_back(std::move(name), &parameter);
}

void Module::add_module(std::string name, Module& part) {
  modules_.emplace_back(std::move(name), &part);
}

}  // namespace elwise::nn
