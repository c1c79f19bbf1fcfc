#include <algorithm>

#include "core/parallel.h"
#include "ops/attention_step_kernels.h"
#include "ops/cpu/elements.h"

namespace elwise::cpu {
namespace {

/// Of one batch entry.
template <class T>
void append_entry(const CacheAppend& args, int64_t batch) {
  const int64_t row_size = args.channels;
  const auto *k = static_cast<const T*>(args.k) + batch * args.length * row_size,
             *v = static_cast<const T*>(args.v) + batch * args.length * row_size;
  auto *cache_k = static_cast<T*>(args.cache_k) + batch * args.capacity * row_size,
       *cache_v = static_cast<T*>(args.cache_v) + batch * args.capacity * row_size;
  int64_t& held = args.lengths[batch];
  for (int64_t row = 0; row < args.length; ++row) {
    if (args.key_mask != nullptr && !args.key_mask[batch * args.length + row]) continue;
    std::copy_n(k + row * row_size, row_size, cache_k + held * row_size);
    std::copy_n(v + row * row_size, row_size, cache_v + held * row_size);
    ++held;
  }
}

}  // namespace

void cache_append(const CacheAppend& args) {
  constexpr int64_t kElementsPerThread = int64_t{1} << 16;
  dispatch_any(args.dtype, [&]<class T>() {
    parallel_for(args.batch, 1 + kElementsPerThread / std::max<int64_t>(args.length * args.channels, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t batch = begin; batch < end; ++batch) append_entry<T>(args, batch);
                 });
  });
}

}  // namespace elwise::cpu
