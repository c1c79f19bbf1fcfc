#include "tools/cost_sweep.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "tools/longest_length.h"

namespace elwise::tools {
namespace {

std::string describe(const CostRequest& request) {
  return fmt::format("{} batch {} length {}", request.model.attention.name(), request.batch, request.length);
}

std::string number_or_dash(const std::optional<double>& value, const char* format) {
  return value ? fmt::format(fmt::runtime(format), *value) : "-";
}

std::vector<std::string> table_row(const CostRequest& request, const CostResult& result) {
  return {request.model.attention.name(),
          std::to_string(request.batch),
          std::to_string(request.length),
          std::to_string(request.threads),
          number_or_dash(result.step_ms, "{:.0f}"),
          number_or_dash(result.forward_ms, "{:.0f}"),
          number_or_dash(result.backward_ms, "{:.0f}"),
          number_or_dash(result.optimizer_ms, "{:.0f}"),
          number_or_dash(result.tokens_per_s(request), "{:.0f}"),
          number_or_dash(result.floor_ratio(), "{:.2f}"),
          fmt::format("{:.1f}", result.flops / 1e9),
          format_bytes(result.memory.total.peak),
          format_bytes(result.memory[MemoryTag::activations].peak),
          number_or_dash(result.loss_last, "{:.2f}")};
}

/// A batch size and attention, and what was found for it.
struct Found {
  CostRequest request;
  LongestLength longest;
};

/// The longest lengths: a row per batch size, a column per attention.
std::string length_table(const std::vector<Found>& found) {
  std::vector<std::string> header = {"batch"};
  std::map<int64_t, std::map<std::string, int64_t>> rows;
  for (const auto& [request, longest] : found) {
    const std::string name = request.model.attention.name();
    if (std::find(header.begin(), header.end(), name) == header.end()) header.push_back(name);
    rows[request.batch][name] = longest.length;
  }
  Table table(header);
  for (const auto& [batch, lengths] : rows) {
    std::vector<std::string> cells = {std::to_string(batch)};
    for (size_t i = 1; i < header.size(); ++i) {
      const auto length = lengths.find(header[i]);
      cells.push_back(length == lengths.end() ? "-" : std::to_string(length->second));
    }
    table.add(std::move(cells));
  }
  return table.text();
}

nlohmann::ordered_json bs_l_line(const Found& found, const CostResult& cost, Device device, int64_t budget) {
  CostRequest request = with_length(found.request, found.longest.length);
  request.model.options.device = device;
  nlohmann::ordered_json line = to_json(request, cost);
  line["memory_budget"] = budget;
  line["max_seq_len"] = request.length;
  line["tokens"] = request.batch * request.length;
  return line;
}

/// The `count` points of each attention that take the fewest FLOPs.
std::vector<Found> cheapest(std::vector<Found> found, int64_t count) {
  std::erase_if(found, [](const Found& point) { return point.longest.length == 0; });
  std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return a.longest.cost.flops < b.longest.cost.flops;
  });
  std::map<std::string, int64_t> taken;
  std::erase_if(found,
                [&](const Found& point) { return taken[point.request.model.attention.name()]++ >= count; });
  return found;
}

