#include <doctest/doctest.h>

#include <cstdlib>
#include <iostream>

#include "core/device.h"
#include "core/storage.h"
#include "tests/support/cuda/emulation.h"

namespace emulation {
namespace {

/// Fails the run where device memory is left when all tests have ended and the caches are empty.
struct LeakListener : doctest::IReporter {
  explicit LeakListener(const doctest::ContextOptions&) {}

  void test_run_end(const doctest::TestRunStats&) override {
    for (int device = 0; device < elwise::cuda_device_count(); ++device) {
      elwise::empty_memory_cache({elwise::DeviceType::cuda, device});
    }
    if (live_allocations() == 0) return;
    std::cerr << "emulation: " << live_allocations() << " device allocations were not freed\n";
    std::exit(EXIT_FAILURE);
  }

  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_case_start(const doctest::TestCaseData&) override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};

REGISTER_LISTENER("leaks", 1, LeakListener);

}  // namespace
}  // namespace emulation
