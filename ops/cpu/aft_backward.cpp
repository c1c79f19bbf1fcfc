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
#include "ops/cpu/thread_scratch.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace aft {
namespace {

template <class S, class T = Compute<S>>
void output_gradients(const AftOutputGradients& args) {
  const Tag<T> d;
  const auto one = hn::Set(d, T(1));
  for_each_row(args, [&](int64_t batch, int64_t row) HWY_ATTR {
    const S* q = row_of(static_cast<const S*>(args.q), args, batch, row);
    const S* dy = row_of(static_cast<const S*>(args.dy), args, batch, row);
    const S* sums = pair_of(static_cast<const S*>(args.sums), args, batch, row);
    S* dq = row_of(static_cast<S*>(args.dq), args, batch, row);
    S* gradients = pair_of(static_cast<S*>(args.gradients), args, batch, row);
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
template <class S, class Arguments>
struct DirectGradient {
  using T = Compute<S>;

  Vec<T> u, r;
  bool any;

  HWY_INLINE DirectGradient(const Arguments& args, int64_t batch, int64_t row, int64_t c, int64_t n) {
    const Tag<T> d;
    const S* sums = pair_of(static_cast<const S*>(args.sums), args, batch, row);
    const auto direct = hn::And(hn::Eq(load_lanes(d, sums + args.channels + c, n), hn::Zero(d)),
                                hn::FirstN(d, static_cast<size_t>(n)));
    any = !hn::AllFalse(d, direct);
    if (!any) return;
    const S* q = row_of(static_cast<const S*>(args.q), args, batch, row);
    const S* dy = row_of(static_cast<const S*>(args.dy), args, batch, row);
    u = hn::IfThenElseZero(direct, hn::Mul(load_lanes(d, dy + c, n), Sigmoid(d, load_lanes(d, q + c, n))));
    r = load_lanes(d, sums + c, n);
  }
};

template <class S>
class KeyGradients {
  using T = Compute<S>;

 public:
  explicit KeyGradients(const AftKeyGradients& args) : args_(args) {}

  void run() const {
    const Tag<T> d;
    if (*args_.direct_answers == 0) {
      return for_each_row(args_, [&](int64_t batch, int64_t row) HWY_ATTR {
        S *dk = dk_of(batch, row), *dv = dv_of(batch, row);
        for_each_vector(d, 0, args_.channels, [&](int64_t c, int64_t n) HWY_ATTR {
          const Gradients found = gradients(batch, row, c, n);
          store_lanes(d, found.dk, dk + c, n);
          store_lanes(d, found.dv, dv + c, n);
        });
      });
    }
    const int64_t lanes = hn::MaxLanes(d), vectors = (args_.channels + lanes - 1) / lanes;
    parallel_tasks(args_.batch * vectors, [&](int64_t task) HWY_ATTR {
      const int64_t channel = task % vectors * lanes;
      find_column(task / vectors, channel, std::min(lanes, args_.channels - channel));
    });
  }

 private:
  struct Gradients {
    Vec<T> dk, dv;
  };

  S* dk_of(int64_t batch, int64_t row) const { return row_of(static_cast<S*>(args_.dk), args_, batch, row); }
  S* dv_of(int64_t batch, int64_t row) const { return row_of(static_cast<S*>(args_.dv), args_, batch, row); }

  /// Without the part of the direct answers.
  HWY_INLINE Gradients gradients(int64_t batch, int64_t row, int64_t c, int64_t n) const {
    const Tag<T> d;
    const S* keys = pair_of(static_cast<const S*>(args_.keys), args_, batch, row);
    const S* key_sums = pair_of(static_cast<const S*>(args_.key_sums), args_, batch, row);
    const auto weighted = load_lanes(d, keys + c, n), weight = load_lanes(d, keys + args_.channels + c, n);
    const auto a = load_lanes(d, key_sums + c, n), b = load_lanes(d, key_sums + args_.channels + c, n);
    return {hn::MulAdd(weighted, a, hn::Mul(weight, b)), hn::Mul(weight, a)};
  }

  /// The gradients of a vector of channels in all rows: dk and dv are rounded once they are whole.
  HWY_NOINLINE void find_column(int64_t batch, int64_t channel, int64_t n) const {
    const Tag<T> d;
    const int64_t lanes = hn::MaxLanes(d);
    T* const dks = thread_scratch<T>(2 * args_.length * lanes);
    T* const dvs = dks + args_.length * lanes;
    for (int64_t row = 0; row < args_.length; ++row) {
      const Gradients found = gradients(batch, row, channel, n);
      hn::Store(found.dk, d, dks + row * lanes);
      hn::Store(found.dv, d, dvs + row * lanes);
    }
    for (int64_t row = 0; row < args_.length; ++row) add_direct(batch, row, channel, n, dks, dvs);
    for (int64_t row = 0; row < args_.length; ++row) {
      store_lanes(d, hn::Load(d, dks + row * lanes), dk_of(batch, row) + channel, n);
      store_lanes(d, hn::Load(d, dvs + row * lanes), dv_of(batch, row) + channel, n);
    }
  }

  void add_direct(int64_t batch, int64_t row, int64_t c, int64_t n, T* dks, T* dvs) const {
    const Tag<T> d;
    const int64_t lanes = hn::MaxLanes(d);
    const DirectGradient<S, AftKeyGradients> gradient(args_, batch, row, c, n);
    if (!gradient.any) return;
    const DirectAnswer<S, AftKeyGradients> direct(args_, batch, row, c, n);
    direct.for_each_key([&](int64_t key, Vec<T> probability) HWY_ATTR {
      T *dk = dks + key * lanes, *dv = dvs + key * lanes;
      const auto change = hn::Mul(probability, gradient.u);
      hn::Store(hn::Add(hn::Load(d, dv), change), d, dv);
      const auto deviation = hn::Sub(direct.value(key), gradient.r);
      hn::Store(hn::MulAdd(change, deviation, hn::Load(d, dk)), d, dk);
    });
  }

  const AftKeyGradients& args_;
};

template <class S>
class BiasGradient {
  using T = Compute<S>;

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
    S* dw = static_cast<S*>(args_.dw) + row * positions;
    std::fill(dw + end, dw + positions, S());
    if (end == 0) return;
    const S* weights = static_cast<const S*>(args_.weights) + row * args_.length;
    const S* products = static_cast<const S*>(args_.products) + row * args_.length;
    T* const sums = thread_scratch<T>(end);
    for_each_vector(d, 0, end, [&](int64_t j, int64_t n) HWY_ATTR {
      store_lanes(d, hn::Mul(load_lanes(d, weights + j, n), load_lanes(d, products + j, n)), sums + j, n);
    });
    const int64_t direct_batches = *args_.direct_answers == 0 ? 0 : args_.batch;
    for (int64_t batch = 0; batch < direct_batches; ++batch) {
      for_each_vector(d, 0, args_.channels,
                      [&](int64_t c, int64_t n) HWY_ATTR { add_direct(batch, row, c, n, sums); });
    }
    for_each_vector(d, 0, end, [&](int64_t j, int64_t n) HWY_ATTR {
      store_lanes(d, load_lanes(d, sums + j, n), dw + j, n);
    });
  }

  void add_direct(int64_t batch, int64_t row, int64_t c, int64_t n, T* sums) const {
    const Tag<T> d;
    const DirectGradient<S, AftBiasGradient> gradient(args_, batch, row, c, n);
    if (!gradient.any) return;
    const DirectAnswer<S, AftBiasGradient> direct(args_, batch, row, c, n);
    direct.for_each_key([&](int64_t key, Vec<T> probability) HWY_ATTR {
      const auto deviation = hn::Sub(direct.value(key), gradient.r);
      sums[key] += ReduceSum(d, hn::Mul(hn::Mul(probability, gradient.u), deviation));
    });
  }

  const AftBiasGradient& args_;
};

}  // namespace
}  // namespace aft

void aft_output_gradients_simd(const AftOutputGradients& args) {
  dispatch_f32_f64_bf16(args.dtype, "aft_output_gradients",
                        [&]<class S>() { aft::output_gradients<S>(args); });
}

void aft_key_gradients_simd(const AftKeyGradients& args) {
  dispatch_f32_f64_bf16(args.dtype, "aft_key_gradients",
                        [&]<class S>() { aft::KeyGradients<S>(args).run(); });
}

void aft_bias_gradient_simd(const AftBiasGradient& args) {
  dispatch_f32_f64_bf16(args.dtype, "aft_bias_gradient",
                        [&]<class S>() { aft::BiasGradient<S>(args).run(); });
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
