#include "core/tensor.h"

#include <limits>

#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;

std::string text_of(const Tensor& tensor) {
  return detail::concatenate(tensor);
}

/// 0, 1, .. as f32.
Tensor counting(const Shape& shape) {
  std::vector<float> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  return from_vector(values, shape);
}

TEST_CASE("a tensor describes itself") {
  const Tensor x = empty({2, 3}, {.dtype = DType::bf16});
  CHECK(x.defined());
  CHECK(x.shape() == Shape{2, 3});
  CHECK(x.rank() == 2);
  CHECK(x.size(-1) == 3);
  CHECK(x.count() == 6);
  CHECK(x.dtype() == DType::bf16);
  CHECK(x.device() == kCpu);
  CHECK(x.options().dtype == DType::bf16);
  CHECK(x.storage()->bytes() == 64);
  CHECK(reinterpret_cast<uintptr_t>(x.data()) % 64 == 0);
  CHECK_FALSE(x.requires_grad());
}

TEST_CASE("an undefined tensor is refused wherever it is used") {
  const Tensor none;
  CHECK_FALSE(none.defined());
  CHECK(none.is_same(Tensor()));
  const std::string message = "tensor: expected a defined tensor, got an undefined one";
  check_error([&] { none.shape(); }, message);
  check_error([&] { none.data(); }, message);
  check_error([&] { none.data<float>(); }, message);
  check_error([&] { none.item(); }, message);
  check_error([&] { none.detach(); }, message);
  check_error([&] { none.requires_grad(); }, message);
  check_error([&] { counting({1}).copy_from(none); }, message);
  CHECK(text_of(none) == "tensor(undefined)");
}

TEST_CASE("copies of a handle are one tensor and views share its elements") {
  const Tensor x = counting({2, 3});
  CHECK(x.is_unique());
  const Tensor copy = x;
  CHECK(copy.is_same(x));
  CHECK_FALSE(x.is_unique());

  const Tensor row = x.alias({3}, 3), same = x.detach();
  CHECK_FALSE(row.is_same(x));
  CHECK_FALSE(same.is_same(x));
  CHECK(same.shape() == x.shape());
  CHECK(row.to_vector<float>() == std::vector<float>{3, 4, 5});
  row.data<float>()[0] = 7;
  CHECK(x.data<float>()[3] == 7);
  CHECK(same.data<float>()[3] == 7);
  CHECK(row.alias({2}, 1).to_vector<float>() == std::vector<float>{4, 5});
}

TEST_CASE("a tensor is unique while no handle or view shares its elements") {
  Tensor x = counting({4});
  {
    const Tensor view = x.detach();
    CHECK_FALSE(x.is_unique());
    CHECK_FALSE(view.is_unique());
  }
  CHECK(x.is_unique());
  const Tensor moved = std::move(x);
  CHECK(moved.is_unique());
  CHECK_FALSE(Tensor().is_unique());
}

TEST_CASE("an alias that does not fit is an error") {
  const Tensor x = counting({2, 3});
  CHECK(x.alias({0}, 6).count() == 0);
  check_error([&] { x.alias({7}); }, "alias: [7] from element 0 does not fit in [2, 3]");
  check_error([&] { x.alias({3}, 4); }, "alias: [3] from element 4 does not fit in [2, 3]");
  check_error([&] { x.alias({3}, -1); }, "alias: [3] from element -1 does not fit in [2, 3]");
  check_error([&] { x.alias({3}, std::numeric_limits<int64_t>::max()); },
              "alias: [3] from element 9223372036854775807 does not fit in [2, 3]");
}

TEST_CASE("typed access asks for the dtype and the CPU") {
  const Tensor x = counting({2}), far = empty({2}, {.device = kMeta});
  check_error([&] { x.data<double>(); }, "data: expected a tensor of f64, got f32");
  check_error([&] { x.to_vector<int64_t>(); }, "data: expected a tensor of i64, got f32");
  check_error([&] { far.data<float>(); }, "data: expected a tensor on cpu, got one on meta");
  check_error([&] { far.to_vector<float>(); }, "to_vector: a tensor on meta has no elements");
}

TEST_CASE("the value of a one-element tensor of each dtype") {
  CHECK(from_vector<float>({2.5f}, {}).item() == 2.5);
  CHECK(from_vector<double>({1e300}, {1, 1}).item() == 1e300);
  CHECK(from_vector<int64_t>({-3}, {1}).item() == -3);
  CHECK(from_vector<bool>({true}, {}).item() == 1);
  CHECK(from_vector<BFloat16>({BFloat16(0.5f)}, {}).item() == 0.5);
  CHECK(counting({3}).alias({}, 2).item() == 2);
  check_error([] { counting({2}).item(); }, "item: expected one element, got [2]");
  check_error([] { counting({0}).item(); }, "item: expected one element, got [0]");
  check_error([] { empty({}, {.device = kMeta}).item(); }, "on_host: a tensor on meta has no elements");
}

