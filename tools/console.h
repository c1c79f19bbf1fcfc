#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace elwise::tools {

// Exit statuses of all programs.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

/// Parses the command line and runs `program`, whose result becomes the exit status. Bad usage (a UsageError
/// too) is one line on stderr and kExitUsage; any other exception one line and kExitFailure.
int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& program);

/// A value on the command line that cannot be used, found after parsing. The message says what is allowed.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Accepts numbers above 0.
CLI::Validator positive_number();

/// Bytes from "24GiB", "80 GB", "512MiB", "1.5GiB" or a plain number. Throws UsageError.
int64_t parse_bytes(const std::string& text);

/// From its construction on, Ctrl-C sets a flag instead of ending the program; a second one ends it.
class InterruptFlag {
 public:
  InterruptFlag();
  bool raised() const;
};

/// Shows how far a long job is: one line that is rewritten on a terminal, nothing otherwise.
class ProgressLine {
 public:
  explicit ProgressLine(bool enabled);
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  /// A bar of done / total, then `text`.
  void show(int64_t done, int64_t total, const std::string& text);
  void clear();

 private:
  bool enabled_;
  bool shown_ = false;
};

/// Rows of text in columns, right-aligned but for the first.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace elwise::tools
