// Counts the bytes that each CUDA kernel asks of device memory, on the emulation, beside the fewest that its
// contract's cost() says. Writes a line of JSON for every kernel of every case: tools/kernel_report.py
// --traffic.

#include <iostream>
#include <map>
#include <regex>

#include "core/error.h"
#include "core/profiler.h"
#include "tests/support/cuda/emulation.h"
#include "tests/support/cuda/traffic/access_counter.h"
#include "tests/support/cuda/traffic/kernel_names.h"
#include "tests/support/cuda/traffic/traffic_cases.h"
#include "tools/console.h"
#include "tools/json_lines.h"

namespace emulation {
namespace {

using elwise::DType;
using elwise::KernelProfile;

/// Calls that must move less than this are left out: their edges, and operands that cost() leaves out, count.
constexpr double kLeastBytes = 256 << 10;

struct Launches {
  int64_t count = 0;
  Traffic traffic;
};

/// Attributes traffic to CUDA kernels, and these to the kernels of the contracts that launched them, for what
/// the thread runs while it lives.
class TrafficLog {
 public:
  TrafficLog() : profiler_([this](const KernelProfile& call) { end_call(call); }) {
    take_traffic();
    observe_kernels([this](const void* kernel) {
      end_launch();
      running_ = kernel;
    });
  }
  ~TrafficLog() { observe_kernels({}); }
  TrafficLog(const TrafficLog&) = delete;
  TrafficLog& operator=(const TrafficLog&) = delete;

  struct Call {
    KernelProfile profile;
    std::map<const void*, Launches> cuda_kernels;
  };
  const std::vector<Call>& calls() const { return calls_; }

 private:
  void end_launch() {
    const Traffic traffic = take_traffic();
    if (running_ == nullptr) return;
    Launches& launches = launched_[running_];
    ++launches.count;
    launches.traffic += traffic;
    running_ = nullptr;
  }
  void end_call(const KernelProfile& call) {
    end_launch();
    calls_.push_back({call, std::exchange(launched_, {})});
  }

  const void* running_ = nullptr;
  std::map<const void*, Launches> launched_;
  std::vector<Call> calls_;
  elwise::Profiler profiler_;
};

nlohmann::ordered_json line_of(const std::string& name, const TrafficLog::Call& call) {
  static const KernelNames names;
  Traffic all;
  auto cuda_kernels = nlohmann::ordered_json::array();
  for (const auto& [kernel, launches] : call.cuda_kernels) {
    all += launches.traffic;
    cuda_kernels.push_back({{"name", names.of(kernel)},
                            {"launches", launches.count},
                            {"bytes_read", launches.traffic.read},
                            {"bytes_written", launches.traffic.written}});
  }
  return {{"case", name},
          {"kernel", call.profile.kernel},
          {"dtype", name_of(call.profile.dtype)},
          {"fewest_read", call.profile.cost.bytes_read},
          {"fewest_written", call.profile.cost.bytes_written},
          {"bytes_read", all.read},
          {"bytes_written", all.written},
          {"sector_bytes_read", all.sectors_read},
          {"sector_bytes_written", all.sectors_written},
          {"cuda_kernels", cuda_kernels}};
}

struct Options {
  std::string dtype = "f32";
  std::string cases = "";
  std::string json = "/dev/stdout";
};

int run(const Options& options) {
  std::regex pattern;
  try {
    pattern = std::regex(options.cases);
  } catch (const std::regex_error& error) {
    throw elwise::tools::UsageError("--cases: not a regular expression: " + options.cases);
  }
  const std::map<std::string, DType> dtypes{{"f32", DType::f32}, {"f64", DType::f64}, {"bf16", DType::bf16}};
  elwise::tools::JsonLines out(options.json);
  int64_t ran = 0;
  for (const TrafficCase& traffic_case : traffic_cases()) {
    if (!std::regex_search(traffic_case.name, pattern)) continue;
    const std::function<void()> work = traffic_case.prepare(dtypes.at(options.dtype));
    const TrafficLog log;
    work();
    for (const TrafficLog::Call& call : log.calls()) {
      if (call.profile.cost.bytes() >= kLeastBytes) out.write(line_of(traffic_case.name, call));
    }
    ++ran;
  }
  if (ran == 0) throw elwise::tools::UsageError("--cases: no case is called like " + options.cases);
  return elwise::tools::kExitOk;
}

}  // namespace
}  // namespace emulation

int main(int argc, char** argv) {
  emulation::Options options;
  CLI::App app("Counts the bytes that each CUDA kernel asks of device memory, on the emulation",
               "kernel_traffic");
  app.add_option("--dtype", options.dtype, "of all tensors: f32, f64 or bf16")
      ->check(CLI::IsMember({"f32", "f64", "bf16"}))
      ->capture_default_str();
  app.add_option("--cases", options.cases,
                 "a regular expression for the names of the cases to run (default: all)");
  app.add_option("--json", options.json, "write the lines to this file")->capture_default_str();
  return elwise::tools::run_program(app, argc, argv, [&] { return emulation::run(options); });
}
