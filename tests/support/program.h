#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

namespace elwise::testing {

/// What a program did.
struct ProgramRun {
  int status;          // its exit status; -1 where a signal ended it
  std::string output;  // stdout and stderr
};

/// Runs a command of the shell.
inline ProgramRun run_program(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  ProgramRun result{0, {}};
  std::array<char, 4096> buffer;
  while (const size_t read = std::fread(buffer.data(), 1, buffer.size(), pipe))
    result.output.append(buffer.data(), read);
  const int status = pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

}  // namespace elwise::testing
