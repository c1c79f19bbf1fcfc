#include "tools/taylor_products.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "autograd/grad_mode.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"

namespace elwise::tools {
namespace {

/// Where the relative error of the polynomial reaches `tolerance` between 0 and `end`. It grows with |x| on
/// either side: P(x) exp(-x) has the derivative -x^order exp(-x) / order!, which has one sign.
double accurate_until(int order, double tolerance, double end) {
  double inside = 0, outside = end;
  while (true) {
    const double middle = (inside + outside) / 2;
    if (middle == inside || middle == outside) return inside;
    const double error = std::abs(taylor_polynomial(order, middle) * std::exp(-middle) - 1);
    (error <= tolerance ? inside : outside) = middle;
  }
}

std::vector<double> values_in_double(const Tensor& x) {
  return on_host(cast(x, DType::f64)).to_vector<double>();
}

/// Channel `channel` of [length, channels].
void copy_channel(const double* rows, int64_t channels, int64_t channel, std::vector<double>& column) {
  for (size_t i = 0; i < column.size(); ++i) {
    column[i] = rows[static_cast<int64_t>(i) * channels + channel];
    ELWISE_CHECK(std::isfinite(column[i]), "products: expected finite queries and keys, got ", column[i]);
  }
}

}  // namespace

double taylor_polynomial(int order, double x) {
  double sum = 1;
  for (int n = order; n > 0; --n) sum = 1 + sum * x / n;
  return sum;
}

Interval accurate_interval(int order, double tolerance) {
  ELWISE_CHECK(order >= 0 && order % 2 == 0, "taylor: expected an even order of 0 or more, got ", order);
  ELWISE_CHECK(tolerance > 0 && tolerance < 1, "taylor: expected a tolerance in (0, 1), got ", tolerance);
  const double end = 2.0 * order + 100;
  return {.low = accurate_until(order, tolerance, -end), .high = accurate_until(order, tolerance, end)};
}

ProductHistogram::ProductHistogram(double limit, int64_t bins, const std::vector<int>& orders,
                                   double tolerance)
    : limit_(limit),
      tolerance_(tolerance),
      counts_(static_cast<size_t>(bins)),
      minimum_(std::numeric_limits<double>::infinity()),
      maximum_(-minimum_) {
  ELWISE_CHECK(limit > 0 && bins > 0, "products: expected a positive limit and number of bins, got ", limit,
               " and ", bins);
  for (const int order : orders)
    orders_.push_back({.order = order, .accurate = accurate_interval(order, tolerance)});
}

void ProductHistogram::add(const Tensor& q, const Tensor& k, bool causal) {
  ELWISE_CHECK(q.rank() == 3 && q.shape() == k.shape(),
               "products: expected q and k [batch, length, channels], got ", q.shape(), " and ", k.shape());
  const int64_t batch = q.size(0), length = q.size(1), channels = q.size(2);
  const std::vector<double> queries = values_in_double(q), keys = values_in_double(k);
  std::vector<double> query(static_cast<size_t>(length)), key(static_cast<size_t>(length));
  for (int64_t row = 0; row < batch; ++row) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      copy_channel(queries.data() + row * length * channels, channels, channel, query);
      copy_channel(keys.data() + row * length * channels, channels, channel, key);
      count(query.data(), key.data(), length, causal);
    }
  }
}

void ProductHistogram::count(const double* q, const double* k, int64_t length, bool causal) {
  const double bins_per_unit = static_cast<double>(counts_.size()) / (2 * limit_);
  for (int64_t i = 0; i < length; ++i) {
    const int64_t seen = causal ? i + 1 : length;
    for (int64_t j = 0; j < seen; ++j) {
      const double product = 2 * q[i] * k[j];
      minimum_ = std::min(minimum_, product);
      maximum_ = std::max(maximum_, product);
      for (Order& order : orders_) {
        order.outside += product < order.accurate.low || product > order.accurate.high ? 1 : 0;
      }
      if (product < -limit_) {
        ++below_;
      } else if (product >= limit_) {
        ++above_;
      } else {
        const auto bin = static_cast<size_t>((product + limit_) * bins_per_unit);
        ++counts_[std::min(bin, counts_.size() - 1)];  // rounding may reach the end
      }
    }
    products_ += seen;
  }
}

