#include "tools/kernel_profile.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "tools/console.h"
#include "tools/json_lines.h"
#include "tools/median.h"

namespace elwise::tools {
namespace {

/// What one kernel showed in each step.
struct Samples {
  KernelProfile last;
  std::vector<double> ms, step_shares, roofline_shares;
};

std::string or_dash(std::optional<double> value, double scale, const char* format) {
  return value ? fmt::format(fmt::runtime(format), *value * scale) : "-";
}

/// Work per second, where the kernel ran.
std::optional<double> rate(double work, std::optional<double> ms) {
  return ms && *ms > 0 ? std::optional(work * 1e3 / *ms) : std::nullopt;
}

}  // namespace

std::vector<KernelSummary> summarize(const std::vector<ProfiledStep>& steps) {
  std::map<std::pair<std::string, DType>, Samples> kernels;
  for (const ProfiledStep& step : steps) {
    for (const KernelProfile& profile : step.kernels) {
      Samples& samples = kernels[{profile.kernel, profile.dtype}];
      samples.last = profile;
      if (step.roofline) {
        samples.ms.push_back(profile.seconds * 1e3);
        samples.step_shares.push_back(profile.seconds / step.seconds);
        samples.roofline_shares.push_back(step.roofline->seconds(profile.cost, profile.dtype) /
                                          profile.seconds);
      }
    }
  }
  std::vector<KernelSummary> result;
  for (const auto& [key, samples] : kernels) {
    result.push_back({.kernel = key.first,
                      .dtype = key.second,
                      .calls = samples.last.calls,
                      .cost = samples.last.cost,
                      .ms = median(samples.ms),
                      .step_share = median(samples.step_shares),
                      .roofline_share = median(samples.roofline_shares)});
  }
  std::ranges::stable_sort(result, std::greater(), &KernelSummary::ms);
  return result;
}

std::string profile_text(const std::vector<KernelSummary>& kernels) {
  Table table({"kernel", "dtype", "calls", "ms", "of step", "GFLOP/s", "GB/s", "of roofline"});
  double inside = 0;
  for (const KernelSummary& kernel : kernels) {
    inside += kernel.step_share.value_or(0);
    table.add({kernel.kernel, std::string(name_of(kernel.dtype)), std::to_string(kernel.calls),
               or_dash(kernel.ms, 1, "{:.2f}"), or_dash(kernel.step_share, 100, "{:.1f} %"),
               or_dash(rate(kernel.cost.flops, kernel.ms), 1e-9, "{:.1f}"),
               or_dash(rate(kernel.cost.bytes(), kernel.ms), 1e-9, "{:.1f}"),
               or_dash(kernel.roofline_share, 100, "{:.0f} %")});
  }
  if (inside == 0) return table.text();
  return fmt::format("{}outside kernels: {:.1f} % of the step\n", table.text(), (1 - inside) * 100);
}

nlohmann::ordered_json to_json(const std::vector<KernelSummary>& kernels) {
  auto result = nlohmann::ordered_json::array();
  for (const KernelSummary& kernel : kernels) {
    nlohmann::ordered_json entry;
    entry["kernel"] = kernel.kernel;
    entry["dtype"] = name_of(kernel.dtype);
    entry["calls"] = kernel.calls;
    entry["ms"] = value_or_null(kernel.ms);
    entry["step_share"] = value_or_null(kernel.step_share);
    entry["flops"] = kernel.cost.flops;
    entry["bytes"] = kernel.cost.bytes();
    entry["roofline_share"] = value_or_null(kernel.roofline_share);
    result.push_back(std::move(entry));
  }
  return result;
}

}  // namespace elwise::tools
