// How fast the kernels are at the shapes of BERT-base, next to a copy of memory and to the roofline.

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include <benchmark/benchmark.h>

#include "core/device_timer.h"
#include "core/parallel.h"
#include "core/roofline.h"
#include "tools/bench_case.h"
#include "tools/console.h"
#include "tools/model_options.h"
#include "tools/paired_times.h"

namespace elwise::tools {
namespace {

/// How the cases run.
struct Settings {
  TensorOptions options;  // of their operands
  int threads = num_threads();
  bool warm = false;
};

/// What the calls of one case must move together, so that each finds its operands in memory, where the
/// roofline's copy has them. Of the operands of a training step at these shapes only those that the kernel
/// before has just written, at one sequence a few MiB, may be in the last-level cache: saved activations,
/// weights, gradients and the optimizer's state were last touched hundreds of MiB earlier, and outputs are
/// fresh memory. To have all of them in memory is the slower and the more repeatable case, since the cache is
/// shared with whoever else uses the machine.
double cold_bytes(Device device) {
  constexpr double kLeast = 128 << 20, kOfGpu = 512 << 20;
  if (device.type == DeviceType::cuda) return kOfGpu;
  return std::max(kLeast, 4.0 * static_cast<double>(sysconf(_SC_LEVEL3_CACHE_SIZE)));
}

/// The case that is being timed, and what its check said. Google Benchmark calls a benchmark several times.
class Session {
 public:
  explicit Session(const Settings& settings)
      : options_(settings.options),
        bytes_(settings.warm ? 0 : cold_bytes(options_.device)),
        meter_(options_.device) {}

  /// Makes and checks the calls of a case, unless they are there from the last time.
  void enter(const BenchCase& bench) {
    const std::string name = bench.name(options_.dtype);
    if (name_ == name) return;
    name_.clear();
    calls_.clear();
    calls_ = make_calls(bench, options_, bytes_);
    calls_.front().run();
    fault_ = fault_of(calls_.front());
    name_ = name;
    if (!fault_.empty()) {
      fmt::print(stderr, "bench_ops: {} differs from its naive form: {}\n", name_, fault_);
      ++failures_;
    }
  }

  const std::string& fault() const { return fault_; }
  const KernelCall& call() const { return calls_.front(); }
  int failures() const { return failures_; }

  /// Runs the next call, on operands that have not been touched for the longest time. Seconds of a call,
  /// where it was waited for: on a GPU only one in several is. One alone would be timed with its launch,
  /// which in a step goes on while the kernels before it run.
  std::optional<double> run_next() {
    if (!timer_) timer_.emplace(options_.device);
    calls_[next_++ % calls_.size()].run();
    ++running_;
    return running_ < at_a_time_ ? std::nullopt : wait();
  }

  /// Waits for what runs.
  std::optional<double> wait() {
    if (!timer_) return {};
    const double seconds = timer_->stop() / running_;
    timer_.reset();
    running_ = 0;
    return seconds;
  }

  Roofline measure_roofline() { return meter_.measure(); }