/// Runs the points and prints predicted beside measured peaks.
int confirm_all(const std::vector<Found>& points, int64_t budget, CostRun& run) {
  Table table({"run on cpu", "batch", "length", "predicted peak", "measured peak", "next length", "step ms",
               "tokens/s"});
  int status = kExitOk;
  for (size_t i = 0; i < points.size() && !run.interrupt.raised(); ++i) {
    const auto& [request, longest] = points[i];
    const CostRequest at_length = with_length(request, longest.length);
    ProgressLine progress(!run.quiet);
    const auto show = [&](int64_t step) {
      progress.show(static_cast<int64_t>(i), static_cast<int64_t>(points.size()),
                    fmt::format("runs; step {} of {} and of the next length", step, describe(at_length)));
      return !run.interrupt.raised();
    };
    show(0);
    const auto confirmation = confirm_longest_length(request, longest, budget, show);
    progress.clear();
    if (!confirmation) break;  // interrupted
    const int64_t beyond = longest.length + kLengthStep;
    if (confirmation->cost) {
      auto line = bs_l_line(points[i], *confirmation->cost, request.model.options.device, budget);
      line["predicted_peak_bytes"] = longest.cost.memory.total.peak;
      line["beyond_seq_len"] = beyond;
      line["beyond_fits"] = confirmation->beyond_fits;
      run.write(std::move(line));
    }
    if (!confirmation->holds(longest)) {
      fmt::print(stderr, "train_bert_cost: {} is not what the device does\n", describe(at_length));
      status = kExitFailure;
    }
    const CostResult cost = confirmation->cost.value_or(CostResult{});
    table.add({request.model.attention.name(), std::to_string(request.batch), std::to_string(longest.length),
               format_bytes(longest.cost.memory.total.peak),
               confirmation->cost ? format_bytes(cost.memory.total.peak) : "out of memory",
               fmt::format("{}: {}", beyond, confirmation->beyond_fits ? "fits" : "out of memory"),
               number_or_dash(cost.step_ms, "{:.0f}"),
               number_or_dash(cost.tokens_per_s(at_length), "{:.0f}")});
  }
  fmt::print("{}{}", run.quiet ? "" : "\n", table.text());
  return status;
}

}  // namespace

void CostRun::write(nlohmann::ordered_json line) {
  if (!sweep.empty()) line["sweep"] = sweep;
  json.write(line);
  ++measurements;
}

int measure_all(const std::vector<CostRequest>& requests, CostRun& run) {
  Table table({"attention", "batch", "length", "threads", "step ms", "forward", "backward", "optimizer",
               "tokens/s", "/ floor", "GFLOP", "peak", "activations", "loss"});
  int status = kExitOk;
  for (size_t i = 0; i < requests.size() && !run.interrupt.raised(); ++i) {
    const CostRequest& request = requests[i];
    ProgressLine progress(!run.quiet);
    const auto show = [&](int64_t step) {
      progress.show(step, request.warmup + request.steps,
                    fmt::format("steps of {} ({} of {})", describe(request), i + 1, requests.size()));
      return !run.interrupt.raised();
    };
    try {
      show(0);
      const CostResult result = measure_cost(request, show);
      if (result.steps == 0) break;  // interrupted during warm-up
      progress.clear();
      run.write(to_json(request, result));
      table.add(table_row(request, result));
      if (request.profile) fmt::print("{}\n{}\n", describe(request), profile_text(result.profile));
      if (!run.quiet) {
        fmt::print("{}: {} ms a step, peak {}\n", describe(request), number_or_dash(result.step_ms, "{:.0f}"),
                   format_bytes(result.memory.total.peak));
        std::fflush(stdout);
      }
    } catch (const OutOfMemoryError& error) {
      progress.clear();
      fmt::print(stderr, "train_bert_cost: {} does not fit: {}\n", describe(request), error.what());
      status = kExitFailure;
    }
  }
  fmt::print("{}{}", run.quiet ? "" : "\n", table.text());
  return status;
}

int find_longest_lengths(const std::vector<CostRequest>& requests, int64_t budget, int64_t confirmations,
                         CostRun& run) {
  std::vector<Found> found;
  for (const CostRequest& request : requests) {
    if (run.interrupt.raised()) break;
    found.push_back({request, find_longest_length(request, budget)});
    run.write(bs_l_line(found.back(), found.back().longest.cost, kMeta, budget));
  }
  if (!run.quiet) {
    fmt::print("the longest sequence, in tokens (a multiple of {}), whose training step fits {}:\n",
               kLengthStep, format_bytes(budget));
  }
  fmt::print("{}", length_table(found));
  std::fflush(stdout);
  const bool confirm = !requests.empty() && requests.front().model.options.device != kMeta;
  return confirm ? confirm_all(cheapest(std::move(found), confirmations), budget, run) : kExitOk;
}

}  // namespace elwise::tools
