#include "nn/checkpoint.h"

#include "core/file.h"
#include "core/safetensors.h"
#include "nn/encoder.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "tests/support/op_test.h"
#include "tests/support/temporary_folder.h"

namespace elwise::nn {
namespace {

using testing::check_error;
using testing::Values;
using testing::values_of;

/// A small model whose training draws random numbers: its data and its dropout.
struct Training {
  Training()
      : encoder({.attention = {.mechanism = Mechanism::parse("ea-2"), .hidden = 8, .heads = 2},
                 .intermediate = 12,
                 .dropout = 0.2},
                1),
        optimizer(encoder, AdamKind::radam, {.lr = 0.01}) {}

  void steps(int count) {
    for (int i = 0; i < count; ++i) {
      encoder.zero_grad();
      const Tensor x = randn({2, 5, 8});
      mse_loss(encoder.forward(x), x).backward();
      optimizer.set_learning_rate(optimizer.learning_rate() * 0.9);
      optimizer.step();
    }
  }
  std::vector<Values> values() const {
    std::vector<Values> result;
    for (const Tensor& parameter : encoder.parameters()) result.push_back(values_of(parameter));
    for (const auto& [name, tensor] : optimizer.state()) result.push_back(values_of(tensor));
    return result;
  }

  Encoder encoder;
  Adam optimizer;
};

std::vector<std::string> names_in(const TemporaryFolder& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST_CASE("training goes on from a checkpoint bit for bit") {
  const TemporaryFolder folder;
  manual_seed(1);
  Training first;
  first.steps(3);
  save_checkpoint(folder.path(), first.encoder, first.optimizer);
  first.steps(4);
  const RandomStream end = default_generator().state();

  manual_seed(2);
  Training second;
  second.steps(1);
  load_checkpoint(folder.path(), second.encoder, second.optimizer);
  CHECK(second.optimizer.steps() == 3);
  second.steps(4);
  CHECK(second.values() == first.values());
  CHECK(second.optimizer.learning_rate() == first.optimizer.learning_rate());
  CHECK(second.optimizer.steps() == 7);
  CHECK(default_generator().state().offset == end.offset);
  CHECK(default_generator().state().seed == end.seed);
}

TEST_CASE("a checkpoint is two files, and a later one takes the place of the older") {
  const TemporaryFolder folder;
  Training training;
  training.steps(1);
  const std::filesystem::path path = folder / "runs";  // made when it is missing
  save_checkpoint(path / "a", training.encoder, training.optimizer);
  CHECK(std::filesystem::exists(path / "a" / "step-1.safetensors"));

  save_checkpoint(folder.path(), training.encoder, training.optimizer);
  training.steps(2);
  save_checkpoint(folder.path(), training.encoder, training.optimizer);
  CHECK(names_in(folder) == std::vector<std::string>{"checkpoint.json", "runs", "step-3.safetensors"});
  CHECK(checkpoint_step(folder.path()) == 3);
  Training other;
  load_checkpoint(folder.path(), other.encoder, other.optimizer);
  CHECK(other.values() == training.values());
}

TEST_CASE("what an interrupted save leaves behind does not matter") {
  const TemporaryFolder folder;
  Training training;
  training.steps(2);
  save_checkpoint(folder.path(), training.encoder, training.optimizer);
  const std::vector<Values> saved = training.values();
  folder.write("step-3.safetensors", "cut short");
  folder.write("step-3.safetensors.tmp-123-0", "cut shorter");
  folder.write("checkpoint.json.tmp-123-1", "{");
  training.steps(1);
  load_checkpoint(folder.path(), training.encoder, training.optimizer);
  CHECK(training.values() == saved);

  training.steps(1);
  save_checkpoint(folder.path(), training.encoder, training.optimizer);
  Training other;
  load_checkpoint(folder.path(), other.encoder, other.optimizer);
  CHECK(other.values() == training.values());
  training.steps(1);
  save_checkpoint(folder.path(), training.encoder, training.optimizer);
  CHECK_FALSE(std::filesystem::exists(folder / "step-3.safetensors"));
}

TEST_CASE("missing and damaged files are errors that name them") {
  const TemporaryFolder folder;
  Training training;
  training.steps(1);
  const std::string index = (folder / "checkpoint.json").string();
  const std::string tensors = (folder / "step-1.safetensors").string();
  const auto load = [&] { load_checkpoint(folder.path(), training.encoder, training.optimizer); };
  const auto check_starts = [&](const std::string& expected) {
    CHECK_THROWS_WITH_AS(load(), doctest::Contains(expected.c_str()), Error);
  };
  check_error(load, "cannot open \"" + index + "\": No such file or directory");
  save_checkpoint(folder.path(), training.encoder, training.optimizer);
  const std::string good_index = read_file(index), good_tensors = read_file(tensors);
  const std::vector<Values> before = training.values();

  for (const std::string& text :
       {std::string(), good_index.substr(0, good_index.size() / 2), std::string("[]"), std::string("{}"),
        std::string(R"({"file": 3, "step": 1, "learning_rate": 1, "random": {"seed": 1, "offset": 0}})"),
        std::string(R"({"file": "x", "step": 1, "learning_rate": 1, "random": {"seed": 1}})")}) {
    folder.write("checkpoint.json", text);
    check_starts("checkpoint: " + index + " is damaged: ");
  }
  for (size_t i = 0; i < good_index.size(); ++i) {
    std::string flipped = good_index;
    flipped[i] ^= 1;
    folder.write("checkpoint.json", flipped);
    check_starts("checkpoint: " + index + " is damaged: ");
  }
  folder.write("checkpoint.json", good_index);
  folder.write("step-1.safetensors", good_tensors.substr(0, good_tensors.size() - 1));
  check_starts("load_safetensors: " + tensors + ": ");
  folder.write("step-1.safetensors", "");
  check_starts("load_safetensors: " + tensors + ": ");
  std::filesystem::remove(tensors);
  check_error(load, "cannot open \"" + tensors + "\": No such file or directory");
  CHECK(training.values() == before);
}

TEST_CASE("a checkpoint of another model is refused") {
  const TemporaryFolder folder;
  Training training;
  training.steps(1);
  save_checkpoint(folder.path(), training.encoder, training.optimizer);
  const std::string tensors = (folder / "step-1.safetensors").string();

  Linear other(3, 2);
  Sgd sgd(other);
  check_error(
      [&] { load_checkpoint(folder.path(), other, sgd); },
      "checkpoint: " + tensors + " belongs to another model: 2 parameters are missing, 16 are unknown");
  EncoderConfig wider{.attention = {.mechanism = Mechanism::parse("ea-2"), .hidden = 10, .heads = 2},
                      .intermediate = 12};
  const Encoder encoder(wider, 1);
  Adam adam(encoder, AdamKind::radam);
  CHECK_THROWS_WITH_AS(
      load_checkpoint(folder.path(), encoder, adam),
      doctest::Contains("load_parameters: expected layer.0.attention.output.LayerNorm.bias of "
                        "shape [10], got [8]"),
      Error);
  Sgd momentum(training.encoder, {.momentum = 0.9});
  check_error([&] { load_checkpoint(folder.path(), training.encoder, momentum); },
              "optimizer: the saved state lacks layer.0.attention.self.query.weight.velocity");
  Sgd plain(training.encoder);
  check_error([&] { load_checkpoint(folder.path(), training.encoder, plain); },
              "optimizer: the saved state has 48 tensors, of which 16 belong to this model");
}

TEST_CASE("the parameters of a checkpoint can be loaded alone") {
  const TemporaryFolder folder;
  manual_seed(1);
  Training trained, other;
  trained.steps(2);
  save_checkpoint(folder.path(), trained.encoder, trained.optimizer);
  const RandomStream before = default_generator().state();
  load_checkpoint(folder.path(), other.encoder);
  const auto expected = trained.encoder.parameters(), actual = other.encoder.parameters();
  for (size_t i = 0; i < expected.size(); ++i) CHECK(values_of(actual[i]) == values_of(expected[i]));
  CHECK(other.optimizer.state().empty());
  CHECK(default_generator().state().offset == before.offset);
  const Linear linear(3, 2);
  check_error([&] { load_checkpoint(folder.path(), linear); },
              "checkpoint: " + (folder / "step-2.safetensors").string() +
                  " belongs to another model: 2 parameters are missing, 16 are unknown");
}

TEST_CASE("a checkpoint that is refused changes nothing") {
  const TemporaryFolder folder;
  Training training;
  training.steps(1);
  save_checkpoint(folder.path(), training.encoder, training.optimizer);
  training.steps(1);
  const std::vector<Values> before = training.values();
  Sgd momentum(training.encoder, {.momentum = 0.9});
  CHECK_THROWS_AS(load_checkpoint(folder.path(), training.encoder, momentum), Error);
  CHECK(training.values() == before);
}

TEST_CASE("a second save at the same step leaves the first whole until it is done") {
  const TemporaryFolder folder;
  Training training;
  training.steps(1);
  for (const char* expected : {"step-1.safetensors", "step-1-2.safetensors", "step-1.safetensors"}) {
    save_checkpoint(folder.path(), training.encoder, training.optimizer);
    CHECK(names_in(folder) == std::vector<std::string>{"checkpoint.json", expected});
  }
}

TEST_CASE("a checkpoint that cannot be written is an error") {
  const TemporaryFolder folder;
  const Training training;
  folder.write("file", "");
  CHECK_THROWS_WITH_AS(save_checkpoint(folder / "file", training.encoder, training.optimizer),
                       doctest::Contains("cannot"), Error);
}

TEST_CASE("parameters load by name, in any floating dtype") {
  const TemporaryFolder folder;
  const Linear source(3, 2), target(3, 2);
  save_parameters(folder / "model.safetensors", source);
  std::map<std::string, Tensor> tensors = load_safetensors(folder / "model.safetensors");
  LoadReport report = load_parameters(target, tensors);
  CHECK(report.missing.empty());
  CHECK(report.unexpected.empty());
  CHECK(values_of(target.weight()) == values_of(source.weight()));
  CHECK(values_of(target.bias()) == values_of(source.bias()));

  tensors["weight"] = from_vector<double>({1, 2, 3, 4, 5, 6}, {2, 3});
  tensors["bias"] = from_vector<BFloat16>({BFloat16(0.5f), BFloat16(-2)}, {2});
  load_parameters(target, tensors);
  CHECK(values_of(target.weight()) == Values{1, 2, 3, 4, 5, 6});
  CHECK(values_of(target.bias()) == Values{0.5, -2});
  CHECK(target.weight().dtype() == DType::f32);

  tensors.erase("bias");
  tensors["extra"] = ones({1});
  report = load_parameters(target, tensors);
  CHECK(report.missing == std::vector<std::string>{"bias"});
  CHECK(report.unexpected == std::vector<std::string>{"extra"});
}

TEST_CASE("parameters of another shape or kind are refused before any is changed") {
  const Linear target(3, 2);
  const Values before = values_of(target.bias());
  check_error(
      [&] {
        load_parameters(target, {{"bias", zeros({2})}, {"weight", zeros({3, 2})}});
      },
      "load_parameters: expected weight of shape [2, 3], got [3, 2]");
  check_error(
      [&] {
        load_parameters(target, {{"bias", zeros({2})}, {"weight", zeros({2, 3}, {.dtype = DType::i64})}});
      },
      "load_parameters: expected weight of a floating dtype, got i64");
  CHECK(values_of(target.bias()) == before);
}

}  // namespace
}  // namespace elwise::nn
