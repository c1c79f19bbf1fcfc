#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

// Programs as a user runs them, and the JSON lines they write.

namespace elwise::testing {

struct Run {
  int status;          // -1 after a signal
  std::string output;  // stdout and stderr
};

/// Runs a command of the shell.
inline Run run_command(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  Run result{0, {}};
  std::array<char, 4096> buffer;
  while (const size_t read = std::fread(buffer.data(), 1, buffer.size(), pipe))
    result.output.append(buffer.data(), read);
  const int status = pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

/// Runs a program, signals it ("INT", "KILL") once the shell's test `ready` holds, and waits for its end. A
/// busy machine may see that test hold only after the program's end (status 0): what it `wrote` is then
/// removed, and it runs once more.
inline Run signalled_run(const std::string& command, const std::string& ready, const std::string& signal,
                         const std::vector<std::filesystem::path>& wrote) {
  Run result{0, {}};
  for (int attempt = 0; attempt < 20; ++attempt) {
    for (const std::filesystem::path& path : wrote) std::filesystem::remove_all(path);
    result = run_command(command + " & program=$!\nwhile kill -0 $program && ! " + ready +
                         "; do sleep 0.002; done\nkill -" + signal + " $program\nwait $program");
    if (result.status != 0) break;
  }
  return result;
}

inline std::vector<nlohmann::json> json_lines(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<nlohmann::json> result;
  for (std::string line; std::getline(file, line);) result.push_back(nlohmann::json::parse(line));
  return result;
}

/// The lines without what differs from run to run: times and the number of threads.
inline std::vector<nlohmann::json> lines_without_times(const std::filesystem::path& path) {
  std::vector<nlohmann::json> lines = json_lines(path);
  for (nlohmann::json& line : lines) {
    for (const char* field : {"seconds", "training_seconds", "training_seconds_per_epoch", "threads"})
      line.erase(field);
  }
  return lines;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline int64_t count_lines(const std::string& text) {
  return std::count(text.begin(), text.end(), '\n');
}

}  // namespace elwise::testing
