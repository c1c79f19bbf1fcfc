// index_select and gather: rows and elements by index. The forwards only move bytes, so they serve every
// dtype. The backwards add in the order of the index and split the work by columns, which no two threads
// share: the same bits for any thread count. Those of bf16 first sort the index, so that the sum for one
// place of dx stays in f32 until it is whole.

#include "ops/embedding_kernels.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <string_view>

#include "core/parallel.h"

namespace elwise::cpu {
namespace {

/// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

/// Rows of the result that are worth a thread, `inner` elements each.
int64_t row_grain(int64_t inner) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(inner, 1));
}

/// Throws Error at the first of `count` indices that is outside [0, size).
void check_indices(std::string_view op, const int64_t* index, int64_t count, int64_t size) {
  const auto is_outside = [size](int64_t i) {
    return static_cast<uint64_t>(i) >= static_cast<uint64_t>(size);
  };
  std::atomic<bool> found = false;
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    bool outside = false;  // no early exit: so the loop vectorises
    for (int64_t j = begin; j < end; ++j) outside |= is_outside(index[j]);
    if (outside) found = true;
  });
  if (!found) return;
  const int64_t at = std::find_if(index, index + count, is_outside) - index;
  fail(op, ": index ", index[at], " at ", at, " is outside [0, ", size, ")");
}

/// Calls function.operator()<T>() with an unsigned integer of the dtype's size: enough to move elements.
template <class Function>
void dispatch_size(DType dtype, Function&& function) {
  switch (size_of(dtype)) {
    case 1:
      return function.template operator()<uint8_t>();
    case 2:
      return function.template operator()<uint16_t>();
    case 4:
      return function.template operator()<uint32_t>();
    default:
      return function.template operator()<uint64_t>();
  }
}

/// Splits [outer, inner] by columns: calls body(o, begin, end) for ranges of columns that together cover all.
/// One column costs `depth` additions.
template <class Body>
void parallel_columns(int64_t outer, int64_t inner, int64_t depth, const Body& body) {
  constexpr int64_t kBlock = 32;  // a cache line of bf16: threads share no line but at the edges
  const int64_t blocks = (inner + kBlock - 1) / kBlock;
  const int64_t grain = kGrain / std::max<int64_t>(1, depth * std::min(inner, kBlock));
  parallel_for(outer * blocks, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t o = begin / blocks, stop = std::min(end, (o + 1) * blocks);
      body(o, (begin - o * blocks) * kBlock, std::min((stop - o * blocks) * kBlock, inner));
      begin = stop;
    }
  });
}

template <class T>
void select_rows(const IndexSelectForward& args) {
  const auto* x = static_cast<const T*>(args.x);
  auto* y = static_cast<T*>(args.y);
  const int64_t inner = args.inner;
  parallel_for(args.outer * args.count, row_grain(inner), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t o = row / args.count, j = row % args.count;
      std::copy_n(x + (o * args.size + args.index[j]) * inner, inner, y + row * inner);
    }
  });
}

template <class T>
void add_rows(const IndexSelectBackward& args) {
  const int64_t inner = args.inner;
  parallel_columns(args.outer, inner, args.count, [&](int64_t o, int64_t begin, int64_t end) {
    const T* dy = static_cast<const T*>(args.dy) + o * args.count * inner;
    T* dx = static_cast<T*>(args.dx) + o * args.size * inner;
    for (int64_t j = 0; j < args.count; ++j) {
      const T* __restrict from = dy + j * inner;
      T* __restrict to = dx + args.index[j] * inner;
      for (int64_t i = begin; i < end; ++i) to[i] += from[i];
    }
  });
}

/// order[0 .. count - 1] = the numbers j sorted by index[j * stride], and by j where that is the same.
void sort_by_index(const int64_t* index, int64_t stride, int64_t count, int64_t* order) {
  std::iota(order, order + count, int64_t{0});
  std::stable_sort(order, order + count,
                   [=](int64_t a, int64_t b) { return index[a * stride] < index[b * stride]; });
}

