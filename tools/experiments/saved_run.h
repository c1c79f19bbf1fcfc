#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "nn/optimizer.h"

namespace elwise::tools {

/// How far a run is: all that its course depends on beside its model and optimizer, and what it has reported.
struct RunState {
  nlohmann::ordered_json settings = {};  // of the run: those of another do not fit its checkpoint
  int64_t epochs = 0;                    // done
  int64_t best_epoch = 0;                // 1, 2, ..; 0 when none has had a finite score
  double best_score = 0;
  double best_tie_break = 0;
  int64_t waited = 0;  // epochs since the best
  double seconds = 0;
  nlohmann::ordered_json lines =
      nlohmann::ordered_json::array();  // of all epochs, and the last when finished
  bool finished = false;
};

/// Parameters by name, on the CPU.
using Parameters = std::map<std::string, Tensor>;

/// A copy of a module's parameters.
Parameters copy_parameters(const nn::Module& module);

/// Throws Error that names the first setting in which a run saved at `path` and the wanted one differ. A
/// larger max_epochs is fine where the learning rate does not depend on it.
void check_settings(const std::filesystem::path& path, const nlohmann::ordered_json& saved,
                    const nlohmann::ordered_json& wanted);

/// The folder of a run: nn/checkpoint.h's files and, for the same step, the run's state with its best
/// parameters; of a finished run the latter alone, in finished.safetensors. Every save is whole or not at
/// all: a process killed at any moment leaves the state before or after it.
class SavedRun {
 public:
  /// No folder: nothing is saved, and nothing is there.
  explicit SavedRun(std::filesystem::path folder) : folder_(std::move(folder)) {}

  bool exists() const;

  void save(const RunState& state, const Parameters& best, const nn::Module& model,
            const nn::Optimizer& optimizer) const;
  /// The state and the best parameters, whatever the settings. Throws Error where nothing was saved, and for
  /// a damaged file.
  std::pair<RunState, Parameters> load() const;

  /// After save(), once nothing more is to be done.
  void finish(const RunState& state, const Parameters& best) const;

  /// The state of a finished run; nothing for another. Throws Error for a damaged file and for a run whose
  /// settings are not `settings` (a larger max_epochs aside, if the learning rate does not depend on it), as
  /// restore() does.
  std::optional<RunState> finished(const nlohmann::ordered_json& settings) const;

  /// Puts the model, the optimizer and default_generator() back where save() found them; nothing where
  /// nothing was saved.
  std::optional<RunState> restore(const nlohmann::ordered_json& settings, Parameters& best,
                                  const nn::Module& model, nn::Optimizer& optimizer) const;

 private:
  std::filesystem::path run_file(int64_t step) const;

  std::filesystem::path folder_;
};

}  // namespace elwise::tools
