#include "nn/checkpoint.h"

#include <nlohmann/json.hpp>

#include "core/checksum.h"
#include "core/file.h"
#include "core/safetensors.h"
#include "ops/elementwise.h"

namespace elwise::nn {
namespace {

constexpr const char* kIndexFile = "checkpoint.json";
constexpr const char* kModelPrefix = "model.";
constexpr const char* kOptimizerPrefix = "optimizer.";

std::map<std::string, Tensor> parameter_map(const Module& module) {
  std::map<std::string, Tensor> result;
  for (const auto& [name, parameter] : module.named_parameters()) result.emplace(name, parameter.detach());
  return result;
}

/// The entries whose name starts with `prefix`, under the rest of their name.
std::map<std::string, Tensor> with_prefix(const std::map<std::string, Tensor>& tensors,
                                          const std::string& prefix) {
  std::map<std::string, Tensor> result;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with(prefix)) result.emplace(name.substr(prefix.size()), tensor);
  }
  return result;
}

/// Which names of the two do not match. Throws Error for those that do but differ in shape or kind of dtype.
LoadReport compare(const std::map<std::string, Tensor>& parameters,
                   const std::map<std::string, Tensor>& tensors) {
  LoadReport report;
  for (const auto& [name, tensor] : tensors) {
    const auto found = parameters.find(name);
    if (found == parameters.end()) {
      report.unexpected.push_back(name);
      continue;
    }
    ELWISE_CHECK(tensor.shape() == found->second.shape(), "load_parameters: expected ", name, " of shape ",
                 found->second.shape(), ", got ", tensor.shape());
    ELWISE_CHECK(is_floating(tensor.dtype()), "load_parameters: expected ", name,
                 " of a floating dtype, got ", tensor.dtype());
  }
  for (const auto& [name, parameter] : parameters) {
    if (!tensors.contains(name)) report.missing.push_back(name);
  }
  return report;
}

/// A name for the checkpoint's tensors that no file in the folder has: whatever checkpoint.json names now
/// must stay as it is.
std::string new_tensor_file(const std::filesystem::path& folder, int64_t step) {
  const std::string stem = "step-" + std::to_string(step);
  std::string file = stem + ".safetensors";
  for (int copy = 2; std::filesystem::exists(folder / file); ++copy)
    file = stem + "-" + std::to_string(copy) + ".safetensors";
  return file;
}

/// What checkpoint.json holds.
struct Index {
  std::string file;  // of the tensors
  int64_t step;
  double learning_rate;
  RandomStream random;
};

constexpr const char* kChecksumKey = "checksum";

/// Of all that the index says but this.
std::string checksum_of(nlohmann::json index) {
  index.erase(kChecksumKey);
  const std::string text = index.dump();
  Checksum checksum;
  checksum.add(text.data(), static_cast<int64_t>(text.size()));
  return std::to_string(checksum.value());
}

Index read_index(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kIndexFile;
  const nlohmann::json index = nlohmann::json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  ELWISE_CHECK(!index.is_discarded(), "checkpoint: ", path.string(), " is damaged: it is not JSON");
  try {
    const nlohmann::json& random = index.at("random");
    ELWISE_CHECK(index.at(kChecksumKey).get<std::string>() == checksum_of(index),
                 "checkpoint: ", path.string(), " is damaged: it does not have its checksum");
    return {.file = index.at("file").get<std::string>(),
            .step = index.at("step").get<int64_t>(),
            .learning_rate = index.at("learning_rate").get<double>(),
            .random = {random.at("seed").get<uint64_t>(), random.at("offset").get<uint64_t>()}};
  } catch (const nlohmann::json::exception& problem) {
    fail("checkpoint: ", path.string(), " is damaged: ", problem.what());
  }
}

/// The model's tensors among those of a checkpoint's `file`. Throws Error for those of another model.
std::map<std::string, Tensor> model_of(const std::map<std::string, Tensor>& tensors,
                                       const std::filesystem::path& file, const Module& module) {
  std::map<std::string, Tensor> result = with_prefix(tensors, kModelPrefix);
  const LoadReport report = compare(parameter_map(module), result);
  ELWISE_CHECK(report.missing.empty() && report.unexpected.empty(), "checkpoint: ", file.string(),
               " belongs to another model: ", report.missing.size(), " parameters are missing, ",
               report.unexpected.size(), " are unknown");
  return result;
}

}  // namespace

LoadReport load_parameters(const Module& module, const std::map<std::string, Tensor>& tensors) {
  const std::map<std::string, Tensor> parameters = parameter_map(module);
  LoadReport report = compare(parameters, tensors);
  for (const auto& [name, parameter] : parameters) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) continue;
    const Tensor& source = found->second;
    Tensor target = parameter;
    target.copy_from(
        to(source.dtype() == target.dtype() ? source : cast(source, target.dtype()), target.device()));
  }
  return report;
}

void save_parameters(const std::filesystem::path& path, const Module& module) {
  save_safetensors(path, parameter_map(module));
}

void save_checkpoint(const std::filesystem::path& folder, const Module& module, const Optimizer& optimizer,
                     const Generator& generator) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  ELWISE_CHECK(!error, "checkpoint: cannot create ", folder.string(), ": ", error.message());
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, tensor] : parameter_map(module)) tensors.emplace(kModelPrefix + name, tensor);
  for (const auto& [name, tensor] : optimizer.state())
    tensors.emplace(kOptimizerPrefix + name, tensor.detach());
  const std::string file = new_tensor_file(folder, optimizer.steps());
  save_safetensors(folder / file, tensors);

  const RandomStream random = generator.state();
  nlohmann::json index = {{"file", file},
                          {"step", optimizer.steps()},
                          {"learning_rate", optimizer.learning_rate()},
                          {"random", {{"seed", random.seed}, {"offset", random.offset}}}};
  index[kChecksumKey] = checksum_of(index);
  write_file_atomically(folder / kIndexFile, index.dump(2) + "\n");
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && name.ends_with(".safetensors") && name != file) {
      std::filesystem::remove(entry.path(), error);  // one left behind is only disk space
    }
  }
}

void load_checkpoint(const std::filesystem::path& folder, const Module& module, Optimizer& optimizer,
                     Generator& generator) {
  const Index index = read_index(folder);
  const std::map<std::string, Tensor> tensors = load_safetensors(folder / index.file);
  const std::map<std::string, Tensor> model_tensors = model_of(tensors, folder / index.file, module);
  optimizer.load_state(with_prefix(tensors, kOptimizerPrefix), index.step);
  load_parameters(module, model_tensors);
  optimizer.set_learning_rate(index.learning_rate);
  generator.set_state(index.random);
}

int64_t checkpoint_step(const std::filesystem::path& folder) {
  return read_index(folder).step;
}

void load_checkpoint(const std::filesystem::path& folder, const Module& module) {
  const std::filesystem::path file = folder / read_index(folder).file;
  load_parameters(module, model_of(load_safetensors(file), file, module));
}

}  // namespace elwise::nn
