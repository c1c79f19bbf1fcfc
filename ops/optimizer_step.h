#pragma once

#include <vector>

#include "core/tensor.h"

// One optimizer step of one parameter, fused into a single pass, in place; not recorded. nn/optimizer.h keeps
// the state and goes over a module's parameters. Formulas and defaults are those of torch.optim.

namespace elwise {

enum class AdamKind : uint8_t {
  adam,   // Kingma & Ba, arXiv 1412.6980; weight decay is added to the gradient
  adamw,  // Loshchilov & Hutter, arXiv 1711.05101; weight decay is decoupled
  radam,  // Liu et al., arXiv 1908.03265; weight decay is added to the gradient
};

struct AdamOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
};

/// Updates param and its first and second moments m and v (same shape, accumulation_dtype of param's; zeros
/// before step 1). `step` counts from 1. `remainder` (i16 like param, zeros before step 1) may be defined for
/// a param of bf16: what its numbers lack of f32 (master_copy), so that steps below the spacing of bf16 add
/// up. What is written to param between steps stays, give or take half of that spacing. Throws Error for
/// shapes or dtypes that do not fit and step < 1.
void adam_step(AdamKind kind, const AdamOptions& options, int64_t step, const Tensor& param,
               const Tensor& grad, const Tensor& m, const Tensor& v, const Tensor& remainder = {});

struct SgdOptions {
  double lr = 1e-2;
  double momentum = 0;
  double weight_decay = 0;
  bool nesterov = false;
};

/// Updates param, and velocity (same shape, accumulation_dtype of param's) where momentum is not 0; else it
/// may be undefined. `step` counts from 1, `remainder` is as in adam_step. Throws Error for shapes or
/// dtypes that do not fit.
void sgd_step(const SgdOptions& options, int64_t step, const Tensor& param, const Tensor& grad,
              const Tensor& velocity, const Tensor& remainder = {});

/// The f32 numbers that steps with a remainder are taken from, [shape of param] on its device: param is
/// these, rounded to nearest. Not differentiable. Throws Error unless param is of bf16 and remainder i16 like
/// it.
Tensor master_copy(const Tensor& param, const Tensor& remainder);

/// Scales all gradients by max_norm / norm where their joint Euclidean norm is larger than max_norm. Returns
/// the norm before (0 on meta, where nothing can be read). Undefined gradients are skipped.
double clip_gradient_norm(const std::vector<Tensor>& gradients, double max_norm);

}  // namespace elwise
