#include "core/safetensors.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "core/file.h"
#include "tests/support/temporary_folder.h"

namespace elwise {
namespace {

using Tensors = std::map<std::string, Tensor>;
using Metadata = std::map<std::string, std::string>;

/// A file of this header and these bytes.
std::string safetensors_file(const std::string& header, const std::string& elements) {
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  return length + header + elements;
}

Tensors load_contents(const std::string& contents) {
  const TemporaryFolder folder;
  return load_safetensors(folder.write("a.safetensors", contents));
}

/// The message, without the path, of the Error that a file of this header and these bytes gives.
std::string error_of_contents(const std::string& contents) {
  try {
    load_contents(contents);
  } catch (const Error& error) {
    const std::string message = error.what(), start = "load_safetensors: ", name = "/a.safetensors: ";
    CHECK(message.starts_with(start));
    return message.substr(message.find(name) + name.size());
  }
  return "no error";
}

std::string error_of(const std::string& header, int64_t data_bytes) {
  return error_of_contents(safetensors_file(header, std::string(static_cast<size_t>(data_bytes), '\0')));
}

/// The error of a file with one tensor "w", given its entry's fields, and 8 bytes.
std::string error_of_entry(const std::string& fields) {
  return error_of("{\"w\":{" + fields + "}}", 8);
}

std::string entry(const std::string& name, int begin, int end) {
  return "\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[" + std::to_string((end - begin) / 4) +
         "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

TEST_CASE("every dtype, scalars, empty tensors and metadata read back") {
  const TemporaryFolder folder;
  const Tensors saved = {{"weight", from_vector<float>({1.5F, -2, 3, 4, 5, 6}, {2, 3})},
                         {"scalar", from_vector<double>({0.1}, {})},
                         {"half", from_vector<BFloat16>({BFloat16(0.5F), BFloat16(-3)}, {2})},
                         {"steps", from_vector<int64_t>({INT64_MIN, INT64_MAX}, {1, 2})},
                         {"words", from_vector<int16_t>({INT16_MIN, -1, INT16_MAX}, {3})},
                         {"mask", from_vector<bool>({true, false, true}, {3})},
                         {"empty", empty({0, 7})},
                         {"na\"me \u00e9\n", from_vector<float>({7}, {1})}};
  const Metadata metadata = {{"format", "elwise"}, {"note", "two\nlines"}};
  save_safetensors(folder / "a", saved, metadata);

  Metadata read_metadata = {{"gone", "after loading"}};
  const Tensors loaded = load_safetensors(folder / "a", &read_metadata);
  CHECK(read_metadata == metadata);
  REQUIRE(loaded.size() == saved.size());
  for (const auto& [name, tensor] : saved) {
    CAPTURE(name);
    CHECK(loaded.at(name).shape() == tensor.shape());
    CHECK(loaded.at(name).dtype() == tensor.dtype());
  }
  CHECK(loaded.at("weight").to_vector<float>() == saved.at("weight").to_vector<float>());
  CHECK(loaded.at("scalar").item() == 0.1);
  CHECK(loaded.at("half").data<BFloat16>()[1].bits == BFloat16(-3).bits);
  CHECK(loaded.at("steps").to_vector<int64_t>() == saved.at("steps").to_vector<int64_t>());
  CHECK(loaded.at("words").to_vector<int16_t>() == saved.at("words").to_vector<int16_t>());
  CHECK(loaded.at("mask").to_vector<bool>() == saved.at("mask").to_vector<bool>());
}

TEST_CASE("a view is saved as its own elements") {
  const TemporaryFolder folder;
  const Tensor whole = from_vector<float>({0, 1, 2, 3, 4, 5}, {3, 2});
  save_safetensors(folder / "a", {{"row", whole.alias({2}, 2)}});
  CHECK(load_safetensors(folder / "a").at("row").to_vector<float>() == std::vector<float>{2, 3});
}

TEST_CASE("the layout of a saved file: padded header, large elements first") {
  const TemporaryFolder folder;
  save_safetensors(folder / "a",
                   {{"a", from_vector<bool>({true}, {1})}, {"b", from_vector<int64_t>({-1}, {1})}});
  const std::string contents = read_file(folder / "a");
  // The checksum is that of the header without it, then of the tensors, by a program of its own.
  const std::string header = R"({"__metadata__":{"elwise.checksum":"13592746279544723259"},)"
                             R"("a":{"data_offsets":[8,9],"dtype":"BOOL","shape":[1]},)"
                             R"("b":{"data_offsets":[0,8],"dtype":"I64","shape":[1]}})";
  const std::string padding((8 - header.size() % 8) % 8, ' ');
  CHECK(contents == safetensors_file(header + padding, std::string(8, '\xFF') + '\x01'));
}

TEST_CASE("what the reference implementation writes is read") {
  const Tensors loaded = load_contents(safetensors_file(
      R"({"__metadata__":{"format":"pt"},"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}   )",
      std::string("\x05\0\0\0\0\0\0\0\0\0\x80\x3F", 12)));
  CHECK(loaded.size() == 2);
  CHECK(loaded.at("x").item() == 5);
  CHECK(loaded.at("b").item() == 1);
  CHECK(load_contents(safetensors_file("{}", "")).empty());
}

TEST_CASE("a bad header is refused") {
  CHECK(error_of_contents("1234567") == "expected 8 bytes for the header's length, the file has 7");
  CHECK(error_of_contents(std::string("\x09\0\0\0\0\0\0\0{}", 10)) ==
        "the header's length is 9 bytes, the file has 2 after it");
  CHECK(error_of_contents("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}") ==
        "the header's length is 18446744073709551615 bytes; at most 100000000 are allowed");
  CHECK(error_of("", 0) == "the header does not start with '{'");
  CHECK(error_of("[1]", 0) == "the header does not start with '{'");
  CHECK(error_of(" {}", 0) == "the header does not start with '{'");
  CHECK(error_of("{\"w\":", 0).starts_with("not valid JSON: "));
  CHECK(error_of("{}x", 0).starts_with("not valid JSON: "));
  CHECK(error_of("{\"\xC3(\":{}}", 0).starts_with("not valid JSON: "));
  CHECK(error_of("{" + entry("w", 0, 4) + "," + entry("w", 4, 8) + "}", 8) == "the header names 'w' twice");
  CHECK(error_of("{\"a\":" + std::string(100'000, '['), 0) ==
        "the header nests deeper than any tensor's entry");
  CHECK(error_of(R"({"__metadata__":{"a":1}})", 0) == "__metadata__: the value of 'a' is not a string");
  CHECK(error_of(R"({"__metadata__":[]})", 0) == "__metadata__ is not an object");
}

TEST_CASE("a bad entry is refused, and the tensor named") {
  const std::string dtype = R"("dtype":"F32",)", shape = R"("shape":[2],)",
                    offsets = R"("data_offsets":[0,8])";
  CHECK(error_of_entry(dtype + shape + offsets) == "no error");
  CHECK(error_of("{\"w\":3}", 8) == "tensor 'w': the entry is not an object");
  CHECK(error_of_entry(dtype + offsets) == "tensor 'w': 'shape' is missing");
  CHECK(error_of_entry(shape + offsets) == "tensor 'w': 'dtype' is missing");
  CHECK(error_of_entry(R"("dtype":"F32","shape":[2])") == "tensor 'w': 'data_offsets' is missing");
  CHECK(error_of_entry(dtype + shape + R"("colour":1,)" + offsets) ==
        "tensor 'w': the entry has fields besides dtype, shape and data_offsets");
  CHECK(error_of_entry(R"("dtype":"F16",)" + shape + offsets) ==
        "tensor 'w': dtype \"F16\" is not supported (F32, F64, BF16, I64, I16 and BOOL are)");
  CHECK(error_of_entry(R"("dtype":7,)" + shape + offsets) ==
        "tensor 'w': dtype 7 is not supported (F32, F64, BF16, I64, I16 and BOOL are)");
  const auto error_of_shape = [&](const std::string& sizes) {
    return error_of_entry(dtype + "\"shape\":" + sizes + "," + offsets);
  };
  CHECK(error_of_shape("2") == "tensor 'w': 'shape' is not an array");
  CHECK(error_of_shape("[-2]") == "tensor 'w': 'shape' has -2, expected an integer from 0 to 2^63 - 1");
  CHECK(error_of_shape("[2.0]") == "tensor 'w': 'shape' has 2.0, expected an integer from 0 to 2^63 - 1");
  CHECK(error_of_shape("[9223372036854775808]") ==
        "tensor 'w': 'shape' has 9223372036854775808, expected an integer from 0 to 2^63 - 1");
  CHECK(error_of_shape("[4294967296,4294967296]") ==
        "tensor 'w': shape: [4294967296, 4294967296] has too many elements");
  CHECK(error_of_shape("[4611686018427387904]") ==
        "tensor 'w': shape [4611686018427387904] has too many bytes");
  CHECK(error_of_shape("[1,1,1,1,1,1,1,1,2]") == "tensor 'w': shape: expected at most 8 dimensions, got 9");
  CHECK(error_of_shape("[3]") == "tensor 'w': shape [3] of f32 is 12 bytes, data_offsets hold 8");
  CHECK(error_of_entry(dtype + shape + R"("data_offsets":[8,0])") ==
        "tensor 'w': data_offsets [8,0] are not [begin, end]");
  CHECK(error_of_entry(dtype + shape + R"("data_offsets":[8])") ==
        "tensor 'w': data_offsets [8] are not [begin, end]");
  CHECK(error_of("{\"w\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1) == "no error");
}

TEST_CASE("the data must fill the file without holes or overlaps") {
  const auto with = [](const std::string& a, const std::string& b) { return "{" + a + "," + b + "}"; };
  CHECK(error_of(with(entry("a", 0, 8), entry("b", 8, 12)), 12) == "no error");
  CHECK(error_of(with(entry("b", 8, 12), entry("a", 0, 8)), 12) == "no error");
  CHECK(error_of(with(entry("a", 0, 8), entry("b", 4, 12)), 12) ==
        "tensor 'b': its data begin at byte 4, expected 8 (an overlap)");
  CHECK(error_of(with(entry("a", 0, 8), entry("b", 12, 16)), 16) ==
        "tensor 'b': its data begin at byte 12, expected 8 (a hole)");
  CHECK(error_of(with(entry("a", 0, 8), entry("b", 8, 12)), 11) ==
        "tensor 'b': its data end at byte 12, the file has 11 after the header");
  CHECK(error_of(with(entry("a", 0, 8), entry("b", 8, 12)), 13) ==
        "the tensors end at byte 12, the file has 13 after the header");
  CHECK(error_of("{}", 1) == "the tensors end at byte 0, the file has 1 after the header");
}

TEST_CASE("a file cut anywhere, or with any bit flipped, gives an Error or a sound tensor") {
  const std::string header =
      R"({"__metadata__":{"k":"v"},"m":{"dtype":"BOOL","shape":[1,2],"data_offsets":[4,6]},)"
      R"("w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  const std::string good = safetensors_file(header, std::string("\0\0\x80\x3F\x01\x00", 6));
  CHECK(load_contents(good).size() == 2);
  for (size_t length = 0; length < good.size(); ++length) {
    CHECK_THROWS_AS(load_contents(good.substr(0, length)), Error);
  }
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = good;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      int64_t elements = 0;
      try {
        for (const auto& [name, tensor] : load_contents(damaged)) elements += tensor.count();
      } catch (const Error&) {
        elements = 3;
      }
      CHECK(elements == 3);
    }
  }
}

TEST_CASE("a file that was saved here and had any bit flipped gives an Error or the same tensors") {
  const TemporaryFolder folder;
  const Tensors saved = {{"w", from_vector<float>({1, -2, 3}, {3})},
                         {"m", from_vector<bool>({true, false, true}, {3})}};
  const Metadata metadata = {{"note", "text"}};
  save_safetensors(folder / "a", saved, metadata);
  const std::string good = read_file(folder / "a");
  int64_t errors = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = good;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      try {
        Metadata texts;
        const Tensors loaded = load_safetensors(folder.write("b", damaged), &texts);
        CHECK(loaded.at("w").to_vector<float>() == std::vector<float>{1, -2, 3});
        CHECK(loaded.at("m").to_vector<bool>() == std::vector<bool>{true, false, true});
      } catch (const Error&) {
        ++errors;
      }
    }
  }
  CHECK(errors > 7 * static_cast<int64_t>(good.size()));  // the checksum's own name may change, not much else
  // A change of the file that the format allows:
  std::string other = good;
  other[other.find("text")] = 'T';
  folder.write("b", other);
  CHECK_THROWS_WITH_AS(load_safetensors(folder / "b"),
                       doctest::Contains("the file is damaged: its checksum is"), Error);
}

TEST_CASE("what cannot be saved is refused, and the old file stays") {
  const TemporaryFolder folder;
  const Tensor one = from_vector<float>({1}, {1});
  save_safetensors(folder / "a", {{"w", one}});
  const std::string start = "save_safetensors: \"" + (folder / "a").string() + "\": ";
  CHECK_THROWS_WITH_AS(save_safetensors(folder / "a", {{"w", Tensor()}}),
                       (start + "tensor 'w' is undefined").c_str(), Error);
  CHECK_THROWS_WITH_AS(save_safetensors(folder / "a", {{"w", empty({1}, {.device = kMeta})}}),
                       (start + "tensor 'w' is on meta").c_str(), Error);
  CHECK_THROWS_WITH_AS(save_safetensors(folder / "a", {{"__metadata__", one}}),
                       (start + "a tensor cannot be named __metadata__").c_str(), Error);
  CHECK_THROWS_AS(save_safetensors(folder / "a", {{"\xC3(", one}}), Error);
  CHECK(load_safetensors(folder / "a").at("w").item() == 1);
  CHECK_THROWS_WITH_AS(save_safetensors("/dev/full", {{"w", one}}),
                       "cannot write \"/dev/full\": No space left on device", Error);
}

}  // namespace
}  // namespace elwise
