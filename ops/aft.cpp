#include "ops/aft.h"

#include <algorithm>

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/aft_kernels.h"
#include "ops/argument_checks.h"
#include "ops/matmul_run.h"
#include "ops/softmax_kernels.h"
#include "ops/view.h"

namespace elwise {
namespace {

void check_position_bias(const Tensor& q, const Tensor& position_bias) {
  check_same_kind("aft", "q", q, "position_bias", position_bias);
  ELWISE_CHECK(position_bias.rank() == 2 && position_bias.size(0) == position_bias.size(1) &&
                   position_bias.size(0) >= q.size(1),
               "aft: expected position_bias [positions, positions] for ", q.size(1),
               " positions or more, got ", position_bias.shape());
}

/// Products of the weights E [length, length] with [length, batch, 2, channels]. Causal weights, 0 above the
/// diagonal, are multiplied in blocks of rows, each as far as it is not 0.
class WeightProducts {
 public:
  WeightProducts(const Tensor& weights, const Shape& columns, bool causal)
      : weights_(weights),
        columns_(columns),
        length_(columns[0]),
        width_(columns.count_after(0)),
        block_(causal ? kBlock : std::max<int64_t>(length_, 1)),
        causal_(causal) {}

  /// E x.
  Tensor of(const Tensor& x) const {
    const Tensor y = empty(columns_, x.options());
    for_each_block([&](int64_t begin, int64_t end) {
      const int64_t seen = causal_ ? end : length_;
      multiply(row(weights_, begin), length_, false, x.data(), false, row(y, begin), width_,
               {end - begin, width_, seen});
    });
    return y;
  }

  /// E^T x.
  Tensor transposed_of(const Tensor& x) const {
    const Tensor y = empty(columns_, x.options());
    for_each_block([&](int64_t begin, int64_t end) {
      const int64_t first = causal_ ? begin : 0;
      multiply(at(weights_, first * length_ + begin), length_, true, row(x, first), false, row(y, begin),
               width_, {end - begin, width_, length_ - first});
    });
    return y;
  }

  /// x y^T where E is not 0.
  Tensor between(const Tensor& x, const Tensor& y) const {
    const Tensor result = empty(weights_.shape(), x.options());
    for_each_block([&](int64_t begin, int64_t end) {
      multiply(row(x, begin), width_, false, y.data(), true, row(result, begin), length_,
               {end - begin, causal_ ? end : length_, width_});
    });
    return result;
  }

 private:
  static constexpr int64_t kBlock = 128;

  struct Size {
    int64_t m, n, k;
  };

  static void* at(const Tensor& x, int64_t offset) {
    return static_cast<std::byte*>(x.data()) + offset * size_of(x.dtype());
  }
  static void* row(const Tensor& x, int64_t index) { return at(x, index * x.shape().count_after(0)); }

  template <class Body>
  void for_each_block(const Body& body) const {
    for (int64_t begin = 0; begin < length_; begin += block_) body(begin, std::min(length_, begin + block_));
  }

  /// c = op(a) op(b); rows of b lie a row of columns apart.
  void multiply(const void* a, int64_t lda, bool transpose_a, const void* b, bool transpose_b, void* c,
                int64_t ldc, Size size) const {
    run_matmul(weights_.device(), {.dtype = weights_.dtype(),
                                   .a = a,
                                   .b = b,
                                   .c = c,
                                   .m = size.m,
                                   .n = size.n,
                                   .k = size.k,
                                   .lda = lda,
                                   .ldb = width_,
                                   .ldc = ldc,
                                   .transpose_a = transpose_a,
                                   .transpose_b = transpose_b,
                                   .workspace = nullptr});
  }

