#pragma once

#include <chrono>

namespace elwise::tools {

/// Seconds of wall-clock time since it was made, on top of those of an earlier part of the same job.
class Stopwatch {
 public:
  explicit Stopwatch(double seconds_before = 0) : before_(seconds_before) {}
  double seconds() const {
    return before_ + std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double before_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace elwise::tools
