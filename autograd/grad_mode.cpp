#include "autograd/grad_mode.h"

namespace elwise {
namespace {
thread_local bool enabled_here = true;
}

bool grad_enabled() {
  return enabled_here;
}

GradModeGuard::GradModeGuard(bool enabled) : previous_(enabled_here) {
  enabled_here = enabled;
}
GradModeGuard::~GradModeGuard() {
  enabled_here = previous_;
}

}  // namespace elwise
