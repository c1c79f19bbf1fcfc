#include "core/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

#include "core/checksum.h"
#include "core/error.h"
#include "core/file.h"

namespace elwise {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the elements are copied as they lie in memory");

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kChecksumKey = "elwise.checksum";  // of the metadata
constexpr std::pair<std::string_view, DType> kDTypes[] = {{"F32", DType::f32},   {"F64", DType::f64},
                                                          {"BF16", DType::bf16}, {"I64", DType::i64},
                                                          {"I16", DType::i16},   {"BOOL", DType::boolean}};

/// A tensor as the header describes it. Its bytes are [begin, end) of what follows the header.
struct Entry {
  std::string name;
  DType dtype;
  Shape shape;
  int64_t begin;
  int64_t end;
};

/// Parses JSON that may nest like a safetensors header and in which no object names a key twice.
json parse_strictly(const std::string& text) {
  constexpr int kMaxDepth = 3;  // the file, a tensor, its shape
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      ELWISE_CHECK(keys.back().insert(key).second, "the header names '", key, "' twice");
    }
    ELWISE_CHECK(depth <= kMaxDepth, "the header nests deeper than any tensor's entry");
    return true;
  };
  return json::parse(text, check);
}

std::string read_header(InputFile& file) {
  uint64_t length = 0;
  ELWISE_CHECK(file.size() >= static_cast<int64_t>(sizeof(length)),
               "expected 8 bytes for the header's length, the file has ", file.size());
  file.read(&length, sizeof(length));
  ELWISE_CHECK(length <= kMaxHeaderBytes, "the header's length is ", length, " bytes; at most ",
               kMaxHeaderBytes, " are allowed");
  ELWISE_CHECK(static_cast<int64_t>(length) <= file.remaining(), "the header's length is ", length,
               " bytes, the file has ", file.remaining(), " after it");
  std::string header(length, '\0');
  file.read(header.data(), static_cast<int64_t>(length));
  ELWISE_CHECK(header.starts_with('{'), "the header does not start with '{'");
  return header;
}

/// An array of non-negative integers that fit int64_t.
std::vector<int64_t> read_sizes(const json& object, const char* field) {
  const json& array = object.at(field);
  ELWISE_CHECK(array.is_array(), "'", field, "' is not an array");
  std::vector<int64_t> sizes;
  for (const json& item : array) {
    ELWISE_CHECK(item.is_number_unsigned() && item.get<uint64_t>() <= INT64_MAX, "'", field, "' has ",
                 item.dump(), ", expected an integer from 0 to 2^63 - 1");
    sizes.push_back(item.get<int64_t>());
  }
  return sizes;
}

DType read_dtype(const json& object) {
  const json& name = object.at("dtype");
  for (const auto& [known, dtype] : kDTypes) {
    if (name == known) return dtype;
  }
  fail("dtype ", name.dump(), " is not supported (F32, F64, BF16, I64, I16 and BOOL are)");
}

Entry read_entry(const std::string& name, const json& object) {
  ELWISE_CHECK(object.is_object(), "the entry is not an object");
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    ELWISE_CHECK(object.contains(field), "'", field, "' is missing");
  }
  ELWISE_CHECK(object.size() == 3, "the entry has fields besides dtype, shape and data_offsets");
  const std::vector<int64_t> sizes = read_sizes(object, "shape"),
                             offsets = read_sizes(object, "data_offsets");
  ELWISE_CHECK(offsets.size() == 2 && offsets[0] <= offsets[1], "data_offsets ",
               object["data_offsets"].dump(), " are not [begin, end]");
  Entry entry{name, read_dtype(object), Shape(sizes), offsets[0], offsets[1]};
  int64_t bytes = 0;
  ELWISE_CHECK(!__builtin_mul_overflow(entry.shape.count(), size_of(entry.dtype), &bytes), "shape ",
               entry.shape, " has too many bytes");
  ELWISE_CHECK(entry.end - entry.begin == bytes, "shape ", entry.shape, " of ", entry.dtype, " is ", bytes,
               " bytes, data_offsets hold ", entry.end - entry.begin);
  return entry;
}

