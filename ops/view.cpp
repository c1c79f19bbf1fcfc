#include "ops/view.h"

#include <algorithm>

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/elementwise.h"
#include "ops/loop_nest.h"
#include "ops/reduce.h"
#include "ops/view_kernels.h"

namespace elwise {
namespace {

/// y at `y_offset` and x at `x_offset` elements, walked over `shape` with the given strides.
void copy_strided(const Shape& shape, const Tensor& x, const Strides& x_strides, const Tensor& y,
                  const Strides& y_strides, int64_t x_offset = 0, int64_t y_offset = 0) {
  if (shape.count() == 0) return;  // the offsets may point past an empty tensor
  const LoopNest<2> nest(shape, {x_strides, y_strides});
  ELWISE_DISPATCH(x.device(), strided_copy,
                  {.dtype = x.dtype(),
                   .x = x.alias({x.count() - x_offset}, x_offset).data(),
                   .y = y.alias({y.count() - y_offset}, y_offset).data(),
                   .extents = nest.extents,
                   .x_strides = nest.strides[0],
                   .y_strides = nest.strides[1]});
}

/// Copies `part` into `whole` from index `begin` of dimension `dim`.
void copy_into_slice(const Tensor& part, const Tensor& whole, int dim, int64_t begin) {
  copy_strided(part.shape(), part, dense_strides(part.shape()), whole, dense_strides(whole.shape()), 0,
               begin * whole.shape().count_after(dim));
}

Tensor transposed(const Tensor& x, int a, int b) {
  const Shape shape = x.shape().with(a, x.size(b)).with(b, x.size(a));
  Strides strides = dense_strides(x.shape());
  std::swap(strides[static_cast<size_t>(a)], strides[static_cast<size_t>(b)]);
  const Tensor y = empty(shape, x.options());
  copy_strided(shape, x, strides, y, dense_strides(shape));
  return y;
}

}  // namespace

Tensor reshape(const Tensor& x, const Shape& shape) {
  ELWISE_CHECK(shape.count() == x.count(), "reshape: ", x.shape(), " has ", x.count(), " elements, ", shape,
               " has ", shape.count());
  return record("reshape", {x}, x.alias(shape), [from = x.shape()](const BackwardContext& context) {
    return std::vector{context.gradient().alias(from)};
  });
}

Tensor reshape(const Tensor& x, std::initializer_list<int64_t> sizes) {
  std::vector<int64_t> known(sizes);
  const auto unknown = std::find(known.begin(), known.end(), -1);
  if (unknown != known.end()) {
    *unknown = 1;
    ELWISE_CHECK(std::find(known.begin(), known.end(), -1) == known.end(),
                 "reshape: expected at most one size of -1");
    const int64_t rest = Shape(known).count();
    ELWISE_CHECK(rest > 0 && x.count() % rest == 0, "reshape: ", x.shape(),
                 " does not divide into groups of ", rest);
    *unknown = x.count() / rest;
  }
  return reshape(x, Shape(known));
}

Tensor clone(const Tensor& x) {
  Tensor y = empty(x.shape(), x.options());
  y.copy_from(x);
  return record("clone", {x}, y,
                [](const BackwardContext& context) { return std::vector{context.gradient()}; });
}

Tensor transpose(const Tensor& x, int a, int b) {
  a = x.shape().normalize(a);
  b = x.shape().normalize(b);
  return record("transpose", {x}, transposed(x, a, b), [a, b](const BackwardContext& context) {
    return std::vector{transposed(context.gradient(), a, b)};
  });
}

Tensor slice(const Tensor& x, int dim, int64_t begin, int64_t end) {
  dim = x.shape().normalize(dim);
  ELWISE_CHECK(0 <= begin && begin <= end && end <= x.size(dim),
               "slice: expected 0 <= begin <= end <= ", x.size(dim), ", got ", begin, " and ", end);
  const Shape shape = x.shape().with(dim, end - begin);
  const int64_t offset = begin * x.shape().count_after(dim);
  Tensor y;
  if (x.shape().count_before(dim) == 1) {
    y = x.alias(shape, offset);
  } else {
    y = empty(shape, x.options());
    copy_strided(shape, x, dense_strides(x.shape()), y, dense_strides(shape), offset);
  }
  return record("slice", {x}, y, [from = x.shape(), dim, begin](const BackwardContext& context) {
    const Tensor& dy = context.gradient();
    const Tensor dx = zeros(from, dy.options());
    copy_into_slice(dy, dx, dim, begin);
    return std::vector{dx};
  });
}

std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int dim) {
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (const int64_t size : sizes) {
    parts.push_back(slice(x, dim, begin, begin + size));
    begin += size;
  }
  ELWISE_CHECK(begin == x.size(dim), "split: expected sizes that add up to ", x.size(dim), ", got ", begin);
  return parts;
}

Tensor concat(const std::vector<Tensor>& parts, int dim) {
  ELWISE_CHECK(!parts.empty(), "concat: expected at least one tensor");
  const Tensor& first = parts.front();
  dim = first.shape().normalize(dim);
  int64_t total = 0;
  for (const Tensor& part : parts) {
    check_same_kind("concat", "the first", first, "each part", part);
    ELWISE_CHECK(part.rank() == first.rank(), "concat: ", part.shape(), " does not join ", first.shape());
    check_shape("concat", "each part", part, first.shape().with(dim, part.size(dim)));
    total += part.size(dim);
  }
  const Tensor y = empty(first.shape().with(dim, total), first.options());
  std::vector<int64_t> sizes;
  int64_t begin = 0;
  for (const Tensor& part : parts) {
    copy_into_slice(part, y, dim, begin);
    sizes.push_back(part.size(dim));
    begin += part.size(dim);
  }
  return record("concat", parts, y, [sizes, dim](const BackwardContext& context) {
    return split(context.gradient(), sizes, dim);
  });
}

Tensor stack(const std::vector<Tensor>& parts, int dim) {
  ELWISE_CHECK(!parts.empty(), "stack: expected at least one tensor");
  const int rank = parts.front().rank();
  ELWISE_CHECK(dim >= -rank - 1 && dim <= rank, "stack: dimension ", dim, " is out of range for ",
               parts.front().shape());
  if (dim < 0) dim += rank + 1;
  std::vector<Tensor> widened;
  for (const Tensor& part : parts) {
    check_shape("stack", "each part", part, parts.front().shape());
    widened.push_back(reshape(part, part.shape().inserted(dim, 1)));
  }
  return concat(widened, dim);
}

Tensor expand(const Tensor& x, const Shape& shape) {
  ELWISE_CHECK(broadcast("expand", x.shape(), shape) == shape, "expand: ", x.shape(),
               " does not broadcast to ", shape);
  const Tensor y = empty(shape, x.options());
  copy_strided(shape, x, broadcast_strides(x.shape(), shape), y, dense_strides(shape));
  return record("expand", {x}, y, [from = x.shape()](const BackwardContext& context) {
    return std::vector{sum_to(context.gradient(), from)};
  });
}

}  // namespace elwise