/// add_rows for bf16, whose sums are f32.
void add_sorted_rows(const IndexSelectBackward& args) {
  constexpr int64_t kColumns = 512;
  const int64_t inner = args.inner;
  auto* order = static_cast<int64_t*>(args.order);
  sort_by_index(args.index, 1, args.count, order);
  parallel_columns(args.outer, inner, args.count, [&](int64_t o, int64_t begin, int64_t end) {
    const auto* dy = static_cast<const BFloat16*>(args.dy) + o * args.count * inner;
    auto* dx = static_cast<BFloat16*>(args.dx) + o * args.size * inner;
    float sums[kColumns];
    for (int64_t first = begin; first < end; first += kColumns) {
      const int64_t columns = std::min(kColumns, end - first);
      for (int64_t j = 0; j < args.count;) {
        const int64_t row = args.index[order[j]];
        BFloat16* to = dx + row * inner + first;
        for (int64_t i = 0; i < columns; ++i) sums[i] = static_cast<float>(to[i]);
        for (; j < args.count && args.index[order[j]] == row; ++j) {
          const BFloat16* from = dy + order[j] * inner + first;
          for (int64_t i = 0; i < columns; ++i) sums[i] += static_cast<float>(from[i]);
        }
        for (int64_t i = 0; i < columns; ++i) to[i] = BFloat16(sums[i]);
      }
    }
  });
}

template <class T>
void gather_elements(const GatherForward& args) {
  const auto* x = static_cast<const T*>(args.x);
  auto* y = static_cast<T*>(args.y);
  const int64_t inner = args.inner;
  parallel_for(args.outer * args.count, row_grain(inner), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + row / args.count * args.size * inner;
      const int64_t* index = args.index + row * inner;
      for (int64_t i = 0; i < inner; ++i) y[row * inner + i] = from[index[i] * inner + i];
    }
  });
}

template <class T>
void scatter_elements(const GatherBackward& args) {
  const int64_t inner = args.inner;
  parallel_columns(args.outer, inner, args.count, [&](int64_t o, int64_t begin, int64_t end) {
    T* dx = static_cast<T*>(args.dx) + o * args.size * inner;
    for (int64_t row = o * args.count; row < (o + 1) * args.count; ++row) {
      const T* dy = static_cast<const T*>(args.dy) + row * inner;
      const int64_t* index = args.index + row * inner;
      for (int64_t i = begin; i < end; ++i) dx[index[i] * inner + i] += dy[i];
    }
  });
}

/// scatter_elements for bf16, whose sums are f32. `order` has room for all elements; one of each column is
/// not sorted.
void scatter_sorted_elements(const GatherBackward& args) {
  const int64_t inner = args.inner;
  parallel_columns(args.outer, inner, args.count, [&](int64_t o, int64_t begin, int64_t end) {
    auto* dx = static_cast<BFloat16*>(args.dx) + o * args.size * inner;
    for (int64_t i = begin; i < end; ++i) {
      const auto* dy = static_cast<const BFloat16*>(args.dy) + o * args.count * inner + i;
      const int64_t* index = args.index + o * args.count * inner + i;
      int64_t only = 0, *order = &only;
      if (args.count > 1) {
        order = static_cast<int64_t*>(args.order) + (o * inner + i) * args.count;
        sort_by_index(index, inner, args.count, order);
      }
      for (int64_t j = 0; j < args.count;) {
        const int64_t place = index[order[j] * inner];
        BFloat16& to = dx[place * inner + i];
        auto sum = static_cast<float>(to);
        for (; j < args.count && index[order[j] * inner] == place; ++j) {
          sum += static_cast<float>(dy[order[j] * inner]);
        }
        to = BFloat16(sum);
      }
    }
  });
}

}  // namespace

void index_select_forward(const IndexSelectForward& args) {
  check_indices("index_select", args.index, args.count, args.size);
  dispatch_size(args.dtype, [&]<class T>() { select_rows<T>(args); });
}

void index_select_backward(const IndexSelectBackward& args) {
  check_indices("index_select", args.index, args.count, args.size);
  if (args.dtype == DType::bf16) return add_sorted_rows(args);
  dispatch_f32_f64(args.dtype, "index_select_backward", [&]<class T>() { add_rows<T>(args); });
}

void gather_forward(const GatherForward& args) {
  check_indices("gather", args.index, args.outer * args.count * args.inner, args.size);
  dispatch_size(args.dtype, [&]<class T>() { gather_elements<T>(args); });
}

void gather_backward(const GatherBackward& args) {
  check_indices("gather", args.index, args.outer * args.count * args.inner, args.size);
  if (args.dtype == DType::bf16) return scatter_sorted_elements(args);
  dispatch_f32_f64(args.dtype, "gather_backward", [&]<class T>() { scatter_elements<T>(args); });
}

}  // namespace elwise::cpu
