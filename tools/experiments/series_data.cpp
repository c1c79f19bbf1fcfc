#include "tools/experiments/series_data.h"

#include <algorithm>
#include <cmath>

#include "ops/elementwise.h"
#include "ops/embedding.h"

namespace elwise::tools {
namespace {

/// One dimension of a series: values[0], values[stride], ..
void interpolate(double* values, int64_t length, int64_t stride) {
  int64_t known = -1;  // the last position with a value
  for (int64_t i = 0; i < length; ++i) {
    const double value = values[i * stride];
    if (std::isnan(value)) continue;
    const double before = known < 0 ? value : values[known * stride];
    for (int64_t gap = known + 1; gap < i; ++gap) {
      const double share = known < 0 ? 0 : static_cast<double>(gap - known) / static_cast<double>(i - known);
      values[gap * stride] = before + share * (value - before);
    }
    known = i;
  }
  if (known < 0) return;
  for (int64_t gap = known + 1; gap < length; ++gap) values[gap * stride] = values[known * stride];
}

}  // namespace

void interpolate_missing(SeriesSet& set) {
  const int64_t dimensions = set.header.dimensions;
  for (Series& series : set.series) {
    for (int64_t dimension = 0; dimension < dimensions; ++dimension) {
      interpolate(series.values.data() + dimension, series.length, dimensions);
    }
  }
}

Normalization normalization_of(const SeriesSet& set, const std::vector<int64_t>& numbers) {
  const auto dimensions = static_cast<size_t>(set.header.dimensions);
  std::vector<double> count(dimensions), mean(dimensions), squares(dimensions);
  for (const int64_t number : numbers) {
    const std::vector<double>& values = set.series[static_cast<size_t>(number)].values;
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) continue;
      const size_t dimension = i % dimensions;  // Welford's recurrence
      const double distance = values[i] - mean[dimension];
      mean[dimension] += distance / ++count[dimension];
      squares[dimension] += distance * (values[i] - mean[dimension]);
    }
  }
  Normalization result{.mean = mean, .deviation = std::vector<double>(dimensions, 1)};
  for (size_t dimension = 0; dimension < dimensions; ++dimension) {
    if (squares[dimension] > 0) {
      result.deviation[dimension] = std::sqrt(squares[dimension] / (count[dimension] - 1));
    }
  }
  return result;
}

SeriesTensors::SeriesTensors(const SeriesSet& set, const std::vector<int64_t>& numbers,
                             const Normalization& normalization, int64_t length, TensorOptions options) {
  const int64_t dimensions = set.header.dimensions;
  const auto count = static_cast<int64_t>(numbers.size());
  const Tensor values = zeros({count, length, dimensions});
  std::vector<bool> visible(static_cast<size_t>(count * length), false);
  std::vector<int64_t> labels;
  for (int64_t row = 0; row < count; ++row) {
    const Series& series = set.series[static_cast<size_t>(numbers[static_cast<size_t>(row)])];
    ELWISE_CHECK(series.length <= length, "series: expected at most ", length, " values, got ",
                 series.length);
    float* to = values.data<float>() + row * length * dimensions;
    for (size_t i = 0; i < series.values.size(); ++i) {
      const size_t dimension = i % static_cast<size_t>(dimensions);
      const double value =
          (series.values[i] - normalization.mean[dimension]) / normalization.deviation[dimension];
      to[i] = std::isnan(value) ? 0.0F : static_cast<float>(value);
    }
    std::fill_n(visible.begin() + row * length, series.length, true);
    labels.push_back(series.label);
  }
  all_ = {.values = elwise::to(cast(values, options.dtype), options.device),
          .key_mask = elwise::to(from_vector(visible, {count, length}), options.device),
          .labels = elwise::to(from_vector(labels, {count}), options.device)};
}

SeriesBatch SeriesTensors::batch(const std::vector<int64_t>& order, int64_t begin, int64_t end) const {
  const std::vector<int64_t> chosen(order.begin() + begin, order.begin() + end);
  const Tensor index = to(from_vector(chosen, {end - begin}), all_.values.device());
  return {.values = index_select(all_.values, 0, index),
          .key_mask = index_select(all_.key_mask, 0, index),
          .labels = index_select(all_.labels, 0, index)};
}

}  // namespace elwise::tools
