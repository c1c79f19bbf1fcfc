#include "models/generation_state.h"

namespace elwise::models {
namespace {

constexpr const char* kPositionsName = "positions";

}  // namespace

std::map<std::string, Tensor> GenerationState::named_tensors() const {
  std::map<std::string, Tensor> tensors = nn::named_tensors(layers);
  tensors.emplace(kPositionsName, from_vector(positions, {static_cast<int64_t>(positions.size())}));
  return tensors;
}

void GenerationState::set_tensors(std::map<std::string, Tensor> tensors) {
  const auto found = tensors.extract(kPositionsName);
  ELWISE_CHECK(!found.empty(), "generation state: positions are missing");
  const Tensor& restored = found.mapped();
  const Shape expected{static_cast<int64_t>(positions.size())};
  ELWISE_CHECK(restored.shape() == expected && restored.dtype() == DType::i64,
               "generation state: expected positions of shape ", expected, " and dtype i64, got ",
               restored.shape(), " and ", restored.dtype());
  nn::set_tensors(layers, tensors);
  positions = restored.to_vector<int64_t>();
}

}  // namespace elwise::models
