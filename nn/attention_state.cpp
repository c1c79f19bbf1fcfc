#include "nn/attention_state.h"

#include "ops/elementwise.h"
#include "ops/view.h"

namespace elwise::nn {
namespace {

/// The fields of a state under their names, for reading and for writing alike.
std::vector<std::pair<std::string, Tensor*>> fields(AttentionState& state) {
  if (auto* series = std::get_if<EaSeriesState>(&state.memory)) {
    return {{"s", &series->s}, {"z", &series->z}, {"kappa", &series->kappa}};
  }
  if (auto* linear = std::get_if<LinearAttentionState>(&state.memory)) {
    return {{"s", &linear->s}, {"z", &linear->z}};
  }
  if (auto* cache = std::get_if<KeyValueCache>(&state.memory)) {
    return {{"k", &cache->k}, {"v", &cache->v}, {"lengths", &cache->lengths}};
  }
  return {};
}

/// Throws Error unless `given` may replace `field`: a cache's rows (dimension 1 of 3) may be any number.
void check_field(const std::string& name, const Tensor& given, const Tensor& field, bool cached) {
  const bool rows = cached && field.rank() == 3 && given.rank() == 3;
  const Shape expected = rows ? field.shape().with(1, given.size(1)) : field.shape();
  ELWISE_CHECK(given.shape() == expected && given.dtype() == field.dtype(), "attention state: expected ",
               name, " of shape ", expected, " and dtype ", field.dtype(), ", got ", given.shape(), " and ",
               given.dtype());
}

}  // namespace

int64_t AttentionState::bytes() const {
  return std::visit(
      [](const auto& kind) -> int64_t {
        if constexpr (std::is_same_v<std::decay_t<decltype(kind)>, std::monostate>) {
          return 0;
        } else {
          return kind.bytes();
        }
      },
      memory);
}

std::map<std::string, Tensor> AttentionState::named_tensors() const {
  AttentionState handles = *this;
  if (auto* cache = std::get_if<KeyValueCache>(&handles.memory)) {
    for (Tensor* tensor : {&cache->k, &cache->v}) *tensor = slice(*tensor, 1, 0, cache->longest);
  }
  std::map<std::string, Tensor> result;
  for (const auto& [name, tensor] : fields(handles)) result.emplace(name, on_host(*tensor));
  return result;
}

void AttentionState::set_tensors(const std::map<std::string, Tensor>& tensors) {
  AttentionState restored = *this;
  auto* cache = std::get_if<KeyValueCache>(&restored.memory);
  const auto targets = fields(restored);
  ELWISE_CHECK(tensors.size() == targets.size(), "attention state: expected ", targets.size(),
               " tensors, got ", tensors.size());
  for (const auto& [name, target] : targets) {
    const auto found = tensors.find(name);
    ELWISE_CHECK(found != tensors.end(), "attention state: ", name, " is missing");
    check_field(name, found->second, *target, cache != nullptr);
    const Tensor copy = clone(found->second);  // the caller's tensor stays as it is when steps go on
    *target = to(copy, target->device());
  }
  if (cache != nullptr) {
    ELWISE_CHECK(cache->k.shape() == cache->v.shape(), "attention state: expected k and v of one shape, got ",
                 cache->k.shape(), " and ", cache->v.shape());
    cache->longest = cache->k.size(1);
  }
  *this = restored;
}

int64_t state_bytes(const std::vector<AttentionState>& states) {
  int64_t bytes = 0;
  for (const AttentionState& state : states) bytes += state.bytes();
  return bytes;
}

std::map<std::string, Tensor> named_tensors(const std::vector<AttentionState>& states) {
  std::map<std::string, Tensor> result;
  for (size_t layer = 0; layer < states.size(); ++layer) {
    for (const auto& [name, tensor] : states[layer].named_tensors()) {
      result.emplace(std::to_string(layer) + "." + name, tensor);
    }
  }
  return result;
}

void set_tensors(std::vector<AttentionState>& states, const std::map<std::string, Tensor>& tensors) {
  std::vector<std::map<std::string, Tensor>> layers(states.size());
  for (const auto& [name, tensor] : tensors) {
    const size_t dot = name.find('.');
    size_t layer = 0;
    while (layer < states.size() && name.substr(0, dot) != std::to_string(layer)) ++layer;
    ELWISE_CHECK(dot != std::string::npos && layer < states.size(), "attention state: ", name,
                 " belongs to none of ", states.size(), " layers");
    layers[layer].emplace(name.substr(dot + 1), tensor);
  }
  std::vector<AttentionState> restored = states;
  for (size_t layer = 0; layer < states.size(); ++layer) restored[layer].set_tensors(layers[layer]);
  states = restored;
}

}  // namespace elwise::nn
