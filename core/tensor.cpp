#include "core/tensor.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace elwise {
namespace {

/// Calls function(value of element i) with the element's C++ value; bf16 as float.
template <class Function>
void visit_element(const Tensor& tensor, int64_t i, Function&& function) {
  switch (tensor.dtype()) {
    case DType::f32:
      return function(tensor.data<float>()[i]);
    case DType::f64:
      return function(tensor.data<double>()[i]);
    case DType::bf16:
      return function(static_cast<float>(tensor.data<BFloat16>()[i]));
    case DType::i64:
      return function(tensor.data<int64_t>()[i]);
    case DType::i16:
      return function(tensor.data<int16_t>()[i]);
    case DType::boolean:
      return function(tensor.data<bool>()[i]);
  }
}

// Of one tensor: sums and roundings of sizes stay in int64_t.
constexpr int64_t kMostBytes = int64_t{1} << 56;
constexpr int64_t kPrintedEdge = 3;  // items shown at each end of a long dimension

void print_values(std::ostream& out, const Tensor& tensor, int dim, int64_t offset) {
  if (dim == tensor.rank()) {
    visit_element(tensor, offset, [&](auto value) { out << value; });
    return;
  }
  const int64_t size = tensor.size(dim), stride = tensor.shape().count_after(dim);
  const bool innermost = dim + 1 == tensor.rank();
  out << '[';
  for (int64_t i = 0; i < size; ++i) {
    if (i > 0) out << (innermost ? ", " : ",\n" + std::string(static_cast<size_t>(dim + 1), ' '));
    if (size > 2 * kPrintedEdge + 1 && i == kPrintedEdge) {
      out << "...";
      i = size - kPrintedEdge - 1;
      continue;
    }
    print_values(out, tensor, dim + 1, offset + i * stride);
  }
  out << ']';
}

}  // namespace

Tensor::Tensor(const Shape& shape, DType dtype, int64_t offset, std::shared_ptr<Storage> storage)
    : impl_(std::make_shared<Impl>(shape, shape.count(), dtype, offset, std::move(storage), nullptr)) {}

void* Tensor::data() const {
  // Integer arithmetic: on meta the address belongs to no object.
  const auto base = reinterpret_cast<uintptr_t>(impl().storage->data());
  return reinterpret_cast<void*>(base + static_cast<uintptr_t>(impl().offset * size_of(impl().dtype)));
}

void Tensor::check_dtype(DType requested) const {
  ELWISE_CHECK(dtype() == requested, "data: expected a tensor of ", requested, ", got ", dtype());
}

void Tensor::check_host_access(DType requested) const {
  check_dtype(requested);
  ELWISE_CHECK(device().type == DeviceType::cpu, "data: expected a tensor on cpu, got one on ", device());
}

double Tensor::item() const {
  ELWISE_CHECK(count() == 1, "item: expected one element, got ", shape());
  double result = 0;
  visit_element(on_host(*this), 0, [&](auto value) { result = static_cast<double>(value); });
  return result;
}

Tensor Tensor::alias(const Shape& shape, int64_t offset) const {
  const int64_t needed = shape.count();
  ELWISE_CHECK(offset >= 0 && offset <= count() - needed, "alias: ", shape, " from element ", offset,
               " does not fit in ", this->shape());
  return Tensor(shape, dtype(), impl().offset + offset, storage());
}

void Tensor::copy_from(const Tensor& source) {
  ELWISE_CHECK(source.count() == count() && source.dtype() == dtype(), "copy_from: expected ", shape(), " ",
               dtype(), ", got ", source.shape(), " ", source.dtype());
  ELWISE_CHECK(source.device() == device(), "copy_from: expected a source on ", device(), ", got one on ",
               source.device());
  copy_memory(data(), device(), source.data(), source.device(), count() * size_of(dtype()));
  storage()->bump_version();
}

Tensor empty(const Shape& shape, TensorOptions options) {
  int64_t bytes = 0;
  ELWISE_CHECK(!__builtin_mul_overflow(shape.count(), size_of(options.dtype), &bytes) && bytes <= kMostBytes,
               "empty: ", shape, " of ", options.dtype, " has too many bytes");
  return Tensor(shape, options.dtype, 0, std::make_shared<Storage>(bytes, options.device));
}

Tensor on_host(const Tensor& tensor) {
  if (tensor.device() == kCpu) return tensor.detach();
  ELWISE_CHECK(tensor.device() != kMeta, "on_host: a tensor on meta has no elements");
  const Tensor copy = empty(tensor.shape(), {.dtype = tensor.dtype()});
  copy_memory(copy.data(), kCpu, tensor.data(), tensor.device(), tensor.count() * size_of(tensor.dtype()));
  return copy;
}

std::ostream& operator<<(std::ostream& out, const Tensor& tensor) {
  if (!tensor.defined()) return out << "tensor(undefined)";
  std::ostringstream text;
  text << "tensor(" << tensor.shape() << ", " << tensor.dtype() << ", " << tensor.device();
  if (tensor.device() != kMeta) {
    text << ")\n" << std::setprecision(6) << std::boolalpha;
    print_values(text, on_host(tensor), 0, 0);
  } else {
    text << ")";
  }
  return out << text.str();
}

}  // namespace elwise
