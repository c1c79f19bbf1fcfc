#pragma once

#include <filesystem>
#include <string>

namespace elwise::tools {

/// Makes the folder for figures where it is missing. Throws Error.
void make_plot_folder(const std::filesystem::path& folder);

/// Draws the results in a file of JSON lines as PNG and SVG into a folder: runs `script` (plot_cost.py,
/// plot_experiment.py), which lies in share/elwise beside an installed program, and in the source tree
/// otherwise. Throws Error when python3 or matplotlib is missing, or the script fails.
void run_plot_script(const std::string& script, const std::filesystem::path& json,
                     const std::filesystem::path& folder);

}  // namespace elwise::tools
