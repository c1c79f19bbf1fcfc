#include "ops/dropout_kernels.h"

#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

// A thread takes whole Philox blocks of 4 words, and at least 16 bytes of elements.

namespace elwise::cuda {
namespace {

constexpr int kWords = 4;
constexpr double kTwoPi = 6.283185307179586;

template <class T>
constexpr int kElements = kVectorWidth<T> > kWords ? kVectorWidth<T> : kWords;

/// The words of elements [first, first + kElements<T>); first is a multiple of that.
template <class T>
struct Words {
  uint32_t at[kElements<T>];

  __device__ __forceinline__ Words(RandomStream stream, int64_t first) {
#pragma unroll
    for (int block = 0; block < kElements<T> / kWords; ++block) {
      const Philox4 random =
          philox(stream.seed, stream.offset + static_cast<uint64_t>(first / kWords + block));
#pragma unroll
      for (int i = 0; i < kWords; ++i) at[block * kWords + i] = random.word[i];
    }
  }
};

/// An element is kept where its word, shifted to 24 bits, is at least `threshold` (ceil(2^24 p)).
template <class T>
__global__ void dropout_kernel(const T* x, T* y, int64_t count, uint32_t threshold, Compute<T> scale,
                               RandomStream stream, bool aligned) {
  for (int64_t first = grid_thread() * kElements<T>; first < count; first += grid_threads() * kElements<T>) {
    T values[kElements<T>];
    load_elements(x, first, count, aligned, values);
    const Words<T> words(stream, first);
#pragma unroll
    for (int i = 0; i < kElements<T>; ++i) {
      values[i] = words.at[i] >> 8 >= threshold ? T(static_cast<Compute<T>>(values[i]) * scale) : T(0.0F);
    }
    store_elements(y, first, count, aligned, values);
  }
}

template <class T>
__global__ void fill_uniform_kernel(T* y, int64_t count, Compute<T> low, Compute<T> step, RandomStream stream,
                                    bool aligned) {
  for (int64_t first = grid_thread() * kElements<T>; first < count; first += grid_threads() * kElements<T>) {
    const Words<T> words(stream, first);
    T values[kElements<T>];
#pragma unroll
    for (int i = 0; i < kElements<T>; ++i) {
      values[i] = T(fma(static_cast<Compute<T>>(words.at[i] >> 8), step, low));
    }
    store_elements(y, first, count, aligned, values);
  }
}

/// Box-Muller in double, as on the CPU: it runs when a model is made, not in its steps.
template <class T>
__global__ void fill_normal_kernel(T* y, int64_t count, double mean, double deviation, RandomStream stream,
                                   bool aligned) {
  for (int64_t first = grid_thread() * kElements<T>; first < count; first += grid_threads() * kElements<T>) {
    const Words<T> words(stream, first);
    T values[kElements<T>];
#pragma unroll
    for (int i = 0; i < kElements<T>; i += 2) {
      const double u1 = 1.0 - static_cast<double>(uniform01(words.at[i]));  // in (0, 1]
      const double angle = kTwoPi * static_cast<double>(uniform01(words.at[i + 1]));
      const double radius = deviation * sqrt(-2 * log(u1));
      values[i] = T(static_cast<Compute<T>>(mean + radius * cos(angle)));
      values[i + 1] = T(static_cast<Compute<T>>(mean + radius * sin(angle)));
    }
    store_elements(y, first, count, aligned, values);
  }
}

}  // namespace

void dropout(const Dropout& args) {
  dispatch_floating(args.dtype, "dropout", [&]<class T>() {
    const auto threshold = static_cast<uint32_t>(std::ceil(args.p * 0x1p24));
    launch<dropout_kernel<T>>({.grid = grid_for(ceil_div(args.count, kElements<T>)), .block = kThreads},
                              static_cast<const T*>(args.x), static_cast<T*>(args.y), args.count, threshold,
                              1 / (1 - args.p), args.stream, is_aligned(args.x, args.y));
  });
}

void random_fill(const RandomFill& args) {
  dispatch_floating(args.dtype, "random_fill", [&]<class T>() {
    const LaunchShape shape{.grid = grid_for(ceil_div(args.count, kElements<T>)), .block = kThreads};
    auto* y = static_cast<T*>(args.y);
    if (args.distribution == Distribution::uniform) {
      launch<fill_uniform_kernel<T>>(shape, y, args.count, args.a, (args.b - args.a) * 0x1p-24, args.stream,
                                     is_aligned(y));
    } else {
      launch<fill_normal_kernel<T>>(shape, y, args.count, args.a, args.b, args.stream, is_aligned(y));
    }
  });
}

}  // namespace elwise::cuda
