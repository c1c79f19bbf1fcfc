// Rows behind those that a cache of keys and values holds.

#include "cuda/attention_step.cuh"

namespace elwise::cuda {
namespace attention_step {
namespace {

/// A block per batch entry and row to append: it counts the visible rows before its own, and copies it behind
/// them.
template <class T, int N>
__global__ void __launch_bounds__(kBlock, 1) append_kernel(CacheAppend args) {
  const int64_t batch = blockIdx.x / args.length, row = blockIdx.x % args.length;
  int64_t before = row;
  if (args.key_mask != nullptr) {
    const bool* const mask = args.key_mask + batch * args.length;
    if (!mask[row]) return;
    before = 0;
    for (int64_t other = threadIdx.x; other < row; other += kBlock) before += mask[other] ? 1 : 0;
    before = reduce_block(before, int64_t{0});
  }
  const int64_t from = (batch * args.length + row) * args.channels,
                to = (batch * args.capacity + args.lengths[batch] + before) * args.channels;
  for (int64_t i = int64_t{threadIdx.x} * N; i < args.channels; i += kBlock * N) {
    store(static_cast<T*>(args.cache_k) + to + i, load<N>(static_cast<const T*>(args.k) + from + i));
    store(static_cast<T*>(args.cache_v) + to + i, load<N>(static_cast<const T*>(args.v) + from + i));
  }
}

/// A block per batch entry.
__global__ void __launch_bounds__(kBlock, 1) count_appended_kernel(CacheAppend args) {
  int64_t appended = args.length;
  if (args.key_mask != nullptr) {
    appended = 0;
    const bool* const mask = args.key_mask + blockIdx.x * args.length;
    for (int64_t row = threadIdx.x; row < args.length; row += kBlock) appended += mask[row] ? 1 : 0;
    appended = reduce_block(appended, int64_t{0});
  }
  if (threadIdx.x == 0) args.lengths[blockIdx.x] += appended;
}

}  // namespace
}  // namespace attention_step

void cache_append(const CacheAppend& args) {
  const int64_t rows = args.batch * args.length;
  if (rows == 0) return;
  attention_step::dispatch_width(
      args.dtype, "cache_append", args.channels,
      [&]<class T, int N>() {
        launch<attention_step::append_kernel<T, N>>(
            {.grid = static_cast<unsigned>(rows), .block = attention_step::kBlock}, args);
      },
      args.k, args.v, args.cache_k, args.cache_v);
  launch<attention_step::count_appended_kernel>(
      {.grid = static_cast<unsigned>(args.batch), .block = attention_step::kBlock}, args);
}

}  // namespace elwise::cuda