  Tensor weights_;
  Shape columns_;
  int64_t length_, width_, block_;
  bool causal_;
};

/// E: the softmax of the first positions' biases over the positions that each sees.
Tensor position_weights(const Tensor& position_bias, int64_t length, bool causal) {
  Tensor bias = position_bias.detach();
  if (bias.size(0) != length) bias = slice(slice(bias, 0, 0, length), 1, 0, length);
  const Tensor weights = empty({length, length}, bias.options());
  ELWISE_DISPATCH(bias.device(), softmax_forward,
                  {.dtype = bias.dtype(),
                   .x = bias.data(),
                   .y = weights.data(),
                   .rows = length,
                   .cols = length,
                   .queries = length,
                   .causal = causal});
  return weights;
}

/// The products' right operand [length, batch, 2, channels]. `first_large` may be undefined.
Tensor key_columns(const Tensor& k, const Tensor& v, const AttentionOptions& options,
                   const Tensor& first_large) {
  const Tensor keys = empty({k.size(1), k.size(0), 2, k.size(2)}, k.options());
  ELWISE_DISPATCH(k.device(), aft_keys,
                  {.dtype = k.dtype(),
                   .k = k.data(),
                   .v = v.data(),
                   .keys = keys.data(),
                   .batch = k.size(0),
                   .length = k.size(1),
                   .channels = k.size(2),
                   .key_mask = key_mask_data(options),
                   .first_large = static_cast<int64_t*>(data_or_null(first_large))});
  return keys;
}

AftDirect direct_operands(const Tensor& k, const Tensor& v, const Tensor& position_bias,
                          const AttentionOptions& options) {
  return {.k = k.data(),
          .v = v.data(),
          .position_bias = position_bias.data(),
          .positions = position_bias.size(0),
          .causal = options.causal,
          .key_mask = key_mask_data(options)};
}

/// What backward keeps.
struct Saved {
  SavedTensor q, k, v, position_bias, key_mask;
  SavedTensor sums;            // [length, batch, 2, channels]: r and Z
  SavedTensor direct_answers;  // i64 [1]
  bool causal;
};

std::vector<Tensor> backward(const Saved& saved, const BackwardContext& context) {
  const Tensor &q = saved.q.get(), &k = saved.k.get(), &v = saved.v.get(), &bias = saved.position_bias.get(),
               &sums = saved.sums.get(), &dy = context.gradient();
  const AttentionOptions options{.causal = saved.causal, .key_mask = saved.key_mask.get()};
  const int64_t batch = q.size(0), length = q.size(1), channels = q.size(2);
  const auto* direct_answers = static_cast<const int64_t*>(saved.direct_answers.get().data());
  const AftDirect direct = direct_operands(k, v, bias, options);
  const Tensor dq = empty(q.shape(), q.options()), gradients = empty(sums.shape(), q.options());
  ELWISE_DISPATCH(q.device(), aft_output_gradients,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .sums = sums.data(),
                   .dy = dy.data(),
                   .dq = dq.data(),
                   .gradients = gradients.data(),
                   .batch = batch,
                   .length = length,
                   .channels = channels});
  if (!context.needs(1) && !context.needs(2) && !context.needs(3)) return {dq, {}, {}, {}};

  const Tensor weights = position_weights(bias, length, saved.causal);
  const Tensor keys = key_columns(k, v, options, {});
  const WeightProducts products(weights, sums.shape(), saved.causal);
  Tensor dk, dv, dw;
  if (context.needs(1) || context.needs(2)) {
    dk = empty(k.shape(), k.options());
    dv = empty(v.shape(), v.options());
    const Tensor key_sums = products.transposed_of(gradients);
    ELWISE_DISPATCH(q.device(), aft_key_gradients,
                    {.dtype = q.dtype(),
                     .q = q.data(),
                     .sums = sums.data(),
                     .dy = dy.data(),
                     .keys = keys.data(),
                     .key_sums = key_sums.data(),
                     .direct_answers = direct_answers,
                     .dk = dk.data(),
                     .dv = dv.data(),
                     .batch = batch,
                     .length = length,
                     .channels = channels,
                     .direct = direct});
  }
  if (context.needs(3)) {
    dw = empty(bias.shape(), bias.options());
    const Tensor between = products.between(gradients, keys);
    ELWISE_DISPATCH(q.device(), aft_bias_gradient,
                    {.dtype = q.dtype(),
                     .q = q.data(),
                     .sums = sums.data(),
                     .dy = dy.data(),
                     .weights = weights.data(),
                     .products = between.data(),
                     .direct_answers = direct_answers,
                     .dw = dw.data(),
                     .batch = batch,
                     .length = length,
                     .channels = channels,
                     .direct = direct});
  }
  return {dq, dk, dv, dw};
}

}  // namespace

Tensor aft(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& position_bias,
           const AttentionOptions& options) {
  check_attention("aft", q, k, v, options);
  check_position_bias(q, position_bias);
  const int64_t batch = q.size(0), length = q.size(1), channels = q.size(2);
  const TensorOptions index{.dtype = DType::i64, .device = q.device()};
  const Tensor y = empty(q.shape(), q.options()), direct_answers = empty({1}, index);
  Tensor sums;
  {
    const Tensor first_large = empty({batch, channels}, index);
    const Tensor keys = key_columns(k, v, options, first_large);
    const Tensor weights = position_weights(position_bias, length, options.causal);
    sums = WeightProducts(weights, keys.shape(), options.causal).of(keys);
    ELWISE_DISPATCH(q.device(), aft_outputs,
                    {.dtype = q.dtype(),
                     .q = q.data(),
                     .first_large = static_cast<const int64_t*>(first_large.data()),
                     .sums = sums.data(),
                     .direct_answers = static_cast<int64_t*>(direct_answers.data()),
                     .y = y.data(),
                     .batch = batch,
                     .length = length,
                     .channels = channels,
                     .direct = direct_operands(k, v, position_bias, options)});
  }
  const Saved saved{.q = SavedTensor(q),
                    .k = SavedTensor(k),
                    .v = SavedTensor(v),
                    .position_bias = SavedTensor(position_bias),
                    .key_mask = SavedTensor(options.key_mask),
                    .sums = SavedTensor(sums),
                    .direct_answers = SavedTensor(direct_answers),
                    .causal = options.causal};
  return record("aft", {q, k, v, position_bias}, y,
                [saved](const BackwardContext& context) { return backward(saved, context); });
}

}  // namespace elwise
