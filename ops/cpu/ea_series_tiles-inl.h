// How the EA-series kernels share out [batch, length, channels]: tiles of neighbouring channels, and pieces
// of the length where there are few. Included after <hwy/foreach_target.h>, compiled once per target.

#if defined(ELWISE_OPS_CPU_EA_SERIES_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_EA_SERIES_TILES_INL_H_
#undef ELWISE_OPS_CPU_EA_SERIES_TILES_INL_H_
#else
#define ELWISE_OPS_CPU_EA_SERIES_TILES_INL_H_
#endif

#include <hwy/cache_control.h>

#include <algorithm>
#include <array>

#include "core/parallel.h"
#include "ops/cpu/ea_series-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::ea_series {

/// Bytes of neighbouring channels that a thread walks down the rows together: long enough runs for the
/// memory, few enough for their sums to stay in the cache.
inline constexpr int64_t kTileBytes = 1536;
template <class T>
inline constexpr int64_t kTileVectors = kTileBytes / (kLanes<T> * static_cast<int64_t>(sizeof(T)));

/// Rows that one vector walks before its neighbour's turn, but for the chunks of the causal backward.
inline constexpr int64_t kBlock = 32;
static_assert(kEaSeriesChunk % kBlock == 0);

/// Every so many carries are those before a piece.
inline constexpr int64_t kPieceChunks = kEaSeriesPiece / kEaSeriesChunk;

inline constexpr auto kAllVisible = [] {
  std::array<bool, kEaSeriesChunk> all{};
  all.fill(true);
  return all;
}();

/// Rows [begin, end) of one batch entry, a piece of its length, and the vectors [first, last) of its
/// channels.
struct Tile {
  int64_t batch;
  int64_t piece;
  int64_t begin;
  int64_t end;
  int64_t first;
  int64_t last;

  /// What the walk of `vector` down a block of so many rows asks for; the block that comes next is `step`
  /// elements from this one.
  template <class T>
  VectorsAhead<T> ahead(int64_t vector, int64_t rows, int64_t step, int64_t stride) const {
    const int64_t before = vector - first;
    return {step - before * kLanes<T>, stride, last - first, before * rows};
  }
};

/// The layout of a tensor [batch, length, channels] and its keys' mask; T is what is computed with.
template <class T>
struct Layout {
  int64_t batch;
  int64_t length;
  int64_t channels;
  const bool* key_mask;
  int64_t pieces;  // of the length

  template <class Args>
  static Layout of(const Args& args) {
    return {args.batch, args.length, args.channels, args.key_mask,
            ea_series_pieces(args.batch, args.length, args.channels, args.causal)};
  }

  int64_t piece_rows() const { return pieces == 1 ? length : kEaSeriesPiece; }
  int64_t vectors() const { return (channels + kLanes<T> - 1) / kLanes<T>; }
  int64_t offset(int64_t entry, int64_t row, int64_t vector) const {
    return (entry * length + row) * channels + vector * kLanes<T>;
  }
  /// In [batch, sets, rows, channels], sums of a vector.
  int64_t set_offset(int64_t entry, int64_t sets, int64_t set, int64_t rows, int64_t vector) const {
    return (entry * sets + set) * rows * channels + vector * kLanes<T>;
  }
  /// Channels of a vector: less than kLanes in the last one.
  int64_t lanes(int64_t vector) const { return std::min(kLanes<T>, channels - vector * kLanes<T>); }

  /// The first row that sees a key; `length` if there is none.
  int64_t first_visible(int64_t entry) const {
    if (key_mask == nullptr) return 0;
    const bool* mask = key_mask + entry * length;
    return std::find(mask, mask + length, true) - mask;
  }
  /// The mask from `row` on, for at most a chunk of rows.
  const bool* visible(int64_t entry, int64_t row) const {
    return key_mask == nullptr ? kAllVisible.data() : key_mask + entry * length + row;
  }

  /// Zeroes the rows of the tile that are before `end`.
  template <class S>
  void clear(S* tensor, const Tile& tile, int64_t end) const {
    const int64_t first = tile.first * kLanes<T>, last = std::min(channels, tile.last * kLanes<T>);
    for (int64_t row = tile.begin; row < std::min(end, tile.end); ++row) {
      std::fill_n(tensor + offset(tile.batch, row, tile.first), last - first, S());
    }
  }
};

/// Calls body(tile) for tiles that cover batch x pieces x channels, in parallel. How the channels are cut
/// depends on the thread count and does not matter to the results: every vector goes its own way.
template <class T, class Body>
void for_each_tile(const Layout<T>& layout, const Body& body) {
  const int64_t vectors = layout.vectors(), rows = layout.piece_rows();
  const int64_t grain = 1 + 512 / std::max<int64_t>(rows, 1);
  parallel_for(layout.batch * layout.pieces * vectors, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    while (begin < end) {
      const int64_t piece = begin / vectors % layout.pieces, first_row = piece * rows;
      const int64_t first = begin % vectors, run = std::min(end - begin, vectors - first);
      const int64_t tiles = (run + kTileVectors<T> - 1) / kTileVectors<T>,
                    last = first + (run + tiles - 1) / tiles;
      body(Tile{begin / vectors / layout.pieces, piece, first_row, std::min(first_row + rows, layout.length),
                first, last});
      begin += last - first;
    }
    hwy::FlushStream();
  });
}

