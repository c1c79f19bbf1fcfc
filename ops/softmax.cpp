#include "ops/softmax.h"

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/softmax_kernels.h"
#include "ops/view.h"

namespace elwise {

Tensor softmax(const Tensor& x, int dim) {
  check_floating("softmax", "x", x);
  dim = x.shape().normalize(dim);
  if (dim + 1 != x.rank()) return transpose(softmax(transpose(x, dim, -1), -1), dim, -1);
  const int64_t rows = x.shape().count_before(dim), cols = x.size(dim);
  const Tensor y = empty(x.shape(), x.options());
  ELWISE_DISPATCH(x.device(), softmax_forward,
                  {.dtype = x.dtype(), .x = x.data(), .y = y.data(), .rows = rows, .cols = cols});
  return record("softmax", {x}, y, [rows, cols, saved = SavedTensor(y)](const BackwardContext& context) {
    const Tensor &dy = context.gradient(), &output = saved.get();
    const Tensor dx = empty(dy.shape(), dy.options());
    ELWISE_DISPATCH(dy.device(), softmax_backward,
                    {.dtype = dy.dtype(),
                     .y = output.data(),
                     .dy = dy.data(),
                     .dx = dx.data(),
                     .rows = rows,
                     .cols = cols});
    return std::vector{dx};
  });
}

}  // namespace elwise
