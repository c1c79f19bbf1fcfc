#pragma once

#include <vector>

#include "models/decoder.h"
#include "tools/experiments/experiment.h"
#include "tools/experiments/recall_tasks.h"

namespace elwise::tools {

/// An experiment of train_recall: one task in several sizes, each learned by the same decoder.
struct RecallTraining {
  std::vector<RecallConfig> sizes;  // which differ in length and pairs: the conditions
  models::BertConfig model;         // without its attention, and with the options' device
  int64_t batches = 100;            // of an epoch, of fresh examples
  int64_t validation = 512;         // sequences, the same for every run
  int64_t test = 2048;
};

/// How a model answers.
struct RecallScore {
  double loss = 0;      // mean cross entropy of the answers, in nats
  double accuracy = 0;  // share of the questions whose answer it holds for most probable
};

/// Over `count` examples of a split, in batches of `batch`. The model is in eval().
RecallScore recall_score(const models::Decoder& model, const RecallConfig& task, RecallSplit split,
                         int64_t count, int64_t batch);

/// Conditions are {"length", "pairs"}, the result is test_accuracy (beside test_loss, and chance: the
/// accuracy of one who guesses among the possible answers); the baselines are guesses. A run with batches of
/// `batch` draws its own training examples by its seed; all are validated and tested on the same ones. Throws
/// Error for sizes that check() refuses.
Experiment recall_experiment(const RecallTraining& training, int64_t batch);

}  // namespace elwise::tools
