#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <ostream>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"
#include "core/storage.h"

namespace elwise {

struct AutogradState;  // autograd/node.h

/// What a new tensor is made of, besides its shape.
struct TensorOptions {
  DType dtype = DType::f32;
  Device device = kCpu;
};

/// A handle to a dense row-major array. Copying a Tensor copies the handle; both name the same elements and
/// the same gradient. Views (alias, and the ops reshape and slice of the leading dimension) share storage.
class Tensor {
 public:
  /// An undefined tensor: "no bias", "no gradient".
  Tensor() = default;
  bool defined() const { return impl_ != nullptr; }

  const Shape& shape() const { return impl().shape; }
  int rank() const { return impl().shape.rank(); }
  /// Size of dimension `dim`; a negative one counts from the end.
  int64_t size(int dim) const { return impl().shape[dim]; }
  /// Number of elements.
  int64_t count() const { return impl().count; }
  DType dtype() const { return impl().dtype; }
  Device device() const { return impl().storage->device(); }
  TensorOptions options() const { return {dtype(), device()}; }

  /// The first element. On meta it is not null and must not be followed.
  void* data() const;
  /// The first element, as T. Throws Error unless T is the tensor's dtype and the tensor is on the CPU.
  template <class T>
  T* data() const {
    check_host_access(dtype_of<T>);
    return static_cast<T*>(data());
  }
  /// All elements, in row-major order, from any device but meta. Throws Error unless T is the tensor's dtype.
  template <class T>
  std::vector<T> to_vector() const {
    check_dtype(dtype_of<T>);
    ELWISE_CHECK(device() != kMeta, "to_vector: a tensor on meta has no elements");
    const auto elements = std::make_unique_for_overwrite<T[]>(static_cast<size_t>(count()));
    copy_memory(elements.get(), kCpu, data(), device(), count() * size_of(dtype()));
    return std::vector<T>(elements.get(), elements.get() + count());
  }
  /// The value of a one-element tensor, converted to double, from any device but meta. Throws Error for any
  /// other.
  double item() const;

  const std::shared_ptr<Storage>& storage() const { return impl().storage; }

  /// A tensor on the same storage with another shape, from element `offset` on; takes no part in autograd.
  /// Throws Error when it does not fit.
  Tensor alias(const Shape& shape, int64_t offset = 0) const;
  /// The same elements without autograd: PyTorch's detach().
  Tensor detach() const { return alias(shape()); }

  /// Overwrites the elements with those of `source` (same count, dtype and device); bumps the version.
  void copy_from(const Tensor& source);

  /// True for both names of one tensor.
  bool is_same(const Tensor& other) const { return impl_ == other.impl_; }

  /// True where no other handle or view shares the elements: they may be overwritten unseen.
  bool is_unique() const { return impl_.use_count() == 1 && storage().use_count() == 1; }

  // Autograd (defined in autograd/).

  /// True for a leaf that asked for its gradient and for what was computed from one.
  bool requires_grad() const;
  /// Asks for (or stops asking for) the gradient of a leaf. Throws Error for the result of a recorded op, or
  /// for a dtype that is not floating. Returns *this.
  Tensor& set_requires_grad(bool value = true);
  /// The gradient that backward() has accumulated; undefined before. Throws nothing.
  Tensor grad() const;
  /// Replaces the gradient; an undefined tensor clears it.
  void set_grad(Tensor gradient) const;
  /// The gradient of this tensor with respect to every leaf it was computed from is added to those leaves'
  /// grad(). `gradient` is the gradient of this tensor; it may be left out for a one-element tensor (1).
  /// Frees the graph: a second call throws Error.
  void backward(const Tensor& gradient = {}) const;
  /// Calls `hook` with the gradient of this tensor once backward() has its final value; a defined result
  /// replaces it and must have its shape and dtype. Throws Error unless requires_grad().
  void register_hook(std::function<Tensor(const Tensor& gradient)> hook) const;
  /// For a leaf: each backward() that adds to its grad() calls `hook` with it once that gradient is complete,
  /// as no op that has yet to run can add to it. The hook may change the leaf and clear its gradient, which
  /// frees the memory while others are still to come. A graph with a checkpoint(), whose leaves are unknown
  /// before it runs, has its hooks called after the last one or at the end. An empty hook takes the present
  /// one away. Throws Error for a second hook, and for the result of a recorded op.
  void set_complete_gradient_hook(std::function<void(const Tensor& leaf)> hook) const;
  /// True while such a hook is set.
  bool has_complete_gradient_hook() const;

  std::shared_ptr<AutogradState>& autograd_state() const { return impl().autograd; }

 private:
  struct Impl {
    Shape shape;
    int64_t count;
    DType dtype;
    int64_t offset;  // elements
    std::shared_ptr<Storage> storage;
    std::shared_ptr<AutogradState> autograd;
  };

  Tensor(const Shape& shape, DType dtype, int64_t offset, std::shared_ptr<Storage> storage);
  Impl& impl() const {
    if (impl_ == nullptr) [[unlikely]]
      fail("tensor: expected a defined tensor, got an undefined one");
    return *impl_;
  }
  void check_dtype(DType requested) const;
  void check_host_access(DType requested) const;

  std::shared_ptr<Impl> impl_;

  friend Tensor empty(const Shape& shape, TensorOptions options);
};

/// A tensor with unspecified contents. Throws Error for more than 2^56 bytes, OutOfMemoryError for more than
/// there are.
Tensor empty(const Shape& shape, TensorOptions options = {});

/// The same elements on the CPU: the tensor itself or a copy, without autograd. Throws Error for one on meta.
Tensor on_host(const Tensor& tensor);

/// A CPU tensor that copies `values`. Throws Error unless their number is shape.count().
template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape) {
  Tensor result = empty(shape, {.dtype = dtype_of<T>});
  ELWISE_CHECK(static_cast<int64_t>(values.size()) == result.count(), "from_vector: expected ",
               result.count(), " values for ", shape, ", got ", values.size());
  std::copy(values.begin(), values.end(), result.data<T>());
  return result;
}

/// Writes shape, dtype, device and the values, long dimensions abbreviated with "...".
std::ostream& operator<<(std::ostream& out, const Tensor& tensor);

}  // namespace elwise
