#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/parallel.h"
#include "ops/cpu/elements.h"
#include "ops/elementwise_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"

#ifndef ELWISE_OPS_CPU_ELEMENTWISE_ONCE
#define ELWISE_OPS_CPU_ELEMENTWISE_ONCE
namespace elwise::cpu {
namespace {

/// Elements that a broadcast kernel handles at once: 8 KiB an operand at most.
constexpr int64_t kBlock = 1024;

/// The stride of the innermost dimension; 0 for a scalar.
int64_t inner_stride(const Extents& extents, const Strides& strides) {
  return extents.rank == 0 ? 0 : strides[static_cast<size_t>(extents.rank) - 1];
}

/// Shows a block of a strided operand as a dense one: in place where it is dense, else copied to a buffer.
template <class T>
class DenseBlock {
 public:
  /// n <= kBlock elements of `from`, `stride` apart. Valid until the next call.
  const T* get(const T* from, int64_t stride, int64_t n) {
    if (stride == 1) return from;
    if (stride != 0) {
      for (int64_t i = 0; i < n; ++i) values_[i] = from[i * stride];
      repeated_ = nullptr;
    } else if (from != repeated_ || n > count_) {  // else the buffer has it already
      std::fill_n(values_, n, *from);
      repeated_ = from;
      count_ = n;
    }
    return values_;
  }

 private:
  alignas(64) T values_[kBlock];
  const T* repeated_ = nullptr;  // the element that fills the buffer's first count_ places
  int64_t count_ = 0;
};

/// One element's conversion. An integer from NaN or beyond its range is its lowest value; bf16 goes through
/// f32.
template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<From, BFloat16>) {
    return convert<To>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != From(0);
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    return BFloat16(static_cast<float>(value));
  } else if constexpr (std::is_integral_v<To> && std::is_floating_point_v<From>) {
    constexpr To kLowest = std::numeric_limits<To>::min();
    const bool fits = value >= From(kLowest) && value < -From(kLowest);
    return fits ? static_cast<To>(value) : kLowest;
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace
}  // namespace elwise::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

template <BinaryOp op, class D, class V = hn::VFromD<D>>
HWY_INLINE V apply(D d, V a, V b) {
  using T = hn::TFromD<D>;
  if constexpr (op == BinaryOp::add) return hn::Add(a, b);
  if constexpr (op == BinaryOp::sub) return hn::Sub(a, b);
  if constexpr (op == BinaryOp::mul) return hn::Mul(a, b);
  if constexpr (op == BinaryOp::div) return hn::Div(a, b);
  // A NaN in b is neither above nor below a, so b is taken.
  if constexpr (op == BinaryOp::maximum) return hn::IfThenElse(hn::Or(hn::Gt(a, b), hn::IsNaN(a)), a, b);
  if constexpr (op == BinaryOp::minimum) return hn::IfThenElse(hn::Or(hn::Lt(a, b), hn::IsNaN(a)), a, b);
  if constexpr (op == BinaryOp::step) {
    const V tie = hn::IfThenElseZero(hn::Eq(a, b), hn::Set(d, T(0.5)));
    return hn::IfThenElse(hn::Gt(a, b), hn::Set(d, T(1)), tie);
  }
}

template <class T, BinaryOp op>
void binary_dense(const T* a, const T* b, T* y, int64_t count) {
  const hn::ScalableTag<Compute<T>> d;
  for_each_vector(d, 0, count, [=](int64_t i, int64_t n) HWY_ATTR {
    store_lanes(d, apply<op>(d, load_lanes(d, a + i, n), load_lanes(d, b + i, n)), y + i, n);
  });
}

template <class T, BinaryOp op>
void binary_loop(const BinaryForward& args) {
  const T* a = static_cast<const T*>(args.a);
  const T* b = static_cast<const T*>(args.b);
  T* y = static_cast<T*>(args.y);
  const int64_t a_stride = inner_stride(args.extents, args.a_strides);
  const int64_t b_stride = inner_stride(args.extents, args.b_strides);
  parallel_elements(args.extents.count(), [&](int64_t begin, int64_t end) {
    DenseBlock<T> a_block, b_block;
    const std::array<Strides, 2> strides{args.a_strides, args.b_strides};
    for_each_run(args.extents, strides, begin, end, [&](const auto& offsets, int64_t first, int64_t count) {
      for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t n = std::min(kBlock, count - i);
        binary_dense<T, op>(a_block.get(a + offsets[0] + i * a_stride, a_stride, n),
                            b_block.get(b + offsets[1] + i * b_stride, b_stride, n), y + first + i, n);
      }
    });
  });
}

