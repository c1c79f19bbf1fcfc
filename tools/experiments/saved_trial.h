#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "tools/experiments/experiment.h"

namespace elwise::tools {

/// Where the data of a saved run lie now.
struct DataFiles {
  std::filesystem::path train = {};  // of train_classifier
  std::filesystem::path test = {};
  std::filesystem::path data = {};  // of train_forecaster
};

/// A run that train_classifier, train_forecaster or train_recall saved.
struct SavedTrial {
  std::string attention;
  bool causal = true;
  std::unique_ptr<Trial> trial;  // with the best parameters, in eval()
};

/// From the folder of a run, whose settings say which program made it. Throws Error for a folder without one,
/// a damaged file and data files that are not those of the run, UsageError where one is not given.
SavedTrial load_trial(const std::filesystem::path& folder, const DataFiles& files);

}  // namespace elwise::tools
