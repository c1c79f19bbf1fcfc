#pragma once

#include <algorithm>
#include <optional>
#include <vector>

namespace elwise::tools {

/// The middle value, or the mean of the two middle ones; nothing for no values.
inline std::optional<double> median(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  const size_t middle = values.size() / 2;
  std::ranges::sort(values);
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace elwise::tools
