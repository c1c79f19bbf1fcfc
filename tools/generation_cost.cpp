#include "tools/generation_cost.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "autograd/grad_mode.h"
#include "core/parallel.h"
#include "core/random.h"
#include "ops/elementwise.h"
#include "ops/view.h"
#include "tools/json_lines.h"
#include "tools/median.h"
#include "tools/model_options.h"

namespace elwise::tools {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

int64_t bytes_in_use(Device device) {
  return memory_stats(device).total.now;
}

/// i64 of any shape, below the size of the vocabulary.
Tensor random_tokens(const models::BertConfig& config, const Shape& shape, uint64_t seed) {
  const RandomStream stream = Generator(seed).reserve(static_cast<uint64_t>(shape.count()));
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < shape.count(); ++i)
    tokens.push_back(static_cast<int64_t>(stream.word(static_cast<uint64_t>(i))) % config.vocabulary);
  return to(from_vector(tokens, shape), config.options.device);
}

/// Whether a step reads a few rows of this parameter only.
bool is_table_of_positions(const std::string& name) {
  return name.ends_with("position_embeddings.weight") || name.ends_with("position_bias");
}

std::vector<double> values_of(const Tensor& x) {
  return on_host(cast(x, DType::f64)).to_vector<double>();
}

/// Throws Error unless the first steps give what the parallel form gives.
void check_steps(const models::Decoder& decoder, uint64_t seed) {
  constexpr int64_t kBatch = 2, kSteps = 6;
  const models::BertConfig& config = decoder.config();
  // In bf16 BERT-base's two forms differ by 2 %: some ten roundings of 1 in 256.
  const DType dtype = config.options.dtype;
  const double tolerance = dtype == DType::f64 ? 1e-9 : dtype == DType::bf16 ? 0.05 : 1e-3;
  const Tensor tokens = random_tokens(config, {kSteps, kBatch}, seed);
  const NoGradGuard inference;
  const std::vector<double> expected = values_of(transpose(decoder.forward(transpose(tokens, 0, 1)), 0, 1));
  models::GenerationState state = decoder.make_state(kBatch);
  double largest = 0, error = 0;
  for (int64_t i = 0; i < kSteps; ++i) {
    const Tensor logits = decoder.step(reshape(slice(tokens, 0, i, i + 1), {kBatch}), state);
    const std::vector<double> actual = values_of(logits);
    for (size_t j = 0; j < actual.size(); ++j) {
      const double wanted = expected[static_cast<size_t>(i) * actual.size() + j];
      largest = std::max(largest, std::abs(wanted));
      error = std::max(error, actual[j] == wanted ? 0 : std::abs(actual[j] - wanted));
      ELWISE_CHECK(std::isfinite(actual[j]), "generation: step ", i, " of ", config.attention.name(),
                   " gives a logit that is not finite");
    }
  }
  ELWISE_CHECK(error <= tolerance * largest, "generation: steps of ", config.attention.name(),
               " differ from the forward pass by ", error, ", expected at most ", tolerance * largest);
}

}  // namespace

GenerationModel::GenerationModel(const models::BertConfig& config, uint64_t seed)
    : allocated_before_(bytes_in_use(config.options.device)),
      decoder_((manual_seed(seed), config)),
      allocated_bytes_(bytes_in_use(config.options.device) - allocated_before_) {
  decoder_.eval();
  for (const auto& [name, parameter] : decoder_.named_parameters()) {
    if (!is_table_of_positions(name)) weight_bytes_ += parameter.count() * size_of(parameter.dtype());
  }
  if (config.options.device != kMeta) check_steps(decoder_, seed);
}

PositionTimer::PositionTimer(const GenerationModel& model, int64_t batch, int64_t position)
    : model_(model), state_(model.decoder().make_state(batch)), cost_{.batch = batch, .position = position} {
  model.decoder().skip(position, state_);
  tokens_ = random_tokens(model.config(), {batch}, static_cast<uint64_t>(position));
  model.decoder().step(tokens_, state_);
  synchronize(model.config().options.device);
  cost_.state_bytes = state_.bytes();
}

void PositionTimer::time_step(RooflineMeter& meter, bool profile) {
  floors_.push_back(1e3 * static_cast<double>(model_.weight_bytes()) / meter.measure_read_bytes_per_s());
  std::optional<Profiler> profiler;
  if (profile) profiler.emplace();
  const auto start = Clock::now();
  model_.decoder().step(tokens_, state_);
  synchronize(model_.config().options.device);
  times_.push_back(milliseconds_since(start));
  ratios_.push_back(times_.back() / floors_.back());
  if (profiler) profiled_.push_back({profiler->kernels(), times_.back() / 1e3, meter.measure()});
}

