#include "ops/cumsum.h"

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/cumsum_kernels.h"

namespace elwise {

Tensor cumsum(const Tensor& x, int dim, bool reverse) {
  check_floating("cumsum", "x", x);
  dim = x.shape().normalize(dim);
  const Tensor y = empty(x.shape(), x.options());
  ELWISE_DISPATCH(x.device(), cumsum,
                  {.dtype = x.dtype(),
                   .x = x.data(),
                   .y = y.data(),
                   .outer = x.shape().count_before(dim),
                   .length = x.size(dim),
                   .inner = x.shape().count_after(dim),
                   .reverse = reverse});
  return record("cumsum", {x}, y, [dim, reverse](const BackwardContext& context) {
    return std::vector{cumsum(context.gradient(), dim, !reverse)};
  });
}

}  // namespace elwise
