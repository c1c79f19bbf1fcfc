#include "ops/norm_kernels.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/norm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

/// Asks for element i of a row that is read later. Null: nothing.
template <class T>
HWY_INLINE void prefetch(const void* matrix, int64_t row, int64_t cols, int64_t i) {
  if (matrix != nullptr) prefetch_far(static_cast<const T*>(matrix) + row * cols + i);
}

/// One row of LayerNormForward. The row comes from memory once: it stays in cache for the later passes.
/// `stream`: results bypass the caches.
template <class T>
void normalise_row(const LayerNormForward& args, int64_t row, bool stream) {
  const hn::ScalableTag<Compute<T>> d;
  const int64_t cols = args.cols;
  const T* x = static_cast<const T*>(args.x) + row * cols;
  const T* residual = args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + row * cols;
  T* sum = args.sum == nullptr ? nullptr : static_cast<T*>(args.sum) + row * cols;
  const auto load_h = [&](int64_t i, int64_t n) HWY_ATTR {
    const auto v = load_lanes(d, x + i, n);
    if (residual == nullptr) return v;
    const auto h = hn::Add(v, load_lanes(d, residual + i, n));
    if constexpr (std::is_same_v<T, BFloat16>) {  // as `sum` stores it, which backward sees
      return Bf16BitsToFloat(d, FloatToBf16Bits(d, h));
    } else {
      return h;
    }
  };

  // Differences from the first element keep the mean exact for a constant row, however small eps is.
  auto first = static_cast<Compute<T>>(x[0]);
  if (residual != nullptr) first += static_cast<Compute<T>>(residual[0]);
  const auto first_lanes = hn::Set(d, first);
  const double count = static_cast<double>(cols);
  const double shift = sum_terms(d, 0, cols, [&](int64_t i, int64_t n) HWY_ATTR {
    prefetch<T>(args.residual, row + 1, cols, i);
    const auto h = load_h(i, n);
    if (sum != nullptr) store_lanes(d, h, sum + i, n, stream);
    return hn::Sub(h, first_lanes);
  });
  if (sum != nullptr && !stream) {  // past the caches it would have to be read from memory again
    x = sum;
    residual = nullptr;
  }
  const auto mean = static_cast<Compute<T>>(first + shift / count);
  const auto mean_lanes = hn::Set(d, mean);
  const double squares = sum_terms(d, 0, cols, [&](int64_t i, int64_t n) HWY_ATTR {
    prefetch<T>(args.x, row + 1, cols, i);
    const auto centred = hn::Sub(load_h(i, n), mean_lanes);
    return hn::Mul(centred, centred);
  });
  const auto rstd = static_cast<Compute<T>>(1 / std::sqrt(squares / count + args.eps));
  static_cast<Compute<T>*>(args.mean)[row] = mean;
  static_cast<Compute<T>*>(args.rstd)[row] = rstd;

  const auto rstd_lanes = hn::Set(d, rstd);
  const T* weight = static_cast<const T*>(args.weight);
  const T* bias = static_cast<const T*>(args.bias);
  T* y = static_cast<T*>(args.y) + row * cols;
  for_each_vector(d, 0, cols, [&](int64_t i, int64_t n) HWY_ATTR {
    auto v = hn::Mul(hn::Sub(load_h(i, n), mean_lanes), rstd_lanes);
    if (weight != nullptr) v = hn::Mul(v, load_lanes(d, weight + i, n));
    if (bias != nullptr) v = hn::Add(v, load_lanes(d, bias + i, n));
    if (!stream) prefetch_far_to_write(y + cols + i);
    store_lanes(d, v, y + i, n, stream);
  });
}

/// R rows of LayerNormBackward from `row` on; adds their part to dweight and dbias [cols] unless they are
/// null. With z = (h - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - z * mean(g * z)) + dsum.
template <class T, int R>
void backward_rows(const LayerNormBackward& args, int64_t row, Compute<T>* dweight, Compute<T>* dbias,
                   bool stream) {
  using D = hn::ScalableTag<Compute<T>>;
  using V = hn::Vec<D>;
  const D d;
  const int64_t cols = args.cols;
  const T* h = static_cast<const T*>(args.h) + row * cols;
  const T* dy = static_cast<const T*>(args.dy) + row * cols;
  const T* dsum = args.dsum == nullptr ? nullptr : static_cast<const T*>(args.dsum) + row * cols;
  const T* weight = static_cast<const T*>(args.weight);
  const auto load_weight = [&](int64_t i, int64_t n) HWY_ATTR {
    return weight == nullptr ? hn::Set(d, Compute<T>(1)) : load_lanes(d, weight + i, n);
  };

  V mean[R], rstd[R], mean_g[R], mean_gz[R];
  const auto load_z = [&](int r, int64_t i, int64_t n) HWY_ATTR {
    return hn::Mul(hn::Sub(load_lanes(d, h + r * cols + i, n), mean[r]), rstd[r]);
  };
  for (int r = 0; r < R; ++r) {
    mean[r] = hn::Set(d, static_cast<const Compute<T>*>(args.mean)[row + r]);
    rstd[r] = hn::Set(d, static_cast<const Compute<T>*>(args.rstd)[row + r]);
    const auto sums = sum_terms<2>(d, 0, cols, [&](int64_t i, int64_t n) HWY_ATTR {
      prefetch<T>(args.h, row + R + r, cols, i);
      const V g = hn::Mul(load_lanes(d, dy + r * cols + i, n), load_weight(i, n));
      return Terms<D, 2>{{g, hn::Mul(g, load_z(r, i, n))}};
    });
    mean_g[r] = hn::Set(d, static_cast<Compute<T>>(sums[0] / static_cast<double>(cols)));
    mean_gz[r] = hn::Set(d, static_cast<Compute<T>>(sums[1] / static_cast<double>(cols)));
  }

  T* dx = static_cast<T*>(args.dx) + row * cols;
  for_each_vector(d, 0, cols, [&](int64_t i, int64_t n) HWY_ATTR {
    const V w = load_weight(i, n);
    V dweight_lanes = hn::Zero(d), dbias_lanes = hn::Zero(d);
    if (dweight != nullptr) {
      dweight_lanes = load_lanes(d, dweight + i, n);
      dbias_lanes = load_lanes(d, dbias + i, n);
    }
    for (int r = 0; r < R; ++r) {
      prefetch<T>(args.dy, row + R + r, cols, i);
      prefetch<T>(args.dsum, row + R + r, cols, i);
      const V z = load_z(r, i, n), dy_lanes = load_lanes(d, dy + r * cols + i, n);
      dweight_lanes = hn::MulAdd(dy_lanes, z, dweight_lanes);
      dbias_lanes = hn::Add(dy_lanes, dbias_lanes);
      const V centred = hn::NegMulAdd(z, mean_gz[r], hn::Sub(hn::Mul(dy_lanes, w), mean_g[r]));
      const V v = dsum == nullptr ? hn::Mul(centred, rstd[r])
                                  : hn::MulAdd(centred, rstd[r], load_lanes(d, dsum + r * cols + i, n));
      if (!stream) prefetch_far_to_write(dx + (r + R) * cols + i);
      store_lanes(d, v, dx + r * cols + i, n, stream);
    }
    if (dweight != nullptr) {
      store_lanes(d, dweight_lanes, dweight + i, n);
      store_lanes(d, dbias_lanes, dbias + i, n);
    }
  });
}

