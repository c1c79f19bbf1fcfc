#include "core/profiler.h"

#include <algorithm>

namespace elwise {
namespace {
thread_local Profiler* current = nullptr;
}

Profiler::Profiler(Observer observer) : previous_(current), observer_(std::move(observer)) {
  current = this;
}
Profiler::~Profiler() {
  current = previous_;
}

std::vector<KernelProfile> Profiler::kernels() const {
  std::vector<KernelProfile> result;
  for (const auto& [key, profile] : profiles_) result.push_back(profile);
  std::ranges::stable_sort(result, std::greater(), &KernelProfile::seconds);
  return result;
}

KernelTimer::KernelTimer(std::string_view kernel, DType dtype, const KernelCost& cost)
    : profiler_(current), kernel_(kernel), dtype_(dtype), cost_(cost) {
  if (profiler_ != nullptr) start_ = std::chrono::steady_clock::now();
}

KernelTimer::~KernelTimer() {
  if (profiler_ == nullptr) return;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  for (Profiler* profiler = profiler_; profiler != nullptr; profiler = profiler->previous_) {
    KernelProfile& profile = profiler->profiles_[{kernel_, dtype_}];
    profile.kernel = kernel_;
    profile.dtype = dtype_;
    ++profile.calls;
    profile.seconds += elapsed.count();
    profile.cost += cost_;
    if (profiler->observer_) {
      profiler->observer_({std::string(kernel_), dtype_, 1, elapsed.count(), cost_});
    }
  }
}

}  // namespace elwise
