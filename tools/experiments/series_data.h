#pragma once

#include <vector>

#include "core/tensor.h"
#include "tools/experiments/ts_file.h"

namespace elwise::tools {

/// Replaces each missing value by linear interpolation between its neighbours in the series and dimension, at
/// the ends by the nearest value, as the Time Series Library does. Where a dimension of a series has no value
/// at all, all stay NaN.
void interpolate_missing(SeriesSet& set);

/// Mean and standard deviation (with n - 1) of each dimension over all rows of series.
struct Normalization {
  std::vector<double> mean;
  std::vector<double> deviation;  // 1 where all rows are equal
};

/// Of the series with these numbers. NaN counts for nothing.
Normalization normalization_of(const SeriesSet& set, const std::vector<int64_t>& numbers);

/// Labelled series of one batch, padded with 0 on the right.
struct SeriesBatch {
  Tensor values;    // [batch, length, dimensions]
  Tensor key_mask;  // bool [batch, length]: true where the series has a value
  Tensor labels;    // i64 [batch]
};

/// Series as tensors: normalised, padded to one length.
class SeriesTensors {
 public:
  /// The series with these numbers. NaN becomes 0, the mean. Throws Error for a series longer than `length`.
  SeriesTensors(const SeriesSet& set, const std::vector<int64_t>& numbers, const Normalization& normalization,
                int64_t length, TensorOptions options = {});

  int64_t count() const { return all_.values.size(0); }
  /// Series order[begin], .. order[end - 1].
  SeriesBatch batch(const std::vector<int64_t>& order, int64_t begin, int64_t end) const;

 private:
  SeriesBatch all_;
};

}  // namespace elwise::tools