/// Calls body(batch entry, vector) for every vector of channels, in parallel: between two passes over pieces.
template <class T, class Body>
void for_each_vector_of_pieces(const Layout<T>& layout, const Body& body) {
  const int64_t vectors = layout.vectors();
  parallel_for(layout.batch * vectors, 1 + 64 / layout.pieces, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) body(at / vectors, at % vectors);
  });
}

/// Copies rows to whole vectors of what is computed with, zeros behind a partial one.
template <class S>
HWY_NOINLINE void pad_rows(const S* from, int64_t stride, int64_t rows, int64_t lanes,
                           const VectorsAhead<Compute<S>>& ahead, Compute<S>* to) {
  const Tag<Compute<S>> d;
  auto cursor = ahead.from(0);
  for (int64_t row = 0; row < rows; ++row) {
    prefetch_far(from + cursor.next());
    hn::Store(load_lanes(d, from + row * stride, lanes), d, to + row * kLanes<Compute<S>>);
  }
}

template <class S>
HWY_NOINLINE void unpad_rows(const Compute<S>* from, int64_t rows, int64_t lanes, S* to, int64_t stride,
                             const VectorsAhead<Compute<S>>& ahead) {
  const Tag<Compute<S>> d;
  auto cursor = ahead.from(0);
  for (int64_t row = 0; row < rows; ++row) {
    prefetch_far_to_write(to + cursor.next());
    store_lanes(d, hn::Load(d, from + row * kLanes<Compute<S>>), to + row * stride, lanes);
  }
}

/// to += from, for `rows` whole vectors.
template <class T>
HWY_NOINLINE void add_rows(const T* from, int64_t rows, T* to) {
  const Tag<T> d;
  for (int64_t i = 0; i < rows * kLanes<T>; i += kLanes<T>) {
    hn::Store(hn::Add(hn::Load(d, to + i), hn::Load(d, from + i)), d, to + i);
  }
}

/// to *= factor, likewise.
template <class T>
HWY_NOINLINE void scale_rows(Vec<T> factor, int64_t rows, T* to) {
  const Tag<T> d;
  for (int64_t i = 0; i < rows * kLanes<T>; i += kLanes<T>) {
    hn::Store(hn::Mul(hn::Load(d, to + i), factor), d, to + i);
  }
}

// Moments in memory are [rows, kLanes], as Moments stores them: the last of the rows is kappa. What is rarely
// done to them is done here, by one piece of code for all orders.

/// The most moments that a vector of channels has.
template <class T>
inline constexpr int64_t kMaxState = ea_series_carry_rows(kEaSeriesMaxOrder) * kLanes<T>;

template <class T>
HWY_INLINE Vec<T> kappa_of(const T* moments, int64_t rows) {
  return hn::Load(Tag<T>(), moments + (rows - 1) * kLanes<T>);
}

/// From a carry [rows, channels], whose moments have the factor exp(kappa^2), be kappa large or small.
template <class T>
HWY_NOINLINE void load_carry(const T* from, int64_t channels, int64_t rows, int64_t lanes, T* moments) {
  pad_rows(from, channels, rows, lanes, VectorsAhead<T>(), moments);
  const Vec<T> kappa = kappa_of(moments, rows),
               factor = ExpNonPositive(Tag<T>(), hn::Neg(hn::Mul(kappa, kappa)));
  scale_rows<T>(hn::IfThenElse(hn::Eq(kappa, reference_of<T>(kappa)), constant<T>(1), factor), rows - 1,
                moments);
}

template <class T>
HWY_NOINLINE void store_carry(const T* moments, int64_t channels, int64_t rows, int64_t lanes, T* to) {
  alignas(64) T scaled[kMaxState<T>];
  std::copy_n(moments, rows * kLanes<T>, scaled);
  const Vec<T> kappa = kappa_of(moments, rows), factor = Exp(Tag<T>(), hn::Mul(kappa, kappa));
  scale_rows<T>(hn::IfThenElse(hn::Eq(kappa, reference_of<T>(kappa)), constant<T>(1), factor), rows - 1,
                scaled);
  unpad_rows(scaled, rows, lanes, to, channels, VectorsAhead<T>());
}

/// Adds the moments of other keys, which are scaled to that end.
template <class T>
HWY_NOINLINE void merge_moments(T* other, int64_t rows, T* moments) {
  const Vec<T> own_kappa = kappa_of(moments, rows), other_kappa = kappa_of(other, rows),
               kappa = hn::Min(own_kappa, other_kappa), reference = reference_of<T>(kappa);
  scale_rows<T>(joining_ratio<T>(reference, reference_of<T>(own_kappa)), rows - 1, moments);
  scale_rows<T>(joining_ratio<T>(reference, reference_of<T>(other_kappa)), rows - 1, other);
  add_rows(other, rows - 1, moments);
  hn::Store(kappa, Tag<T>(), moments + (rows - 1) * kLanes<T>);
}

}  // namespace elwise::cpu::HWY_NAMESPACE::ea_series
HWY_AFTER_NAMESPACE();

#endif