 private:
  TensorOptions options_;
  double bytes_;
  RooflineMeter meter_;
  std::string name_, fault_;
  std::vector<KernelCall> calls_;
  size_t next_ = 0;
  int at_a_time_ = options_.device == kCpu ? 1 : 16;
  int running_ = 0;
  std::optional<DeviceTimer> timer_;
  int failures_ = 0;
};

void report(benchmark::State& state, const KernelCost& cost, const PairedTimes& times) {
  const KernelRates rates = times.rates();
  state.counters["copy_share"] = rates.copy_share;
  state.counters["roofline_share"] = rates.roofline_share;
  state.counters["bytes_per_s"] = cost.bytes() / rates.seconds;
  state.counters["flops_per_s"] = cost.flops / rates.seconds;
  state.counters["copy_bytes_per_s"] = rates.copy_bytes_per_s;
  state.counters["pairs"] = static_cast<double>(times.pairs());
}

void run_case(benchmark::State& state, const BenchCase& bench, Session& session) {
  session.enter(bench);
  if (!session.fault().empty()) {
    state.SkipWithError(session.fault().c_str());
    return;
  }
  const KernelCost cost = session.call().cost;
  PairedTimes times(cost, session.call().dtype);
  const auto warm_up = [&] {
    session.run_next();
    session.wait();
  };
  warm_up();
  for ([[maybe_unused]] auto _ : state) {
    if (const std::optional<double> seconds = session.run_next()) times.add(*seconds);
    if (times.due()) {
      state.PauseTiming();
      times.close(session.measure_roofline());
      warm_up();  // the threads may have gone to sleep
      state.ResumeTiming();
    }
  }
  if (const std::optional<double> seconds = session.wait()) times.add(*seconds);
  if (times.pending()) times.close(session.measure_roofline());
  report(state, cost, times);
}

/// Runs what Google Benchmark's own options, in `arguments`, select.
int run(std::vector<std::string> arguments, const Settings& settings) {
  set_num_threads(settings.threads);
  arguments.insert(arguments.begin(), "bench_ops");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  int argc = static_cast<int>(argv.size());
  benchmark::Initialize(&argc, argv.data());
  if (argc > 1) throw UsageError(fmt::format("unknown option {} (see bench_ops --help)", argv[1]));
  benchmark::AddCustomContext("elwise_threads", std::to_string(settings.threads));
  benchmark::AddCustomContext("elwise_operands", settings.warm ? "warm" : "cold");
  benchmark::AddCustomContext("elwise_device", elwise::detail::concatenate(settings.options.device));

  Session session(settings);
  for (const BenchCase& bench : bench_cases()) {
    const std::string name = bench.name(settings.options.dtype);
    benchmark::RegisterBenchmark(name.c_str(), [bench, &session](benchmark::State& state) {
      run_case(state, bench, session);
    })->Unit(benchmark::kMicrosecond);
  }
  const size_t matched = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if (matched == 0) return kExitUsage;  // it has said why
  return session.failures() == 0 ? kExitOk : kExitFailure;
}

/// Throws UsageError.
TensorOptions options_of(const std::string& device, const std::string& dtype) {
  TensorOptions options;
  try {
    options.device = parse_device(device);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (options.device == kMeta) throw UsageError("device: nothing runs on meta; expected cpu or cuda");
  check_available(options.device);
  options.dtype = parse_dtype(dtype);
  return options;
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app(
      "Times the kernels at the shapes of BERT-base, each once it agrees with its naive form. copy_share: "
      "the bytes that a kernel must move over its time, as a share of the bandwidth of a copy; "
      "roofline_share: the roofline's time over its own; both medians of pairs measured in turn.",
      "bench_ops");
  Settings settings;
  app.add_option("--threads", settings.threads, "CPU threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  std::string device = "cpu", dtype = "f32";
  app.add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  add_dtype(app, dtype);
  app.add_flag(
      "--warm", settings.warm,
      "use the same operands at each call: they are in the last-level cache where they fit; otherwise "
      "they are in memory");
  std::string format = "console", out_format = "json";  // Google Benchmark exits with 0 where they are wrong
  app.add_option("--benchmark_format", format, "of what is printed")
      ->check(CLI::IsMember({"console", "json", "csv"}))
      ->capture_default_str();
  app.add_option("--benchmark_out_format", out_format, "of the file")
      ->check(CLI::IsMember({"console", "json", "csv"}))
      ->capture_default_str();
  app.footer(
      "Google Benchmark's options work too: --benchmark_list_tests, --benchmark_filter=REGEX, "
      "--benchmark_min_time=SECONDS,\n--benchmark_repetitions=N, --benchmark_out=FILE and so on");
  app.allow_extras();
  return run_program(app, argc, argv, [&] {
    std::vector<std::string> arguments = app.remaining();
    arguments.push_back("--benchmark_format=" + format);
    arguments.push_back("--benchmark_out_format=" + out_format);
    settings.options = options_of(device, dtype);
    return run(arguments, settings);
  });
}
