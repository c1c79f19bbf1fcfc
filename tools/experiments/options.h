#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "nn/optimizer.h"
#include "tools/console.h"

// The command line that the programs which train for a result (train_classifier, train_forecaster,
// train_recall) share.

namespace elwise::tools {

/// How each run of an experiment is trained.
struct TrainingOptions {
  std::string optimizer = "adam";     // adam, adamw, radam
  double learning_rate = 1e-3;        // the highest
  std::string schedule = "constant";  // after the warm-up: constant, or cosine (to 0 at the last of `epochs`)
  double warmup = 0;                  // share of all steps over which the learning rate rises from 0
  double weight_decay = 0;
  double clip = 4;  // largest joint norm of the gradients; 0: any
  int64_t batch = 16;
  int64_t epochs = 100;               // at most
  int64_t patience = 10;              // epochs without a better validation score after which a run ends
  std::optional<double> target = {};  // a run ends with a validation score of as much
};

/// What to run, how, and where the results go. A program sets its own defaults, then adds the options.
struct ExperimentOptions {
  std::vector<std::string> attentions = {"ea-6", "ea-2", "sa", "none"};
  std::vector<uint64_t> seeds = {0};
  TrainingOptions training = {};
  std::string device_name = "cpu";
  std::string dtype = "f32";
  int threads = num_threads();            // at most
  std::filesystem::path checkpoint = {};  // a folder, or none
  bool resume = false;
  std::filesystem::path json = {};  // a file, or none
  std::filesystem::path plot = {};  // a folder, or none
  bool quiet = false;

  Device device() const { return parse_device(device_name); }
  TensorOptions tensor_options() const;
};

/// --attention, --seeds, --optimizer, --learning-rate, --schedule, --warmup, --weight-decay, --clip, --batch,
/// --epochs, --patience, --device, --dtype, --threads, --checkpoint, --resume, --json, --plot and --quiet.
void add_experiment_options(CLI::App& app, ExperimentOptions& options);

/// Checks what CLI11 cannot and sets the number of threads. Throws UsageError, or Error for a device that is
/// not there.
void finish_experiment_options(ExperimentOptions& options);

/// Throws UsageError where a list names a value twice.
template <class T>
void check_distinct(const char* option, std::vector<T> values) {
  std::sort(values.begin(), values.end());
  if (std::adjacent_find(values.begin(), values.end()) != values.end()) {
    throw UsageError(std::string(option) + ": expected each value once");
  }
}

}  // namespace elwise::tools