std::map<std::string, std::string> read_metadata(const json& object) {
  ELWISE_CHECK(object.is_object(), kMetadataKey, " is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.items()) {
    ELWISE_CHECK(value.is_string(), kMetadataKey, ": the value of '", key, "' is not a string");
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

/// Runs `body`; an Error (or one of the JSON library) from it gets `context` put before its message.
template <class Body>
auto with_context(const std::string& context, Body&& body) {
  try {
    return body();
  } catch (const OutOfMemoryError&) {
    throw;
  } catch (const Error& error) {
    fail(context, ": ", error.what());
  } catch (const json::exception& error) {
    fail(context, ": not valid JSON: ", error.what());
  }
}

/// The entries in the order of their bytes, which must fill [0, data_bytes) without holes or overlaps.
std::vector<Entry> read_entries(const json& header, int64_t data_bytes) {
  std::vector<Entry> entries;
  for (const auto& item : header.items()) {
    if (item.key() == kMetadataKey) continue;
    entries.push_back(
        with_context("tensor '" + item.key() + "'", [&] { return read_entry(item.key(), item.value()); }));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  int64_t filled = 0;
  for (const Entry& entry : entries) {
    ELWISE_CHECK(entry.end <= data_bytes, "tensor '", entry.name, "': its data end at byte ", entry.end,
                 ", the file has ", data_bytes, " after the header");
    ELWISE_CHECK(entry.begin == filled, "tensor '", entry.name, "': its data begin at byte ", entry.begin,
                 ", expected ", filled, (entry.begin < filled ? " (an overlap)" : " (a hole)"));
    filled = entry.end;
  }
  ELWISE_CHECK(filled == data_bytes, "the tensors end at byte ", filled, ", the file has ", data_bytes,
               " after the header");
  return entries;
}

/// The order in which tensors are written: larger elements first, so that all are aligned, then by name.
std::vector<std::pair<std::string, Tensor>> order_of_writing(const std::map<std::string, Tensor>& tensors) {
  std::vector<std::pair<std::string, Tensor>> ordered(tensors.begin(), tensors.end());
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
    return size_of(a.second.dtype()) > size_of(b.second.dtype());
  });
  return ordered;
}

json describe(const Tensor& tensor, int64_t begin) {
  const auto name = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                 [&](const auto& known) { return known.second == tensor.dtype(); });
  const int64_t bytes = tensor.count() * size_of(tensor.dtype());
  return {{"dtype", name->first},
          {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())},
          {"data_offsets", {begin, begin + bytes}}};
}

void add_elements(Checksum& checksum, const Tensor& tensor) {
  checksum.add(on_host(tensor).data(), tensor.count() * size_of(tensor.dtype()));
}

/// Of a header without its checksum; those of the elements, in the order of the file, are added to it.
Checksum checksum_of(const json& header) {
  Checksum result;
  const std::string text = header.dump();
  result.add(text.data(), static_cast<int64_t>(text.size()));
  return result;
}

std::string text_of(const Checksum& checksum) {
  return std::to_string(checksum.value());
}

/// Takes the checksum out of a header, if there is one: the header is then as it was before write_header put
/// it in.
std::optional<std::string> take_checksum(json& header) {
  if (!header.contains(kMetadataKey)) return std::nullopt;
  json& metadata = header[kMetadataKey];
  if (!metadata.is_object() || !metadata.contains(kChecksumKey)) return std::nullopt;
  const json checksum = metadata[kChecksumKey];
  metadata.erase(kChecksumKey);
  if (metadata.empty()) header.erase(kMetadataKey);
  return checksum.is_string() ? checksum.get<std::string>() : checksum.dump();
}

/// Everything that precedes the elements.
std::string write_header(const std::vector<std::pair<std::string, Tensor>>& ordered,
                         const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  int64_t begin = 0;
  for (const auto& [name, tensor] : ordered) {
    header[name] = describe(tensor, begin);
    begin = header[name]["data_offsets"][1];
  }
  Checksum checksum = checksum_of(header);
  for (const auto& [name, tensor] : ordered) add_elements(checksum, tensor);
  header[kMetadataKey][kChecksumKey] = text_of(checksum);
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  ELWISE_CHECK(static_cast<int64_t>(text.size()) <= kMaxHeaderBytes, "the header would be ", text.size(),
               " bytes; at most ", kMaxHeaderBytes, " are allowed");
  const auto length = std::bit_cast<std::array<char, 8>>(uint64_t{text.size()});
  return std::string(length.begin(), length.end()) + text;
}

}  // namespace

std::map<std::string, Tensor> load_safetensors(const std::filesystem::path& path,
                                               std::map<std::string, std::string>* metadata) {
  InputFile file(path);
  return with_context("load_safetensors: " + path.string(), [&] {
    json header = parse_strictly(read_header(file));
    const std::optional<std::string> expected = take_checksum(header);
    Checksum checksum = checksum_of(header);
    std::map<std::string, std::string> texts;
    if (header.contains(kMetadataKey)) texts = read_metadata(header[kMetadataKey]);
    std::map<std::string, Tensor> tensors;
    for (const Entry& entry : read_entries(header, file.remaining())) {
      const Tensor tensor = empty(entry.shape, {.dtype = entry.dtype});
      with_context("tensor '" + entry.name + "'", [&] { file.read_elements(tensor); });
      if (expected) add_elements(checksum, tensor);
      tensors.emplace(entry.name, tensor);
    }
    ELWISE_CHECK(!expected || *expected == text_of(checksum), "the file is damaged: its checksum is ",
                 text_of(checksum), ", expected ", expected.value_or(""));
    if (metadata != nullptr) *metadata = std::move(texts);
    return tensors;
  });
}

void save_safetensors(const std::filesystem::path& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  for (const auto& [name, tensor] : tensors) {
    ELWISE_CHECK(name != kMetadataKey, "save_safetensors: ", path, ": a tensor cannot be named ", name);
    ELWISE_CHECK(tensor.defined() && tensor.device() != kMeta, "save_safetensors: ", path, ": tensor '", name,
                 "' is ", (tensor.defined() ? "on meta" : "undefined"));
  }
  const auto ordered = order_of_writing(tensors);
  const std::string header =
      with_context("save_safetensors: " + path.string(), [&] { return write_header(ordered, metadata); });
  AtomicFile file(path);
  file.write(header);
  for (const auto& [name, tensor] : ordered) file.write_elements(tensor);
  file.commit();
}

}  // namespace elwise
