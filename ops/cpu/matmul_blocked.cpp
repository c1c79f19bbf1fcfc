#include "ops/cpu/matmul_routes.h"

#include <algorithm>

#include "core/parallel.h"
#include "ops/cpu/matmul_grid.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/matmul_blocked.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/matmul_tile-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

// Elements are summed in blocks of at most this many steps of k: a packed panel of b is then 64 KiB (AVX-512)
// and stays in the second-level cache while it is used.
constexpr int64_t kBlockK = 512;
// Threads that take part, each with a panel buffer of its own; half of the workspace holds these buffers.
constexpr int64_t kMaxThreads = 64;
// With at most this many columns all of b stays in the second-level cache, and rows are packed as they are
// used.
constexpr int64_t kFewColumns = 256;
// A larger shared block of one product, which every panel of the other operand runs over, would come from
// memory.
constexpr int64_t kSharedBlockBytes = int64_t{2} << 20;
// Panels packed together: it makes the rows that are read long enough for the hardware's prefetcher.
constexpr int64_t kPackPanels = 8;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// For each block of k, m, n and products: all threads pack one operand's block, then share out the tiles. A
/// thread packs the other operand's panel into a buffer of its own, right before the tiles that use it. a and
/// b hold S; c holds what is computed with, T.
template <class S>
class BlockedMatmul {
  using T = Compute<S>;

 public:
  explicit BlockedMatmul(const Matmul& args)
      : args_(args),
        share_b_(args.n <= kFewColumns && args.n < args.m),
        shared_(static_cast<T*>(args.workspace)),
        own_(shared_ + kHalf) {}

  /// Where bf16 results stand in f32, while their sums grow: between the operands' parts of the workspace.
  static constexpr int64_t kSums = std::is_same_v<S, T> ? 0 : kMatmulWorkspaceBytes / 4 / int64_t{sizeof(T)};
  static T* sums(void* workspace) { return static_cast<T*>(workspace) + kShared; }

  void run() const {
    const int64_t products = args_.outer * args_.inner;
    const int64_t block_k = ceil_div(args_.k, ceil_div(args_.k, kBlockK));
    const int64_t size = share_b_ ? args_.n : args_.m, width = share_b_ ? kCols : kRows;
    for (int64_t k0 = 0; k0 < args_.k; k0 += block_k) {
      const int64_t depth = std::min(block_k, args_.k - k0);
      const int64_t most = kShared / (depth * width);
      const int64_t step = kSharedBlockBytes / int64_t{sizeof(T)} / (depth * width) * width;
      for (int64_t first = 0; first < size; first += step) {
        Block block{.k0 = k0, .depth = depth, .rows = args_.m, .cols = args_.n};
        (share_b_ ? block.n0 : block.m0) = first;
        (share_b_ ? block.cols : block.rows) = std::min(step, size - first);
        const int64_t group = most / ceil_div(share_b_ ? block.cols : block.rows, width);
        for (int64_t product = 0; product < products; product += group) {
          block.product0 = product;
          block.products = std::min(group, products - product);
          run_block(block);
        }
      }
    }
  }

 private:
  static constexpr int64_t kRows = kTileRows;
  static constexpr int64_t kCols = kTileCols<T>;
  static constexpr int64_t kHalf = kMatmulWorkspaceBytes / 2 / int64_t{sizeof(T)};
  static constexpr int64_t kShared = kHalf - kSums;
  static constexpr int64_t kOwn = kHalf / kMaxThreads;
  static_assert(kOwn >= kBlockK * kCols && kOwn >= kBlockK * kRows);

  struct Block {
    int64_t k0, depth;
    int64_t m0 = 0, rows;
    int64_t n0 = 0, cols;
    int64_t product0 = 0, products = 0;
  };

