#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/random.h"
#include "nn/optimizer.h"

namespace elwise::nn {

/// Which names did not match when parameters were loaded.
struct LoadReport {
  std::vector<std::string> missing;     // parameters that got no tensor
  std::vector<std::string> unexpected;  // tensors that belong to no parameter
};

/// Copies `tensors` into the parameters of the same name, converting between f32, f64 and bf16. Throws Error
/// for a shape that differs, before anything is changed.
LoadReport load_parameters(const Module& module, const std::map<std::string, Tensor>& tensors);

/// Writes all parameters to a safetensors file under their dotted names, through a file beside it that is
/// then renamed.
void save_parameters(const std::filesystem::path& path, const Module& module);

/// Writes a training run into `folder`: parameters and optimizer state as safetensors, then checkpoint.json,
/// which names that file and holds the step, the learning rate and the random generator's state, with a
/// checksum. checkpoint.json is renamed into place last, so a run that is killed at any moment leaves the old
/// checkpoint or the new one, whole. Throws Error when it cannot write.
void save_checkpoint(const std::filesystem::path& folder, const Module& module, const Optimizer& optimizer,
                     const Generator& generator = default_generator());

/// Restores what save_checkpoint wrote: training goes on bit for bit as if it had not stopped. Throws Error
/// for a missing or damaged file, or one that belongs to another model, before anything is changed.
void load_checkpoint(const std::filesystem::path& folder, const Module& module, Optimizer& optimizer,
                     Generator& generator = default_generator());

/// The optimizer's steps when save_checkpoint wrote into `folder`, for what is kept beside it. Throws Error
/// for a missing or damaged checkpoint.json.
int64_t checkpoint_step(const std::filesystem::path& folder);

/// Restores the parameters alone, for inference. Throws Error as above.
void load_checkpoint(const std::filesystem::path& folder, const Module& module);

}  // namespace elwise::nn
