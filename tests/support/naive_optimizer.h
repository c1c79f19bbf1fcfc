#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace elwise::naive {

/// The hyper-parameters of the Adam family, with the defaults of torch.optim.Adam.
struct AdamOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
};

/// One parameter and the running means of its gradient and of its square, all [count].
struct AdamState {
  explicit AdamState(const std::vector<double>& initial)
      : param(initial), m(initial.size()), v(initial.size()) {}

  std::vector<double> param;
  std::vector<double> m;
  std::vector<double> v;
  int64_t step = 0;
};

/// m and v take in g; returns 1 - beta1^step and 1 - beta2^step, which correct the zeros they began with.
struct AdamCorrections {
  double first;
  double second;
};
inline AdamCorrections update_moments(AdamState& state, const std::vector<double>& g,
                                      const AdamOptions& options) {
  for (size_t i = 0; i < g.size(); ++i) {
    state.m[i] = options.beta1 * state.m[i] + (1 - options.beta1) * g[i];
    state.v[i] = options.beta2 * state.v[i] + (1 - options.beta2) * g[i] * g[i];
  }
  const double step = static_cast<double>(++state.step);
  return {1 - std::pow(options.beta1, step), 1 - std::pow(options.beta2, step)};
}

/// The gradient of the loss with L2 regularisation: grad + weight_decay * param.
inline std::vector<double> regularised(std::vector<double> grad, const std::vector<double>& param,
                                       double weight_decay) {
  for (size_t i = 0; i < grad.size(); ++i) grad[i] += weight_decay * param[i];
  return grad;
}

/// torch.optim.Adam (weight decay enters the gradient) or, when decoupled, torch.optim.AdamW (weight decay
/// shrinks the parameter).
inline void adam_step(AdamState& state, const std::vector<double>& grad, const AdamOptions& options,
                      bool decoupled) {
  if (decoupled) {
    for (double& p : state.param) p *= 1 - options.lr * options.weight_decay;
  }
  const std::vector<double> g = decoupled ? grad : regularised(grad, state.param, options.weight_decay);
  const AdamCorrections correction = update_moments(state, g, options);
  for (size_t i = 0; i < g.size(); ++i) {
    const double m = state.m[i] / correction.first;
    const double v = state.v[i] / correction.second;
    state.param[i] -= options.lr * m / (std::sqrt(v) + options.eps);
  }
}

/// torch.optim.RAdam (Liu et al., arXiv 1908.03265): the adaptive step is rectified once the average behind
/// v is long enough, and left out before.
inline void radam_step(AdamState& state, const std::vector<double>& grad, const AdamOptions& options,
                       bool decoupled = false) {
  if (decoupled) {
    for (double& p : state.param) p *= 1 - options.lr * options.weight_decay;
  }
  const std::vector<double> g = decoupled ? grad : regularised(grad, state.param, options.weight_decay);
  const AdamCorrections correction = update_moments(state, g, options);
  const double step = static_cast<double>(state.step);
  const double rho_inf = 2 / (1 - options.beta2) - 1;
  const double rho = rho_inf - 2 * step * std::pow(options.beta2, step) / correction.second;
  for (size_t i = 0; i < g.size(); ++i) {
    const double m = state.m[i] / correction.first;
    if (rho > 5) {
      const double rectifier =
          std::sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho));
      const double adaptive = std::sqrt(correction.second) / (std::sqrt(state.v[i]) + options.eps);
      state.param[i] -= options.lr * m * adaptive * rectifier;
    } else {
      state.param[i] -= options.lr * m;
    }
  }
}

/// The hyper-parameters of torch.optim.SGD, dampening 0.
struct SgdOptions {
  double lr = 1e-3;
  double momentum = 0;
  double weight_decay = 0;
  bool nesterov = false;
};

/// torch.optim.SGD. `velocity` is empty before the first step.
inline void sgd_step(std::vector<double>& param, std::vector<double>& velocity,
                     const std::vector<double>& grad, const SgdOptions& options) {
  std::vector<double> g = regularised(grad, param, options.weight_decay);
  if (options.momentum != 0) {
    const bool first = velocity.empty();
    if (first) velocity = g;
    for (size_t i = 0; i < g.size(); ++i) {
      if (!first) velocity[i] = options.momentum * velocity[i] + g[i];
      g[i] = options.nesterov ? g[i] + options.momentum * velocity[i] : velocity[i];
    }
  }
  for (size_t i = 0; i < g.size(); ++i) param[i] -= options.lr * g[i];
}

}  // namespace elwise::naive
