#include "tools/experiments/classification.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "autograd/grad_mode.h"
#include "ops/loss.h"
#include "ops/reduce.h"
#include "tools/experiments/random_order.h"

namespace elwise::tools {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kEvaluationBatch = 64;
constexpr uint64_t kSplitStream = (uint64_t{1} << 20) - 1;  // of random_order: no epoch has this number

std::vector<int64_t> numbers_up_to(size_t count) {
  std::vector<int64_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

struct Evaluation {
  double accuracy = 0;
  double loss = 0;                              // mean cross entropy, nats
  std::vector<std::vector<int64_t>> confusion;  // [true class][predicted class]
};

Evaluation evaluate(const models::Classifier& model, const SeriesTensors& data) {
  const int64_t classes = model.config().classes;
  const std::vector<int64_t> order = numbers_up_to(static_cast<size_t>(data.count()));
  Evaluation result;
  result.confusion.assign(static_cast<size_t>(classes), std::vector<int64_t>(static_cast<size_t>(classes)));
  int64_t right = 0;
  for (int64_t begin = 0; begin < data.count(); begin += kEvaluationBatch) {
    const int64_t end = std::min(begin + kEvaluationBatch, data.count());
    const SeriesBatch batch = data.batch(order, begin, end);
    const Tensor logits = model.forward(batch.values, batch.key_mask);
    result.loss += cross_entropy(logits, batch.labels).item() * static_cast<double>(end - begin);
    const std::vector<int64_t> labels = batch.labels.to_vector<int64_t>();
    const std::vector<int64_t> predicted = argmax(logits, 1).to_vector<int64_t>();
    for (size_t i = 0; i < labels.size(); ++i) {
      right += labels[i] == predicted[i] ? 1 : 0;
      ++result.confusion[static_cast<size_t>(labels[i])][static_cast<size_t>(predicted[i])];
    }
  }
  result.accuracy = static_cast<double>(right) / static_cast<double>(data.count());
  result.loss /= static_cast<double>(data.count());
  return result;
}

/// What a run trains on, validates on (nothing: on the test set) and is tested on.
struct Splits {
  SeriesTensors train;
  std::optional<SeriesTensors> validation;
  SeriesTensors test;
};

class ClassificationTrial : public Trial {
 public:
  ClassificationTrial(const models::ClassifierConfig& config, Splits splits, std::vector<std::string> labels,
                      uint64_t seed, int64_t batch)
      : model_(config), splits_(std::move(splits)), labels_(std::move(labels)), seed_(seed), batch_(batch) {}

  nn::Module& model() override { return model_; }

  int64_t begin_epoch(int64_t epoch) override {
    order_ = random_order(splits_.train.count(), seed_, static_cast<uint64_t>(epoch));
    return (splits_.train.count() + batch_ - 1) / batch_;
  }

  Tensor loss(int64_t batch) override {
    const int64_t begin = batch * batch_, end = std::min(begin + batch_, splits_.train.count());
    const SeriesBatch series = splits_.train.batch(order_, begin, end);
    return cross_entropy(model_.forward(series.values, series.key_mask), series.labels);
  }

  /// Of equal accuracies on held-out series the one of the lower loss is better; on the test set the later
  /// one is, as in TSL.
  Validation validate(int64_t epoch) override {
    const bool held_out = splits_.validation.has_value();
    const Evaluation result = evaluate(model_, held_out ? *splits_.validation : splits_.test);
    return {.score = std::isfinite(result.loss) ? result.accuracy : NAN,
            .tie_break = held_out ? -result.loss : static_cast<double>(epoch),
            .fields = {{"validation_accuracy", result.accuracy}, {"validation_loss", result.loss}}};
  }

  ordered_json test() override {
    const Evaluation result = evaluate(model_, splits_.test);
    return {{"test_accuracy", result.accuracy},
            {"test_loss", result.loss},
            {"labels", labels_},
            {"confusion", result.confusion}};
  }

  int64_t test_examples() const override { return splits_.test.count(); }

  std::vector<QueriesAndKeys> queries_and_keys(int64_t test_example) const override {
    const NoGradGuard inference;
    const SeriesBatch series = splits_.test.batch({test_example}, 0, 1);
    std::vector<Tensor> hidden;
    model_.forward(series.values, series.key_mask, &hidden);
    return tools::queries_and_keys(model_, hidden, nn::NormPlacement::post, /*eps=*/0);
  }

 private:
  models::Classifier model_;
  Splits splits_;
  std::vector<std::string> labels_;
  uint64_t seed_;
  int64_t batch_;
  std::vector<int64_t> order_;
};

SeriesSet read_filled(const std::filesystem::path& path) {
  SeriesSet set = read_ts_file(path);
  interpolate_missing(set);
  return set;
}

/// The numbers of the series to train on and of those held out: the last of a permutation.
std::pair<std::vector<int64_t>, std::vector<int64_t>> split(size_t count, int64_t held_out, uint64_t seed) {
  if (held_out == 0) return {numbers_up_to(count), {}};
  const std::vector<int64_t> order = random_order(static_cast<int64_t>(count), seed, kSplitStream);
  return {{order.begin(), order.end() - held_out}, {order.end() - held_out, order.end()}};
}

}  // namespace

Classification::Classification(const ClassificationOptions& options)
    : options_(options), train_(read_filled(options.train)), test_(read_filled(options.test)) {
  match_labels(test_, train_, options.test);
  ELWISE_CHECK(held_out() < static_cast<int64_t>(train_.series.size()), options.train.string(),
               ": expected more series than the ", held_out(), " to hold out, got ", train_.series.size());
}

int64_t Classification::held_out() const {
  if (options_.validation == "test") return 0;
  const double count = options_.validation_share * static_cast<double>(train_.series.size());
  return std::max<int64_t>(1, std::llround(count));
}

ordered_json Classification::settings() const {
  const models::ClassifierConfig& model = options_.model;
  return {{"problem", train_.header.problem},
          {"training_series", train_.series.size()},
          {"test_series", test_.series.size()},
          {"dimensions", train_.header.dimensions},
          {"classes", train_.header.labels.size()},
          {"length", positions()},
          {"validation", options_.validation},
          {"validation_series",
           options_.validation == "test" ? test_.series.size() : static_cast<size_t>(held_out())},
          {"normalize", options_.normalize},
          {"embedding", model.embedding == models::SeriesEmbedding::conv ? "conv" : "linear"},
          {"pooling", model.pooling == models::Pooling::flatten ? "flatten" : "mean"},
          {"layers", model.layers},
          {"hidden", model.hidden},
          {"heads", model.heads},
          {"intermediate", model.intermediate},
          {"dropout", model.dropout},
          {"projection_scale", model.projection_scale}};
}

Experiment Classification::experiment(int64_t batch) const {
  const bool on_test = options_.validation == "test";
  Experiment result;
  result.settings = settings();
  result.metrics = {{"test_accuracy", on_test ? "test accuracy (best epoch)" : "test accuracy", 4},
                    {"test_loss", "test loss", 4}};
  result.make = [this, batch](const TrialId& id) -> std::unique_ptr<Trial> {
    const auto [train, held_out] = split(train_.series.size(), this->held_out(), id.seed);
    const std::vector<int64_t> all = numbers_up_to(test_.series.size());
    const Normalization normalization = normalization_of(train_, train);
    const Normalization of_test =
        options_.normalize == "split" ? normalization_of(test_, all) : normalization;
    models::ClassifierConfig config = options_.model;
    config.inputs = train_.header.dimensions;
    config.classes = static_cast<int64_t>(train_.header.labels.size());
    config.positions = positions();
    config.attention = nn::Mechanism::parse(id.attention);
    const int64_t length = config.positions;
    Splits splits{.train = SeriesTensors(train_, train, normalization, length, config.options),
                  .validation = {},
                  .test = SeriesTensors(test_, all, of_test, length, config.options)};
    if (!held_out.empty()) splits.validation.emplace(train_, held_out, normalization, length, config.options);
    return std::make_unique<ClassificationTrial>(config, std::move(splits), train_.header.labels, id.seed,
                                                 batch);
  };
  return result;
}

}  // namespace elwise::tools
