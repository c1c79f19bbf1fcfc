#include "ops/matmul.h"

#include <atomic>

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/matmul_run.h"
#include "ops/reduce.h"
#include "ops/view.h"

namespace elwise {
namespace {

thread_local MatmulLog* current_log = nullptr;
std::atomic<bool> allow_tf32 = false;

/// op(a) op(b) as a new tensor, or added to `sum`, which is returned, where that is defined.
Tensor product(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& sum = {}) {
  const int64_t m = a.size(transpose_a ? -1 : -2), n = b.size(transpose_b ? -2 : -1);
  const Tensor c =
      sum.defined() ? sum : empty(a.rank() == 3 ? Shape{a.size(0), m, n} : Shape{m, n}, a.options());
  product_into(c, a, transpose_a, b, transpose_b, {.accumulate = sum.defined()});
  return c;
}

/// Products of batches that already agree; a and b have rank 2 or 3.
Tensor recorded_product(const Tensor& a, const Tensor& b, MatmulOptions options) {
  const Tensor c = product(a, options.transpose_a, b, options.transpose_b);
  return record(
      "matmul", {a, b}, c,
      [options, saved_a = SavedTensor(a), saved_b = SavedTensor(b)](const BackwardContext& context) {
        const Tensor &dc = context.gradient(), &left = saved_a.get(), &right = saved_b.get();
        Tensor da, db;
        if (context.needs(0)) {
          da = options.transpose_a ? product(right, options.transpose_b, dc, true)
                                   : product(dc, false, right, !options.transpose_b);
        }
        if (context.needs(1)) {
          db = options.transpose_b ? product(dc, true, left, options.transpose_a)
                                   : product(left, !options.transpose_a, dc, false);
        }
        return std::vector{da, db};
      });
}

Shape batch_shape(const Tensor& x) {
  return Shape(std::span(x.shape().begin(), static_cast<size_t>(x.rank() - 2)));
}

Shape joined(const Shape& batch, int64_t rows, int64_t cols) {
  return batch.inserted(batch.rank(), rows).inserted(batch.rank() + 1, cols);
}

/// x [.., r, c] with its leading dimensions broadcast to `batch` and merged into one.
Tensor with_batch(const Tensor& x, const Shape& batch) {
  const Tensor wide = batch_shape(x) == batch ? x : expand(x, joined(batch, x.size(-2), x.size(-1)));
  return reshape(wide, Shape{batch.count(), x.size(-2), x.size(-1)});
}

void check_linear(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_floating(op, "x", x);
  ELWISE_CHECK(x.rank() >= 1, op, ": expected x [.., inputs], got ", x.shape());
  check_linear(op, x, x.size(-1), "weight", weight, "bias", bias);
}

/// x as a matrix: all but the last dimension merged.
Shape rows_of(const Tensor& x) {
  return {x.shape().count_before(-1), x.size(-1)};
}

Tensor linear_product(const Tensor& x, const Tensor& weight, const Epilogue& epilogue) {
  const Shape rows = rows_of(x);
  const Tensor y = empty(x.shape().with(-1, weight.size(0)), x.options());
  product_into(y.alias({rows[0], weight.size(0)}), x.alias(rows), false, weight, true, epilogue);
  return y;
}

}  // namespace

void set_allow_tf32(bool allow) {
  allow_tf32 = allow;
}
bool tf32_allowed() {
  return allow_tf32;
}

void log_matmul(const MatmulShape& shape) {
  for (MatmulLog* log = current_log; log != nullptr; log = log->previous_) log->shapes_.push_back(shape);
}

MatmulLog::MatmulLog() : previous_(current_log) {
  current_log = this;
}
MatmulLog::~MatmulLog() {
  current_log = previous_;
}

void run_matmul(Device device, Matmul problem) {
  log_matmul({problem.m, problem.n, problem.k, problem.transpose_a, problem.transpose_b, problem.outer,
              problem.inner});
  const Tensor workspace =
      empty({kMatmulWorkspaceBytes / size_of(problem.dtype)}, {.dtype = problem.dtype, .device = device});
  problem.workspace = workspace.data();
  problem.allow_tf32 = allow_tf32;
  ELWISE_DISPATCH(device, matmul, (problem));
}

void product_into(const Tensor& c, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b,
                  const Epilogue& epilogue) {
  const int64_t m = a.size(transpose_a ? -1 : -2), k = a.size(transpose_a ? -2 : -1);
  const int64_t n = b.size(transpose_b ? -2 : -1);
  run_matmul(c.device(), {.dtype = c.dtype(),
                          .a = a.data(),
                          .b = b.data(),
                          .c = c.data(),
                          .m = m,
                          .n = n,
                          .k = k,
                          .lda = a.size(-1),
                          .ldb = b.size(-1),
                          .ldc = n,
                          .transpose_a = transpose_a,
                          .transpose_b = transpose_b,
                          .workspace = nullptr,
                          .outer = a.rank() == 3 ? a.size(0) : 1,
                          .a_outer = m * k,
                          .b_outer = k * n,
                          .c_outer = m * n,
                          .bias = data_or_null(epilogue.bias),
                          .accumulate = epilogue.accumulate,
                          .gelu_tanh = epilogue.gelu_tanh});
}

Tensor matmul(const Tensor& a, const Tensor& b, MatmulOptions options) {
  check_floating("matmul", "a", a);
  check_same_kind("matmul", "a", a, "b", b);
  ELWISE_CHECK(a.rank() >= 2 && b.rank() >= 2, "matmul: expected matrices, got ", a.shape(), " and ",
               b.shape());
  const int64_t inner_a = a.size(options.transpose_a ? -2 : -1),
                inner_b = b.size(options.transpose_b ? -1 : -2);
  ELWISE_CHECK(inner_a == inner_b, "matmul: inner sizes differ: ", inner_a, " of a ", a.shape(),
               options.transpose_a ? " transposed" : "", " and ", inner_b, " of b ", b.shape(),
               options.transpose_b ? " transposed" : "");
  if (a.rank() == 2 && b.rank() == 2) return recorded_product(a, b, options);
  const Shape batch = broadcast("matmul", batch_shape(a), batch_shape(b));
  const int64_t n = b.size(options.transpose_b ? -2 : -1), m = a.size(options.transpose_a ? -1 : -2);
  if (b.rank() == 2 && !options.transpose_a) {  // one b for all rows: a single product
    return reshape(recorded_product(reshape(a, {-1, a.size(-1)}), b, options), joined(batch, m, n));
  }
  return reshape(recorded_product(with_batch(a, batch), with_batch(b, batch), options), joined(batch, m, n));
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_linear("linear", x, weight, bias);
  const Shape rows = rows_of(x);
  const Tensor y = linear_product(x, weight, {.bias = bias});
  return record(
      "linear", {x, weight, bias}, y,
      [rows, saved_x = SavedTensor(x), saved_weight = SavedTensor(weight)](const BackwardContext& context) {
        const Tensor &input = saved_x.get(), &w = saved_weight.get();
        const Tensor dy = context.gradient().alias({rows[0], w.size(0)});
        Tensor dx, dweight, dbias;
        if (context.needs(2)) dbias = sum(dy, 0);
        if (context.needs(1)) dweight = product(dy, true, input.alias(rows), false, context.sum_so_far(1));
        if (context.needs(0)) {
          const Tensor sum = context.sum_so_far(0), total = product(dy, false, w, false, sum);
          dx = sum.defined() ? sum : total.alias(input.shape());
        }
        return std::vector{dx, dweight, dbias};
      });
}

Tensor linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias, Gelu kind) {
  check_linear("linear_gelu", x, weight, bias);
  if (kind == Gelu::exact || needs_gradient({x, weight, bias})) return gelu(linear(x, weight, bias), kind);
  return linear_product(x, weight, {.bias = bias, .gelu_tanh = true});
}

}  // namespace elwise
