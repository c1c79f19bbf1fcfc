// How fast the kernels are at the shapes of BERT-base, next to a copy of memory and to the roofline.

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include <benchmark/benchmark.h>

#include "core/parallel.h"
#include "core/roofline.h"
#include "tools/bench_case.h"
#include "tools/console.h"
#include "tools/paired_times.h"

namespace elwise::tools {
namespace {

using Clock = std::chrono::steady_clock;

/// What the calls of one case must move together, so that each finds its operands in memory, where the
/// roofline's copy has them. Of the operands of a training step at these shapes only those that the kernel
/// before has just written, at one sequence a few MiB, may be in the last-level cache: saved activations,
/// weights, gradients and the optimizer's state were last touched hundreds of MiB earlier, and outputs are
/// fresh memory. To have all of them in memory is the slower and the more repeatable case, since the cache is
/// shared with whoever else uses the machine.
double cold_bytes() {
  constexpr double kLeast = 128 << 20;
  return std::max(kLeast, 4.0 * static_cast<double>(sysconf(_SC_LEVEL3_CACHE_SIZE)));
}

/// The case that is being timed, and what its check said. Google Benchmark calls a benchmark several times.
class Session {
 public:
  /// The calls of a case move `bytes` together.
  explicit Session(double bytes) : bytes_(bytes) {}

  /// Makes and checks the calls of a case, unless they are there from the last time.
  void enter(const BenchCase& bench) {
    if (name_ == bench.name) return;
    name_.clear();
    calls_.clear();
    calls_ = make_calls(bench, bytes_);
    calls_.front().run();
    fault_ = fault_of(calls_.front());
    name_ = bench.name;
    if (!fault_.empty()) {
      fmt::print(stderr, "bench_ops: {} differs from its naive form: {}\n", name_, fault_);
      ++failures_;
    }
  }

  const std::string& fault() const { return fault_; }
  const KernelCall& call() const { return calls_.front(); }
  int failures() const { return failures_; }

  /// Runs the next call, on operands that have not been touched for the longest time.
  double seconds_of_next() {
    const KernelCall& call = calls_[next_++ % calls_.size()];
    const Clock::time_point start = Clock::now();
    call.run();
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  Roofline measure_roofline() { return meter_.measure(); }

 private:
  double bytes_;
  RooflineMeter meter_;
  std::string name_, fault_;
  std::vector<KernelCall> calls_;
  size_t next_ = 0;
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
  session.seconds_of_next();  // warm-up
  for ([[maybe_unused]] auto _ : state) {
    times.add(session.seconds_of_next());
    if (times.due()) {
      state.PauseTiming();
      times.close(session.measure_roofline());
      session.seconds_of_next();  // the threads may have gone to sleep
      state.ResumeTiming();
    }
  }
  if (times.pending()) times.close(session.measure_roofline());
  report(state, cost, times);
}

/// Runs what Google Benchmark's own options, in `arguments`, select.
int run(std::vector<std::string> arguments, int threads, bool warm) {
  set_num_threads(threads);
  arguments.insert(arguments.begin(), "bench_ops");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  int argc = static_cast<int>(argv.size());
  benchmark::Initialize(&argc, argv.data());
  if (argc > 1) throw UsageError(fmt::format("unknown option {} (see bench_ops --help)", argv[1]));
  benchmark::AddCustomContext("elwise_threads", std::to_string(threads));
  benchmark::AddCustomContext("elwise_operands", warm ? "warm" : "cold");

  Session session(warm ? 0 : cold_bytes());
  for (const BenchCase& bench : bench_cases()) {
    benchmark::RegisterBenchmark(bench.name.c_str(), [bench, &session](benchmark::State& state) {
      run_case(state, bench, session);
    })->Unit(benchmark::kMicrosecond);
  }
  const size_t matched = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if (matched == 0) return kExitUsage;  // it has said why
  return session.failures() == 0 ? kExitOk : kExitFailure;
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
  int threads = elwise::num_threads();
  app.add_option("--threads", threads, "CPU threads")->check(CLI::Range(1, 1024))->capture_default_str();
  bool warm = false;
  app.add_flag(
      "--warm", warm,
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
    return run(arguments, threads, warm);
  });
}
