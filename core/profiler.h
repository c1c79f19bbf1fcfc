#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// What all calls of one kernel on one dtype did while a Profiler watched.
struct KernelProfile {
  std::string kernel;  // "layer_norm_forward"
  DType dtype = DType::f32;
  int64_t calls = 0;
  double seconds = 0;  // wall time in the kernel
  KernelCost cost;     // the sum over the calls
};

/// Watches the kernels that its thread runs, from its construction until its destruction. Profilers may be
/// nested: each sees every kernel. Kernels on meta take no time but count.
class Profiler {
 public:
  /// Called as each kernel ends, with what that one call did.
  using Observer = std::function<void(const KernelProfile& call)>;

  explicit Profiler(Observer observer = {});
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  /// Every kernel that ran so far, the one that took longest first.
  std::vector<KernelProfile> kernels() const;

  /// Forgets what was seen so far.
  void reset() { profiles_.clear(); }

 private:
  friend class KernelTimer;
  Profiler* previous_;
  Observer observer_;
  std::map<std::pair<std::string_view, DType>, KernelProfile> profiles_;
};

/// Times one kernel for the profilers of its thread, if there are any. ELWISE_DISPATCH makes one per kernel.
class KernelTimer {
 public:
  /// `kernel` is a string literal.
  KernelTimer(std::string_view kernel, DType dtype, const KernelCost& cost);
  ~KernelTimer();
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;

  /// True where a profiler watches: a kernel that runs on its own is then waited for.
  bool running() const { return profiler_ != nullptr; }

 private:
  Profiler* profiler_;
  std::string_view kernel_;
  DType dtype_;
  const KernelCost& cost_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace elwise
