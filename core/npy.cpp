#include "core/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/file.h"

namespace elwise {
namespace {

static_assert(std::endian::native == std::endian::little, "the elements are copied as they lie in memory");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr int64_t kMaxHeaderBytes = 65'535;  // what version 1 can say, and far more than kMaxRank sizes need
constexpr std::pair<std::string_view, DType> kDTypes[] = {{"<f4", DType::f32},
                                                          {"<f8", DType::f64},
                                                          {"<i8", DType::i64},
                                                          {"<i2", DType::i16},
                                                          {"|b1", DType::boolean}};

/// The header of a file: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
struct Header {
  std::optional<std::string> descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;
};

/// Reads the Python dictionary that NumPy writes; of Python's literals only those which can stand there.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  Header parse() {
    Header header;
    expect('{');
    while (!accept('}')) {
      const std::string key = parse_string();
      expect(':');
      if (key == "descr") {
        set_once(header.descr, parse_string());
      } else if (key == "fortran_order") {
        set_once(header.fortran_order, parse_bool());
      } else if (key == "shape") {
        set_once(header.shape, parse_sizes());
      } else {
        fail("the header has an unknown field '", key, "'");
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    ELWISE_CHECK(text_.empty(), "the header does not end after its dictionary");
    ELWISE_CHECK(header.descr && header.fortran_order && header.shape,
                 "the header lacks 'descr', 'fortran_order' or 'shape'");
    return header;
  }

 private:
  template <class T>
  static void set_once(std::optional<T>& field, T value) {
    ELWISE_CHECK(!field, "the header has a field twice");
    field = std::move(value);
  }

  void skip_space() { text_.remove_prefix(std::min(text_.find_first_not_of(" \t\n"), text_.size())); }

  bool accept(char wanted) {
    skip_space();
    if (!text_.starts_with(wanted)) return false;
    text_.remove_prefix(1);
    return true;
  }

  void expect(char wanted) {
    ELWISE_CHECK(accept(wanted), "expected '", wanted, "' in the header before '", text_.substr(0, 20), "'");
  }

  std::string parse_string() {
    const char quote = accept('"') ? '"' : '\'';
    if (quote == '\'') expect(quote);
    const size_t end = text_.find(quote);
    ELWISE_CHECK(end != text_.npos, "the header has a string without an end");
    const std::string result(text_.substr(0, end));
    text_.remove_prefix(end + 1);
    return result;
  }

  bool parse_bool() {
    skip_space();
    const bool result = text_.starts_with("True");
    ELWISE_CHECK(result || text_.starts_with("False"), "expected True or False in the header");
    text_.remove_prefix(result ? 4 : 5);
    return result;
  }

  /// A tuple: (), (3,), (2, 3).
  std::vector<int64_t> parse_sizes() {
    std::vector<int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      skip_space();
      int64_t size = 0;
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), size);
      ELWISE_CHECK(error == std::errc{} && size >= 0, "expected sizes from 0 to 2^63 - 1 in the header");
      text_.remove_prefix(static_cast<size_t>(end - text_.data()));
      sizes.push_back(size);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return sizes;
  }

  std::string_view text_;
};

Header read_header(InputFile& file) {
  std::array<char, 8> start{};  // magic, version
  ELWISE_CHECK(file.size() >= 8, "expected the magic \\x93NUMPY and a version, the file has ", file.size(),
               " bytes");
  file.read(start.data(), 8);
  ELWISE_CHECK(std::string_view(start.data(), 6) == kMagic, "the file does not start with \\x93NUMPY");
  const int version = static_cast<uint8_t>(start[6]), minor = static_cast<uint8_t>(start[7]);
  ELWISE_CHECK((version == 1 || version == 2) && minor == 0, "expected version 1.0 or 2.0, got ", version,
               ".", minor);
  uint32_t length = 0;  // little-endian: the 2 bytes of version 1 fill the lower half
  file.read(&length, version == 1 ? 2 : 4);
  ELWISE_CHECK(length <= kMaxHeaderBytes && length <= file.remaining(), "the header's length is ", length,
               " bytes, the file has ", file.remaining(), " after it, ", kMaxHeaderBytes, " are allowed");
  std::string text(length, '\0');
  file.read(text.data(), length);
  return HeaderParser(text).parse();
}

Tensor read_array(InputFile& file) {
  const Header header = read_header(file);
  ELWISE_CHECK(!*header.fortran_order, "a column-major array (fortran_order) is not supported");
  for (const auto& [descr, dtype] : kDTypes) {
    if (*header.descr != descr) continue;
    const Shape shape(*header.shape);
    int64_t bytes = 0;
    ELWISE_CHECK(!__builtin_mul_overflow(shape.count(), size_of(dtype), &bytes) && bytes == file.remaining(),
                 "shape ", shape, " of ", dtype, " does not fill the ", file.remaining(),
                 " bytes after the header");
    const Tensor tensor = empty(shape, {.dtype = dtype});
    file.read_elements(tensor);
    return tensor;
  }
  fail("dtype '", *header.descr, "' is not supported ('<f4', '<f8', '<i8', '<i2' and '|b1' are)");
}

/// Magic, version 1.0, length and dictionary, padded so that the elements start at a multiple of 64.
std::string write_header(std::string_view descr, const Shape& shape) {
  std::string text = "{'descr': '" + std::string(descr) + "', 'fortran_order': False, 'shape': (";
  for (int dim = 0; dim < shape.rank(); ++dim) text += (dim > 0 ? ", " : "") + std::to_string(shape[dim]);
  text += shape.rank() == 1 ? ",), }" : "), }";
  constexpr size_t kPrefix = 10;  // magic, version, length
  while ((kPrefix + text.size() + 1) % 64 != 0) text += ' ';
  text += '\n';
  const auto length = std::bit_cast<std::array<char, 2>>(static_cast<uint16_t>(text.size()));
  return std::string(kMagic) + std::string{'\x01', '\0', length[0], length[1]} + text;
}

}  // namespace

Tensor load_npy(const std::filesystem::path& path) {
  InputFile file(path);
  try {
    return read_array(file);
  } catch (const OutOfMemoryError&) {
    throw;
  } catch (const Error& error) {
    fail("load_npy: ", path.string(), ": ", error.what());
  }
}

void save_npy(const std::filesystem::path& path, const Tensor& tensor) {
  for (const auto& [descr, dtype] : kDTypes) {
    if (tensor.dtype() != dtype) continue;
    AtomicFile file(path);
    file.write(write_header(descr, tensor.shape()));
    file.write_elements(tensor);
    return file.commit();
  }
  fail("save_npy: ", path.string(), ": ", tensor.dtype(), " has no .npy dtype");
}

}  // namespace elwise
