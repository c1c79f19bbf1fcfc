#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"

// train_bert_cost on an emulated GPU, beside the same on the CPU.

namespace elwise::testing {
namespace {

const std::string kProgram = ELWISE_EMULATED_TRAIN_BERT_COST;
const std::string kSizes =
    " --layers 1 --hidden 32 --heads 4 --intermediate 64 --vocab 60 --seq-len 16 --steps 2 --quiet ";

std::vector<std::string> keys(const nlohmann::json& object) {
  std::vector<std::string> result;
  for (const auto& item : object.items()) result.push_back(item.key());
  return result;
}

nlohmann::json measured(const std::string& options) {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  const Run result = run_command(kProgram + kSizes + options + " --json " + json.string());
  REQUIRE_MESSAGE(result.status == 0, result.output);
  return json_lines(json).at(0);
}

TEST_CASE("--device cuda: the fields, losses and FLOPs of the CPU, and the memory that meta counts") {
  for (const std::string attention : {"ea-6", "sa", "ea"}) {
    CAPTURE(attention);
    const std::string options = "--attention " + attention + " --device ";
    const auto on_gpu = measured(options + "cuda"), on_cpu = measured(options + "cpu"),
               counted = measured(options + "meta");
    CHECK(keys(on_gpu) == keys(on_cpu));
    CHECK(on_gpu["device"] == "cuda:0");
    for (const char* loss : {"loss_first", "loss_last"}) {
      CHECK(on_gpu[loss].get<double>() == doctest::Approx(on_cpu[loss].get<double>()).epsilon(1e-5));
    }
    for (const char* field : {"step_ms", "forward_ms", "backward_ms", "optimizer_ms", "matmul_floor_ms"}) {
      CHECK(on_gpu[field].get<double>() > 0);
    }
    CHECK(on_gpu["flops"] == counted["flops"]);
    for (const char* field :
         {"peak_bytes", "parameter_bytes", "gradient_bytes", "optimizer_bytes", "activation_peak_bytes"}) {
      CHECK_MESSAGE(on_gpu[field] == counted[field], field);
    }
  }
}

TEST_CASE("--profile on a GPU lists its kernels") {
  const auto line = measured("--attention ea-6 --device cuda --profile");
  bool found = false;
  for (const auto& kernel : line["profile"]) found |= kernel["kernel"] == "ea_series_backward";
  CHECK(found);
}

TEST_CASE("a GPU that is not there is one line and exit 1") {
  const Run absent = run_command("CUDA_VISIBLE_DEVICES= " + kProgram + kSizes + "--device cuda");
  CHECK(absent.status == 1);
  CHECK(absent.output == "train_bert_cost: no CUDA device: no CUDA-capable device is detected\n");
  const Run beyond = run_command(kProgram + kSizes + "--device cuda:7");
  CHECK(beyond.status == 1);
  CHECK(beyond.output == "train_bert_cost: no CUDA device: expected cuda:0 .. cuda:1, got cuda:7\n");
}

}  // namespace
}  // namespace elwise::testing
