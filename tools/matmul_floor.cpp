#include "tools/matmul_floor.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <unordered_map>

#include <dnnl.hpp>

#include "autograd/grad_mode.h"
#include "core/tensor.h"
#include "ops/dropout.h"

namespace elwise::tools {
namespace {

using Clock = std::chrono::steady_clock;
using Descriptor = dnnl::memory::desc;

// Each variant runs at least this often, and until this much time has gone.
constexpr size_t kLeastRuns = 3;
constexpr size_t kMostRuns = 200;
constexpr double kBudgetMs = 40;

double median_ms(const std::function<void()>& run) {
  run();  // warm-up
  std::vector<double> times;
  double spent = 0;
  while (times.size() < kLeastRuns || (spent < kBudgetMs && times.size() < kMostRuns)) {
    const auto start = Clock::now();
    run();
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    spent += times.back();
  }
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

/// A dense operand, [rows, cols] or a batch of them, stored transposed or not. One matrix is described in two
/// dimensions: oneDNN packs the second operand of no other product.
Descriptor descriptor(DType dtype, int64_t batch, int64_t rows, int64_t cols, dnnl::memory::format_tag matrix,
                      dnnl::memory::format_tag matrices) {
  using Type = dnnl::memory::data_type;
  const Type type = dtype == DType::bf16 ? Type::bf16 : Type::f32;
  return batch == 1 ? Descriptor({rows, cols}, type, matrix)
                    : Descriptor({batch, rows, cols}, type, matrices);
}

Descriptor stored(DType dtype, int64_t batch, int64_t rows, int64_t cols, bool transposed) {
  using Tag = dnnl::memory::format_tag;
  return transposed ? descriptor(dtype, batch, rows, cols, Tag::ba, Tag::acb)
                    : descriptor(dtype, batch, rows, cols, Tag::ab, Tag::abc);
}

dnnl::matmul::primitive_desc matmul_descriptor(const dnnl::engine& engine, const Descriptor& a,
                                               const Descriptor& b, const Descriptor& c) {
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(engine, a, b, c);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), engine);
#endif
}

/// The operands of one shape and the ways to multiply them.
class Product {
 public:
  Product(const MatmulShape& shape, DType dtype)
      : shape_(shape),
        dtype_(dtype),
        batch_(shape.outer * shape.inner),
        a_(randn({batch_ * shape.m * shape.k}, {.dtype = dtype})),
        b_(randn({batch_ * shape.k * shape.n}, {.dtype = dtype})),
        c_(empty({batch_ * shape.m * shape.n}, {.dtype = dtype})) {}

  double plain_ms() { return primitive_ms(stored(dtype_, batch_, shape_.k, shape_.n, shape_.transpose_b)); }

  double packed_ms() {
    constexpr auto kAny = dnnl::memory::format_tag::any;
    return primitive_ms(descriptor(dtype_, batch_, shape_.k, shape_.n, kAny, kAny));
  }

  double sgemm_ms() {
    const int64_t m = shape_.m, n = shape_.n, k = shape_.k;
    return median_ms([&] {
      for (int64_t i = 0; i < batch_; ++i) {
        dnnl_sgemm(shape_.transpose_a ? 'T' : 'N', shape_.transpose_b ? 'T' : 'N', m, n, k, 1.0F,
                   a_.data<float>() + i * m * k, shape_.transpose_a ? m : k, b_.data<float>() + i * k * n,
                   shape_.transpose_b ? k : n, 0.0F, c_.data<float>() + i * m * n, n);
      }
    });
  }

 private:
  double primitive_ms(const Descriptor& b_wanted) {
    const Descriptor a_stored = stored(dtype_, batch_, shape_.m, shape_.k, shape_.transpose_a);
    const Descriptor b_stored = stored(dtype_, batch_, shape_.k, shape_.n, shape_.transpose_b);
    const auto chosen =
        matmul_descriptor(engine_, a_stored, b_wanted, stored(dtype_, batch_, shape_.m, shape_.n, false));
    dnnl::memory a(a_stored, engine_, a_.data()), b(b_stored, engine_, b_.data()),
        c(chosen.dst_desc(), engine_, c_.data());
    dnnl::memory packed = b;
    if (chosen.weights_desc() != b_stored) {
      packed = dnnl::memory(chosen.weights_desc(), engine_);
      dnnl::reorder(b, packed).execute(stream_, b, packed);
    }
    const dnnl::matmul primitive(chosen);
    const std::unordered_map<int, dnnl::memory> arguments = {
        {DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, packed}, {DNNL_ARG_DST, c}};
    return median_ms([&] {
      primitive.execute(stream_, arguments);
      stream_.wait();
    });
  }

  MatmulShape shape_;
  DType dtype_;
  int64_t batch_;
  Tensor a_, b_, c_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
};

double cpu_product_ms(const MatmulShape& shape, DType dtype) {
  Product product(shape, dtype);
  const double primitive = std::min(product.plain_ms(), product.packed_ms());
  return dtype == DType::f32 ? std::min(primitive, product.sgemm_ms()) : primitive;
}

/// Several at a time: a launch must not be waited for, as it is not in a step.
double gpu_product_ms(const MatmulShape& shape, DType dtype, Device device) {
  constexpr int kAtATime = 8;
  const NoGradGuard no_grad;
  const int64_t batch = shape.outer * shape.inner;
  const auto operand = [&](int64_t rows, int64_t cols, bool transposed) {
    return randn(transposed ? Shape{batch, cols, rows} : Shape{batch, rows, cols},
                 {.dtype = dtype, .device = device});
  };
  const Tensor a = operand(shape.m, shape.k, shape.transpose_a),
               b = operand(shape.k, shape.n, shape.transpose_b);
  return median_ms([&] {
           for (int i = 0; i < kAtATime; ++i) {
             matmul(a, b, {.transpose_a = shape.transpose_a, .transpose_b = shape.transpose_b});
           }
           synchronize(device);
         }) /
         kAtATime;
}

}  // namespace

double measure_matmul_floor_ms(const std::vector<std::pair<MatmulShape, int64_t>>& products, DType dtype,
                               Device device) {
  double total = 0;
  for (const auto& [shape, count] : products) {
    total += static_cast<double>(count) *
             (device == kCpu ? cpu_product_ms(shape, dtype) : gpu_product_ms(shape, dtype, device));
  }
  return total;
}

}  // namespace elwise::tools
