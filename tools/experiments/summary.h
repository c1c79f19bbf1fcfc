#pragma once

#include <string>
#include <vector>

#include "tools/experiments/experiment.h"

namespace elwise::tools {

/// "0.9784 +- 0.0041": mean and standard deviation (with n - 1) of the values; a single one has none.
std::string mean_and_deviation(const std::vector<double>& values, int digits);

/// The final table: a row for each condition and attention in the order of their first line, over the last
/// lines of runs and the lines of baselines. A metric that no line of a row has shows as "-". With
/// experiment.conditions_in_columns, a row for each attention and a column for each condition, or the other
/// way round where there are more conditions.
std::string summary_table(const Experiment& experiment, const std::vector<nlohmann::ordered_json>& results);

}  // namespace elwise::tools