template <class T>
void binary_typed(const BinaryForward& args) {
  switch (args.op) {
    case BinaryOp::add:
      return binary_loop<T, BinaryOp::add>(args);
    case BinaryOp::sub:
      return binary_loop<T, BinaryOp::sub>(args);
    case BinaryOp::mul:
      return binary_loop<T, BinaryOp::mul>(args);
    case BinaryOp::div:
      return binary_loop<T, BinaryOp::div>(args);
    case BinaryOp::maximum:
      return binary_loop<T, BinaryOp::maximum>(args);
    case BinaryOp::minimum:
      return binary_loop<T, BinaryOp::minimum>(args);
    case BinaryOp::step:
      return binary_loop<T, BinaryOp::step>(args);
  }
}

void binary_forward_kernel(const BinaryForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "binary_forward", [&]<class T>() { binary_typed<T>(args); });
}

template <class T>
void where_dense(const bool* condition, const T* a, const T* b, T* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T from_a = a[i], from_b = b[i];
    y[i] = condition[i] ? from_a : from_b;
  }
}

template <class T>
void where_loop(const Where& args) {
  const T* a = static_cast<const T*>(args.a);
  const T* b = static_cast<const T*>(args.b);
  T* y = static_cast<T*>(args.y);
  const int64_t condition_stride = inner_stride(args.extents, args.condition_strides);
  const int64_t a_stride = inner_stride(args.extents, args.a_strides);
  const int64_t b_stride = inner_stride(args.extents, args.b_strides);
  parallel_elements(args.extents.count(), [&](int64_t begin, int64_t end) {
    DenseBlock<bool> condition_block;
    DenseBlock<T> a_block, b_block;
    const std::array<Strides, 3> strides{args.condition_strides, args.a_strides, args.b_strides};
    for_each_run(args.extents, strides, begin, end, [&](const auto& offsets, int64_t first, int64_t count) {
      for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t n = std::min(kBlock, count - i);
        const bool* condition = args.condition + offsets[0] + i * condition_stride;
        where_dense(condition_block.get(condition, condition_stride, n),
                    a_block.get(a + offsets[1] + i * a_stride, a_stride, n),
                    b_block.get(b + offsets[2] + i * b_stride, b_stride, n), y + first + i, n);
      }
    });
  });
}

void where_kernel(const Where& args) {
  dispatch_f32_f64_bf16(args.dtype, "where", [&]<class T>() { where_loop<T>(args); });
}

/// y = x converted, for elements [begin, end).
template <class To, class From>
void cast_range(const From* x, To* y, int64_t begin, int64_t end) {
  constexpr bool kIntoBf16 = std::is_same_v<From, float> && std::is_same_v<To, BFloat16>;
  constexpr bool kFromBf16 = std::is_same_v<From, BFloat16> && std::is_same_v<To, float>;
  if constexpr (kIntoBf16 || kFromBf16) {
    const hn::ScalableTag<float> d;
    for_each_vector(d, begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
      store_lanes(d, load_lanes(d, x + i, n), y + i, n);
    });
  } else {
    for (int64_t i = begin; i < end; ++i) y[i] = convert<To>(x[i]);
  }
}

void cast_kernel(const Cast& args) {
  dispatch_any(args.from, [&]<class From>() {
    dispatch_any(args.to, [&]<class To>() {
      const From* x = static_cast<const From*>(args.x);
      To* y = static_cast<To*>(args.y);
      parallel_elements(args.count, [&](int64_t begin, int64_t end) { cast_range(x, y, begin, end); });
    });
  });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(binary_forward_kernel);
HWY_EXPORT(where_kernel);
HWY_EXPORT(cast_kernel);

void binary_forward(const BinaryForward& args) {
  HWY_DYNAMIC_DISPATCH(binary_forward_kernel)(args);
}
void where(const Where& args) {
  HWY_DYNAMIC_DISPATCH(where_kernel)(args);
}
void cast(const Cast& args) {
  HWY_DYNAMIC_DISPATCH(cast_kernel)(args);
}

void fill(const Fill& args) {
  dispatch_any(args.dtype, [&]<class T>() {
    T* y = static_cast<T*>(args.y);
    const T value = convert<T>(args.value);
    parallel_elements(args.count, [&](int64_t begin, int64_t end) { std::fill(y + begin, y + end, value); });
  });
}

}  // namespace elwise::cpu
#endif
