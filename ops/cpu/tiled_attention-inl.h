// What both passes of tiled softmax attention share; ops/tiled_attention_kernels.h has the mathematics.
//
// Lanes are queries: the scores of a panel of queries, three vectors side by side, and a block of keys stand
// as [keys][panel]. So maxima and sums of a query cross no lanes, a hidden key is a row left out, and weights
// are, as they stand, an operand of the next product. A block's queries are packed once for all keys; keys
// and values are read in place where none is hidden, but bf16 is always copied, to f32: S is the element type
// of the tensors, T = Compute<S> that of all else.

#if defined(ELWISE_OPS_CPU_TILED_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_TILED_ATTENTION_INL_H_
#undef ELWISE_OPS_CPU_TILED_ATTENTION_INL_H_
#else
#define ELWISE_OPS_CPU_TILED_ATTENTION_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/parallel.h"
#include "core/simd-inl.h"
#include "ops/cpu/attention_tiles.h"
#include "ops/cpu/philox-inl.h"
#include "ops/cpu/row-inl.h"
#include "ops/cpu/thread_scratch.h"
#include "ops/cpu/tile_product-inl.h"
#include "ops/cpu/visible_keys.h"
#include "ops/tiled_attention_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::tiled_attention {

using namespace elwise::HWY_NAMESPACE;
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
using Tag = hn::ScalableTag<T>;
template <class T>
using Vec = hn::Vec<Tag<T>>;
template <class T>
inline constexpr int64_t kLanes = kVectorLanes<T>;
/// Queries side by side.
template <class T>
inline constexpr int64_t kPanel = kProductVectors* kLanes<T>;
static_assert(AttentionTiles::kPanel % kPanel<float> == 0 && AttentionTiles::kUnit % kProductRows == 0);

/// Hands out parts of the thread's scratch.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t elements) : next_(thread_scratch<T>(elements)) {}

  T* take(int64_t elements) {
    T* const taken = next_;
    next_ += elements;
    return taken;
  }

 private:
  T* next_;
};

/// Queries [begin, end) of one head.
template <class S, class Arguments>
struct QueryBlock {
  using T = Compute<S>;

  const Arguments& args;
  AttentionTiles tiles;
  int64_t task;    // blocks start in this order
  int64_t number;  // of the head, in all batch entries
  int64_t begin, end;

  /// The head's channels in row 0 of a tensor [batch, length, channels].
  const S* in(const void* tensor) const { return head_of(static_cast<const S*>(tensor)); }
  S* out(void* tensor) const { return head_of(static_cast<S*>(tensor)); }
  /// The same of a tensor of sums.
  T* sums(void* tensor) const { return head_of(static_cast<T*>(tensor)); }
  /// The head's numbers in a tensor [batch, heads, length].
  const T* per_query(const void* tensor) const {
    return static_cast<const T*>(tensor) + number * args.length;
  }
  T* per_query(void* tensor) const { return static_cast<T*>(tensor) + number * args.length; }

  const bool* key_mask() const {
    return args.key_mask ? args.key_mask + number / args.heads * args.length : nullptr;
  }
  VisibleKeys visible_keys() const {
    return {key_mask(), args.causal ? end : args.length, args.causal, tiles.keys};
  }
  int64_t count() const { return end - begin; }
  int64_t panels() const { return (count() + kPanel<T> - 1) / kPanel<T>; }

 private:
  template <class P>
  P* head_of(P* tensor) const {
    return tensor + number / args.heads * args.length * args.channels + number % args.heads * tiles.head;
  }
};

/// Some queries of a block, side by side.
template <class T>
struct Panel {
  template <class Block>
  Panel(const Block& block, int64_t number)
      : first(number * kPanel<T>),
        begin(block.begin + first),
        count(std::min(kPanel<T>, block.end - begin)),
        vectors((count + kLanes<T> - 1) / kLanes<T>) {}

  int64_t last() const { return begin + count - 1; }

  int64_t first;  // query, in the block
  int64_t begin;  // its row
  int64_t count;
  int64_t vectors;
};

/// Calls body(block) for all blocks of queries. The heads' last blocks come first: in the causal form they
/// are the longest.
template <class S, class Arguments, class Body>
void for_each_block(const Arguments& args, const Body& body) {
  const AttentionTiles tiles = AttentionTiles::of(args.batch, args.length, args.channels, args.heads);
  const int64_t heads = args.batch * args.heads;
  parallel_tasks(tiles.blocks, [&](int64_t task) HWY_ATTR {
    const FlushToZero flush;
    const int64_t begin = (tiles.blocks / heads - 1 - task / heads) * tiles.queries;
    body(QueryBlock<S, Arguments>{args, tiles, task, task % heads, begin,
                                  std::min(begin + tiles.queries, args.length)});
  });
}

