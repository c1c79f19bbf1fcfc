#pragma once

namespace elwise {

/// True where ops record themselves for backward (the default), for the calling thread.
bool grad_enabled();

/// Sets whether the calling thread records, until the end of the scope.
class GradModeGuard {
 public:
  explicit GradModeGuard(bool enabled);
  ~GradModeGuard();
  GradModeGuard(const GradModeGuard&) = delete;
  GradModeGuard& operator=(const GradModeGuard&) = delete;

 private:
  bool previous_;
};

/// Records nothing until the end of the scope: inference, optimizer steps.
class NoGradGuard : private GradModeGuard {
 public:
  NoGradGuard() : GradModeGuard(false) {}
};

}  // namespace elwise
