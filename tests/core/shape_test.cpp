#include "core/shape.h"

#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;

TEST_CASE("a shape knows its sizes from both ends") {
  const Shape shape{2, 3, 5};
  CHECK(shape.rank() == 3);
  CHECK(shape.count() == 30);
  CHECK(shape[0] == 2);
  CHECK(shape[-1] == 5);
  CHECK(shape.normalize(-3) == 0);
  CHECK(shape.count_before(0) == 1);
  CHECK(shape.count_before(-1) == 6);
  CHECK(shape.count_after(0) == 15);
  CHECK(shape.count_after(2) == 1);
  CHECK(std::vector<int64_t>(shape.begin(), shape.end()) == std::vector<int64_t>{2, 3, 5});
}

TEST_CASE("a scalar has one element and a size of 0 none") {
  CHECK(Shape().rank() == 0);
  CHECK(Shape().count() == 1);
  CHECK(Shape{3, 0, 2}.count() == 0);
}

TEST_CASE("shapes are equal where rank and sizes are") {
  CHECK(Shape{2, 3} == Shape{2, 3});
  CHECK(Shape{2, 3} != Shape{3, 2});
  CHECK(Shape{2} != Shape{2, 1});
  CHECK(Shape{2, 3, 4}.without(2) == Shape{2, 3});  // what is left of the third size does not count
  CHECK(Shape{} == Shape());
}

TEST_CASE("a shape prints as a list") {
  CHECK(detail::concatenate(Shape{2, 3}) == "[2, 3]");
  CHECK(detail::concatenate(Shape{7}) == "[7]");
  CHECK(detail::concatenate(Shape()) == "[]");
}

TEST_CASE("sizes are replaced, taken away and put in at every place") {
  const Shape shape{2, 3, 5};
  CHECK(shape.with(0, 7) == Shape{7, 3, 5});
  CHECK(shape.with(-1, 7) == Shape{2, 3, 7});
  CHECK(shape.without(0) == Shape{3, 5});
  CHECK(shape.without(-1) == Shape{2, 3});
  CHECK(shape.inserted(0, 7) == Shape{7, 2, 3, 5});
  CHECK(shape.inserted(1, 7) == Shape{2, 7, 3, 5});
  CHECK(shape.inserted(3, 7) == Shape{2, 3, 5, 7});
  CHECK(Shape().inserted(0, 4) == Shape{4});
  CHECK(Shape{1, 2, 3, 4, 5, 6, 7}.inserted(7, 8) == Shape{1, 2, 3, 4, 5, 6, 7, 8});
}

TEST_CASE("a shape that cannot be is an error") {
  check_error([] { Shape{2, -1}; }, "shape: expected sizes of 0 or more, got -1");
  check_error([] { Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}; }, "shape: expected at most 8 dimensions, got 9");
  const Shape huge{int64_t{1} << 32, int64_t{1} << 31};
  check_error([&] { huge.count(); }, "shape: [4294967296, 2147483648] has too many elements");
  check_error([&] { huge.with(0, -2); }, "shape: expected sizes of 0 or more, got -2");
  check_error([&] { huge.inserted(0, -2); }, "shape: expected sizes of 0 or more, got -2");
}

TEST_CASE("a dimension out of range is an error") {
  const Shape shape{2, 3};
  check_error([&] { shape[2]; }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { shape[-3]; }, "shape: dimension -3 is out of range for [2, 3]");
  check_error([&] { shape.with(2, 1); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { shape.without(2); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { shape.count_after(2); }, "shape: dimension 2 is out of range for [2, 3]");
  check_error([&] { shape.inserted(3, 1); }, "shape: cannot insert a dimension at 3 in [2, 3]");
  check_error([&] { shape.inserted(-1, 1); }, "shape: cannot insert a dimension at -1 in [2, 3]");
  check_error([] { Shape()[0]; }, "shape: dimension 0 is out of range for []");
  const Shape full{1, 2, 3, 4, 5, 6, 7, 8};
  check_error([&] { full.inserted(0, 1); }, "shape: [1, 2, 3, 4, 5, 6, 7, 8] already has 8 dimensions");
}

TEST_CASE("shapes broadcast as in NumPy") {
  CHECK(broadcast("add", {2, 3}, {2, 3}) == Shape{2, 3});
  CHECK(broadcast("add", {2, 3}, {3}) == Shape{2, 3});
  CHECK(broadcast("add", {3}, {2, 3}) == Shape{2, 3});
  CHECK(broadcast("add", {2, 1}, {1, 3}) == Shape{2, 3});
  CHECK(broadcast("add", {}, {2, 3}) == Shape{2, 3});
  CHECK(broadcast("add", {4, 1, 5}, {3, 1}) == Shape{4, 3, 5});
  CHECK(broadcast("add", {1}, {0}) == Shape{0});
  check_error([] { broadcast("add", {2, 3}, {2}); }, "add: shapes [2, 3] and [2] do not broadcast");
  check_error([] { broadcast("mul", {0}, {2}); }, "mul: shapes [0] and [2] do not broadcast");
}

}  // namespace
}  // namespace elwise
