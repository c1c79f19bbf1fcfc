#pragma once

#include "nn/module.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"

namespace elwise::nn {

/// The GELU activation as a module.
class GELU : public Module {
 public:
  explicit GELU(Gelu kind = Gelu::exact) : kind_(kind) {}
  Tensor forward(const Tensor& x) const { return gelu(x, kind_); }

 private:
  Gelu kind_;
};

/// Dropout while training, nothing in evaluation.
class Dropout : public Module {
 public:
  explicit Dropout(double p) : p_(p) {}
  Tensor forward(const Tensor& x) const { return dropout(x, rate()); }
  /// The probability of a zero now.
  double rate() const { return is_training() ? p_ : 0; }

 private:
  double p_;
};

}  // namespace elwise::nn
