#include "core/block_pool.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "tests/support/op_test.h"

namespace elwise {
namespace {

constexpr int64_t kSegment = int64_t{4} << 20;

/// A block from the pool or the system, filled with `value`.
char* allocate(BlockPool& pool, int64_t bytes, char value = 0) {
  void* block = pool.take(bytes);
  if (block == nullptr) block = pool.grow(bytes, false);
  REQUIRE(block != nullptr);
  CHECK(reinterpret_cast<uintptr_t>(block) % 64 == 0);
  std::memset(block, value, static_cast<size_t>(bytes));
  return static_cast<char*>(block);
}

TEST_CASE("a pool cuts segments into blocks, and freed neighbours become one block") {
  if (!BlockPool::kCutsBlocks) return;
  BlockPool pool(kSegment);
  CHECK(pool.take(64) == nullptr);
  CHECK(pool.held() == 0);
  char* const first = allocate(pool, kSegment / 4);
  CHECK(pool.held() == kSegment);
  char* const second = allocate(pool, kSegment / 2);
  char* const third = allocate(pool, kSegment / 4);
  CHECK(second == first + kSegment / 4);
  CHECK(third == second + kSegment / 2);
  CHECK(pool.take(64) == nullptr);

  SUBCASE("freed in order") {
    pool.give_back(first);
    pool.give_back(second);
    pool.give_back(third);
  }
  SUBCASE("the middle last") {
    pool.give_back(first);
    pool.give_back(third);
    CHECK(pool.take(kSegment / 2) == nullptr);
    pool.give_back(second);
  }
  SUBCASE("in reverse") {
    pool.give_back(third);
    pool.give_back(second);
    pool.give_back(first);
  }
  CHECK(pool.take(kSegment) == first);
  pool.give_back(first);
  CHECK(pool.held() == kSegment);
  pool.release();
  CHECK(pool.held() == 0);
}

TEST_CASE("the smallest block that does is taken") {
  if (!BlockPool::kCutsBlocks) return;
  BlockPool pool(kSegment);
  char* const large = allocate(pool, 1 << 20);
  char* const fence = allocate(pool, 64);
  char* const small = allocate(pool, 1 << 16);
  allocate(pool, 64);
  pool.give_back(large);
  pool.give_back(small);
  CHECK(pool.take(1 << 15) == small);
  CHECK(pool.take(1 << 17) == large);
  CHECK(pool.take(1 << 15) == small + (1 << 15));
  pool.give_back(fence);
}

TEST_CASE("a block larger than a segment has one of its own, and so has an exact one") {
  BlockPool pool(kSegment);
  char* const large = allocate(pool, 3 * kSegment);
  CHECK(pool.held() == 3 * kSegment);
  void* const exact = pool.grow(128, true);
  CHECK(pool.held() == 3 * kSegment + 128);
  pool.give_back(large);
  pool.release();
  CHECK(pool.held() == 128);
  pool.give_back(exact);
  pool.release();
  CHECK(pool.held() == 0);
}

// The sanitizers end a program that asks for this much.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("the system having no memory is null") {
  BlockPool pool(kSegment);
  CHECK(pool.grow(int64_t{1} << 60, true) == nullptr);
  CHECK(pool.held() == 0);
}
#endif

TEST_CASE("blocks never overlap, whatever the order of calls, and all of it can be given back") {
  struct Live {
    char* data;
    int64_t bytes;
    char value;
  };
  BlockPool pool(kSegment);
  std::mt19937 random(7);
  std::vector<Live> live;
  const auto drop = [&](size_t i) {
    const Live gone = live[i];
    CHECK(std::all_of(gone.data, gone.data + gone.bytes, [&](char byte) { return byte == gone.value; }));
    pool.give_back(gone.data);
    live[i] = live.back();
    live.pop_back();
  };
  for (int step = 0; step < 3000; ++step) {
    if (live.size() > 40 || (!live.empty() && random() % 2 == 0)) {
      drop(random() % live.size());
    } else {
      const int64_t bytes = 64 * static_cast<int64_t>(1 + random() % (random() % 8 == 0 ? 40000 : 500));
      const char value = static_cast<char>(random());
      live.push_back({allocate(pool, bytes, value), bytes, value});
    }
    if (step % 500 == 0) pool.release();
  }
  while (!live.empty()) drop(live.size() - 1);
  pool.release();
  CHECK(pool.held() == 0);
}

}  // namespace
}  // namespace elwise
