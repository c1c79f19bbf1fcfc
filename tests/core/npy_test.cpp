#include "core/npy.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "core/file.h"
#include "tests/support/temporary_folder.h"

namespace elwise {
namespace {

/// A version 1 file (or version 2, with a 4-byte length) of this header and these bytes.
std::string npy_file(const std::string& header, const std::string& elements, char version = 1) {
  std::string length{static_cast<char>(header.size() & 0xFF), static_cast<char>(header.size() >> 8)};
  if (version == 2) length += std::string(2, '\0');
  return "\x93NUMPY" + std::string{version, '\0'} + length + header + elements;
}

/// Loads a file with these contents.
Tensor load_contents(const std::string& contents) {
  const TemporaryFolder folder;
  return load_npy(folder.write("a.npy", contents));
}

/// The message, without the path, of the Error that a file with these contents gives.
std::string error_of(const std::string& contents) {
  try {
    load_contents(contents);
  } catch (const Error& error) {
    const std::string message = error.what(), start = "load_npy: ", name = "/a.npy: ";
    CHECK(message.starts_with(start));
    return message.substr(message.find(name) + name.size());
  }
  return "no error";
}

template <class T>
void check_round_trip(const std::vector<T>& values, const Shape& shape) {
  const TemporaryFolder folder;
  save_npy(folder / "a.npy", from_vector(values, shape));
  const Tensor loaded = load_npy(folder / "a.npy");
  CHECK(loaded.shape() == shape);
  CHECK(loaded.to_vector<T>() == values);
}

TEST_CASE("every dtype and rank reads back") {
  check_round_trip<float>({1.5F, -2, 3, 4, 5, 6}, {2, 3});
  check_round_trip<double>({0.1}, {});
  check_round_trip<int64_t>({INT64_MIN, 7, INT64_MAX}, {3});
  check_round_trip<int16_t>({INT16_MIN, -1, INT16_MAX}, {3});
  check_round_trip<bool>({true, false, true, true}, {1, 2, 2});
  check_round_trip<float>({}, {0, 4});
  check_round_trip<double>({1}, {1, 1, 1, 1, 1, 1, 1, 1});
}

TEST_CASE("a saved file is what NumPy writes") {
  const TemporaryFolder folder;
  save_npy(folder / "a.npy", from_vector<int64_t>({1, 2}, {2}));
  const std::string contents = read_file(folder / "a.npy");
  CHECK(contents.starts_with(std::string("\x93NUMPY\x01\x00\x76\x00", 10) +
                             "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), } "));
  CHECK(contents.size() == 128 + 2 * 8);
  CHECK(contents[127] == '\n');
}

TEST_CASE("version 2 and every spelling of the header are read") {
  const std::string two(8, '\0');
  CHECK(load_contents(npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", two, 2))
            .shape() == Shape{2});
  CHECK(load_contents(npy_file("{\"shape\":(1,2),\"descr\":\"<f4\",\"fortran_order\":False}", two)).shape() ==
        Shape{1, 2});
  CHECK(load_contents(npy_file("{'descr': '<f8', 'fortran_order': False, 'shape': ()}  \n", two)).rank() ==
        0);
}

TEST_CASE("what is not supported is refused by name") {
  const std::string elements(8, '\0');
  CHECK(error_of(npy_file("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", elements)) ==
        "dtype '>f4' is not supported ('<f4', '<f8', '<i8', '<i2' and '|b1' are)");
  CHECK(error_of(npy_file("{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }", elements)) ==
        "a column-major array (fortran_order) is not supported");
  CHECK(error_of(npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", elements, 3)) ==
        "expected version 1.0 or 2.0, got 3.0");
  CHECK_THROWS_AS(save_npy("unused.npy", from_vector<BFloat16>({BFloat16(1)}, {1})), Error);
  CHECK_THROWS_AS(save_npy("unused.npy", Tensor()), Error);
}

TEST_CASE("a bad header is refused") {
  const std::string elements(8, '\0');
  const auto with_shape = [&](const std::string& shape) {
    return npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "}", elements);
  };
  CHECK(error_of("") == "expected the magic \\x93NUMPY and a version, the file has 0 bytes");
  CHECK(error_of("PK\x03\x04 not an array") == "the file does not start with \\x93NUMPY");
  CHECK(error_of(npy_file("{'descr': '<f4', 'shape': (2,)}", elements)) ==
        "the header lacks 'descr', 'fortran_order' or 'shape'");
  CHECK(error_of(npy_file("{'descr': '<f4', 'descr': '<f4'}", elements)) == "the header has a field twice");
  CHECK(error_of(npy_file("{'colour': 1}", elements)) == "the header has an unknown field 'colour'");
  CHECK(error_of(npy_file("{'descr': [('a', '<f4')]}", elements)) ==
        "expected ''' in the header before '[('a', '<f4')]}'");
  CHECK(error_of(with_shape("(-2,)")) == "expected sizes from 0 to 2^63 - 1 in the header");
  CHECK(error_of(with_shape("(9223372036854775808,)")) == "expected sizes from 0 to 2^63 - 1 in the header");
  CHECK(error_of(with_shape("(4611686018427387904, 4)")) ==
        "shape: [4611686018427387904, 4] has too many elements");
  CHECK(error_of(with_shape("(4611686018427387904,)")) ==
        "shape [4611686018427387904] of f32 does not fill the 8 bytes after the header");
  CHECK(error_of(with_shape("(1,1,1,1,1,1,1,1,2)")) == "shape: expected at most 8 dimensions, got 9");
  CHECK(error_of(with_shape("(3,)")) == "shape [3] of f32 does not fill the 8 bytes after the header");
  CHECK(error_of(with_shape("(1,)")) == "shape [1] of f32 does not fill the 8 bytes after the header");
  CHECK(error_of(with_shape("(2,)} x")) == "the header does not end after its dictionary");
}

TEST_CASE("a file cut anywhere, or with any bit flipped, gives an Error or a sound tensor") {
  const std::string good = npy_file("{'descr': '|b1', 'fortran_order': False, 'shape': (2, 2), }\n",
                                    std::string("\x01\x00\x01\x01", 4));
  CHECK(load_contents(good).to_vector<bool>() == std::vector<bool>{true, false, true, true});
  for (size_t length = 0; length < good.size(); ++length) {
    CHECK_THROWS_AS(load_contents(good.substr(0, length)), Error);
  }
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = good;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      int64_t count = 4;
      try {
        count = load_contents(damaged).count();
      } catch (const Error&) {
      }
      CHECK(count == 4);
    }
  }
}

}  // namespace
}  // namespace elwise
