#pragma once

#include <filesystem>
#include <optional>

#include "tools/byte_text.h"
#include "tools/json_lines.h"

namespace elwise::tools {

/// A run of train_lm.
struct LmTraining {
  models::BertConfig model;
  std::filesystem::path text = {};
  int64_t length = 64;
  int64_t batch = 16;
  std::optional<int64_t> steps = {};   // the run ends with the first of the two that is reached;
  std::optional<double> minutes = {};  // one at least
  double learning_rate = 3e-3;
  double warmup = 0.02;  // share of the run
  double weight_decay = 0.01;
  double clip = 1;                        // largest joint norm of the gradients; 0: any
  int64_t validate_every = 500;           // steps
  std::filesystem::path checkpoint = {};  // a folder, or none
  bool resume = false;
  uint64_t seed = 0;
  bool quiet = false;
};

/// Trains, printing a line and writing a JSON object for each validation; saves a checkpoint at each, at the
/// end and on Ctrl-C. Returns an exit status. Throws Error, for a loss that is not finite too.
int train_lm(const LmTraining& training, JsonLines& json);

}  // namespace elwise::tools
