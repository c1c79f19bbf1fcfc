// The Attention Free Transformer's kernels of the backward pass; ops/aft_kernels.h has the mathematics.

#include "ops/aft_kernels.h"

#include <algorithm>

#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/aft_backward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/aft-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace aft {
namespace {

template <class T>
void output_gradients(const AftOutputGradients& args) {
  const Tag<T> d;
  const auto one = hn::Set(d, T(1));
  for_each_row(args, [&](int64_t batch, int64_t row) HWY_ATTR {
    const T* q = row_of(static_cast<const T*>(args.q), args, batch, row);
    const T* dy = row_of(static_cast<const T*>(args.dy), args, batch, row);
    const T* sums = pair_of(static_cast<const T*>(args.sums), args, batch, row);
    T* dq = row_of(static_cast<T*>(args.dq), args, batch, row);
    T* gradients = pair_of(static_cast<T*>(args.gradients), args, batch, row);
    for_each_vector(d, 0, args.channels, [&](int64_t c, int64_t n) HWY_ATTR {
      const auto s = Sigmoid(d, load_lanes(d, q + c, n)), r = load_lanes(d, sums + c, n);
      const auto u = hn::Mul(load_lanes(d, dy + c, n), s), z = load_lanes(d, sums + args.channels + c, n);
      const auto a = hn::IfThenZeroElse(hn::Eq(z, hn::Zero(d)), hn::Div(u, z));
      store_lanes(d, hn::Mul(hn::Mul(u, r), hn::Sub(one, s)), dq + c, n);
      store_lanes(d, a, gradients + c, n);
      store_lanes(d, hn::Neg(hn::Mul(a, r)), gradients + args.channels + c, n);
    });
  });
}

/// A query and a vector of channels in which some answers are direct: their gradients u of r, and r.
template <class T, class Arguments>
struct DirectGradient {
  Vec<T> u, r;
  bool any;

  HWY_INLINE DirectGradient(const Arguments& args, int64_t batch, int64_t row, int64_t c, int64_t n) {
    const Tag<T> d;
    const T* sums = pair_of(static_cast<const T*>(args.sums), args, batch, row);
    const auto direct = hn::And(hn::Eq(load_lanes(d, sums + args.channels + c, n), hn::Zero(d)),
                                hn::FirstN(d, static_cast<size_t>(n)));
    any = !hn::AllFalse(d, direct);
    if (!any) return;
    const T* q = row_of(static_cast<const T*>(args.q), args, batch, row);
    const T* dy = row_of(static_cast<const T*>(args.dy), args, batch, row);
    u = hn::IfThenElseZero(direct, hn::Mul(load_lanes(d, dy + c, n), Sigmoid(d, load_lanes(d, q + c, n))));
    r = load_lanes(d, sums + c, n);
  }
};

template <class T>
class KeyGradients {
 public:
  explicit KeyGradients(const AftKeyGradients& args) : args_(args) {}

  void run() const {
    const Tag<T> d;
    for_each_row(args_, [&](int64_t batch, int64_t row) HWY_ATTR {
      const T* keys = pair_of(static_cast<const T*>(args_.keys), args_, batch, row);
      const T* key_sums = pair_of(static_cast<const T*>(args_.key_sums), args_, batch, row);
      T *dk = dk_of(batch, row), *dv = dv_of(batch, row);
      for_each_vector(d, 0, args_.channels, [&](int64_t c, int64_t n) HWY_ATTR {
        const auto weighted = load_lanes(d, keys + c, n),
                   weight = load_lanes(d, keys + args_.channels + c, n);
        const auto a = load_lanes(d, key_sums + c, n), b = load_lanes(d, key_sums + args_.channels + c, n);
        store_lanes(d, hn::Mul(weight, a), dv + c, n);
        store_lanes(d, hn::MulAdd(weighted, a, hn::Mul(weight, b)), dk + c, n);
      });
    });
    if (*args_.direct_answers == 0) return;
    const int64_t lanes = hn::MaxLanes(d), vectors = (args_.channels + lanes - 1) / lanes;
    parallel_tasks(args_.batch * vectors, [&](int64_t task) HWY_ATTR {
      const int64_t channel = task % vectors * lanes;
      for (int64_t row = 0; row < args_.length; ++row) {
        add_direct(task / vectors, row, channel, std::min(lanes, args_.channels - channel));
      }
    });
  }

 private:
  T* dk_of(int64_t batch, int64_t row) const { return row_of(static_cast<T*>(args_.dk), args_, batch, row); }
  T* dv_of(int64_t batch, int64_t row) const { return row_of(static_cast<T*>(args_.dv), args_, batch, row); }

