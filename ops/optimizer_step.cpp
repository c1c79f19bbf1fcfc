#include "ops/optimizer_step.h"

#include <bit>
#include <cmath>

#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/elementwise.h"
#include "ops/elementwise_kernels.h"
#include "ops/optimizer_step_kernels.h"

namespace elwise {
namespace {

void check_gradient(const char* op, const Tensor& param, const Tensor& grad) {
  check_same_kind(op, "param", param, "grad", grad);
  check_shape(op, "grad", grad, param.shape());
}

void check_state(const char* op, const char* name, DType dtype, const Tensor& param, const Tensor& state) {
  ELWISE_CHECK(state.dtype() == dtype && state.device() == param.device(), op, ": expected ", name, " of ",
               dtype, " on ", param.device(), " for param of ", param.dtype(), ", got ", state.dtype(),
               " on ", state.device());
  check_shape(op, name, state, param.shape());
}

void check_moment(const char* op, const char* name, const Tensor& param, const Tensor& moment) {
  check_state(op, name, accumulation_dtype(param.dtype()), param, moment);
}

void check_remainder(const char* op, const Tensor& param, const Tensor& remainder) {
  ELWISE_CHECK(param.dtype() == DType::bf16, op, ": expected param of bf16 beside a remainder, got ",
               param.dtype());
  check_state(op, "remainder", DType::i16, param, remainder);
}

/// x *= factor, in place.
void scale(const Tensor& x, double factor) {
  ELWISE_DISPATCH(x.device(), unary_forward,
                  {.dtype = x.dtype(),
                   .op = UnaryOp::mul_scalar,
                   .x = x.data(),
                   .y = x.data(),
                   .count = x.count(),
                   .p0 = factor});
  x.storage()->bump_version();
}

}  // namespace

void adam_step(AdamKind kind, const AdamOptions& options, int64_t step, const Tensor& param,
               const Tensor& grad, const Tensor& m, const Tensor& v, const Tensor& remainder) {
  check_floating("adam_step", "param", param);
  check_gradient("adam_step", param, grad);
  check_moment("adam_step", "m", param, m);
  check_moment("adam_step", "v", param, v);
  if (remainder.defined()) check_remainder("adam_step", param, remainder);
  ELWISE_CHECK(step >= 1, "adam_step: expected step >= 1, got ", step);
  const auto t = static_cast<double>(step);
  const double correction1 = 1 - std::pow(options.beta1, t), correction2 = 1 - std::pow(options.beta2, t);
  double step_size = options.lr / correction1;
  bool adaptive = true;
  if (kind == AdamKind::radam) {
    // Liu et al., algorithm 2: the variance of the adaptive rate is tractable once rho > 5 (PyTorch's
    // threshold).
    const double rho_inf = 2 / (1 - options.beta2) - 1;
    const double rho = rho_inf - 2 * t * (1 - correction2) / correction2;
    adaptive = rho > 5;
    if (adaptive) {
      step_size *= std::sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho));
    }
  }
  // RAdam adds eps to sqrt(v) before the bias correction, Adam after it.
  const double v_scale = kind == AdamKind::radam ? 1 : 1 / std::sqrt(correction2);
  if (kind == AdamKind::radam && adaptive) step_size *= std::sqrt(correction2);
  ELWISE_DISPATCH(param.device(), adam_step,
                  {.dtype = param.dtype(),
                   .param = param.data(),
                   .grad = grad.data(),
                   .m = m.data(),
                   .v = v.data(),
                   .count = param.count(),
                   .lr = options.lr,
                   .beta1 = options.beta1,
                   .beta2 = options.beta2,
                   .eps = options.eps,
                   .weight_decay = options.weight_decay,
                   .decoupled = kind == AdamKind::adamw,
                   .step_size = step_size,
                   .v_scale = v_scale,
                   .adaptive = adaptive,
                   .remainder = data_or_null(remainder)});
  for (const Tensor& changed : {param, m, v, remainder}) {
    if (changed.defined()) changed.storage()->bump_version();
  }
}

void sgd_step(const SgdOptions& options, int64_t step, const Tensor& param, const Tensor& grad,
              const Tensor& velocity, const Tensor& remainder) {
  check_floating("sgd_step", "param", param);
  check_gradient("sgd_step", param, grad);
  ELWISE_CHECK(step >= 1, "sgd_step: expected step >= 1, got ", step);
  const bool moving = options.momentum != 0;
  if (moving) check_moment("sgd_step", "velocity", param, velocity);
  if (remainder.defined()) check_remainder("sgd_step", param, remainder);
  ELWISE_DISPATCH(param.device(), sgd_step,
                  {.dtype = param.dtype(),
                   .param = param.data(),
                   .grad = grad.data(),
                   .count = param.count(),
                   .lr = options.lr,
                   .weight_decay = options.weight_decay,
                   .momentum = options.momentum,
                   .nesterov = options.nesterov,
                   .first = step == 1,
                   .velocity = moving ? velocity.data() : nullptr,
                   .remainder = data_or_null(remainder)});
  param.storage()->bump_version();
  if (moving) velocity.storage()->bump_version();
  if (remainder.defined()) remainder.storage()->bump_version();
}

Tensor master_copy(const Tensor& param, const Tensor& remainder) {
  check_remainder("master_copy", param, remainder);
  const Tensor result = empty(param.shape(), {});
  if (param.device() == kMeta) return to(result, kMeta);
  const Tensor host_param = to(param.detach(), kCpu), host_remainder = to(remainder, kCpu);
  for (int64_t i = 0; i < result.count(); ++i) {
    result.data<float>()[i] = std::bit_cast<float>(
        join_remainder({host_param.data<BFloat16>()[i].bits, host_remainder.data<int16_t>()[i]}));
  }
  return to(result, param.device());
}

namespace {

/// The sum of squares of each defined gradient, read from the device once for all; empty on meta.
std::vector<double> sums_of_squares(const std::vector<Tensor>& gradients) {
  std::vector<Tensor> defined;
  for (const Tensor& gradient : gradients) {
    if (!gradient.defined()) continue;
    check_floating("clip_gradient_norm", "gradient", gradient);
    if (!defined.empty()) {
      ELWISE_CHECK(gradient.device() == defined.front().device(),
                   "clip_gradient_norm: expected gradients on ", defined.front().device(), ", got one on ",
                   gradient.device());
    }
    defined.push_back(gradient);
  }
  if (defined.empty()) return {};
  const Device device = defined.front().device();
  const Tensor sums = empty({static_cast<int64_t>(defined.size())}, {.dtype = DType::f64, .device = device});
  for (size_t i = 0; i < defined.size(); ++i) {
    ELWISE_DISPATCH(device, sum_of_squares,
                    {.dtype = defined[i].dtype(),
                     .x = defined[i].data(),
                     .result = static_cast<double*>(sums.alias({1}, static_cast<int64_t>(i)).data()),
                     .count = defined[i].count()});
  }
  return device == kMeta ? std::vector<double>() : sums.to_vector<double>();
}

}  // namespace

double clip_gradient_norm(const std::vector<Tensor>& gradients, double max_norm) {
  ELWISE_CHECK(max_norm > 0, "clip_gradient_norm: expected max_norm > 0, got ", max_norm);
  double sum = 0;
  for (const double squares : sums_of_squares(gradients)) sum += squares;
  const double norm = std::sqrt(sum);
  if (norm > max_norm) {
    for (const Tensor& gradient : gradients) {
      if (gradient.defined()) scale(gradient, max_norm / norm);
    }
  }
  return norm;
}

}  // namespace elwise