StepCost PositionTimer::cost() const {
  StepCost result = cost_;
  result.steps = static_cast<int64_t>(times_.size());
  result.ms_per_token = median(times_);
  result.weight_floor_ms = median(floors_);
  result.floor_ratio = median(ratios_);
  result.profile = summarize(profiled_);
  return result;
}

GenerationTimer::GenerationTimer(const GenerationModel& model, int64_t batch, std::vector<int64_t> lengths)
    : model_(model), batch_(batch), lengths_(std::move(lengths)) {
  const models::Decoder& decoder = model.decoder();
  const Device device = model.config().options.device;
  const int64_t before = bytes_in_use(device);
  tokens_ = random_tokens(model.config(), {lengths_.back(), batch}, 0);
  state_ = decoder.make_state(batch);
  own_bytes_ = model.allocated_bytes() + bytes_in_use(device) - before;
  models::GenerationState warm = decoder.make_state(batch);
  decoder.step(reshape(slice(tokens_, 0, 0, 1), {batch}), warm);
}

void GenerationTimer::step() {
  constexpr int64_t kLast = 16;
  const Device device = model_.config().options.device;
  const auto done = static_cast<int64_t>(times_.size());
  const Tensor now = reshape(slice(tokens_, 0, done, done + 1), {batch_});
  synchronize(device);
  reset_memory_peak(device);
  const int64_t before = bytes_in_use(device);
  const auto start = Clock::now();
  model_.decoder().step(now, state_);
  synchronize(device);
  times_.push_back(milliseconds_since(start));
  peak_bytes_ = std::max(peak_bytes_, own_bytes_ + memory_stats(device).total.peak - before);
  own_bytes_ += bytes_in_use(device) - before;
  if (done + 1 < lengths_[costs_.size()]) return;
  GenerationCost cost{.batch = batch_, .length = done + 1};
  if (device != kMeta) {
    cost.total_ms = std::accumulate(times_.begin(), times_.end(), 0.0);
    cost.ms_per_token = median(times_);
    cost.last_step_ms = median({times_.end() - std::min(kLast, done + 1), times_.end()});
  }
  cost.state_bytes = state_.bytes();
  cost.peak_bytes = peak_bytes_;
  costs_.push_back(cost);
}

nlohmann::ordered_json to_json(const GenerationModel& model, const StepCost& cost) {
  nlohmann::ordered_json json = to_json(model.config());
  json["batch"] = cost.batch;
  json["position"] = cost.position;
  json["parameters"] = model.parameters();
  json["ms_per_token"] = value_or_null(cost.ms_per_token);
  json["state_bytes"] = cost.state_bytes;
  json["weight_bytes"] = model.weight_bytes();
  json["weight_floor_ms"] = value_or_null(cost.weight_floor_ms);
  json["floor_ratio"] = value_or_null(cost.floor_ratio);
  json["steps"] = cost.steps;
  if (!cost.profile.empty()) json["profile"] = to_json(cost.profile);
  json["threads"] = num_threads();
  return json;
}

nlohmann::ordered_json to_json(const GenerationModel& model, const GenerationCost& cost) {
  nlohmann::ordered_json json = to_json(model.config());
  json["batch"] = cost.batch;
  json["length"] = cost.length;
  json["parameters"] = model.parameters();
  json["total_ms"] = value_or_null(cost.total_ms);
  json["ms_per_token"] = value_or_null(cost.ms_per_token);
  json["last_step_ms"] = value_or_null(cost.last_step_ms);
  json["state_bytes"] = cost.state_bytes;
  json["weight_bytes"] = model.weight_bytes();
  json["peak_bytes"] = cost.peak_bytes;
  json["threads"] = num_threads();
  return json;
}

std::optional<double> crossing(const std::vector<double>& x, const std::vector<double>& first,
                               const std::vector<double>& second) {
  size_t i = x.size();
  while (i > 0 && second[i - 1] < first[i - 1]) --i;
  if (i == x.size()) return std::nullopt;
  if (i == 0) return x[0];
  const double before = second[i - 1] - first[i - 1], after = first[i] - second[i];  // both 0 or more
  return x[i - 1] + (x[i] - x[i - 1]) * before / (before + after);
}

}  // namespace elwise::tools
