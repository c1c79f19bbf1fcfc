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

KernelTimer::KernelTimer(Device device, std::string_view kernel, DType dtype, const KernelCost& cost)
    : kernel_(kernel), dtype_(dtype), cost_(cost) {
  if (current != nullptr) timer_.emplace(device);
}

void KernelTimer::stop() {
  if (!timer_) return;
  const double seconds = timer_->stop();
  for (Profiler* profiler = current; profiler != nullptr; profiler = profiler->previous_) {
    KernelProfile& profile = profiler->profiles_[{kernel_, dtype_}];
    profile.kernel = kernel_;
    profile.dtype = dtype_;
    ++profile.calls;
    profile.seconds += seconds;
    profile.cost += cost_;
    if (profiler->observer_) profiler->observer_({std::string(kernel_), dtype_, 1, seconds, cost_});
  }
}

}  // namespace elwise
