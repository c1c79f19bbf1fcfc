#pragma once

#include <filesystem>
#include <functional>
#include <optional>

#include <nlohmann/json.hpp>

#include "core/parallel.h"
#include "models/bert.h"
#include "ops/matmul.h"
#include "tools/kernel_profile.h"

namespace elwise::tools {

/// One configuration whose training step is to be measured.
struct CostRequest {
  models::BertConfig model;  // attention, causal, sizes, dtype, device; dropout 0
  int64_t batch = 1;
  int64_t length = 512;
  int64_t steps = 3;
  int64_t warmup = 2;  // AdamW's state comes with the first, the allocator's last memory with the second
  int threads = num_threads();
  uint64_t seed = 0;
  double learning_rate = 1e-4;
  bool checkpoint_layers = false;
  bool step_in_backward = false;  // AdamW's time is then part of backward's
  bool matmul_floor = true;       // measure it
  bool profile = false;           // time each kernel too; slows the step by the roofline measured after it
  std::filesystem::path text;     // empty: synthetic tokens
};

/// What a training step costs. Times are medians over the measured steps; on meta, where nothing runs, they
/// and the losses are absent.
struct CostResult {
  int64_t parameters = 0;
  std::optional<double> step_ms = {}, forward_ms = {}, backward_ms = {}, optimizer_ms = {};
  std::optional<double> matmul_floor_ms = {};
  std::optional<double> loss_first = {}, loss_last = {};
  MemoryStats memory = {};                  // peaks over the measured steps
  double flops = 0;                         // of one step
  int64_t steps = 0;                        // that were measured; fewer than asked for after an interrupt
  std::vector<KernelSummary> profile = {};  // empty unless asked for

  std::optional<double> tokens_per_s(const CostRequest& request) const;
  /// (forward_ms + backward_ms) / matmul_floor_ms.
  std::optional<double> floor_ratio() const;
};

/// Trains the model on masked-language-model batches for warmup + steps steps of AdamW and measures them,
/// with the request's number of threads, which it leaves set. `progress` is called after each step with its
/// number, and ends the run early by returning false. Throws OutOfMemoryError, and Error for bad sizes.
CostResult measure_cost(const CostRequest& request, const std::function<bool(int64_t step)>& progress);

/// The JSON object of one measurement; fields that do not apply are null, and all results where no step was
/// measured.
nlohmann::ordered_json to_json(const CostRequest& request, const CostResult& result);

}  // namespace elwise::tools
