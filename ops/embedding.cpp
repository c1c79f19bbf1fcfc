#include "ops/embedding.h"

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/elementwise.h"
#include "ops/embedding_kernels.h"
#include "ops/view.h"

namespace elwise {
namespace {

/// What the backwards need to sort `count` indices and to add runs of `columns` columns.
struct Scratch {
  Tensor order, partials;

  Scratch(const Tensor& dy, int64_t count, int64_t columns)
      : order(empty({index_order_size(count)}, {.dtype = DType::i64, .device = dy.device()})),
        partials(empty({2, index_runs(count), columns},
                       {.dtype = accumulation_dtype(dy.dtype()), .device = dy.device()})) {}
};

}  // namespace

Tensor embedding(const Tensor& weight, const Tensor& index) {
  ELWISE_CHECK(weight.rank() == 2, "embedding: expected weight [rows, width], got ", weight.shape());
  check_index("embedding", "index", index, weight);
  const Tensor rows = index_select(weight, 0, index.alias({index.count()}));
  return reshape(rows, index.shape().inserted(index.rank(), weight.size(1)));
}

Tensor index_select(const Tensor& x, int dim, const Tensor& index) {
  dim = x.shape().normalize(dim);
  check_index("index_select", "index", index, x);
  ELWISE_CHECK(index.rank() == 1, "index_select: expected index [n], got ", index.shape());
  const Tensor y = empty(x.shape().with(dim, index.count()), x.options());
  ELWISE_DISPATCH(x.device(), index_select_forward,
                  {.dtype = x.dtype(),
                   .x = x.data(),
                   .index = static_cast<const int64_t*>(index.data()),
                   .y = y.data(),
                   .outer = x.shape().count_before(dim),
                   .size = x.size(dim),
                   .count = index.count(),
                   .inner = x.shape().count_after(dim)});
  return record("index_select", {x}, y,
                [from = x.shape(), dim, saved = SavedTensor(index)](const BackwardContext& context) {
                  const Tensor &dy = context.gradient(), &chosen = saved.get();
                  const Tensor sum = context.sum_so_far(0),
                               dx = sum.defined() ? sum : zeros(from, dy.options());
                  const Scratch scratch(dy, chosen.count(), from.count_before(dim) * from.count_after(dim));
                  ELWISE_DISPATCH(dy.device(), index_select_backward,
                                  {.dtype = dy.dtype(),
                                   .dy = dy.data(),
                                   .index = static_cast<const int64_t*>(chosen.data()),
                                   .dx = dx.data(),
                                   .order = scratch.order.data(),
                                   .partials = scratch.partials.data(),
                                   .outer = from.count_before(dim),
                                   .size = from[dim],
                                   .count = chosen.count(),
                                   .inner = from.count_after(dim)});
                  return std::vector{dx};
                });
}

Tensor gather(const Tensor& x, int dim, const Tensor& index) {
  dim = x.shape().normalize(dim);
  check_index("gather", "index", index, x);
  ELWISE_CHECK(index.rank() == x.rank(), "gather: expected index of rank ", x.rank(), ", got ",
               index.shape());
  check_shape("gather", "index", index, x.shape().with(dim, index.size(dim)));
  const Tensor y = empty(index.shape(), x.options());
  ELWISE_DISPATCH(x.device(), gather_forward,
                  {.dtype = x.dtype(),
                   .x = x.data(),
                   .index = static_cast<const int64_t*>(index.data()),
                   .y = y.data(),
                   .outer = x.shape().count_before(dim),
                   .size = x.size(dim),
                   .count = index.size(dim),
                   .inner = x.shape().count_after(dim)});
  return record("gather", {x}, y,
                [from = x.shape(), dim, saved = SavedTensor(index)](const BackwardContext& context) {
                  return std::vector{gather_backward(context.gradient(), from, dim, saved.get())};
                });
}

Tensor gather_backward(const Tensor& dy, const Shape& shape, int dim, const Tensor& index) {
  const Tensor dx = zeros(shape, dy.options());
  const int64_t outer = shape.count_before(dim), inner = shape.count_after(dim);
  const bool sorts = gather_backward_sorts(dy.dtype(), outer, index.size(dim), inner);
  const Scratch scratch(dy, sorts ? index.count() : 0, 1);
  ELWISE_DISPATCH(dy.device(), gather_backward,
                  {.dtype = dy.dtype(),
                   .dy = dy.data(),
                   .index = static_cast<const int64_t*>(index.data()),
                   .dx = dx.data(),
                   .order = scratch.order.data(),
                   .partials = scratch.partials.data(),
                   .outer = outer,
                   .size = shape[dim],
                   .count = index.size(dim),
                   .inner = inner});
  return dx;
}

}  // namespace elwise
