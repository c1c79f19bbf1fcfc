#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "models/generation_state.h"
#include "nn/embedding.h"
#include "nn/encoder.h"

namespace elwise::models {

/// A number that a calendar or a clock shows, from which a model may learn daily and yearly patterns.
enum class CalendarMark : uint8_t {
  month,    // 0 .. 11
  day,      // of the month, 0 .. 30
  weekday,  // 0 .. 6
  hour,     // 0 .. 23
  minute,   // 0 .. 59
};

/// How many values a mark has.
int64_t value_count(CalendarMark mark);
/// "month", "day", "weekday", "hour", "minute".
const char* name_of(CalendarMark mark);
/// The mark of that name. Throws Error that lists them for any other.
CalendarMark parse_calendar_mark(const std::string& name);

/// How a value becomes a vector.
enum class ValueEmbedding : uint8_t {
  linear,  // a linear layer of this value alone
  conv,    // the Time Series Library's: a circular convolution of the values before, at and after it
};

/// The defaults are those of the experiments of arXiv 2501.05730, section 4.2.
struct ForecasterConfig {
  int64_t length = 6;   // values that are read; the most that a state takes up
  int64_t horizon = 6;  // values that are forecast
  int64_t hidden = 128;
  int64_t layers = 2;
  int64_t heads = 8;  // of SA and LA; must divide hidden
  int64_t intermediate = 256;
  double dropout = 0;  // of block outputs, while training
  double eps = 1e-5;   // of the layer norms
  nn::NormPlacement norm = nn::NormPlacement::post;
  bool embedding_norm = true;  // a LayerNorm between the embedding and the first layer
  std::vector<CalendarMark> marks = {CalendarMark::hour};
  ValueEmbedding embedding = ValueEmbedding::linear;
  nn::Mechanism attention = {};  // SA
  TensorOptions options = {};
};

/// A batch of windows.
struct ForecasterInput {
  Tensor values;              // [batch, length] of the model's dtype, standardised
  std::vector<Tensor> marks;  // i64 [batch, length] for each of the config's marks, in their order
};

/// Forecasts the next values of a series from the last ones with a causal Transformer encoder: each value's
/// embedding, the sinusoidal position and a learned vector of each calendar mark are added and normalised;
/// after each value, a linear layer reads the `horizon` next ones from what the encoder made of it.
/// Parameters begin as PyTorch's of the same modules do.
class Forecaster : public nn::Module {
 public:
  /// Throws Error for sizes that are not positive, heads that do not divide hidden, and the convolution: it
  /// would read the value after each, and has no recurrent form.
  explicit Forecaster(const ForecasterConfig& config);

  /// The forecast after the last value of each row: [batch, horizon]. Throws Error for more than
  /// config().length values, and for marks that are not the config's. `hidden_states`, if given, receives the
  /// encoder's input and each layer's output, [batch, length, hidden].
  Tensor forward(const ForecasterInput& input, std::vector<Tensor>* hidden_states = nullptr) const;
  /// The forecasts after every value, each from that value and those before it: [batch, length, horizon].
  Tensor forecast_after_each(const ForecasterInput& input) const;

  // The recurrent form: the same function a piece at a time, without a gradient. Each throws Error before
  // eval().

  /// The state of `batch` series of which no value was seen.
  GenerationState make_state(int64_t batch) const;
  /// Takes up the values of `input`: the forecast after the last.
  Tensor prefill(const ForecasterInput& input, GenerationState& state) const;
  /// One value more for every row: values [batch], marks i64 [batch] each -> [batch, horizon].
  Tensor step(const ForecasterInput& input, GenerationState& state) const;

  const ForecasterConfig& config() const { return config_; }

 private:
  /// [batch, length, hidden] of values [batch, length], `before` of which came earlier.
  Tensor embed(const ForecasterInput& input, int64_t before) const;
  /// The head on the last of hidden states [batch, length, hidden].
  Tensor read_last(const Tensor& hidden) const;

  ForecasterConfig config_;
  nn::Linear value_;
  Tensor positions_;  // [length, hidden], fixed
  std::deque<nn::Embedding> marks_;
  std::optional<nn::LayerNorm> norm_;
  nn::Dropout dropout_;
  nn::Encoder encoder_;
  nn::Linear head_;
};

}  // namespace elwise::models
