#include "tools/experiments/forecast_trial.h"

#include <fmt/core.h>

#include <algorithm>

#include "autograd/grad_mode.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "tools/experiments/random_order.h"

namespace elwise::tools {
namespace {

constexpr size_t kForecastBatch = 512;  // windows at a time, without a gradient
constexpr size_t kShownWindows = 168;   // a week of hours

std::string text_of(const CalendarTime& time) {
  return fmt::format("{:04}-{:02}-{:02} {:02}:{:02}", time.year, time.month, time.day, time.hour,
                     time.minute);
}

}  // namespace

nlohmann::ordered_json test_fields(const ForecastErrors& errors, const ForecastingData& data) {
  return {{"test_mae", errors.mae},
          {"test_rmse", errors.rmse},
          {"test_mae_scaled", errors.mae / data.deviation()},
          {"test_rmse_scaled", errors.rmse / data.deviation()}};
}

ForecastTrial::ForecastTrial(std::shared_ptr<const ForecastingData> data,
                             const models::ForecasterConfig& config, uint64_t seed, int64_t batch)
    : data_(std::move(data)),
      model_(config),
      seed_(seed),
      batch_(batch),
      training_(data_->starts(data_->split().training)) {}

int64_t ForecastTrial::begin_epoch(int64_t epoch) {
  const auto count = static_cast<int64_t>(training_.size());
  order_ = random_order(count, seed_, static_cast<uint64_t>(epoch));
  return (count + batch_ - 1) / batch_;
}

Tensor ForecastTrial::loss(int64_t batch) {
  const auto begin = static_cast<size_t>(batch * batch_);
  const size_t end = std::min(begin + static_cast<size_t>(batch_), order_.size());
  std::vector<int64_t> starts;
  for (size_t i = begin; i < end; ++i) starts.push_back(training_[static_cast<size_t>(order_[i])]);
  const ForecastingData::Batch windows = data_->batch(starts, model_.config().options);
  return mse_loss(model_.forward(windows.input), windows.target);
}

std::vector<double> ForecastTrial::forecast(const std::vector<int64_t>& starts) const {
  std::vector<double> result;
  for (size_t begin = 0; begin < starts.size(); begin += kForecastBatch) {
    const auto first = starts.begin() + static_cast<int64_t>(begin);
    const auto count = static_cast<int64_t>(std::min(kForecastBatch, starts.size() - begin));
    const ForecastingData::Batch windows = data_->batch({first, first + count}, model_.config().options);
    const Tensor standardised = on_host(cast(model_.forward(windows.input), DType::f64));
    for (const double value : standardised.to_vector<double>()) {
      result.push_back(data_->mean() + data_->deviation() * value);
    }
  }
  return result;
}

ForecastErrors ForecastTrial::errors(const std::vector<int64_t>& starts,
                                     const std::vector<double>& forecasts) const {
  ErrorSum sum;
  const auto horizon = static_cast<size_t>(data_->horizon());
  for (size_t i = 0; i < forecasts.size(); ++i) {
    const auto row = static_cast<size_t>(starts[i / horizon] + data_->length()) + i % horizon;
    sum.add(forecasts[i], data_->series().values[row]);
  }
  return sum.errors();
}

Validation ForecastTrial::validate(int64_t) {
  const std::vector<int64_t> starts = data_->starts(data_->split().validation);
  const ForecastErrors errors = this->errors(starts, forecast(starts));
  return {.score = -errors.rmse,
          .fields = {{"validation_mae", errors.mae}, {"validation_rmse", errors.rmse}}};
}

nlohmann::ordered_json ForecastTrial::shown(const std::vector<int64_t>& starts,
                                            const std::vector<double>& forecasts) const {
  std::vector<std::string> times;
  std::vector<double> truth, made;
  const int64_t horizon = data_->horizon();
  for (size_t i = 0; i < std::min(kShownWindows, starts.size()); ++i) {
    const auto row = static_cast<size_t>(starts[i] + data_->length() + horizon - 1);
    times.push_back(text_of(data_->series().times[row]));
    truth.push_back(data_->series().values[row]);
    made.push_back(forecasts[(i + 1) * static_cast<size_t>(horizon) - 1]);
  }
  return {{"steps_ahead", horizon}, {"time", times}, {"truth", truth}, {"forecast", made}};
}

std::vector<QueriesAndKeys> ForecastTrial::queries_and_keys(int64_t test_example) const {
  const NoGradGuard inference;
  const models::ForecasterConfig& config = model_.config();
  const ForecastingData::Batch window =
      data_->batch({data_->split().test.begin + test_example}, config.options);
  std::vector<Tensor> hidden;
  model_.forward(window.input, &hidden);
  return tools::queries_and_keys(model_, hidden, config.norm, config.eps);
}

nlohmann::ordered_json ForecastTrial::test() {
  const std::vector<int64_t> starts = data_->starts(data_->split().test);
  const std::vector<double> forecasts = forecast(starts);
  nlohmann::ordered_json fields = test_fields(errors(starts, forecasts), *data_);
  fields["shown"] = shown(starts, forecasts);
  return fields;
}

}  // namespace elwise::tools
