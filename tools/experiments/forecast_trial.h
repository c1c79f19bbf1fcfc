#pragma once

#include <memory>

#include "tools/experiments/experiment.h"
#include "tools/experiments/forecast_controls.h"

namespace elwise::tools {

/// The fields "test_mae", "test_rmse" (in the units of the series), "test_mae_scaled" and "test_rmse_scaled"
/// (in standard deviations of the training rows).
nlohmann::ordered_json test_fields(const ForecastErrors& errors, const ForecastingData& data);

/// A run of train_forecaster: minimises the mean squared error of the standardised forecasts on batches of
/// training windows in a random order; the validation score is the RMSE.
class ForecastTrial : public Trial {
 public:
  /// Draws the parameters from default_generator().
  ForecastTrial(std::shared_ptr<const ForecastingData> data, const models::ForecasterConfig& config,
                uint64_t seed, int64_t batch);

  nn::Module& model() override { return model_; }
  int64_t begin_epoch(int64_t epoch) override;
  Tensor loss(int64_t batch) override;
  /// "validation_mae" and "validation_rmse", in the units of the series.
  Validation validate(int64_t epoch) override;
  /// test_fields(), and "shown": the times, the truth and the forecasts of a stretch of the test rows, each
  /// made `steps_ahead` rows before.
  nlohmann::ordered_json test() override;
  int64_t test_examples() const override { return data_->windows(data_->split().test); }
  std::vector<QueriesAndKeys> queries_and_keys(int64_t test_example) const override;

 private:
  /// The forecasts of the windows at `starts`, [windows, horizon] row-major, in the units of the series.
  std::vector<double> forecast(const std::vector<int64_t>& starts) const;
  ForecastErrors errors(const std::vector<int64_t>& starts, const std::vector<double>& forecasts) const;
  nlohmann::ordered_json shown(const std::vector<int64_t>& starts,
                               const std::vector<double>& forecasts) const;

  std::shared_ptr<const ForecastingData> data_;
  models::Forecaster model_;
  uint64_t seed_;
  int64_t batch_;
  std::vector<int64_t> training_;  // the windows, and
  std::vector<int64_t> order_;     // their order in this epoch
};

}  // namespace elwise::tools