/// result [cols] = the sum of the rows of partials [count, cols], in pairs of pairs: accurate, and in an
/// order that no thread count changes. Overwrites partials.
template <class T>
void add_partials(Compute<T>* partials, int64_t count, int64_t cols, T* result) {
  const hn::ScalableTag<Compute<T>> d;
  parallel_for(cols, rows_per_thread(count), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t step = 1; step < count; step *= 2) {
      for (int64_t p = 0; p + step < count; p += 2 * step) {
        Compute<T>* to = partials + p * cols;
        const Compute<T>* from = to + step * cols;
        for_each_vector(d, begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
          store_lanes(d, hn::Add(load_lanes(d, to + i, n), load_lanes(d, from + i, n)), to + i, n);
        });
      }
    }
    for (int64_t i = begin; i < end; ++i) result[i] = count == 0 ? T(0.0F) : static_cast<T>(partials[i]);
  });
}

template <class T>
void forward(const LayerNormForward& args) {
  const bool stream = may_stream<T>(args.y, args.rows, args.cols);
  parallel_for(args.rows, rows_per_thread(args.cols), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t row = begin; row < end; ++row) normalise_row<T>(args, row, stream);
    hwy::FlushStream();
  });
}

/// Rows whose sums make one partial row: the most that layer_norm_rows_per_partial allows, since threads are
/// few.
constexpr int64_t kRowsPerPartial = 64;

/// Rows that share the loads and stores of dweight and dbias; their h and dy stay in the first level of
/// cache.
constexpr int kRowsAtOnce = 4;

int64_t count_partials(int64_t rows) {
  return (rows + kRowsPerPartial - 1) / kRowsPerPartial;
}

/// The rows of partial p, and their sums where they are asked for.
template <class T>
void backward_partial(const LayerNormBackward& args, int64_t p) {
  Compute<T>*dweight = nullptr, *dbias = nullptr;
  if (args.partials != nullptr) {
    dweight = static_cast<Compute<T>*>(args.partials) + p * args.cols;
    dbias = dweight + count_partials(args.rows) * args.cols;
    std::fill_n(dweight, args.cols, Compute<T>(0));
    std::fill_n(dbias, args.cols, Compute<T>(0));
  }
  const int64_t end = std::min(args.rows, (p + 1) * kRowsPerPartial);
  const bool stream = may_stream<T>(args.dx, args.rows, args.cols);
  int64_t row = p * kRowsPerPartial;
  for (; row + kRowsAtOnce <= end; row += kRowsAtOnce) {
    backward_rows<T, kRowsAtOnce>(args, row, dweight, dbias, stream);
  }
  for (; row < end; ++row) backward_rows<T, 1>(args, row, dweight, dbias, stream);
  hwy::FlushStream();
}

template <class T>
void backward(const LayerNormBackward& args) {
  const int64_t count = count_partials(args.rows);
  const int64_t grain = rows_per_thread(args.cols * kRowsPerPartial);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) backward_partial<T>(args, p);
  });
  auto* partials = static_cast<Compute<T>*>(args.partials);
  if (args.dweight != nullptr) add_partials(partials, count, args.cols, static_cast<T*>(args.dweight));
  if (args.dbias != nullptr) {
    add_partials(partials + count * args.cols, count, args.cols, static_cast<T*>(args.dbias));
  }
}

void layer_norm_forward(const LayerNormForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "layer_norm_forward", [&]<class T>() { forward<T>(args); });
}

void layer_norm_backward(const LayerNormBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "layer_norm_backward", [&]<class T>() { backward<T>(args); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(layer_norm_forward);
HWY_EXPORT(layer_norm_backward);

void layer_norm_forward(const LayerNormForward& args) {
  HWY_DYNAMIC_DISPATCH(layer_norm_forward)(args);
}

void layer_norm_backward(const LayerNormBackward& args) {
  HWY_DYNAMIC_DISPATCH(layer_norm_backward)(args);
}

}  // namespace elwise::cpu
#endif
