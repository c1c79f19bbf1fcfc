#pragma once

#include <string>
#include <vector>

#include "tools/console.h"
#include "tools/cost_measurement.h"
#include "tools/json_lines.h"

namespace elwise::tools {

/// Where the measurements of a run go, and what ends it early.
struct CostRun {
  JsonLines json;
  std::string sweep;  // the name of the sweep, for the JSON lines; empty without one
  bool quiet = false;
  InterruptFlag interrupt = {};
  int64_t measurements = 0;  // that were written

  void write(nlohmann::ordered_json line);
};

/// Measures one request after the other, and prints a table in the end. Each result is a JSON line as soon as
/// it is there. Returns the exit status: a request that does not fit the memory limit is named on stderr and
/// makes it kExitFailure.
int measure_all(const std::vector<CostRequest>& requests, CostRun& run);

/// For each request (its length does not count) the longest sequence that fits `budget` bytes, predicted on
/// meta. JSON lines hold the step at that length, memory_budget, max_seq_len and tokens (batch max_seq_len).
/// Where the requests' device is the CPU, the `confirmations` points of each attention with the fewest FLOPs
/// are run as well, as confirm_longest_length does; their lines have device cpu, and the length and outcome
/// of the run beyond. Returns the exit status: a prediction that does not hold makes it kExitFailure.
int find_longest_lengths(const std::vector<CostRequest>& requests, int64_t budget, int64_t confirmations,
                         CostRun& run);

}  // namespace elwise::tools