  void run_block(const Block& block) const {
    const int64_t row_tiles = ceil_div(block.rows, kRows), panels = ceil_div(block.cols, kCols);
    const int64_t shared = share_b_ ? panels : row_tiles, mine = share_b_ ? row_tiles : panels;
    const int64_t shared_size = block.depth * (share_b_ ? kCols : kRows);
    // A range worth a thread's start has some 2^20 multiply-adds, or 2^15 packed elements.
    const int64_t groups = ceil_div(shared, kPackPanels), tiles = block.products * shared * mine;
    parallel_for(block.products * groups, 1 + (int64_t{1} << 15) / (shared_size * kPackPanels),
                 [&](int64_t begin, int64_t end) HWY_ATTR {
                   for (int64_t item = begin; item < end; ++item) {
                     const int64_t product = item / groups, panel = item % groups * kPackPanels;
                     T* to = shared_ + (product * shared + panel) * shared_size;
                     share_b_ ? pack_b(block, product, panel, kPackPanels, to)
                              : pack_a(block, product, panel, kPackPanels, to);
                   }
                 });
    const int64_t grain =
        std::max(1 + (int64_t{1} << 20) / (block.depth * kRows * kCols), ceil_div(tiles, kMaxThreads));
    parallel_for(tiles, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
      T* own = own_ + thread_index() % kMaxThreads * kOwn;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t product = item / (shared * mine), panel = item / shared % mine, other = item % shared;
        if (item == begin || other == 0) {
          share_b_ ? pack_a(block, product, panel, 1, own) : pack_b(block, product, panel, 1, own);
        }
        const T* packed = shared_ + (product * shared + other) * shared_size;
        share_b_ ? multiply(block, product, panel, other, own, packed)
                 : multiply(block, product, other, panel, packed, own);
      }
    });
  }

  void pack_a(const Block& block, int64_t product, int64_t tile, int64_t tiles, T* to) const {
    const int64_t row = tile * kRows;
    const int64_t stride_i = args_.transpose_a ? 1 : args_.lda, stride_p = args_.transpose_a ? args_.lda : 1;
    const S* a = matrix<S>(args_.a, args_.a_outer, args_.a_inner, block.product0 + product);
    pack_panels<kTileRows>(
        Operand<S>{a + (block.m0 + row) * stride_i + block.k0 * stride_p, stride_i, stride_p},
        std::min(tiles * kRows, block.rows - row), block.depth, to);
  }

  void pack_b(const Block& block, int64_t product, int64_t panel, int64_t panels, T* to) const {
    const int64_t col = panel * kCols;
    const int64_t stride_i = args_.transpose_b ? args_.ldb : 1, stride_p = args_.transpose_b ? 1 : args_.ldb;
    const S* b = matrix<S>(args_.b, args_.b_outer, args_.b_inner, block.product0 + product);
    pack_panels<kTileCols<T>>(
        Operand<S>{b + (block.n0 + col) * stride_i + block.k0 * stride_p, stride_i, stride_p},
        std::min(panels * kCols, block.cols - col), block.depth, to);
  }

  void multiply(const Block& block, int64_t product, int64_t tile, int64_t panel, const T* a,
                const T* b) const {
    const int64_t row = tile * kRows, col = panel * kCols;
    const bool first = block.k0 == 0;
    const T* c = matrix<T>(args_.c, args_.c_outer, args_.c_inner, block.product0 + product);
    const TileTarget<T> to{
        .c = const_cast<T*>(c) + (block.m0 + row) * args_.ldc + block.n0 + col,
        .ldc = args_.ldc,
        .rows = std::min(kRows, block.rows - row),
        .cols = std::min(kCols, block.cols - col),
        .scale = static_cast<T>(args_.scale),
        .accumulate = args_.accumulate || !first,
        .bias = args_.bias && first ? static_cast<const T*>(args_.bias) + block.n0 + col : nullptr};
    compute_tile<T>({a, kTileRows}, {b, kTileCols<T>}, block.depth, to);
  }

  template <class Element>
  const Element* matrix(const void* data, int64_t outer_stride, int64_t inner_stride, int64_t product) const {
    return static_cast<const Element*>(data) + product / args_.inner * outer_stride +
           product % args_.inner * inner_stride;
  }

  const Matmul& args_;
  bool share_b_;
  T* shared_;
  T* own_;
};

/// c = scale * sums (+ bias) (+ c), rounded, for sums [m, n].
void round_sums(const Matmul& args, const float* sums) {
  const hn::ScalableTag<float> d;
  const auto scale = hn::Set(d, static_cast<float>(args.scale));
  const auto* bias = static_cast<const BFloat16*>(args.bias);
  parallel_for(args.m, rows_per_thread(args.n), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t row = begin; row < end; ++row) {
      auto* c = static_cast<BFloat16*>(args.c) + row * args.ldc;
      for_each_vector(d, 0, args.n, [&](int64_t j, int64_t n) HWY_ATTR {
        auto start = bias == nullptr ? hn::Zero(d) : load_lanes(d, bias + j, n);
        if (args.accumulate) start = hn::Add(start, load_lanes(d, c + j, n));
        store_lanes(d, hn::MulAdd(load_lanes(d, sums + row * args.n + j, n), scale, start), c + j, n);
      });
    }
  });
}

/// bf16, in blocks of c whose sums in f32 fit the workspace.
void widened(const Matmul& args) {
  using Blocked = BlockedMatmul<BFloat16>;
  constexpr int64_t kMostRows = 1024;
  const int64_t cols = std::min(args.n, Blocked::kSums / std::min(args.m, kMostRows));
  const int64_t rows = std::min(args.m, Blocked::kSums / cols);
  for (int64_t product = 0; product < args.outer * args.inner; ++product) {
    for (int64_t row = 0; row < args.m; row += rows) {
      for (int64_t col = 0; col < args.n; col += cols) {
        const Matmul block =
            block_of(args, product, row, std::min(args.m, row + rows), col, std::min(args.n, col + cols));
        Matmul sums = block;
        sums.c = Blocked::sums(args.workspace);
        sums.ldc = block.n;
        sums.bias = nullptr;
        sums.accumulate = false;
        sums.scale = 1;
        Blocked(sums).run();
        round_sums(block, static_cast<const float*>(sums.c));
      }
    }
  }
}

void blocked_kernel(const Matmul& args) {
  if (args.dtype == DType::bf16) return widened(args);
  dispatch_f32_f64(args.dtype, "matmul", [&]<class T>() { BlockedMatmul<T>(args).run(); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(blocked_kernel);

void matmul_blocked(const Matmul& args) {
  HWY_DYNAMIC_DISPATCH(blocked_kernel)(args);
}

}  // namespace elwise::cpu
#endif
