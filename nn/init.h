#pragma once

#include "core/random.h"
#include "nn/module.h"

namespace elwise::nn {

// Initialisers: overwrite a parameter in place with numbers from the default generator. Fans are those of a
// linear weight [outputs, inputs]; each throws Error for another rank.

/// Uniform in +-sqrt(6 / (inputs + outputs)) (Glorot & Bengio, 2010).
void xavier_uniform(const Tensor& weight);
/// Uniform in +-gain * sqrt(3 / inputs) (He et al., arXiv 1502.01852); gain 1 / sqrt(3) is PyTorch's default
/// for linear layers.
void kaiming_uniform(const Tensor& weight, double gain);
/// Normal with deviation gain / sqrt(inputs) (He et al., arXiv 1502.01852); gain sqrt(2) is for ReLU.
void kaiming_normal(const Tensor& weight, double gain);

/// BERT's initialisation of a whole model: parameters called "bias" 0, LayerNorm weights 1, everything else
/// normal with this deviation.
void initialize_bert(const Module& model, double deviation);

}  // namespace elwise::nn
