#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <iostream>

#include "core/error.h"
#include "core/parallel.h"
#include "tests/support/op_test.h"

int main(int argc, char** argv) {
  try {
    elwise::check_available(elwise::testing::test_device());
  } catch (const elwise::Error& no_device) {
    constexpr int kSkipped = 77;  // what ctest takes for it
    std::cout << "skipped: " << no_device.what() << '\n';
    return kSkipped;
  }
  doctest::Context context(argc, argv);
  elwise::set_num_threads(std::max(2, elwise::num_threads()));  // parallel on one processor too
  return context.run();
}
