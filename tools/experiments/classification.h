#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "models/classifier.h"
#include "tools/experiments/experiment.h"
#include "tools/experiments/series_data.h"

namespace elwise::tools {

struct ClassificationOptions {
  std::filesystem::path train = {};  // .ts files
  std::filesystem::path test = {};
  std::string validation = "holdout";   // or "test", as the Time Series Library (TSL)
  double validation_share = 0.2;        // of the training series, with holdout
  std::string normalize = "train";      // by the training series; "split": each file by itself, as TSL
  models::ClassifierConfig model = {};  // inputs, classes, positions and attention follow from the data
};

/// The data of the experiment, and what of it each run sees.
class Classification {
 public:
  /// Reads both files. Throws Error for a damaged file and a test set of other labels or dimensions.
  explicit Classification(const ClassificationOptions& options);

  const SeriesSet& training() const { return train_; }
  const SeriesSet& test() const { return test_; }
  /// The length that series are padded to.
  int64_t positions() const { return std::max(train_.longest(), test_.longest()); }
  /// With holdout: how many training series validate.
  int64_t held_out() const;

  /// Runs with batches of `batch` series on options.model.options.device.
  Experiment experiment(int64_t batch) const;

 private:
  nlohmann::ordered_json settings() const;

  ClassificationOptions options_;
  SeriesSet train_;
  SeriesSet test_;
};

}  // namespace elwise::tools
