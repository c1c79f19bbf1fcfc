#include "core/roofline.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <functional>

#include "core/block_pool.h"
#include "core/cpu_features.h"
#include "core/cuda_backend.h"
#include "core/error.h"
#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/roofline.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace elwise::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// Copies `count` floats, a multiple of 64, past the caches.
void stream_copy(const float* from, float* to, int64_t count) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; i += lanes) hn::Stream(hn::Load(d, from + i), d, to + i);
}

/// The sum of `count` floats, a multiple of 128.
float stream_read(const float* from, int64_t count) {
  constexpr int64_t kChains = 8;  // sums one after the other would wait for one another
  const hn::CappedTag<float, 16> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sums[kChains];
  for (auto& sum : sums) sum = hn::Zero(d);
  for (int64_t i = 0; i < count; i += kChains * lanes) {
#pragma GCC unroll 8
    for (int64_t chain = 0; chain < kChains; ++chain)
      sums[chain] = hn::Add(sums[chain], hn::Load(d, from + i + chain * lanes));
  }
  auto total = sums[0];
#pragma GCC unroll 8
  for (int64_t chain = 1; chain < kChains; ++chain) total = hn::Add(total, sums[chain]);
  return hn::GetLane(hn::SumOfLanes(d, total));
}

/// Runs `rounds` times kChains independent multiply-adds of vectors, enough to hide their latency, and
/// returns the number of operations.
template <class T>
double multiply_adds(int64_t rounds) {
  constexpr int kChains = 12;
  const hn::ScalableTag<T> d;
  const auto factor = hn::Set(d, T(0.999)), term = hn::Set(d, T(0.001));
  // Different numbers: the compiler would compute equal chains once.
  const auto start = [d](int number) HWY_ATTR { return hn::Set(d, static_cast<T>(number)); };
  auto a = start(1), b = start(2), c = start(3), e = start(4), f = start(5), g = start(6), h = start(7),
       i = start(8), j = start(9), k = start(10), l = start(11), m = start(12);
  for (int64_t round = 0; round < rounds; ++round) {
    a = hn::MulAdd(a, factor, term);
    b = hn::MulAdd(b, factor, term);
    c = hn::MulAdd(c, factor, term);
    e = hn::MulAdd(e, factor, term);
    f = hn::MulAdd(f, factor, term);
    g = hn::MulAdd(g, factor, term);
    h = hn::MulAdd(h, factor, term);
    i = hn::MulAdd(i, factor, term);
    j = hn::MulAdd(j, factor, term);
    k = hn::MulAdd(k, factor, term);
    l = hn::MulAdd(l, factor, term);
    m = hn::MulAdd(m, factor, term);
  }
  const auto sum =
      hn::Add(hn::Add(hn::Add(a, b), hn::Add(c, e)),
              hn::Add(hn::Add(hn::Add(f, g), hn::Add(h, i)), hn::Add(hn::Add(j, k), hn::Add(l, m))));
  volatile T sink = hn::GetLane(sum);
  (void)sink;
  return 2.0 * kChains * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

double f32_multiply_adds(int64_t rounds) {
  return multiply_adds<float>(rounds);
}
double f64_multiply_adds(int64_t rounds) {
  return multiply_adds<double>(rounds);
}

}  // namespace
}  // namespace elwise::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise {
namespace {

HWY_EXPORT(stream_copy);
HWY_EXPORT(stream_read);
HWY_EXPORT(f32_multiply_adds);
HWY_EXPORT(f64_multiply_adds);

constexpr int64_t kBufferBytes = int64_t{64} << 20;
constexpr int64_t kBlock = int64_t{1} << 20;  // floats that a thread copies at once
constexpr int kCopies = 3;
constexpr int64_t kRounds = int64_t{1} << 17;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Operations per second of `kernel`, which returns how many it did, on all threads at once.
double peak_of(const std::function<double(int64_t rounds)>& kernel) {
  const int64_t threads = num_threads();
  double operations = 0;
  const auto on_all_threads = [&](int64_t rounds) {
    parallel_for(threads, 1, [&](int64_t, int64_t) {
      const double done = kernel(rounds);
      if (thread_index() == 0) operations = done * static_cast<double>(threads);
    });
  };
  on_all_threads(kRounds / 8);  // wakes the threads
  const double seconds = seconds_of([&] { on_all_threads(kRounds); });
  return operations / seconds;
}

#if HWY_ARCH_X86_64 && HWY_COMPILER_GCC_ACTUAL
constexpr int kBf16Chains = 12;

__attribute__((target("avx512f,avx512bf16"))) double bf16_multiply_adds(int64_t rounds) {
  const __m512bh factor = (__m512bh)_mm512_set1_epi16(0x3c00);
  __m512 chains[kBf16Chains];
  for (__m512& chain : chains) chain = _mm512_setzero_ps();
  for (int64_t round = 0; round < rounds; ++round) {
    for (__m512& chain : chains) chain = _mm512_dpbf16_ps(chain, factor, factor);
  }
  __m512 sum = _mm512_setzero_ps();
  for (const __m512& chain : chains) sum = _mm512_add_ps(sum, chain);
  volatile float sink = _mm512_cvtss_f32(sum);
  (void)sink;
  return 2.0 * 32 * kBf16Chains * static_cast<double>(rounds);
}
#else
double bf16_multiply_adds(int64_t rounds) {
  return HWY_DYNAMIC_DISPATCH(f32_multiply_adds)(rounds);
}
#endif

class CpuProbe : public RooflineProbe {
 public:
  CpuProbe() {
    if (from_ == nullptr)
      throw OutOfMemoryError("roofline: out of memory: expected 128 MiB for the buffers of a copy");
    to_ = from_ + kBufferBytes / static_cast<int64_t>(sizeof(float));
    parallel_blocks([&](int64_t i, int64_t count) {  // touched first by the threads that will use them
      std::memset(from_ + i, 0, static_cast<size_t>(count) * sizeof(float));
      std::memset(to_ + i, 0, static_cast<size_t>(count) * sizeof(float));
    });
  }
  ~CpuProbe() override { pool_.give_back(from_); }

