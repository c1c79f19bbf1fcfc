#include "tools/console.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <csignal>

namespace elwise::tools {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void on_interrupt(int) {
  interrupted = 1;
}

int report(const char* program, std::string message, int status) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  fmt::print(stderr, "{}: {}\n", program, message);
  return status;
}

}  // namespace

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& program) {
  const std::string name = app.get_name();
  try {
    app.parse(argc, argv);
    return program();
  } catch (const CLI::Success& help) {
    return app.exit(help);  // --help
  } catch (const CLI::ParseError& error) {
    return report(name.c_str(), fmt::format("{} (see {} --help)", error.what(), name), kExitUsage);
  } catch (const UsageError& error) {
    return report(name.c_str(), error.what(), kExitUsage);
  } catch (const std::exception& error) {
    return report(name.c_str(), error.what(), kExitFailure);
  }
}

CLI::Validator positive_number() {
  return CLI::Validator(
      [](const std::string& text) {
        double value = 0;
        const bool accepted = CLI::detail::lexical_cast(text, value) && value > 0 && std::isfinite(value);
        return accepted ? std::string() : fmt::format("expected a number above 0, got {}", text);
      },
      "POSITIVE");
}

int64_t parse_bytes(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  std::string unit(parsed.ptr, end);
  std::erase(unit, ' ');
  const std::vector<std::pair<std::string, double>> units = {
      {"", 1},      {"B", 1},        {"kB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  const auto found =
      std::find_if(units.begin(), units.end(), [&](const auto& entry) { return entry.first == unit; });
  const double bytes = found == units.end() ? 0 : value * found->second;
  if (parsed.ec != std::errc() || !(bytes >= 1 && bytes < 0x1p62)) {
    throw UsageError(
        fmt::format("'{}' is not a size: expected a number with kB, MB, GB, KiB, MiB or GiB", text));
  }
  return std::llround(bytes);
}

InterruptFlag::InterruptFlag() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
}

bool InterruptFlag::raised() const {
  return interrupted != 0;
}

ProgressLine::ProgressLine(bool enabled) : enabled_(enabled && isatty(STDERR_FILENO) == 1) {}

void ProgressLine::show(int64_t done, int64_t total, const std::string& text) {
  if (!enabled_) return;
  constexpr int64_t kWidth = 24;
  const int64_t filled = total > 0 ? kWidth * done / total : 0;
  fmt::print(stderr, "\r\033[K[{}{}] {}/{} {}", std::string(static_cast<size_t>(filled), '#'),
             std::string(static_cast<size_t>(kWidth - filled), '.'), done, total, text);
  std::fflush(stderr);
  shown_ = true;
}

void ProgressLine::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
  shown_ = false;
}

std::string Table::text() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string result;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
    }
    result += line + "\n";
  }
  return result;
}

}  // namespace elwise::tools
