#include "models/forecaster.h"

#include "autograd/grad_mode.h"
#include "ops/elementwise.h"
#include "ops/view.h"

namespace elwise::models {
namespace {

struct MarkKind {
  CalendarMark mark;
  const char* name;
  int64_t values;
};

constexpr MarkKind kMarks[] = {{CalendarMark::month, "month", 12},
                               {CalendarMark::day, "day", 31},
                               {CalendarMark::weekday, "weekday", 7},
                               {CalendarMark::hour, "hour", 24},
                               {CalendarMark::minute, "minute", 60}};

const MarkKind& kind_of(CalendarMark mark) {
  return kMarks[static_cast<size_t>(mark)];
}

const ForecasterConfig& checked(const ForecasterConfig& config) {
  ELWISE_CHECK(config.length > 0 && config.horizon > 0,
               "forecaster: expected a length and a horizon of 1 value or more, got ", config.length, " and ",
               config.horizon);
  ELWISE_CHECK(config.embedding == ValueEmbedding::linear,
               "forecaster: a circular convolution reads the value after each, and the last one before the "
               "first: it looks into the future and has no recurrent form; a causal model needs the linear "
               "embedding");
  return config;
}

nn::EncoderConfig encoder_config(const ForecasterConfig& config) {
  return {.attention = {.mechanism = config.attention,
                        .hidden = config.hidden,
                        .heads = config.heads,
                        .positions = config.length,
                        .causal = true,
                        .options = config.options},
          .intermediate = config.intermediate,
          .dropout = config.dropout,
          .eps = config.eps,
          .norm = config.norm};
}

}  // namespace

int64_t value_count(CalendarMark mark) {
  return kind_of(mark).values;
}

const char* name_of(CalendarMark mark) {
  return kind_of(mark).name;
}

CalendarMark parse_calendar_mark(const std::string& name) {
  for (const MarkKind& kind : kMarks) {
    if (name == kind.name) return kind.mark;
  }
  fail("calendar mark: expected month, day, weekday, hour or minute, got '", name, "'");
}

Forecaster::Forecaster(const ForecasterConfig& config)
    : config_(checked(config)),
      value_(1, config.hidden, config.options),
      positions_(nn::sinusoidal_positions(config.length, config.hidden, config.options)),
      dropout_(config.dropout),
      encoder_(encoder_config(config), config.layers),
      head_(config.hidden, config.horizon, config.options) {
  add_module("value", value_);
  for (const CalendarMark mark : config.marks) {
    add_module(name_of(mark), marks_.emplace_back(value_count(mark), config.hidden, config.options));
  }
  if (config.embedding_norm) {
    add_module("LayerNorm", norm_.emplace(config.hidden, config.eps, config.options));
  }
  add_module("dropout", dropout_);
  add_module("encoder", encoder_);
  add_module("head", head_);
}

Tensor Forecaster::embed(const ForecasterInput& input, int64_t before) const {
  const Tensor& values = input.values;
  ELWISE_CHECK(values.rank() == 2 && values.size(1) > 0, "forecaster: expected values [batch, length], got ",
               values.shape());
  const int64_t length = values.size(1);
  ELWISE_CHECK(before + length <= config_.length, "forecaster: expected at most ", config_.length,
               " values, got ", before + length);
  ELWISE_CHECK(input.marks.size() == marks_.size(), "forecaster: expected ", marks_.size(),
               " calendar marks, got ", input.marks.size());
  Tensor sum = add(value_.forward(reshape(values, {values.size(0), length, 1})),
                   slice(positions_, 0, before, before + length));
  for (size_t i = 0; i < marks_.size(); ++i) {
    const Tensor& mark = input.marks[i];
    ELWISE_CHECK(mark.shape() == values.shape(), "forecaster: expected a ", name_of(config_.marks[i]),
                 " for each of the values ", values.shape(), ", got ", mark.shape());
    sum = add(sum, marks_[i].forward(mark));
  }
  return dropout_.forward(norm_ ? norm_->forward(sum) : sum);
}

Tensor Forecaster::read_last(const Tensor& hidden) const {
  const int64_t length = hidden.size(1);
  return head_.forward(reshape(slice(hidden, 1, length - 1, length), {hidden.size(0), config_.hidden}));
}

Tensor Forecaster::forward(const ForecasterInput& input, std::vector<Tensor>* hidden_states) const {
  const Tensor embedded = embed(input, 0);
  if (hidden_states != nullptr) hidden_states->push_back(embedded);
  return read_last(encoder_.forward(embedded, {}, /*checkpoint_layers=*/false, hidden_states));
}

Tensor Forecaster::forecast_after_each(const ForecasterInput& input) const {
  return head_.forward(encoder_.forward(embed(input, 0)));
}

GenerationState Forecaster::make_state(int64_t batch) const {
  ELWISE_CHECK(batch > 0, "forecaster: expected a state of 1 row or more, got ", batch);
  return {.positions = std::vector<int64_t>(static_cast<size_t>(batch)),
          .layers = encoder_.make_states(batch)};
}

Tensor Forecaster::prefill(const ForecasterInput& input, GenerationState& state) const {
  const NoGradGuard inference;
  const Tensor hidden = encoder_.prefill(embed(input, state.positions.front()), {}, state.layers);
  for (int64_t& position : state.positions) position += input.values.size(1);
  return read_last(hidden);
}

Tensor Forecaster::step(const ForecasterInput& input, GenerationState& state) const {
  const NoGradGuard inference;
  const auto batch = static_cast<int64_t>(state.positions.size());
  ELWISE_CHECK(input.values.shape() == Shape{batch}, "forecaster: expected a value for each of ", batch,
               " rows, got ", input.values.shape());
  ForecasterInput columns{.values = reshape(input.values, {batch, 1}), .marks = {}};
  for (const Tensor& mark : input.marks) columns.marks.push_back(reshape(mark, {-1, 1}));
  const Tensor embedded = reshape(embed(columns, state.positions.front()), {batch, config_.hidden});
  const Tensor hidden = encoder_.step(embedded, state.layers);
  for (int64_t& position : state.positions) ++position;
  return head_.forward(hidden);
}

}  // namespace elwise::models
