#include "core/parallel.h"

#include <atomic>
#include <mutex>
#include <vector>

#include "core/error.h"
#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;

/// Sets the number of threads until the end of the scope.
class ThreadsGuard {
 public:
  explicit ThreadsGuard(int count) : previous_(num_threads()) { set_num_threads(count); }
  ~ThreadsGuard() { set_num_threads(previous_); }
  ThreadsGuard(const ThreadsGuard&) = delete;
  ThreadsGuard& operator=(const ThreadsGuard&) = delete;

 private:
  int previous_;
};

constexpr int kThreadCounts[] = {1, 2, 3, 5, 8};

bool all_once(const std::vector<std::atomic<int>>& calls) {
  return std::all_of(calls.begin(), calls.end(), [](const auto& count) { return count == 1; });
}

TEST_CASE("ranges cover every item once, keep to the grain and number at most the threads") {
  for (const int threads : kThreadCounts) {
    const ThreadsGuard guard(threads);
    for (const int64_t count : testing::kOddSizes) {
      for (const int64_t grain : {0, 1, 2, 10, 2000}) {
        CAPTURE(threads);
        CAPTURE(count);
        CAPTURE(grain);
        std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
        std::atomic<int> ranges = 0;
        std::atomic<int64_t> shortest = count;
        std::mutex mutex;
        parallel_for(count, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++calls[static_cast<size_t>(i)];
          const std::lock_guard lock(mutex);
          ++ranges;
          shortest = std::min<int64_t>(shortest, end - begin);
        });
        CHECK(all_once(calls));
        CHECK(ranges <= threads);
        CHECK(shortest >= std::min(grain, count));
      }
    }
  }
}

TEST_CASE("tasks run once each") {
  for (const int threads : kThreadCounts) {
    const ThreadsGuard guard(threads);
    for (const int64_t count : testing::kOddSizes) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      parallel_tasks(count, [&](int64_t task) { ++calls[static_cast<size_t>(task)]; });
      CHECK(all_once(calls));
    }
  }
}

TEST_CASE("no items, no calls") {
  for (const int64_t count : {0, -1}) {
    parallel_for(count, 1, [](int64_t, int64_t) { FAIL("called"); });
    parallel_tasks(count, [](int64_t) { FAIL("called"); });
  }
}

TEST_CASE("an exception in a range or task is rethrown, and the next loop works") {
  for (const int threads : kThreadCounts) {
    const ThreadsGuard guard(threads);
    check_error(
        [] {
          parallel_for(100, 1, [](int64_t begin, int64_t end) {
            if (begin <= 57 && 57 < end) fail("item 57");
          });
        },
        "item 57");
    check_error(
        [] {
          parallel_tasks(100, [](int64_t task) {
            if (task == 57) fail("task ", task);
          });
        },
        "task 57");
    std::atomic<int64_t> sum = 0;
    parallel_for(100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
    CHECK(sum == 100);
    CHECK(thread_index() == 0);
  }
}

TEST_CASE("where every range throws, one exception arrives") {
  const ThreadsGuard guard(3);
  check_error([] { parallel_for(30, 1, [](int64_t, int64_t) { fail("each"); }); }, "each");
}

TEST_CASE("nested loops run serially on the calling thread") {
  const ThreadsGuard guard(3);
  std::atomic<int> outer = 0, inner = 0, tasks = 0;
  parallel_for(3, 1, [&](int64_t, int64_t) {
    ++outer;
    const int index = thread_index();
    parallel_for(100, 1, [&](int64_t begin, int64_t end) {
      if (begin == 0 && end == 100 && thread_index() == index) ++inner;
    });
    parallel_tasks(10, [&](int64_t) { tasks += thread_index() == index; });
  });
  CHECK(outer == 3);
  CHECK(inner == 3);
  CHECK(tasks == 30);
}

TEST_CASE("each range has an index of its own below the number of threads") {
  CHECK(thread_index() == 0);
  for (const int threads : kThreadCounts) {
    const ThreadsGuard guard(threads);
    std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
    parallel_for(threads * 10, 1, [&](int64_t, int64_t) { ++calls.at(static_cast<size_t>(thread_index())); });
    CHECK(all_once(calls));
    std::vector<std::atomic<int>> tasks(static_cast<size_t>(threads));
    parallel_tasks(100, [&](int64_t) { ++tasks.at(static_cast<size_t>(thread_index())); });
    int sum = 0;
    for (const auto& count : tasks) sum += count;
    CHECK(sum == 100);
  }
  CHECK(thread_index() == 0);
}

TEST_CASE("the number of threads is positive") {
  CHECK(num_threads() >= 1);
  check_error([] { set_num_threads(0); }, "set_num_threads: expected a positive count, got 0");
  check_error([] { set_num_threads(-2); }, "set_num_threads: expected a positive count, got -2");
  const ThreadsGuard guard(4);
  CHECK(num_threads() == 4);
}

}  // namespace
}  // namespace elwise
