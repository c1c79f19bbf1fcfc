#include "tools/cost_measurement.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "core/cost.h"
#include "nn/optimizer.h"
#include "tools/json_lines.h"
#include "tools/masked_lm_data.h"
#include "tools/matmul_floor.h"
#include "tools/median.h"
#include "tools/model_options.h"

namespace elwise::tools {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

MaskedLmData open_data(const CostRequest& request) {
  if (request.text.empty()) return MaskedLmData(request.model.vocabulary, request.seed);
  return MaskedLmData(request.text, request.model.vocabulary, request.seed);
}

/// The products of one step, each with how often it occurs.
std::vector<std::pair<MatmulShape, int64_t>> counted(const std::vector<MatmulShape>& shapes) {
  std::map<MatmulShape, int64_t> counts;
  for (const MatmulShape& shape : shapes) ++counts[shape];
  return {counts.begin(), counts.end()};
}

/// The times of single steps.
struct StepTimes {
  std::vector<double> step, forward, backward, optimizer;
};

}  // namespace

std::optional<double> CostResult::tokens_per_s(const CostRequest& request) const {
  if (!step_ms) return std::nullopt;
  return static_cast<double>(request.batch * request.length) * 1e3 / *step_ms;
}

std::optional<double> CostResult::floor_ratio() const {
  if (!matmul_floor_ms || !forward_ms || !backward_ms) return std::nullopt;
  return (*forward_ms + *backward_ms) / *matmul_floor_ms;
}

CostResult measure_cost(const CostRequest& request, const std::function<bool(int64_t)>& progress) {
  ELWISE_CHECK(request.batch > 0 && request.length > 0, "cost: expected a positive batch and length, got ",
               request.batch, " and ", request.length);
  const Device device = request.model.options.device;
  const bool runs = device != kMeta;
  set_num_threads(request.threads);
  manual_seed(request.seed);
  MaskedLmData data = open_data(request);
  const models::BertForMaskedLm model(request.model);
  nn::Adam optimizer(model, AdamKind::adamw, {.lr = request.learning_rate, .weight_decay = 0.01});
  if (request.step_in_backward) optimizer.step_in_backward();

  CostResult result{.parameters = model.parameter_count()};
  StepTimes times;
  std::vector<MatmulShape> products;
  std::vector<ProfiledStep> profiled;
  std::optional<RooflineMeter> roofline;
  if (request.profile && device != kMeta) roofline.emplace(device);
  for (int64_t step = 0; step < request.warmup + request.steps; ++step) {
    if (step == request.warmup) reset_memory_peak(device);
    const MaskedLmBatch batch = data.next(request.batch, request.length, device);
    synchronize(device);
    const double flops_before = cost_totals().flops;
    const MatmulLog log;
    std::optional<Profiler> profiler;
    if (request.profile) profiler.emplace();
    const auto start = Clock::now();
    const Tensor loss = model.loss(batch.input, batch.masked, batch.labels, request.checkpoint_layers);
    synchronize(device);
    const double forward = milliseconds_since(start);
    loss.backward();
    synchronize(device);
    const double backward = milliseconds_since(start) - forward;
    optimizer.step();
    optimizer.zero_grad();
    synchronize(device);
    const double total = milliseconds_since(start);
    if (runs) {
      if (step == 0) result.loss_first = loss.item();
      result.loss_last = loss.item();
    }
    if (step >= request.warmup) {
      times.step.push_back(total);
      times.forward.push_back(forward);
      times.backward.push_back(backward);
      times.optimizer.push_back(total - forward - backward);
      result.flops = cost_totals().flops - flops_before;
      if (profiler) {
        profiled.push_back({profiler->kernels(), total / 1e3, std::nullopt});
        if (roofline) profiled.back().roofline = roofline->measure();
      }
      ++result.steps;
    }
    products = log.shapes();
    if (!progress(step + 1)) break;
  }
  result.memory = memory_stats(device);
  result.profile = summarize(profiled);
  if (runs) {
    result.step_ms = median(times.step);
    result.forward_ms = median(times.forward);
    result.backward_ms = median(times.backward);
    result.optimizer_ms = median(times.optimizer);
    const DType dtype = request.model.options.dtype;
    if (request.matmul_floor && dtype != DType::f64 && result.steps == request.steps) {
      result.matmul_floor_ms = measure_matmul_floor_ms(counted(products), dtype, device);
    }
  }
  return result;
}

nlohmann::ordered_json to_json(const CostRequest& request, const CostResult& result) {
  const auto counted_or_null = [&](auto value) {
    return result.steps > 0 ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
  };
  nlohmann::ordered_json json = to_json(request.model);
  json["batch"] = request.batch;
  json["seq_len"] = request.length;
  json["parameters"] = counted_or_null(result.parameters);
  json["step_ms"] = value_or_null(result.step_ms);
  json["forward_ms"] = value_or_null(result.forward_ms);
  json["backward_ms"] = value_or_null(result.backward_ms);
  json["optimizer_ms"] = value_or_null(result.optimizer_ms);
  json["tokens_per_s"] = value_or_null(result.tokens_per_s(request));
  json["peak_bytes"] = counted_or_null(result.memory.total.peak);
  json["parameter_bytes"] = counted_or_null(result.memory[MemoryTag::parameters].peak);
  json["gradient_bytes"] = counted_or_null(result.memory[MemoryTag::gradients].peak);
  json["optimizer_bytes"] = counted_or_null(result.memory[MemoryTag::optimizer].peak);
  json["activation_peak_bytes"] = counted_or_null(result.memory[MemoryTag::activations].peak);
  json["flops"] = counted_or_null(result.flops);
  json["matmul_floor_ms"] = value_or_null(result.matmul_floor_ms);
  json["floor_ratio"] = value_or_null(result.floor_ratio());
  json["loss_first"] = value_or_null(result.loss_first);
  json["loss_last"] = value_or_null(result.loss_last);
  json["checkpoint_activations"] = request.checkpoint_layers;
  json["step_in_backward"] = request.step_in_backward;
  json["steps"] = result.steps;
  if (request.profile) json["profile"] = to_json(result.profile);
  json["threads"] = request.threads;
  json["seed"] = request.seed;
  return json;
}

}  // namespace elwise::tools
