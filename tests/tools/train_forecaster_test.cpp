#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <string>
#include <tuple>

#include "tests/support/figures.h"
#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"

// train_forecaster as a user runs it.

namespace elwise::testing {
namespace {

const std::string kProgram = std::string(ELWISE_TOOLS_DIR) + "/train_forecaster ";

Run train(const std::string& arguments) {
  return run_command(kProgram + arguments);
}

/// A model of a few thousand parameters: a run takes a moment.
const std::string kTiny =
    "--layers 1 --hidden 16 --heads 2 --intermediate 24 --length 4 --horizon 3 --batch 32 --epochs 4 "
    "--learning-rate 0.01 ";

/// `days` of hourly rows in which OT follows the hour of the day, from a level that changes daily.
std::string daily_pattern(int days) {
  std::string text = "date,load,OT\n";
  for (int row = 0; row < 24 * days; ++row) {
    const int hour = row % 24, day = row / 24;
    const double level = 20 + 2 * std::sin(0.9 * day);
    const double value = level + (hour < 6 ? 0 : hour < 12 ? 8 : hour < 18 ? 3 : -4) + 0.1 * (row * 7 % 5);
    char line[80];
    std::snprintf(line, sizeof line, "2021-%02d-%02d %02d:00:00,%d,%.3f\n", 1 + day / 28, 1 + day % 28, hour,
                  row, value);
    text += line;
  }
  return text;
}

struct Files {
  TemporaryFolder folder;
  std::string data = "--data " + folder.write("daily.csv", daily_pattern(40)).string() + " ";
  std::string at(const std::string& name) const { return (folder / name).string(); }
};

}  // namespace

TEST_CASE("forecasters learn a daily pattern better than persistence, and say so in lines and a table") {
  const Files files;
  const Run result =
      train(files.data + kTiny + "--attention ea-6,sa,none --seeds 1,2 --json " + files.at("json"));
  CHECK_MESSAGE(result.status == 0, result.output);
  for (const char* part :
       {"daily.csv: 960 rows of OT, split 70/10/20 % of the rows (by the file's name)",
        "4 rows -> 3: 666 training, 94 validation and 190 test windows", "standardised by the training rows",
        "persistence", "linear per hour", "ea-6", "none", " +- "}) {
    CHECK_MESSAGE(contains(result.output, part), part << " in " << result.output);
  }
  double persistence = 0;
  int runs = 0, epochs = 0;
  for (const nlohmann::json& line : json_lines(files.at("json"))) {
    if (line.contains("epoch")) {
      ++epochs;
      for (const char* field :
           {"attention", "seed", "horizon", "training_loss", "validation_mae", "validation_rmse", "seconds"})
        CHECK_MESSAGE(line.contains(field), field);
      continue;
    }
    for (const char* field : {"test_mae", "test_rmse", "test_mae_scaled", "test_rmse_scaled"})
      CHECK_MESSAGE(line.at(field).get<double>() > 0, field);
    CHECK(line["test_rmse"] >= line["test_mae"]);
    if (line["attention"] == "persistence") persistence = line["test_mae"];
    if (!line.contains("seed")) continue;
    ++runs;
    CHECK(line["test_mae"].get<double>() < 0.7 * persistence);
    CHECK(line["test_mae_scaled"].get<double>() * line["training_deviation"].get<double>() ==
          doctest::Approx(line["test_mae"].get<double>()));
    for (const char* field : {"epochs", "seconds", "horizon", "split", "marks", "parameters"})
      CHECK_MESSAGE(line.contains(field), field);
    const nlohmann::json& shown = line["shown"];
    CHECK(shown["time"].size() == 168);
    CHECK(shown["truth"].size() == 168);
    CHECK(shown["forecast"].size() == 168);
    CHECK(shown["time"][0] == "2021-02-05 02:00");  // row 768 + 2, the third that is forecast
  }
  CHECK(runs == 6);
  CHECK(epochs == 24);
}

TEST_CASE("several horizons are rows of one table; without marks the hour is not known") {
  const Files files;
  const Run result = train(files.data + kTiny +
                           "--attention ea-2 --horizon 1 --marks none --no-embedding-norm --quiet --json " +
                           files.at("json"));
  CHECK_MESSAGE(result.status == 0, result.output);
  CHECK_MESSAGE(count_lines(result.output) == 1 + 2 * 3, result.output);
  std::map<int, double> error;
  for (const nlohmann::json& line : json_lines(files.at("json"))) {
    if (line.contains("epochs")) error[line["horizon"]] = line["test_mae"];
  }
  REQUIRE(error.size() == 2);
  CHECK(error[1] < error[3]);
}

TEST_CASE("a killed run that is resumed ends with the same numbers; a finished one is not repeated") {
  const Files files;
  const std::string options =
      files.data + kTiny + "--attention ea-6,sa --seeds 3 --epochs 12 --patience 12 --dropout 0.1 ";
  const Run whole = train(options + "--json " + files.at("whole.json"));
  CHECK_MESSAGE(whole.status == 0, whole.output);
  const std::string pieces = options + "--checkpoint " + files.at("pieces") + " ";
  const Run killed = signalled_run(kProgram + pieces, "[ -e " + files.at("pieces") + "/*/checkpoint.json ]",
                                   "KILL", {files.at("pieces")});
  CHECK_MESSAGE(killed.status == 137, killed.output);
  const auto check_other_settings_refused = [&] {
    const Run other = train(pieces + "--resume --hidden 32");
    CHECK(other.status == 1);
    CHECK_MESSAGE(contains(other.output, "is of a run with hidden 16, the options give 32"), other.output);
  };
  check_other_settings_refused();
  const Run resumed = train(pieces + "--resume --threads 2 --json " + files.at("resumed.json"));
  CHECK_MESSAGE(resumed.status == 0, resumed.output);
  CHECK(lines_without_times(files.at("resumed.json")) == lines_without_times(files.at("whole.json")));
  const Run again = train(pieces + "--resume --json " + files.at("again.json"));
  CHECK(json_lines(files.at("again.json")) == json_lines(files.at("resumed.json")));
  check_other_settings_refused();
}

TEST_CASE("figures: learning curves, and forecasts against the truth") {
  if (!can_draw()) return;
  const Files files;
  const Run result =
      train(files.data + kTiny + "--attention ea-2,none --quiet --plot " + files.at("figures"));
  CHECK_MESSAGE(result.status == 0, result.output);
  check_figure(files.at("figures"), "learning-curves", {"ea-2", "none", "validation rmse"});
  check_figure(files.at("figures"), "forecast-3",
               {"truth", "ea-2, seed 0", "none, seed 0", "test rows, each forecast 3 rows before", "OT"});
  CHECK(
      train(files.data + kTiny + "--attention ea-2 --horizon 1 --quiet --plot " + files.at("both")).status ==
      0);
  for (const std::string horizon : {"1", "3"}) {
    check_figure(files.at("both"), "learning-curves-horizon-" + horizon, {"horizon " + horizon, "ea-2"});
    check_figure(files.at("both"), "forecast-" + horizon, {"truth"});
  }
  CHECK_FALSE(std::filesystem::exists(files.at("both/learning-curves.png")));
  const auto damaged = files.folder.write("damaged.json", R"({"attention":"sa","shown":{"steps_ahead":3}})");
  const Run refused = run_command("python3 " ELWISE_SOURCE_DIR "/tools/plot_experiment.py " +
                                  damaged.string() + " --out " + files.at("none"));
  CHECK(refused.status == 1);
  CHECK_MESSAGE(contains(refused.output, "damaged.json:1: expected shown to have steps_ahead"),
                refused.output);
}

TEST_CASE("bad input of train_forecaster: one line, exit 2 for usage and 1 for a failure") {
  const Files files;
  const std::string damaged =
      "--data " + files.folder.write("damaged.csv", "date,OT\n2021-01-01,1,2\n").string();
  const std::string few = "--data " + files.folder.write("few.csv", daily_pattern(1)).string() + " ";
  const std::tuple<std::string, int, std::string> cases[] = {
      {kTiny, 2, "--data is required"},
      {files.data + kTiny + "--attention ea-3", 2, "order 3, expected an even one"},
      {files.data + kTiny + "--embedding conv", 2, "looks into the future"},
      {files.data + kTiny + "--hidden 33", 2, "expected heads that divide hidden size 33, got 2"},
      {files.data + kTiny + "--marks hour,second", 2, "expected month, day, weekday, hour or minute"},
      {files.data + kTiny + "--marks hour,hour", 2, "marks: expected each value once"},
      {files.data + kTiny + "--horizon 6,6", 2, "horizon: expected each value once"},
      {files.data + kTiny + "--horizon 0", 2, "--horizon: expected a number above 0"},
      {files.data + kTiny + "--split etth1", 2, "--split"},
      {files.data + kTiny + "--resume", 2, "resume: expected --checkpoint beside it"},
      {files.data + kTiny + "--split etth", 1, "daily.csv: split: 12/4/4 months of hours: expected 14400"},
      {files.data + kTiny + "--target T", 1, "daily.csv: expected one of the columns load, OT, got 'T'"},
      {few + kTiny + "--horizon 24", 1, "few.csv: split: 70/10/20 % of the rows: 24 rows are too few"},
      {damaged, 1, "damaged.csv:2: expected 2 fields, got 3"},
      {"--data " + files.at("none.csv"), 1, "cannot open"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Run result = train(arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(result.status == status, result.output);
    CHECK_MESSAGE(contains(result.output, message), result.output);
    CHECK_MESSAGE(count_lines(result.output) == 1, result.output);
  }
}

}  // namespace elwise::testing
