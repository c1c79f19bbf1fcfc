#include "cuda/index_order.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "cuda/input_fault.cuh"
#include "cuda/launch.cuh"
#include "cuda/loop_nest.cuh"
#include "cuda/reduce.cuh"
#include "ops/embedding_kernels.h"

// A stable radix sort by digits of 8 bits, the lowest first. For each digit: tiles count theirs, the counts'
// running sums say where each tile's elements of each digit begin, and tiles move their elements there in
// order.

namespace elwise::cuda {
namespace {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kWarps = kThreads / 32;
constexpr int kTileSteps = static_cast<int>(kIndexTile) / kThreads;
constexpr int kScanThreads = 1024;
static_assert(kThreads == kDigits, "a thread for each digit");

/// Where the first digit's elements come from: the index.
struct IndexSource {
  const int64_t* index;
  CheckedIndex checked;
  Divisor outer_stride, inner;  // count * inner, inner
  int64_t inner_size, none;

  __device__ __forceinline__ uint32_t destination(int64_t i) const {
    if (!checked.is_valid(index[i], i)) return static_cast<uint32_t>(none);
    const int64_t outer = outer_stride.divide(i).quotient;
    const int64_t row = outer * checked.size + index[i];
    return static_cast<uint32_t>(row * inner_size + inner.divide(i).remainder);
  }
  __device__ __forceinline__ uint32_t element(int64_t i) const { return static_cast<uint32_t>(i); }
};

/// Where the other digits' come from: the result of the one before.
struct SortedSource {
  const uint32_t* destinations;
  const uint32_t* elements;

  __device__ __forceinline__ uint32_t destination(int64_t i) const { return destinations[i]; }
  __device__ __forceinline__ uint32_t element(int64_t i) const { return elements[i]; }
};

__device__ __forceinline__ uint32_t digit_of(uint32_t destination, int shift) {
  return destination >> shift & (kDigits - 1);
}

/// The element of a step: the tile's elements are shared out in order to the warps, each of which takes its
/// part 32 at a time.
__device__ __forceinline__ int64_t tile_element(int step) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  return blockIdx.x * kIndexTile + (warp * kTileSteps + step) * 32 + lane;
}

/// counts [digit, tile].
template <class Source>
__global__ void count_digits_kernel(Source source, int64_t count, int shift, uint32_t* counts) {
  __shared__ uint32_t bins[kDigits];
  bins[threadIdx.x] = 0;
  __syncthreads();
  for (int step = 0; step < kTileSteps; ++step) {
    const int64_t i = tile_element(step);
    if (i < count) atomicAdd(&bins[digit_of(source.destination(i), shift)], 1U);
  }
  __syncthreads();
  counts[int64_t{threadIdx.x} * gridDim.x + blockIdx.x] = bins[threadIdx.x];
}

/// values[i] = the sum of those before it.
__global__ void running_sums_kernel(uint32_t* values, int64_t count) {
  __shared__ uint32_t warp_sums[kScanThreads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const auto scan_warp = [lane](uint32_t value) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const uint32_t before = __shfl_up_sync(kAllLanes, value, distance);
      if (lane >= distance) value += before;
    }
    return value;
  };
  uint32_t carry = 0;
  for (int64_t first = 0; first < count; first += kScanThreads) {
    const int64_t i = first + threadIdx.x;
    const uint32_t value = i < count ? values[i] : 0;
    const uint32_t sum = scan_warp(value);
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    const uint32_t warps_sum = scan_warp(warp_sums[lane]);
    const uint32_t before_warp =
        __shfl_sync(kAllLanes, warps_sum, warp) - __shfl_sync(kAllLanes, warp_sums[lane], warp);
    if (i < count) values[i] = carry + before_warp + sum - value;
    carry += __shfl_sync(kAllLanes, warps_sum, 31);
    __syncthreads();
  }
}

/// `places` [digit, tile]: where the tile's elements with that digit begin.
template <class Source>
__global__ void move_elements_kernel(Source source, int64_t count, int shift, const uint32_t* places,
                                     uint32_t* destinations, uint32_t* elements) {
  __shared__ uint32_t next[kWarps][kDigits];  // where the warp's next element with that digit goes
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int w = 0; w < kWarps; ++w) next[w][threadIdx.x] = 0;
  __syncthreads();
  uint32_t destination[kTileSteps];
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    const int64_t i = tile_element(step);
    if (i >= count) continue;
    destination[step] = source.destination(i);
    atomicAdd(&next[warp][digit_of(destination[step], shift)], 1U);
  }
  __syncthreads();
  uint32_t place = places[int64_t{threadIdx.x} * gridDim.x + blockIdx.x];
  for (int w = 0; w < kWarps; ++w) {
    const uint32_t own = next[w][threadIdx.x];
    next[w][threadIdx.x] = place;
    place += own;
  }
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kTileSteps; ++step) {
    const int64_t i = tile_element(step);
    const uint32_t digit = i < count ? digit_of(destination[step], shift) : kDigits;
    const unsigned equal = __match_any_sync(kAllLanes, digit);
    const int before = __popc(equal & ((1U << lane) - 1));
    uint32_t to = 0;
    if (i < count) to = next[warp][digit] + before;
    __syncwarp();
    if (i < count) {
      if (before == 0) next[warp][digit] += __popc(equal);
      destinations[to] = destination[step];
      elements[to] = source.element(i);
    }
    __syncwarp();
  }
}

}  // namespace

IndexOrder sort_index(const Destinations& index, void* scratch) {
  const int64_t count = index.elements(), tiles = ceil_div(count, kIndexTile), none = index.destinations();
  ELWISE_CHECK(std::max(count, none) < std::numeric_limits<uint32_t>::max(),
               "a GPU sorts indices by 32 bits: expected fewer than 2^32 - 1 indices and places, got ", count,
               " and ", none);
  const IndexSource unsorted{.index = index.index,
                             .checked = {input_fault(), index.kernel, index.size},
                             .outer_stride = Divisor(index.count * index.inner),
                             .inner = Divisor(index.inner),
                             .inner_size = index.inner,
                             .none = none};
  auto* words = static_cast<uint32_t*>(scratch);
  uint32_t* counts = words + 4 * count;
  const LaunchShape shape{.grid = static_cast<unsigned>(tiles), .block = kThreads};
  uint32_t *destinations = words, *elements = words + count;
  uint32_t *old_destinations = words + 2 * count, *old_elements = words + 3 * count;
  const int bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(none)));
  for (int shift = 0; shift == 0 || shift < bits; shift += kDigitBits) {
    const auto sort_by_digit = [&]<class Source>(const Source& source) {
      launch<count_digits_kernel<Source>>(shape, source, count, shift, counts);
      launch<running_sums_kernel>({.grid = 1, .block = kScanThreads}, counts, kDigits * tiles);
      launch<move_elements_kernel<Source>>(shape, source, count, shift, counts, destinations, elements);
    };
    if (shift == 0) {
      sort_by_digit(unsorted);
    } else {
      std::swap(destinations, old_destinations);
      std::swap(elements, old_elements);
      sort_by_digit(SortedSource{old_destinations, old_elements});
    }
  }
  return {destinations, elements};
}

}  // namespace elwise::cuda
