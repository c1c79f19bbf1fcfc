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

/// The values of a condition, or with `names` the names: "64, 4"; "length, pairs".
std::string condition_text(const ordered_json& condition, bool names) {
  std::string text;
  for (const auto& [name, value] : condition.items()) {
    text += (text.empty() ? "" : ", ") + (names ? name : text_of(value));
  }
  return text;
}

using Rows = std::vector<std::vector<std::string>>;

/// `rows`, exchanged with the columns where there are more of these: a terminal is longer than wide.
Rows upright(const Rows& rows) {
  if (rows.size() >= rows.front().size()) return rows;
  Rows result(rows.front().size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) result[i].push_back(row[i]);
  }
  return result;
}

std::string comparison_table(const Experiment& experiment, const std::vector<Group>& groups) {
  const Metric& metric = experiment.metrics.front();
  Rows rows = {{metric.header + " for " + condition_text(experiment.conditions.front(), true)}};
  for (const ordered_json& condition : experiment.conditions)
    rows.front().push_back(condition_text(condition, false));
  for (const Group& group : groups) {
    auto row = std::find_if(rows.begin(), rows.end(), [&](const auto& r) { return r[0] == group.attention; });
    if (row == rows.end()) {
      row = rows.insert(row, std::vector<std::string>(rows.front().size(), "-"));
      (*row)[0] = group.attention;
    }
    const auto column =
        std::find(experiment.conditions.begin(), experiment.conditions.end(), group.condition);
    std::string cell = mean_and_deviation(group.values(metric.field), metric.digits);
    if (const size_t diverged = group.values("diverged_in_epoch").size(); diverged > 0) {
      cell += fmt::format(" ({} diverged)", diverged);
    }
    (*row)[static_cast<size_t>(column - experiment.conditions.begin()) + 1] = cell;
  }
  rows = upright(rows);
  Table table(rows.front());
  for (size_t i = 1; i < rows.size(); ++i) table.add(rows[i]);
  return table.text();
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
  if (experiment.conditions_in_columns) return comparison_table(experiment, groups);
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