/// One head's channels of a row, with zeros up to `width`.
template <class S, class T = Compute<S>>
HWY_INLINE void copy_row(const S* HWY_RESTRICT from, const AttentionTiles& tiles, T* HWY_RESTRICT to) {
  const Tag<T> d;
  int64_t channel = 0;
  for (; channel + kLanes<T> <= tiles.head; channel += kLanes<T>) {
    hn::Store(load_lanes(d, from + channel, kLanes<T>), d, to + channel);
  }
  for (; channel < tiles.width; channel += kLanes<T>) {
    hn::Store(load_lanes(d, from + channel, std::max<int64_t>(tiles.head - channel, 0)), d, to + channel);
  }
}

/// Row `begin` of the block and `rows` - 1 more, rows of zeros after its last.
template <class S, class Arguments, class T = Compute<S>>
void copy_queries(const QueryBlock<S, Arguments>& block, const void* tensor, int64_t begin, int64_t rows,
                  T* to) {
  const int64_t width = block.tiles.width, valid = std::min(rows, block.end - begin);
  const S* from = block.in(tensor) + begin * block.args.channels;
  for (int64_t i = 0; i < valid; ++i) copy_row(from + i * block.args.channels, block.tiles, to + i * width);
  std::fill(to + valid * width, to + rows * width, T(0));
}

/// Packs a vector of queries, rows [kLanes][width], into their columns of a panel [width][kPanel].
template <class T>
void pack_queries(const T* rows, const AttentionTiles& tiles, T* to) {
  const Tag<T> d;
  for (int64_t channel = 0; channel < tiles.width; channel += kTransposed<T>) {
    transpose_columns(rows + channel, tiles.width,
                      [&](int64_t p, Vec<T> v) HWY_ATTR { hn::Store(v, d, to + (channel + p) * kPanel<T>); });
  }
}

/// Where the column of query `i` of a block begins in its panels, [width][kPanel] each.
template <class T>
int64_t column_of(int64_t i, const AttentionTiles& tiles) {
  return i / kPanel<T> * kPanel<T> * tiles.width + i % kPanel<T>;
}

/// Writes factors * columns, [width][kPanel], to the panel's rows of one head.
template <class S, class T = Compute<S>>
HWY_NOINLINE void unpack_queries(const Panel<T>& panel, const AttentionTiles& tiles, const T* factors,
                                 const T* columns, S* to, int64_t stride) {
  const Tag<T> d;
  for (int64_t i = 0; i < panel.count; i += kTransposed<T>) {
    for (int64_t channel = 0; channel < tiles.head; channel += kLanes<T>) {
      transpose_columns(columns + channel * kPanel<T> + i, kPanel<T>, [&](int64_t p, Vec<T> v) HWY_ATTR {
        if (i + p >= panel.count) return;
        store_lanes(d, hn::Mul(v, hn::Set(d, factors[i + p])), to + (panel.begin + i + p) * stride + channel,
                    std::min(kLanes<T>, tiles.head - channel));
      });
    }
  }
}

/// Rows of keys or values.
template <class T>
struct KeyRows {
  const T* data;
  int64_t stride;

  Operand<T> by_key() const { return {data, stride, 1}; }
  Operand<T> by_channel() const { return {data, 1, stride}; }
};

/// Whether the visible keys' rows, of T, can be read and written where they are: none between them is hidden,
/// and tiles are whole.
inline bool in_place(const VisibleKeys& keys, const AttentionTiles& tiles) {
  return keys.row(keys.count() - 1) - keys.row(0) + 1 == keys.count() && keys.count() % kProductRows == 0 &&
         tiles.head == tiles.width;
}

/// The visible rows of k or v: in place, or copied to `buffer` with rows of zeros up to a whole tile.
template <class S, class Arguments, class T = Compute<S>>
KeyRows<T> visible_rows(const QueryBlock<S, Arguments>& block, const VisibleKeys& keys, const void* tensor,
                        T* buffer) {
  const AttentionTiles& tiles = block.tiles;
  const int64_t stride = block.args.channels, count = keys.count();
  const S* from = block.in(tensor);
  if constexpr (std::is_same_v<S, T>) {
    if (in_place(keys, tiles)) return {from + keys.row(0) * stride, stride};
  }
  for (int64_t j = 0; j < count; ++j) copy_row(from + keys.row(j) * stride, tiles, buffer + j * tiles.width);
  std::fill(buffer + count * tiles.width,
            buffer + AttentionTiles::round_up(count, kProductRows) * tiles.width, T(0));
  return {buffer, tiles.width};
}

