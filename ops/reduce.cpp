#include "ops/reduce.h"

#include <algorithm>

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/reduce_kernels.h"
#include "ops/view.h"

namespace elwise {
namespace {

/// The sum of dimension `dim`, kept with size 1, without recording.
Tensor summed(const Tensor& x, int dim) {
  const Shape& shape = x.shape();
  const Tensor y = empty(shape.with(dim, 1), x.options());
  ELWISE_DISPATCH(x.device(), sum_forward,
                  {.dtype = x.dtype(),
                   .x = x.data(),
                   .y = y.data(),
                   .outer = shape.count_before(dim),
                   .reduced = shape[dim],
                   .inner = shape.count_after(dim)});
  return y;
}

Shape reduced_shape(const Shape& shape, int dim, bool keep_dim) {
  return keep_dim ? shape.with(dim, 1) : shape.without(dim);
}

}  // namespace

Tensor sum(const Tensor& x, int dim, bool keep_dim) {
  check_floating("sum", "x", x);
  dim = x.shape().normalize(dim);
  const Tensor y = summed(x, dim).alias(reduced_shape(x.shape(), dim, keep_dim));
  return record("sum", {x}, y, [from = x.shape(), dim](const BackwardContext& context) {
    return std::vector{expand(context.gradient().alias(from.with(dim, 1)), from)};
  });
}

Tensor sum(const Tensor& x) {
  return reshape(sum(reshape(x, {x.count()}), 0), Shape{});
}

Tensor mean(const Tensor& x, int dim, bool keep_dim) {
  ELWISE_CHECK(x.size(dim) > 0, "mean: expected at least one element along dimension ", dim, ", got ",
               x.shape());
  return mul(sum(x, dim, keep_dim), 1.0 / static_cast<double>(x.size(dim)));
}

Tensor mean(const Tensor& x) {
  return reshape(mean(reshape(x, {x.count()}), 0), Shape{});
}

MaxResult max(const Tensor& x, int dim, bool keep_dim) {
  check_floating("max", "x", x);
  dim = x.shape().normalize(dim);
  const Shape& shape = x.shape();
  ELWISE_CHECK(shape[dim] > 0, "max: expected at least one element along dimension ", dim, ", got ", shape);
  const Shape result = reduced_shape(shape, dim, keep_dim);
  const Tensor y = empty(result, x.options());
  const Tensor index = empty(result, {.dtype = DType::i64, .device = x.device()});
  ELWISE_DISPATCH(x.device(), max_forward,
                  {.dtype = x.dtype(),
                   .x = x.data(),
                   .y = y.data(),
                   .index = static_cast<int64_t*>(index.data()),
                   .outer = shape.count_before(dim),
                   .reduced = shape[dim],
                   .inner = shape.count_after(dim)});
  record("max", {x}, y, [from = shape, dim, saved = SavedTensor(index)](const BackwardContext& context) {
    const Shape kept = from.with(dim, 1);
    return std::vector{gather_backward(context.gradient().alias(kept), from, dim, saved.get().alias(kept))};
  });
  return {y, index};
}

Tensor max(const Tensor& x) {
  return reshape(max(reshape(x, {x.count()}), 0).values, Shape{});
}

Tensor argmax(const Tensor& x, int dim, bool keep_dim) {
  return max(x.detach(), dim, keep_dim).indices;
}

Tensor sum_to(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  // Neighbouring dimensions are summed, or kept, as one.
  std::vector<int64_t> sizes;
  std::vector<bool> summed;
  const int extra = x.rank() - shape.rank();
  for (int dim = 0; dim < x.rank(); ++dim) {
    if (x.size(dim) == 1) continue;
    const bool repeated = dim < extra || shape[dim - extra] == 1;
    if (!sizes.empty() && summed.back() == repeated) {
      sizes.back() *= x.size(dim);
    } else {
      sizes.push_back(x.size(dim));
      summed.push_back(repeated);
    }
  }
  // What stands between two sums is not rounded to bf16.
  const bool several = std::count(summed.begin(), summed.end(), true) > 1;
  Tensor y = reshape(x, Shape(sizes));
  if (several && x.dtype() != accumulation_dtype(x.dtype())) y = cast(y, accumulation_dtype(x.dtype()));
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (summed[i]) y = sum(y, static_cast<int>(i), true);
  }
  return reshape(y.dtype() == x.dtype() ? y : cast(y, x.dtype()), shape);
}

}  // namespace elwise
