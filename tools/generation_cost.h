#pragma once

#include <optional>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/roofline.h"
#include "models/decoder.h"
#include "tools/kernel_profile.h"

// What a generated token costs: figure 5 of arXiv 2501.05730.

namespace elwise::tools {

/// A decoder of random weights, ready to generate.
class GenerationModel {
 public:
  /// Throws Error where a few of its steps differ from its forward(), so that nothing wrong is timed, and as
  /// Decoder does.
  GenerationModel(const models::BertConfig& config, uint64_t seed);

  const models::Decoder& decoder() const { return decoder_; }
  const models::BertConfig& config() const { return decoder_.config(); }
  int64_t parameters() const { return decoder_.parameter_count(); }
  /// Bytes of the weights that every step reads: all but the tables of which it reads single rows.
  int64_t weight_bytes() const { return weight_bytes_; }
  /// Bytes of all its tensors, each rounded up as the allocator does.
  int64_t allocated_bytes() const { return allocated_bytes_; }

 private:
  int64_t allocated_before_;
  models::Decoder decoder_;
  int64_t allocated_bytes_;
  int64_t weight_bytes_ = 0;
};

/// What a step costs at a position, the number of tokens before it. Times are medians over the steps, absent
/// on meta; the floor is the time that reading the weights once takes, measured right before each step.
struct StepCost {
  int64_t batch = 0;
  int64_t position = 0;
  std::optional<double> ms_per_token = {};  // of a step: a token for every row of the batch
  std::optional<double> weight_floor_ms = {}, floor_ratio = {};
  int64_t state_bytes = 0;                  // after the first step
  int64_t steps = 0;                        // that were measured
  std::vector<KernelSummary> profile = {};  // empty unless asked for
};

/// Single steps at one position, whose state is filled without computing what stands before (Decoder::skip).
class PositionTimer {
 public:
  /// Fills the state and makes one step, in which a cache may grow: the timed ones follow it.
  PositionTimer(const GenerationModel& model, int64_t batch, int64_t position);

  /// Times the next step, and the memory before it; with `profile` each kernel too, and the roofline after
  /// it.
  void time_step(RooflineMeter& meter, bool profile);

  StepCost cost() const;
  const GenerationModel& model() const { return model_; }

 private:
  const GenerationModel& model_;
  models::GenerationState state_;
  Tensor tokens_;
  StepCost cost_;
  std::vector<double> times_, floors_, ratios_;
  std::vector<ProfiledStep> profiled_;
};

/// What it costs to generate `length` tokens, one after the other from nothing. Times are absent on meta.
struct GenerationCost {
  int64_t batch = 0;
  int64_t length = 0;
  std::optional<double> total_ms = {};  // of all steps
  std::optional<double> ms_per_token =
      {};  // of a step, a token for every row of the batch: median of them all
  std::optional<double> last_step_ms = {};  // median of the last, at most 16
  int64_t state_bytes = 0;                  // in the end
  int64_t peak_bytes = 0;                   // of all memory
};

/// Generates token by token and notes what it had cost at each of some lengths. Several of them can take
/// turns: what a machine's drift does to one it does to all. Memory is counted as if each were alone.
class GenerationTimer {
 public:
  /// `lengths` ascend. Makes one step beforehand that is not counted, and draws the tokens: what is timed is
  /// the model.
  GenerationTimer(const GenerationModel& model, int64_t batch, std::vector<int64_t> lengths);

  /// Generates the next token. Throws OutOfMemoryError.
  void step();

  bool done() const { return costs_.size() == lengths_.size(); }
  /// At each length reached so far.
  const std::vector<GenerationCost>& costs() const { return costs_; }
  const GenerationModel& model() const { return model_; }

 private:
  const GenerationModel& model_;
  int64_t batch_;
  std::vector<int64_t> lengths_;
  Tensor tokens_;
  models::GenerationState state_;
  int64_t own_bytes_;  // of the model, the tokens and the state
  int64_t peak_bytes_ = 0;
  std::vector<double> times_;
  std::vector<GenerationCost> costs_;
};

/// The JSON objects of measurements; times are null on meta.
nlohmann::ordered_json to_json(const GenerationModel& model, const StepCost& cost);
nlohmann::ordered_json to_json(const GenerationModel& model, const GenerationCost& cost);

/// Where the second of two curves over the same ascending x comes to lie below the first for good: between
/// two measured points by a straight line, at the first point where it lies below everywhere; nothing where
/// it does not at the last.
std::optional<double> crossing(const std::vector<double>& x, const std::vector<double>& first,
                               const std::vector<double>& second);

}  // namespace elwise::tools
