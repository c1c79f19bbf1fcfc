#include <doctest/doctest.h>

#include <filesystem>
#include <map>
#include <string>

#include "core/file.h"
#include "core/safetensors.h"
#include "tests/support/op_test.h"
#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"

// train_lm and generate as a user runs them.

namespace elwise::testing {
namespace {

Run train(const std::string& arguments) {
  return run_command(std::string(ELWISE_TOOLS_DIR) + "/train_lm " + arguments);
}

Run generate(const std::string& arguments) {
  return run_command(std::string(ELWISE_TOOLS_DIR) + "/generate " + arguments);
}

/// A model of a few thousand parameters: a run takes a moment.
const std::string kTiny =
    "--layers 2 --hidden 32 --heads 4 --intermediate 64 --length 24 --batch 4 --validate-every 10 ";

/// Some 12 KB whose letters follow from those before them.
std::string sample_text() {
  std::string text;
  for (int i = 0; i < 180; ++i) text += "The quick brown fox jumps over the lazy dog; element by element. ";
  return text;
}

struct Files {
  TemporaryFolder folder;
  std::string text = "--text " + folder.write("text.txt", sample_text()).string() + " ";
  std::string at(const std::string& name) const { return (folder / name).string(); }
};

/// The tensors of the checkpoint in `folder`, by name.
std::map<std::string, Values> checkpoint_values(const std::filesystem::path& folder) {
  const auto index = nlohmann::json::parse(read_file(folder / "checkpoint.json"));
  std::map<std::string, Values> result;
  for (const auto& [name, tensor] : load_safetensors(folder / index.at("file").get<std::string>())) {
    result.emplace(name, values_of(tensor));
  }
  return result;
}

}  // namespace

TEST_CASE("training lowers the held-out bits per byte, with every mechanism, and says so") {
  const Files files;
  for (const std::string attention : {"ea-6", "sa", "la", "aft", "ea"}) {
    const std::string json = files.at(attention + ".json");
    const Run result = train(files.text + kTiny + "--attention " + attention +
                             " --steps 30 --learning-rate 0.01 --json " + json);
    CHECK_MESSAGE(result.status == 0, result.output);
    CHECK_MESSAGE(contains(result.output, "held out"), result.output);
    const auto lines = json_lines(json);
    REQUIRE(lines.size() == 3);
    for (const nlohmann::json& line : lines) {
      for (const char* field :
           {"attention", "layers", "hidden", "parameters", "batch", "length", "seed", "threads", "step",
            "minutes", "bytes_per_s", "learning_rate", "training_bits_per_byte"}) {
        CHECK_MESSAGE((line.contains(field) && !line[field].is_null()), field);
      }
    }
    CHECK(lines[1]["step"] == 20);
    const double first = lines[0]["validation_bits_per_byte"], last = lines[2]["held_out_bits_per_byte"];
    CHECK_MESSAGE(last < first, attention);
    CHECK(last < 5.2);  // uniform over the text's 28 characters: 4.8; over all bytes: 8
    CHECK(lines[2]["learning_rate"].get<double>() < 1e-4);
  }
}

TEST_CASE("Ctrl-C saves, and the run goes on from there bit for bit") {
  const Files files;
  const std::string options = files.text + kTiny +
                              "--steps 200 --dropout 0.1 --attention ea-2 --threads 1 --json " +
                              files.at("json") + " --checkpoint ";
  const std::string whole = files.at("whole"), pieces = files.at("pieces");
  CHECK(train(options + whole).status == 0);

  const Run stopped = signalled_run(std::string(ELWISE_TOOLS_DIR) + "/train_lm " + options + pieces,
                                    "[ -e " + pieces + "/checkpoint.json ]", "INT", {pieces});
  CHECK_MESSAGE(stopped.status == 130, stopped.output);
  CHECK_MESSAGE(contains(stopped.output, "saved: --resume goes on"), stopped.output);
  CHECK_FALSE(contains(stopped.output, "held out "));
  const Run resumed = train(options + pieces + " --resume --threads 2");
  CHECK_MESSAGE(resumed.status == 0, resumed.output);
  CHECK(checkpoint_values(pieces) == checkpoint_values(whole));
  const auto lines = json_lines(files.at("json"));  // those from before the stop, too
  CHECK(lines.size() == 20);
  for (size_t i = 0; i < lines.size(); ++i) CHECK(lines[i]["step"] == 10 * (i + 1));
  // Nothing is left to do: the result once more.
  const Run again = train(options + pieces + " --resume");
  CHECK_MESSAGE(contains(again.output, "step    200"), again.output);
}

TEST_CASE("generate goes on from the prompt, the same for the same seed") {
  const Files files;
  const std::string model = files.at("model");
  CHECK(train(files.text + kTiny + "--steps 60 --learning-rate 0.01 --checkpoint " + model).status == 0);
  const std::string options = "--checkpoint " + model + " --tokens 12 --prompt 'The qu'";
  const Run greedy = generate(options + " --temperature 0");
  CHECK_MESSAGE(greedy.status == 0, greedy.output);
  CHECK(greedy.output.starts_with("The qu"));
  CHECK(greedy.output.size() == 6 + 12 + 1);
  // Beyond the model's 24 positions.
  const Run longer = generate(options + " --temperature 0 --tokens 60");
  CHECK(longer.output.starts_with(greedy.output.substr(0, 18)));
  CHECK(longer.output.size() == 6 + 60 + 1);
  CHECK(generate(options + " --top-k 1 --seed 9").output == greedy.output);
  CHECK(generate(options + " --seed 1 --threads 1").output == generate(options + " --seed 1").output);
  CHECK(generate(options + " --temperature 5 --seed 1").output !=
        generate(options + " --temperature 5 --seed 2").output);
  const Run two = generate(options + " --prompt dog --temperature 0");
  CHECK_MESSAGE(contains(two.output, "[1] " + greedy.output), two.output);
  CHECK_MESSAGE(contains(two.output, "[2] dog"), two.output);
}

TEST_CASE("bad input of train_lm and generate: one line, exit 2 for usage and 1 for a failure") {
  const Files files;
  const std::string model = files.at("model"), tiny = kTiny + "--steps 2 --quiet ";
  CHECK(train(files.text + tiny + "--checkpoint " + model).status == 0);
  const std::string short_text = "--text " + files.folder.write("short.txt", "abc").string() + " ";
  const std::tuple<std::string, int, std::string> training[] = {
      {kTiny, 2, "--text is required"},
      {files.text + kTiny, 2, "expected --steps or --minutes"},
      {files.text + tiny + "--attention ea-3", 2, "order 3, expected an even one"},
      {files.text + tiny + "--hidden 33", 2, "33 is not divisible by 4 heads"},
      {files.text + tiny + "--batch 0", 2, "--batch: expected a number above 0"},
      {files.text + tiny + "--norm both", 2, "--norm"},
      {files.text + tiny + "--device meta", 2, "nothing is trained on meta"},
      {files.text + tiny + "--resume", 2, "resume: expected --checkpoint beside it"},
      {files.text + tiny + "--checkpoint " + model, 2, "expected --resume or another folder"},
      {files.text + tiny + "--resume --checkpoint " + files.at("none"), 1, "cannot open"},
      {files.text + tiny + "--hidden 64 --resume --checkpoint " + model, 1,
       "is of a run with hidden 32, the options give 64"},
      {files.text + tiny + "--norm post --resume --checkpoint " + model, 1,
       "is of a run with norm \"pre\", the options give \"post\""},
      {"--text " + files.at("missing.txt") + " " + tiny, 1, "missing.txt"},
      {short_text + tiny, 1, "expected more than 24 bytes in the held-out last 5 %"},
      {files.text + tiny + "--json " + files.at("no/such/folder.json"), 1, "cannot write"},
  };
  for (const auto& [arguments, status, message] : training) {
    const Run result = train(arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(result.status == status, result.output);
    CHECK_MESSAGE(contains(result.output, message), result.output);
    CHECK_MESSAGE(count_lines(result.output) == 1, result.output);
  }
  const std::string from = "--checkpoint " + model + " ";
  const std::tuple<std::string, int, std::string> generating[] = {
      {from, 2, "--prompt is required"},
      {"--prompt a", 2, "--checkpoint is required"},
      {from + "--prompt ''", 2, "prompt: expected at least one byte"},
      {from + "--prompt a --top-p 2", 2, "expected a top-p above 0, at most 1, got 2"},
      {from + "--prompt a --tokens 0", 2, "--tokens: expected a number above 0"},
      {from + "--prompt a --device meta", 2, "nothing is generated on meta"},
      {"--prompt a --checkpoint " + files.at("none"), 1, "cannot open"},
  };
  for (const auto& [arguments, status, message] : generating) {
    const Run result = generate(arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(result.status == status, result.output);
    CHECK_MESSAGE(contains(result.output, message), result.output);
  }
}

}  // namespace elwise::testing
