#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/profiler.h"
#include "core/roofline.h"

namespace elwise::tools {

/// The kernels of one training step, and what the machine could do right after it.
struct ProfiledStep {
  std::vector<KernelProfile> kernels;
  double seconds = 0;                // of the whole step
  std::optional<Roofline> roofline;  // absent on meta, where nothing runs
};

/// One kernel's part in a training step: medians over the steps. On meta, where nothing runs, there are no
/// times.
struct KernelSummary {
  std::string kernel;
  DType dtype = DType::f32;
  int64_t calls = 0;                     // per step
  KernelCost cost;                       // per step
  std::optional<double> ms;              // per step
  std::optional<double> step_share;      // of the step's time
  std::optional<double> roofline_share;  // the roofline's time for its cost over its own time
};

/// Summaries of the kernels of all `steps`, the one that takes longest first.
std::vector<KernelSummary> summarize(const std::vector<ProfiledStep>& steps);

/// A table of the summaries, and a line with the part of the step that was outside kernels.
std::string profile_text(const std::vector<KernelSummary>& kernels);

nlohmann::ordered_json to_json(const std::vector<KernelSummary>& kernels);

}  // namespace elwise::tools