  void add_direct(int64_t batch, int64_t row, int64_t c, int64_t n) const {
    const Tag<T> d;
    const DirectGradient<T, AftKeyGradients> gradient(args_, batch, row, c, n);
    if (!gradient.any) return;
    const DirectAnswer<T, AftKeyGradients> direct(args_, batch, row, c, n);
    direct.for_each_key([&](int64_t key, Vec<T> probability) HWY_ATTR {
      T *dk = dk_of(batch, key) + c, *dv = dv_of(batch, key) + c;
      const auto change = hn::Mul(probability, gradient.u);
      store_lanes(d, hn::Add(load_lanes(d, dv, n), change), dv, n);
      const auto deviation = hn::Sub(direct.value(key), gradient.r);
      store_lanes(d, hn::MulAdd(change, deviation, load_lanes(d, dk, n)), dk, n);
    });
  }

  const AftKeyGradients& args_;
};

template <class T>
class BiasGradient {
 public:
  explicit BiasGradient(const AftBiasGradient& args) : args_(args) {}

  void run() const {
    parallel_for(args_.direct.positions, rows_per_thread(args_.direct.positions),
                 [&](int64_t begin, int64_t end) HWY_ATTR {
                   for (int64_t row = begin; row < end; ++row) find_row(row);
                 });
  }

 private:
  void find_row(int64_t row) const {
    const Tag<T> d;
    const int64_t positions = args_.direct.positions;
    const int64_t end = row >= args_.length ? 0 : args_.direct.causal ? row + 1 : args_.length;
    T* dw = static_cast<T*>(args_.dw) + row * positions;
    std::fill(dw + end, dw + positions, T(0));
    if (end == 0) return;
    const T* weights = static_cast<const T*>(args_.weights) + row * args_.length;
    const T* products = static_cast<const T*>(args_.products) + row * args_.length;
    for_each_vector(d, 0, end, [&](int64_t j, int64_t n) HWY_ATTR {
      store_lanes(d, hn::Mul(load_lanes(d, weights + j, n), load_lanes(d, products + j, n)), dw + j, n);
    });
    if (*args_.direct_answers == 0) return;
    for (int64_t batch = 0; batch < args_.batch; ++batch) {
      for_each_vector(d, 0, args_.channels,
                      [&](int64_t c, int64_t n) HWY_ATTR { add_direct(batch, row, c, n, dw); });
    }
  }

  void add_direct(int64_t batch, int64_t row, int64_t c, int64_t n, T* dw) const {
    const Tag<T> d;
    const DirectGradient<T, AftBiasGradient> gradient(args_, batch, row, c, n);
    if (!gradient.any) return;
    const DirectAnswer<T, AftBiasGradient> direct(args_, batch, row, c, n);
    direct.for_each_key([&](int64_t key, Vec<T> probability) HWY_ATTR {
      const auto deviation = hn::Sub(direct.value(key), gradient.r);
      dw[key] += ReduceSum(d, hn::Mul(hn::Mul(probability, gradient.u), deviation));
    });
  }

  const AftBiasGradient& args_;
};

}  // namespace
}  // namespace aft

void aft_output_gradients_simd(const AftOutputGradients& args) {
  dispatch_f32_f64(args.dtype, "aft_output_gradients", [&]<class T>() { aft::output_gradients<T>(args); });
}

void aft_key_gradients_simd(const AftKeyGradients& args) {
  dispatch_f32_f64(args.dtype, "aft_key_gradients", [&]<class T>() { aft::KeyGradients<T>(args).run(); });
}

void aft_bias_gradient_simd(const AftBiasGradient& args) {
  dispatch_f32_f64(args.dtype, "aft_bias_gradient", [&]<class T>() { aft::BiasGradient<T>(args).run(); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(aft_output_gradients_simd);
HWY_EXPORT(aft_key_gradients_simd);
HWY_EXPORT(aft_bias_gradient_simd);

void aft_output_gradients(const AftOutputGradients& args) {
  HWY_DYNAMIC_DISPATCH(aft_output_gradients_simd)(args);
}

void aft_key_gradients(const AftKeyGradients& args) {
  HWY_DYNAMIC_DISPATCH(aft_key_gradients_simd)(args);
}

void aft_bias_gradient(const AftBiasGradient& args) {
  HWY_DYNAMIC_DISPATCH(aft_bias_gradient_simd)(args);
}

}  // namespace elwise::cpu
#endif
