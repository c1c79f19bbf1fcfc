#pragma once

#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "models/decoder.h"

// Figure 3 of arXiv 2501.05730: EA-series replaces exp(2 q k) by its Taylor polynomial, which is close to it
// around 0 only. Where a trained model's products lie says what that costs.

namespace elwise::tools {

/// 1 + x + .. + x^order / order!.
double taylor_polynomial(int order, double x);

/// The interval around 0 in which the Taylor polynomial of an even order differs from exp(x) by at most
/// tolerance exp(x). Throws Error for another order, or a tolerance outside (0, 1).
struct Interval {
  double low, high;
};
Interval accurate_interval(int order, double tolerance);

/// How often the products 2 q_ic k_jc of element-wise attention take which values.
class ProductHistogram {
 public:
  /// `bins` of one width in [-limit, limit), and the shares of products outside the accurate_interval of each
  /// order.
  ProductHistogram(double limit, int64_t bins, const std::vector<int>& orders, double tolerance);

  /// Counts the products of every channel c and every key j that a query i sees: all, or when causal those of
  /// j <= i. q, k: [batch, length, channels], floating. Throws Error for values that are not finite.
  void add(const Tensor& q, const Tensor& k, bool causal);
  /// Counts those of another histogram of the same bins and orders, too.
  void add(const ProductHistogram& other);

  int64_t products() const { return products_; }
  double minimum() const { return minimum_; }  // of all products; of none, infinite
  double maximum() const { return maximum_; }
  /// Of all products: those outside the interval of an order, which is one of the constructor's.
  double share_outside(int order) const;

  /// products, minimum, maximum, bin_low, bin_width, counts, below and above (of the bins), tolerance, ranges
  /// and outside (objects by order).
  nlohmann::ordered_json to_json() const;

 private:
  struct Order {
    int order;
    Interval accurate;
    int64_t outside = 0;
  };
  void count(const double* q, const double* k, int64_t length, bool causal);

  double limit_;
  double tolerance_;
  std::vector<int64_t> counts_;
  std::vector<Order> orders_;
  int64_t products_ = 0, below_ = 0, above_ = 0;
  double minimum_, maximum_;
};

/// Queries and keys of a layer, each [batch, length, hidden].
using QueriesAndKeys = std::pair<Tensor, Tensor>;

/// Those that the attention of every layer of a model's encoder ("encoder.layer.") gets. hidden_states: the
/// encoder's input and each layer's output; norm and eps: of the layers. Throws Error for a model whose
/// attention has none (`none`).
std::vector<QueriesAndKeys> queries_and_keys(const nn::Module& model,
                                             const std::vector<Tensor>& hidden_states, nn::NormPlacement norm,
                                             double eps);
/// Of a language model in eval(), for `tokens` (i64 [batch, length]).
std::vector<QueriesAndKeys> queries_and_keys(const models::Decoder& model, const Tensor& tokens);

}  // namespace elwise::tools
