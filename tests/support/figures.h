#pragma once

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"

// Figures that a program drew with tools/plot_cost.py.

namespace elwise::testing {

inline const std::string kPlotScript = "python3 " ELWISE_SOURCE_DIR "/tools/plot_cost.py ";

/// Whether figures can be drawn here. Says so where not.
inline bool can_draw() {
  const TemporaryFolder folder;
  const auto line = folder.write(
      "line.json",
      R"({"attention":"sa","device":"meta","dtype":"f32","batch":1,"seq_len":8,"peak_bytes":1})");
  const Run run = run_command(kPlotScript + line.string() + " --out " + (folder / "out").string());
  if (run.output.find("apt-get install python3-matplotlib") == std::string::npos) return true;
  MESSAGE("skipped: ", run.output);
  return false;
}

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A PNG of a figure's size, and an SVG that says what it should. Nothing else of that name is left behind.
inline void check_figure(const std::filesystem::path& folder, const std::string& name,
                         const std::vector<std::string>& shown) {
  CAPTURE(name);
  const std::string png = contents(folder / (name + ".png")), svg = contents(folder / (name + ".svg"));
  CHECK(png.substr(0, 8) == "\x89PNG\r\n\x1a\n");
  CHECK(png.size() > 10'000);
  CHECK(svg.find("</svg>") != std::string::npos);
  for (const std::string& text : shown) CHECK_MESSAGE(svg.find("<!-- " + text) != std::string::npos, text);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    CHECK(entry.path().filename().string()[0] != '.');
  }
}

}  // namespace elwise::testing
