// Sizes of tiles and blocks, and loops over columns, rows and lanes: a part of kernels.cc, which is
// compiled once for each instruction set.

#ifndef CAPSPRUNE_LOOPS_H_
#define CAPSPRUNE_LOOPS_H_

#include "routing.h"
#include "simd.h"

namespace {

using capsprune::Gradients;
using capsprune::Pool;
using capsprune::Problem;
using capsprune::Status;

// The votes of a tile are to stay in a core's second-level cache, beside sums that pass through it.
constexpr int64_t kTileBytes = 256 << 10;
// The matrices of a few capsules lie far apart, class by class, which the processor does not
// foresee by itself: a weight that no second-level cache holds is asked for so many classes ahead.
constexpr int64_t kPrefetchBytes = 4 << 20;
constexpr int64_t kAhead = 8;
// Capsules that backward takes at a time, and the blocks whose weight gradient is summed at once.
constexpr int64_t kGradientTile = 4;
constexpr int64_t kGroup = 8;
// What the votes of narrow blocks may take.
constexpr int64_t kVoteBytes = 64 << 20;
// A narrow block has at most so many samples; a wide one has more, up to kLanes.
constexpr int64_t kNarrow = kLanes >= 8 ? kLanes / 4 : 1;

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t AtLeast(int64_t a, int64_t b) { return a < b ? b : a; }
inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <int N>
struct Int {
  static constexpr int value = N;
};

// Calls work(first column, Int<columns>) until `columns` are covered, most of them at once.
template <class Work>
inline void ForColumns(int64_t columns, Work work) {
  int64_t k = 0;
  for (; k + kColumns <= columns; k += kColumns) work(k, Int<kColumns>());
  if (kColumns > 8 && k + 8 <= columns) work(k, Int<8>()), k += 8;
  if (k + 4 <= columns) work(k, Int<4>()), k += 4;
  if (k + 2 <= columns) work(k, Int<2>()), k += 2;
  if (k < columns) work(k, Int<1>());
}

// The same with at most 8 rows at once.
template <class Work>
inline void ForRows(int64_t rows, Work work) {
  int64_t d = 0;
  for (; d + 8 <= rows; d += 8) work(d, Int<8>());
  if (d + 4 <= rows) work(d, Int<4>()), d += 4;
  if (d + 2 <= rows) work(d, Int<2>()), d += 2;
  if (d < rows) work(d, Int<1>());
}

}  // namespace

#endif  // CAPSPRUNE_LOOPS_H_
