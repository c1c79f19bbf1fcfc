#include "tools/experiments/summary.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace elwise::tools {
namespace {

using nlohmann::ordered_json;

/// The results of one row: of one attention (or baseline) under one condition.
struct Group {
  ordered_json condition;
  std::string attention;
  std::vector<const ordered_json*> lines = {};

  std::vector<double> values(const std::string& field) const {
    std::vector<double> result;
    for (const ordered_json* line : lines) {
      if (line->contains(field) && line->at(field).is_number()) result.push_back(line->at(field));
    }
    return result;
  }
};

std::vector<Group> group(const Experiment& experiment, const std::vector<ordered_json>& results) {
  std::vector<Group> groups;
  for (const ordered_json& condition : experiment.conditions) {
    for (const ordered_json& line : results) {
      bool belongs = true;
      for (const auto& [name, value] : condition.items()) {
        belongs = belongs && line.contains(name) && line.at(name) == value;
      }
      if (!belongs) continue;
      const auto attention = line.at("attention").get<std::string>();
      const auto same = [&](const Group& other) {
        return other.condition == condition && other.attention == attention;
      };
      auto found = std::find_if(groups.begin(), groups.end(), same);
      if (found == groups.end()) found = groups.insert(found, Group{condition, attention});
      found->lines.push_back(&line);
    }
  }
  return groups;
}

std::string text_of(const ordered_json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

std::string mean_and_deviation(const std::vector<double>& values, int digits) {
  if (values.empty()) return "-";
  const auto count = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (const double value : values) mean += value / count;
  for (const double value : values) squares += (value - mean) * (value - mean);
  if (values.size() == 1) return fmt::format("{:.{}f}", mean, digits);
  return fmt::format("{:.{}f} +- {:.{}f}", mean, digits, std::sqrt(squares / (count - 1)), digits);
}

std::string summary_table(const Experiment& experiment, const std::vector<ordered_json>& results) {
  const std::vector<Group> groups = group(experiment, results);
  bool any_diverged = false;
  for (const Group& row : groups) any_diverged = any_diverged || !row.values("diverged_in_epoch").empty();
  std::vector<std::string> header = {"attention"};
  for (const auto& [name, value] : experiment.conditions.front().items()) header.push_back(name);
  header.emplace_back("runs");
  if (any_diverged) header.emplace_back("diverged");
  for (const Metric& metric : experiment.metrics) header.push_back(metric.header);
  header.insert(header.end(), {"epochs", "s per epoch"});
  Table table(header);
  for (const Group& row : groups) {
    std::vector<std::string> cells = {row.attention};
    for (const auto& [name, value] : row.condition.items()) cells.push_back(text_of(value));
    cells.push_back(std::to_string(row.lines.size()));
    if (any_diverged) cells.push_back(std::to_string(row.values("diverged_in_epoch").size()));
    for (const Metric& metric : experiment.metrics) {
      cells.push_back(mean_and_deviation(row.values(metric.field), metric.digits));
    }
    cells.push_back(mean_and_deviation(row.values("epochs"), 1));
    cells.push_back(mean_and_deviation(row.values("training_seconds_per_epoch"), 3));
    table.add(cells);
  }
  return table.text();
}

}  // namespace elwise::tools
