#pragma once

#include <filesystem>

namespace elwise::tools {

/// Draws the measurements in a file of JSON lines as PNG and SVG into a folder: runs plot_cost.py, which lies
/// in share/elwise beside an installed program, and in the source tree otherwise. Throws Error when python3
/// or matplotlib is missing, or the script fails.
void plot_cost(const std::filesystem::path& json, const std::filesystem::path& folder);

}  // namespace elwise::tools
