#include "core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/error.h"

#ifndef ELWISE_PARALLEL_STD_THREAD
#include <omp.h>
#endif

namespace elwise {
namespace {

int default_threads() {
  if (const char* variable = std::getenv("OMP_NUM_THREADS")) {
    if (const int count = std::atoi(variable); count > 0) return count;
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

std::atomic<int>& thread_setting() {
  static std::atomic<int> count = default_threads();
  return count;
}

thread_local int current_index = 0;
thread_local bool inside_region = false;

/// Marks the calling thread as number `index` of a parallel region, until the end of the scope.
class RegionGuard {
 public:
  explicit RegionGuard(int index) : index_(current_index), inside_(inside_region) {
    current_index = index;
    inside_region = true;
  }
  ~RegionGuard() {
    current_index = index_;
    inside_region = inside_;
  }

 private:
  int index_;
  bool inside_;
};

/// Runs body(index) on `threads` threads, the caller among them, and rethrows the first exception.
void run_region(int threads, const std::function<void(int)>& body) {
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto guarded = [&](int index) {
    const RegionGuard guard(index);
    try {
      body(index);
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
#ifdef ELWISE_PARALLEL_STD_THREAD
  std::vector<std::thread> workers;
  for (int index = 1; index < threads; ++index) workers.emplace_back(guarded, index);
  guarded(0);
  for (std::thread& worker : workers) worker.join();
#else
  // The runtime may give fewer threads than asked for, so each thread takes every team-size-th index.
#pragma omp parallel num_threads(threads)
  for (int index = omp_get_thread_num(); index < threads; index += omp_get_num_threads()) guarded(index);
#endif
  if (error) std::rethrow_exception(error);
}

}  // namespace

int num_threads() {
  return thread_setting();
}

void set_num_threads(int count) {
  ELWISE_CHECK(count > 0, "set_num_threads: expected a positive count, got ", count);
  thread_setting() = count;
#ifndef ELWISE_PARALLEL_STD_THREAD
  omp_set_num_threads(count);  // oneDNN asks OpenMP
#endif
}

int thread_index() {
  return current_index;
}

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  const int64_t most = inside_region ? 1 : num_threads();
  const int64_t ranges = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, most);
  if (ranges == 1) return body(0, count);
  run_region(static_cast<int>(ranges),
             [&](int index) { body(count * index / ranges, count * (index + 1) / ranges); });
}

void parallel_tasks(int64_t count, const std::function<void(int64_t)>& body) {
  const int64_t threads = inside_region ? 1 : std::min<int64_t>(count, num_threads());
  if (threads <= 1) {
    for (int64_t task = 0; task < count; ++task) body(task);
    return;
  }
  std::atomic<int64_t> next = 0;
  run_region(static_cast<int>(threads), [&](int) {
    for (int64_t task = next++; task < count; task = next++) body(task);
  });
}

}  // namespace elwise
