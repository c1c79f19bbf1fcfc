#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>

#include "core/parallel.h"

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  elwise::set_num_threads(std::max(2, elwise::num_threads()));  // parallel on one processor too
  return context.run();
}