TEST_CASE("vectors make tensors and come back") {
  const std::vector<bool> flags{true, false, true};
  CHECK(from_vector(flags, {3}).dtype() == DType::boolean);
  CHECK(from_vector(flags, {3}).to_vector<bool>() == flags);
  const std::vector<int64_t> numbers{1, -2, int64_t{1} << 60, 4};
  CHECK(from_vector(numbers, {2, 2}).to_vector<int64_t>() == numbers);
  CHECK(from_vector<double>({}, {0, 5}).to_vector<double>().empty());
  check_error(
      [] {
        from_vector<float>({1, 2, 3}, {2, 2});
      },
      "from_vector: expected 4 values for [2, 2], got 3");
  check_error([] { from_vector<float>({1, 2}, {}); }, "from_vector: expected 1 values for [], got 2");
}

TEST_CASE("copy_from overwrites the elements and bumps the version") {
  Tensor x = counting({2, 3});
  const Tensor view = x.alias({3}, 3);
  const int64_t version = x.storage()->version();
  x.copy_from(from_vector<float>({6, 5, 4, 3, 2, 1}, {6}));
  CHECK(view.to_vector<float>() == std::vector<float>{3, 2, 1});
  CHECK(x.storage()->version() == version + 1);
  CHECK(view.storage()->version() == version + 1);

  x.alias({4}, 2).copy_from(x.alias({4}));  // they overlap
  CHECK(x.to_vector<float>() == std::vector<float>{6, 5, 6, 5, 4, 3});
  check_error([&] { x.copy_from(counting({5})); }, "copy_from: expected [2, 3] f32, got [5] f32");
  check_error(
      [&] {
        x.copy_from(empty({2, 3}, {.dtype = DType::i64}));
      },
      "copy_from: expected [2, 3] f32, got [2, 3] i64");
  check_error(
      [&] {
        x.copy_from(empty({2, 3}, {.device = kMeta}));
      },
      "copy_from: expected a source on cpu, got one on meta");
}

TEST_CASE("a meta tensor has an address that is not null, also in a view") {
  Tensor x = empty({4, 4}, {.device = kMeta});
  CHECK(x.data() != nullptr);
  CHECK(x.alias({4}, 12).data() == static_cast<void*>(reinterpret_cast<char*>(x.data()) + 48));
  CHECK(empty({0}, {.device = kMeta}).data() != nullptr);
  x.copy_from(empty({16}, {.device = kMeta}));
  CHECK(x.storage()->version() == 1);
}

TEST_CASE("a tensor with no elements has storage all the same") {
  const Tensor x = empty({0, 3});
  CHECK(x.count() == 0);
  CHECK(x.data<float>() != nullptr);
  CHECK(x.to_vector<float>().empty());
}

TEST_CASE("a tensor of more bytes than can be is an error") {
  const int64_t most = std::numeric_limits<int64_t>::max();
  check_error([&] { empty({most}, {.dtype = DType::f32, .device = kMeta}); },
              "empty: [9223372036854775807] of f32 has too many bytes");
  check_error([&] { empty({most}, {.dtype = DType::boolean, .device = kMeta}); },
              "empty: [9223372036854775807] of bool has too many bytes");
  check_error([&] { empty({most, 2}); }, "shape: [9223372036854775807, 2] has too many elements");
}

TEST_CASE("printing shows shape, dtype, device and values") {
  CHECK(text_of(counting({2, 3})) == "tensor([2, 3], f32, cpu)\n[[0, 1, 2],\n [3, 4, 5]]");
  CHECK(text_of(counting({2, 2, 1})) == "tensor([2, 2, 1], f32, cpu)\n[[[0],\n  [1]],\n [[2],\n  [3]]]");
  CHECK(text_of(from_vector<double>({-1.0 / 3}, {})) == "tensor([], f64, cpu)\n-0.333333");
  CHECK(text_of(from_vector<bool>({true, false}, {2})) == "tensor([2], bool, cpu)\n[true, false]");
  CHECK(text_of(from_vector<BFloat16>({BFloat16(1.5f)}, {1})) == "tensor([1], bf16, cpu)\n[1.5]");
  CHECK(text_of(from_vector<int64_t>({1'234'567'890}, {1})) == "tensor([1], i64, cpu)\n[1234567890]");
  CHECK(text_of(counting({3}).alias({2}, 1)) == "tensor([2], f32, cpu)\n[1, 2]");
  CHECK(text_of(counting({0})) == "tensor([0], f32, cpu)\n[]");
  CHECK(text_of(empty({2}, {.device = kMeta})) == "tensor([2], f32, meta)");
}

TEST_CASE("printing abbreviates long dimensions") {
  CHECK(text_of(counting({7})) == "tensor([7], f32, cpu)\n[0, 1, 2, 3, 4, 5, 6]");
  CHECK(text_of(counting({8})) == "tensor([8], f32, cpu)\n[0, 1, 2, ..., 5, 6, 7]");
  CHECK(text_of(counting({1000, 1})) ==
        "tensor([1000, 1], f32, cpu)\n[[0],\n [1],\n [2],\n ...,\n [997],\n [998],\n [999]]");
  CHECK(text_of(counting({1, 8})) == "tensor([1, 8], f32, cpu)\n[[0, 1, 2, ..., 5, 6, 7]]");
}

TEST_CASE("printing leaves the stream's settings alone and ignores them") {
  std::ostringstream out;
  out.precision(2);
  out << from_vector<double>({1.23456789}, {1}) << ' ' << 1.23456789 << ' ' << true;
  CHECK(out.str() == "tensor([1], f64, cpu)\n[1.23457] 1.2 1");
}

}  // namespace
}  // namespace elwise
