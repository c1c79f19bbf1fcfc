#include "core/dtype.h"

#include <limits>

#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;

float from_bits(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

uint16_t rounded(uint32_t bits) {
  return BFloat16(from_bits(bits)).bits;
}

TEST_CASE("dtypes have sizes and names") {
  const auto describe = [](DType dtype) {
    return detail::concatenate(dtype, ' ', size_of(dtype), is_floating(dtype) ? " floating" : "");
  };
  CHECK(describe(DType::f32) == "f32 4 floating");
  CHECK(describe(DType::f64) == "f64 8 floating");
  CHECK(describe(DType::bf16) == "bf16 2 floating");
  CHECK(describe(DType::i64) == "i64 8");
  CHECK(describe(DType::i16) == "i16 2");
  CHECK(describe(DType::boolean) == "bool 1");
}

TEST_CASE("C++ types have dtypes of their size") {
  CHECK(dtype_of<float> == DType::f32);
  CHECK(dtype_of<double> == DType::f64);
  CHECK(dtype_of<BFloat16> == DType::bf16);
  CHECK(dtype_of<int64_t> == DType::i64);
  CHECK(dtype_of<int16_t> == DType::i16);
  CHECK(dtype_of<bool> == DType::boolean);
  CHECK(size_of(dtype_of<BFloat16>) == sizeof(BFloat16));
  CHECK(size_of(dtype_of<bool>) == sizeof(bool));
}

TEST_CASE("bf16 rounds to nearest, ties to even") {
  CHECK(rounded(0x3F800000) == 0x3F80);  // 1
  CHECK(rounded(0x3F807FFF) == 0x3F80);  // below half: down
  CHECK(rounded(0x3F808000) == 0x3F80);  // half above an even one: down
  CHECK(rounded(0x3F808001) == 0x3F81);  // above half: up
  CHECK(rounded(0x3F818000) == 0x3F82);  // half above an odd one: up
  CHECK(rounded(0x3FFF8000) == 0x4000);  // the carry reaches the exponent
  CHECK(rounded(0xBF818000) == 0xBF82);  // the sign does not matter
}

TEST_CASE("bf16 keeps zeros, infinities and denormal numbers, and overflows to infinity") {
  CHECK(rounded(0x00000000) == 0x0000);
  CHECK(rounded(0x80000000) == 0x8000);
  CHECK(rounded(0x7F800000) == 0x7F80);
  CHECK(rounded(0xFF800000) == 0xFF80);
  CHECK(rounded(0x7F7FFFFF) == 0x7F80);  // the largest f32
  CHECK(rounded(0x7F7F7FFF) == 0x7F7F);  // what still rounds to the largest bf16
  CHECK(rounded(0x00000001) == 0x0000);  // the smallest denormal
  CHECK(rounded(0x00008001) == 0x0001);
  CHECK(rounded(0x00018000) == 0x0002);
  CHECK(rounded(0x007FFFFF) == 0x0080);  // denormal to normal
}

TEST_CASE("a NaN stays a quiet NaN with its sign, whatever its payload") {
  for (const uint32_t bits : {0x7FC00000u, 0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu, 0x7FBFFFFFu}) {
    const BFloat16 value(from_bits(bits));
    CHECK(std::isnan(static_cast<float>(value)));
    CHECK((value.bits & 0x40) != 0);
    CHECK((value.bits >> 15) == (bits >> 31));
  }
}

TEST_CASE("every bf16 survives the way to f32 and back") {
  int64_t changed = 0;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    BFloat16 value;
    value.bits = static_cast<uint16_t>(bits);
    const float wide = static_cast<float>(value);
    const uint32_t quiet = std::isnan(wide) ? 0x40 : 0;
    changed += BFloat16(wide).bits != (bits | quiet);
  }
  CHECK(changed == 0);
}

TEST_CASE("dispatch_f32_f64 picks the type or names the kernel") {
  const auto size = [](DType dtype) {
    return dispatch_f32_f64(dtype, "norm", []<class T>() { return sizeof(T); });
  };
  CHECK(size(DType::f32) == 4);
  CHECK(size(DType::f64) == 8);
  check_error([&] { size(DType::bf16); }, "norm: expected dtype f32 or f64, got bf16");
  check_error([&] { size(DType::i64); }, "norm: expected dtype f32 or f64, got i64");
}

}  // namespace
}  // namespace elwise