/// Scores [keys][..] of a vector of queries.
template <class T>
struct Scores {
  T* data;
  int64_t stride;  // from key to key
  const VisibleKeys& keys;
  int64_t query;                                       // the row of the first one
  int64_t full = keys.seen_by(query);                  // keys that all queries see
  int64_t some = keys.seen_by(query + kLanes<T> - 1);  // keys that a query sees

  /// Lanes that do not see key j, one of [full, some).
  HWY_INLINE hn::Mask<Tag<T>> hidden(int64_t j) const {
    return hn::FirstN(Tag<T>(), static_cast<size_t>(keys.row(j) - query));
  }
};

/// Which weights of a vector of queries dropout keeps.
template <class T>
class KeptWeights {
 public:
  /// For the queries from row `query` on and the visible keys of a tile.
  template <class Block>
  HWY_NOINLINE void draw(const Block& block, const VisibleKeys& keys, int64_t query) {
    const int64_t rows = keys.row(keys.count() - 1) - keys.begin() + 1 + kWords - 1;
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      const int64_t first =
          (block.number * block.args.length + query + lane) * block.args.length + keys.begin();
      counters_[lane] = block.args.stream.offset + static_cast<uint64_t>(first / kWords);
      starts_[lane] = static_cast<Int>(first % kWords);
    }
    draw_words(block.args.stream.seed, rows);

    const Tag<T> d;
    const hn::RebindToSigned<Tag<T>> di;
    const auto threshold = dropout_threshold(di, block.args.dropout_p), start = hn::Load(di, starts_);
    for (int64_t j = 0; j < keys.count(); ++j) {
      const uint32_t* row = words_ + (keys.row(j) - keys.begin()) * kLanes<T>;
      auto bits = load_bits24(d, row);
      for (Int word = 1; word < kWords; ++word) {
        const auto here = hn::Eq(start, hn::Set(di, word));
        bits = hn::IfThenElse(here, load_bits24(d, row + word * kLanes<T>), bits);
      }
      hn::Store(hn::BitCast(d, hn::Not(hn::VecFromMask(di, hn::Lt(bits, threshold)))), d,
                kept_ + j * kLanes<T>);
    }
  }

  /// x where the queries' weights of visible key j are kept, else 0.
  HWY_INLINE Vec<T> keep(int64_t j, Vec<T> x) const {
    return hn::And(x, hn::Load(Tag<T>(), kept_ + j * kLanes<T>));
  }

 private:
  using Int = hn::TFromD<hn::RebindToSigned<Tag<T>>>;
  static constexpr int64_t kWords = 4;  // of a counter

  /// The words of each lane from the first of its counter on, [rows][kLanes]. The numbers of a query's
  /// weights are adjacent, those of the next query begin `length` later: a lane starts at any word of its
  /// counter.
  void draw_words(uint64_t seed, int64_t rows) {
    const hn::ScalableTag<uint64_t> d64;
    const hn::Rebind<uint32_t, decltype(d64)> d32;
    for (int64_t lane = 0; lane < kLanes<T>; lane += static_cast<int64_t>(hn::Lanes(d64))) {
      auto counter = hn::Load(d64, counters_ + lane);
      for (int64_t row = 0; row < rows; row += kWords) {
        const auto drawn = philox_lanes(seed, counter);
        for (int64_t word = 0; word < kWords; ++word) {
          hn::StoreU(hn::TruncateTo(d32, drawn.word[word]), d32, words_ + (row + word) * kLanes<T> + lane);
        }
        counter = hn::Add(counter, hn::Set(d64, uint64_t{1}));
      }
    }
  }

  HWY_ALIGN T kept_[AttentionTiles::kMostKeys * kLanes<T>];  // all bits of an element, or none
  HWY_ALIGN uint32_t words_[(AttentionTiles::kMostKeys + 2 * kWords) * kLanes<T>];
  HWY_ALIGN uint64_t counters_[kLanes<T>];
  HWY_ALIGN Int starts_[kLanes<T>];
};

}  // namespace elwise::cpu::HWY_NAMESPACE::tiled_attention
HWY_AFTER_NAMESPACE();

#endif