  Roofline measure() override {
    std::array<double, kCopies> copies{};
    for (double& seconds : copies) {
      seconds = seconds_of([&] {
        parallel_blocks([&](int64_t i, int64_t count) {
          HWY_DYNAMIC_DISPATCH(stream_copy)(from_ + i, to_ + i, count);
        });
      });
    }
    std::ranges::sort(copies);
    const double f32 = peak_of(HWY_DYNAMIC_DISPATCH(f32_multiply_adds));
    return {.copy_bytes_per_s = 2.0 * kBufferBytes / copies[kCopies / 2],
            .f64_flops_per_s = peak_of(HWY_DYNAMIC_DISPATCH(f64_multiply_adds)),
            .f32_flops_per_s = f32,
            .bf16_flops_per_s = kHasAvx512Bf16 ? peak_of(bf16_multiply_adds) : f32};
  }

  double measure_read_bytes_per_s() override {
    const double seconds = seconds_of([&] {
      for (const float* buffer : {from_, to_}) {
        parallel_blocks([&](int64_t i, int64_t count) {
          volatile float sink = HWY_DYNAMIC_DISPATCH(stream_read)(buffer + i, count);
          (void)sink;
        });
      }
    });
    return 2.0 * kBufferBytes / seconds;
  }

 private:
  static void parallel_blocks(const std::function<void(int64_t first, int64_t count)>& body) {
    constexpr int64_t kBlocks = kBufferBytes / static_cast<int64_t>(sizeof(float)) / kBlock;
    parallel_for(kBlocks, 1,
                 [&](int64_t begin, int64_t end) { body(begin * kBlock, (end - begin) * kBlock); });
  }

  BlockPool pool_{2 * kBufferBytes};  // not the allocator: the buffers are no part of what is measured
  float* from_ = static_cast<float*>(pool_.grow(2 * kBufferBytes, true));
  float* to_ = nullptr;
};

std::unique_ptr<RooflineProbe> probe_of(Device device) {
  check_available(device);
  if constexpr (kBuiltWithCuda) {
    if (device.type == DeviceType::cuda) return cuda::roofline_probe(device.index);
  }
  ELWISE_CHECK(device == kCpu, "roofline: nothing runs on ", device);
  return std::make_unique<CpuProbe>();
}

}  // namespace

double Roofline::seconds(const KernelCost& cost, DType dtype) const {
  const double peak = dtype == DType::f64    ? f64_flops_per_s
                      : dtype == DType::bf16 ? bf16_flops_per_s
                                             : f32_flops_per_s;
  return std::max(cost.bytes() / copy_bytes_per_s, cost.flops / peak);
}

RooflineMeter::RooflineMeter(Device device) : probe_(probe_of(device)) {}

}  // namespace elwise
#endif