void ProductHistogram::add(const ProductHistogram& other) {
  ELWISE_CHECK(other.limit_ == limit_ && other.counts_.size() == counts_.size() &&
                   other.orders_.size() == orders_.size(),
               "products: expected a histogram of the same bins and orders");
  for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  for (size_t i = 0; i < orders_.size(); ++i) orders_[i].outside += other.orders_[i].outside;
  products_ += other.products_;
  below_ += other.below_;
  above_ += other.above_;
  minimum_ = std::min(minimum_, other.minimum_);
  maximum_ = std::max(maximum_, other.maximum_);
}

double ProductHistogram::share_outside(int order) const {
  for (const Order& one : orders_) {
    if (one.order == order) return static_cast<double>(one.outside) / static_cast<double>(products_);
  }
  fail("products: order ", order, " was not counted");
}

nlohmann::ordered_json ProductHistogram::to_json() const {
  nlohmann::ordered_json json = {{"products", products_},
                                 {"minimum", minimum_},
                                 {"maximum", maximum_},
                                 {"bin_low", -limit_},
                                 {"bin_width", 2 * limit_ / static_cast<double>(counts_.size())},
                                 {"counts", counts_},
                                 {"below", below_},
                                 {"above", above_},
                                 {"tolerance", tolerance_}};
  json["ranges"] = json["outside"] = nlohmann::ordered_json::object();
  for (const auto& [order, accurate, outside] : orders_) {
    json["ranges"][std::to_string(order)] = {accurate.low, accurate.high};
    json["outside"][std::to_string(order)] = share_outside(order);
  }
  return json;
}

std::vector<QueriesAndKeys> queries_and_keys(const nn::Module& model,
                                             const std::vector<Tensor>& hidden_states, nn::NormPlacement norm,
                                             double eps) {
  const NoGradGuard inference;
  const std::string encoder = "encoder.layer.", query = "0.attention.self.query.weight";
  const auto named = model.named_parameters();
  const std::map<std::string, Tensor> parameters(named.begin(), named.end());
  const auto first = std::find_if(named.begin(), named.end(),
                                  [&](const auto& entry) { return entry.first.ends_with(encoder + query); });
  ELWISE_CHECK(first != named.end(), "products: attention none has no queries and keys");
  const std::string layers = first->first.substr(0, first->first.size() - query.size());
  std::vector<QueriesAndKeys> result;
  for (size_t i = 0; i + 1 < hidden_states.size(); ++i) {
    const auto parameter = [&](const std::string& name) {
      return parameters.at(layers + std::to_string(i) + ".attention." + name);
    };
    const auto project = [&](const Tensor& x, const std::string& name) {
      return linear(x, parameter("self." + name + ".weight"), parameter("self." + name + ".bias"));
    };
    const Tensor x = norm == nn::NormPlacement::pre
                         ? layer_norm(hidden_states[i], parameter("output.LayerNorm.weight"),
                                      parameter("output.LayerNorm.bias"), eps)
                         : hidden_states[i];
    result.emplace_back(project(x, "query"), project(x, "key"));
  }
  return result;
}

std::vector<QueriesAndKeys> queries_and_keys(const models::Decoder& model, const Tensor& tokens) {
  const NoGradGuard inference;
  std::vector<Tensor> hidden;
  model.bert().forward({.tokens = tokens, .token_types = {}, .key_mask = {}}, /*checkpoint_layers=*/false,
                       &hidden);
  return queries_and_keys(model, hidden, model.config().norm, model.config().eps);
}

}  // namespace elwise::tools
