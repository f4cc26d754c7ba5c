// Routing on a CPU. This file is compiled once for each instruction set, with that set's flags and
// CAPSPRUNE_KERNELS as the name of the table that it defines; nothing in it may be an inline
// function of another header, or the linker could take one build's copy for another's.
//
// The logits of equation (4) are never stored: they are linear in the poses, so
//   b_ij = u_i W_ij . (v_j of all earlier iterations, summed).
// Hence an iteration is one pass over the primary capsules. For a few of them at a time it computes
// the votes for all J classes, the logits, the softmax over classes, and adds the weighted votes to
// s_j. Only sums of poses, [batch, J, D2], live from one iteration to the next.
//
// A block of kLanes samples is computed at once, one sample to a lane ("wide"), so W is read once
// for the block and no sum crosses lanes. Few samples ("narrow") put D2 into the lanes instead, and
// keep their votes: there, reading W takes the time.

#include <cstdlib>
#include <cstring>

#include "arithmetic.h"
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

// ---- Wide blocks: lane l of every vector is sample l of the block. ----

// u of the block as [I * D1] vectors; lanes without a sample are 0.
void PackWide(const Problem& p, int64_t first, int64_t count, Vec* packed) {
  const int64_t rows = p.capsules * p.d1;
  float* out = reinterpret_cast<float*>(packed);
  if (count < kLanes) std::memset(out, 0, rows * sizeof(Vec));
  for (int64_t lane = 0; lane < count; ++lane) {
    const float* u = p.u + (first + lane) * rows;
    for (int64_t row = 0; row < rows; ++row) out[row * kLanes + lane] = u[row];
  }
}

// Adds to s [J, D2] the votes of capsules [begin, end), all weighted by 1 / J.
void FirstSumWide(const Problem& p, const Vec* u, int64_t begin, int64_t end, Vec* s) {
  const float share = 1.0f / static_cast<float>(p.classes);
  for (int64_t j = 0; j < p.classes; ++j) {
    const float* weight = p.weight + (j * p.capsules + begin) * p.d1 * p.d2;
    ForColumns(p.d2, [&](int64_t k, auto columns) {
      constexpr int kCount = decltype(columns)::value;
      Vec sum[kCount] = {};
      const float* w = weight + k;
      for (int64_t row = begin * p.d1; row < end * p.d1; ++row, w += p.d2) {
        const Vec x = u[row];
        for (int c = 0; c < kCount; ++c) sum[c] += x * w[c];
      }
      for (int c = 0; c < kCount; ++c) s[j * p.d2 + k + c] += sum[c] * share;
    });
  }
}

// Turns logits [J, tile] into e^(logit - largest), and returns 1 / their sum over J.
void SoftmaxWide(int64_t classes, int64_t tile, Vec* logits, Vec* inverse) {
  for (int64_t i = 0; i < tile; ++i) {
    Vec largest = logits[i];
    for (int64_t j = 1; j < classes; ++j) largest = Max(logits[j * tile + i], largest);
    Vec sum{};
    for (int64_t j = 0; j < classes; ++j) {
      Vec& logit = logits[j * tile + i];
      logit = ExpOfNegative(logit - largest);
      sum += logit;
    }
    inverse[i] = 1.0f / sum;
  }
}

// Writes the logits [J, tile] of a few capsules after `poses` [J, D2], the sum of the poses of the
// earlier iterations, and if asked to, their votes [J, tile, D2].
template <bool kKeepVotes>
void LogitsWide(const Problem& p, const Vec* u, const Vec* poses, int64_t first, int64_t tile,
                Vec* votes, Vec* logits) {
  const Vec* u_tile = u + first * p.d1;
  const int64_t weight_bytes = p.classes * p.capsules * p.d1 * p.d2 * sizeof(float);
  const bool large = weight_bytes > kPrefetchBytes;
  for (int64_t j = 0; j < p.classes; ++j) {
    const float* weight = p.weight + (j * p.capsules + first) * p.d1 * p.d2;
    if (large && j + kAhead < p.classes) {
      const float* ahead = weight + kAhead * p.capsules * p.d1 * p.d2;
      for (int64_t n = 0; n < tile * p.d1 * p.d2; n += 16) __builtin_prefetch(ahead + n);
    }
    for (int64_t i = 0; i < tile; ++i) {
      Vec logit{};
      ForColumns(p.d2, [&](int64_t k, auto columns) {
        constexpr int kCount = decltype(columns)::value;
        Vec vote[kCount] = {};
        const float* w = weight + i * p.d1 * p.d2 + k;
        for (int64_t d = 0; d < p.d1; ++d, w += p.d2) {
          const Vec x = u_tile[i * p.d1 + d];
          for (int c = 0; c < kCount; ++c) vote[c] += x * w[c];
        }
        const Vec* pose = poses + j * p.d2 + k;
        Vec agreement[4] = {};
        for (int c = 0; c < kCount; ++c) {
          agreement[c % 4] += vote[c] * pose[c];
          if (kKeepVotes) votes[(j * tile + i) * p.d2 + k + c] = vote[c];
        }
        logit += (agreement[0] + agreement[1]) + (agreement[2] + agreement[3]);
      });
      logits[j * tile + i] = logit;
    }
  }
}

// Adds to s [J, D2] the votes of capsules [begin, end), weighted by the softmax of their logits.
// Scratch holds for `tile_size` capsules the votes, the logits, and one vector each.
void SumWide(const Problem& p, const Vec* u, const Vec* poses, int64_t begin, int64_t end,
             int64_t tile_size, Vec* scratch, Vec* s) {
  Vec* votes = scratch;                                // [J, tile, D2]
  Vec* logits = votes + p.classes * tile_size * p.d2;  // [J, tile]
  Vec* inverse = logits + p.classes * tile_size;       // [tile]
  for (int64_t first = begin; first < end; first += tile_size) {
    const int64_t tile = Min(tile_size, end - first);
    LogitsWide<true>(p, u, poses, first, tile, votes, logits);
    SoftmaxWide(p.classes, tile, logits, inverse);
    for (int64_t j = 0; j < p.classes; ++j) {
      ForColumns(p.d2, [&](int64_t k, auto columns) {
        constexpr int kCount = decltype(columns)::value;
        Vec sum[kCount];
        for (int c = 0; c < kCount; ++c) sum[c] = s[j * p.d2 + k + c];
        for (int64_t i = 0; i < tile; ++i) {
          const Vec coupling = logits[j * tile + i] * inverse[i];
          const Vec* vote = votes + (j * tile + i) * p.d2 + k;
          for (int c = 0; c < kCount; ++c) sum[c] += coupling * vote[c];
        }
        for (int c = 0; c < kCount; ++c) s[j * p.d2 + k + c] = sum[c];
      });
    }
  }
}

// Writes the gradient of u for a few capsules, [tile, D1], from their couplings [J, tile] and the
// gradient of s, [J, D2].
void InputGradientWide(const Problem& p, const Vec* couplings, const Vec* s_gradient, int64_t first,
                       int64_t tile, Vec* u_gradient) {
  for (int64_t row = 0; row < tile * p.d1; ++row) u_gradient[row] = Vec{};
  for (int64_t j = 0; j < p.classes; ++j) {
    const float* weight = p.weight + (j * p.capsules + first) * p.d1 * p.d2;
    ForColumns(p.d2, [&](int64_t k, auto columns) {
      constexpr int kCount = decltype(columns)::value;
      Vec g[kCount];
      for (int c = 0; c < kCount; ++c) g[c] = s_gradient[j * p.d2 + k + c];
      const float* w = weight + k;
      for (int64_t i = 0; i < tile; ++i) {
        const Vec coupling = couplings[j * tile + i];
        for (int64_t d = 0; d < p.d1; ++d, w += p.d2) {
          Vec back[4] = {};
          for (int c = 0; c < kCount; ++c) back[c % 4] += g[c] * w[c];
          u_gradient[i * p.d1 + d] += coupling * ((back[0] + back[1]) + (back[2] + back[3]));
        }
      }
    });
  }
}

// ---- Narrow blocks: the lanes are D2, N of them at a time. ----

template <int N>
struct VecOf {
  typedef float Type __attribute__((vector_size(N * sizeof(float)), aligned(4), may_alias));
};

template <int N>
inline float Dot(const float* a, const float* b, int64_t size) {
  typedef typename VecOf<N>::Type V;
  V sum = *reinterpret_cast<const V*>(a) * *reinterpret_cast<const V*>(b);
  for (int64_t k = N; k < size; k += N) {
    sum += *reinterpret_cast<const V*>(a + k) * *reinterpret_cast<const V*>(b + k);
  }
  return SumLanes<N>(reinterpret_cast<const float*>(&sum));
}

// Writes the votes of M samples, [tiles, J, tile, D2] for each sample, and adds them, all weighted
// by 1 / J, to s [J, D2] of each.
template <int N, int M>
void FirstSumNarrow(const Problem& p, int64_t sample, int64_t begin, int64_t end, int64_t tile_size,
                    float* votes, float* s) {
  typedef typename VecOf<N>::Type V;
  const int64_t rows = p.capsules * p.d1;
  const int64_t sample_votes = p.capsules * p.classes * p.d2;
  const float share = 1.0f / static_cast<float>(p.classes);
  // Class by class, so that the weight is read from front to back: that is what takes the time.
  for (int64_t j = 0; j < p.classes; ++j) {
    for (int64_t k = 0; k < p.d2; k += N) {
      V sum[M] = {};
      for (int64_t first = begin; first < end; first += tile_size) {
        const int64_t tile = Min(tile_size, end - first);
        const float* weight = p.weight + (j * p.capsules + first) * p.d1 * p.d2;
        float* kept = votes + (first * p.classes + j * tile) * p.d2;
        for (int64_t i = 0; i < tile; ++i) {
          const float* w = weight + i * p.d1 * p.d2 + k;
          const float* u = p.u + sample * rows + (first + i) * p.d1;
          V vote[M] = {};
          for (int64_t d = 0; d < p.d1; ++d) {
            const V row = *reinterpret_cast<const V*>(w + d * p.d2);
            for (int m = 0; m < M; ++m) vote[m] += row * u[m * rows + d];
          }
          for (int m = 0; m < M; ++m) {
            *reinterpret_cast<V*>(kept + m * sample_votes + i * p.d2 + k) = vote[m];
            sum[m] += vote[m];
          }
        }
      }
      for (int m = 0; m < M; ++m) {
        *reinterpret_cast<V*>(s + (m * p.classes + j) * p.d2 + k) += sum[m] * share;
      }
    }
  }
}

// Adds to s [J, D2] of one sample its votes, weighted by the softmax of their agreement with
// `poses` [J, D2]. Scratch holds the logits [J, tile], whole vectors of them.
template <int N>
void SumNarrow(const Problem& p, const float* votes, const float* poses, int64_t begin, int64_t end,
               int64_t tile_size, Vec* scratch, float* s) {
  typedef typename VecOf<N>::Type V;
  for (int64_t first = begin; first < end; first += tile_size) {
    const int64_t tile = Min(tile_size, end - first);
    const int64_t vectors = DivideUp(tile, kLanes);
    Vec* logits = scratch;                        // [J, vectors]
    Vec* inverse = logits + p.classes * vectors;  // [vectors]
    for (int64_t j = 0; j < p.classes; ++j) {
      float* logit = reinterpret_cast<float*>(logits + j * vectors);
      const float* vote = votes + (first * p.classes + j * tile) * p.d2;
      int64_t i = 0;
      for (; i < tile; ++i) logit[i] = Dot<N>(vote + i * p.d2, poses + j * p.d2, p.d2);
      for (; i < vectors * kLanes; ++i) logit[i] = 0.0f;
    }
    SoftmaxWide(p.classes, vectors, logits, inverse);
    for (int64_t j = 0; j < p.classes; ++j) {
      Vec* coupling = logits + j * vectors;
      for (int64_t i = 0; i < vectors; ++i) coupling[i] *= inverse[i];
      const float* c = reinterpret_cast<const float*>(coupling);
      const float* vote = votes + (first * p.classes + j * tile) * p.d2;
      for (int64_t k = 0; k < p.d2; k += N) {
        V even{}, odd{};
        int64_t i = 0;
        for (; i + 1 < tile; i += 2) {
          even += *reinterpret_cast<const V*>(vote + i * p.d2 + k) * c[i];
          odd += *reinterpret_cast<const V*>(vote + (i + 1) * p.d2 + k) * c[i + 1];
        }
        if (i < tile) even += *reinterpret_cast<const V*>(vote + i * p.d2 + k) * c[i];
        *reinterpret_cast<V*>(s + j * p.d2 + k) += even + odd;
      }
    }
  }
}

// Calls work(Int<N>) for the most lanes N that D2 is a multiple of.
template <class Work>
inline void ForLanes(int64_t d2, Work work) {
  if (kLanes >= 16 && d2 % 16 == 0) return work(Int<(kLanes >= 16 ? 16 : 1)>());
  if (kLanes >= 8 && d2 % 8 == 0) return work(Int<(kLanes >= 8 ? 8 : 1)>());
  if (d2 % 4 == 0) return work(Int<4>());
  if (d2 % 2 == 0) return work(Int<2>());
  work(Int<1>());
}

// ---- Blocks, and the memory that one takes. ----

struct Block {
  int64_t first, count;
  bool wide;
  // The samples that its sums have room for: the lanes of a wide one.
  int64_t width;
  Vec* u;        // Wide: [I * D1].
  float* poses;  // Sum of the poses of earlier iterations: [J, D2] vectors, or [count, J, D2].
  float* sums;   // [chunks] of the same; the total inputs s.
  float* votes;  // Narrow: [count, I, J, D2] in the order of tiles.
};

int64_t RoundUp(int64_t floats) { return DivideUp(floats, 16) * 16; }

void* Allocate(int64_t floats) {
  if (floats < 0 || floats > (INT64_C(1) << 56)) return nullptr;
  return std::aligned_alloc(64, AtLeast(RoundUp(floats), 16) * sizeof(float));
}

class Routing {
 public:
  Routing(const Problem& problem, const Pool& pool, bool narrow_too) : p_(problem), pool_(pool) {
    const int64_t wide_bytes = AtLeast(1, p_.classes * p_.d2 * sizeof(Vec));
    wide_tile_ = AtLeast(1, Min(8, kTileBytes / wide_bytes));
    const int64_t narrow_bytes = AtLeast(1, p_.classes * p_.d2 * sizeof(float));
    narrow_tile_ = AtLeast(kLanes, kTileBytes / narrow_bytes / kLanes * kLanes);
    narrow_tile_ = Min(narrow_tile_, DivideUp(p_.capsules, kLanes) * kLanes);
    wide_blocks_ = p_.batch / kLanes;
    narrow_samples_ = p_.batch % kLanes;
    const int64_t vote_bytes = p_.capsules * p_.classes * p_.d2 * sizeof(float);
    if (!narrow_too || narrow_samples_ > kNarrow || narrow_samples_ * vote_bytes > kVoteBytes) {
      wide_blocks_ += narrow_samples_ > 0;
      narrow_samples_ = 0;
    }
    blocks_ = wide_blocks_;
    for (int64_t left = narrow_samples_; left > 0; left -= NarrowCount(left)) ++blocks_;
    const int64_t threads = AtLeast(1, pool_.threads);
    const bool even = narrow_samples_ == 0 && blocks_ % threads == 0;
    if (threads == 1 || even || blocks_ >= 4 * threads) {
      chunks_ = 1;
    } else {
      chunks_ = blocks_ == 1 ? threads : DivideUp(2 * threads, blocks_);
      chunks_ = AtLeast(1, Min(chunks_, p_.capsules / 4));
    }
    chunk_ = DivideUp(p_.capsules, chunks_);
    if (narrow_samples_ > 0) chunk_ = DivideUp(chunk_, narrow_tile_) * narrow_tile_;
    if (chunks_ > 1 && narrow_samples_ > 0 && chunk_ >= p_.capsules) {
      // So that every thread has a tile of its own.
      chunk_ = DivideUp(p_.capsules, chunks_);
      narrow_tile_ = Min(narrow_tile_, chunk_);
      chunk_ = DivideUp(chunk_, narrow_tile_) * narrow_tile_;
    }
    chunks_ = AtLeast(1, DivideUp(p_.capsules, AtLeast(1, chunk_)));
  }

  Status Forward(float* v) {
    v_ = v;
    if (chunks_ == 1) {
      Run(blocks_, [this](int64_t index) {
        Block block = BlockAt(index);
        void* memory = Allocate(BlockFloats(block));
        if (memory == nullptr) return Fail();
        Place(&block, static_cast<float*>(memory));
        Pack(block);
        for (int64_t t = 1; t <= p_.iterations; ++t) {
          Accumulate(block, 0, t);
          Finish(block, 0, p_.classes, t);
        }
        std::free(memory);
      });
      return status_;
    }
    if (!PlaceAll()) return Status::kOutOfMemory;
    Run(blocks_, [this](int64_t index) { Pack(all_[index]); });
    for (int64_t t = 1; t <= p_.iterations; ++t) Iterate(t);
    std::free(all_);
    return status_;
  }

  Status Backward(const Gradients& gradients) {
    float* s_gradient = static_cast<float*>(Allocate(p_.batch * p_.classes * p_.d2));
    if (s_gradient == nullptr) return Status::kOutOfMemory;
    if (!PlaceAll()) {
      std::free(s_gradient);
      return Status::kOutOfMemory;
    }
    // The forward pass once more, up to s of the last iteration.
    if (chunks_ == 1) {
      Run(blocks_, [&](int64_t index) {
        const Block& block = all_[index];
        Pack(block);
        for (int64_t t = 1; t < p_.iterations; ++t) {
          Accumulate(block, 0, t);
          Finish(block, 0, p_.classes, t);
        }
        Accumulate(block, 0, p_.iterations);
        FinishGradient(block, gradients.v, s_gradient);
      });
    } else {
      Run(blocks_, [this](int64_t index) { Pack(all_[index]); });
      for (int64_t t = 1; t < p_.iterations && status_ == Status::kDone; ++t) Iterate(t);
      Run(blocks_ * chunks_, [this](int64_t index) {
        Accumulate(all_[index / chunks_], index % chunks_, p_.iterations);
      });
      Run(blocks_, [&](int64_t index) { FinishGradient(all_[index], gradients.v, s_gradient); });
    }
    if (status_ == Status::kDone) {
      Run(DivideUp(p_.capsules, kGradientTile), [&](int64_t index) {
        const int64_t first = index * kGradientTile;
        GradientTile(gradients, s_gradient, first, Min(kGradientTile, p_.capsules - first));
      });
      if (gradients.bias != nullptr) BiasGradient(s_gradient, gradients.bias);
      // Without samples no tile was written.
      if (gradients.weight != nullptr && p_.batch == 0) {
        std::memset(gradients.weight, 0, p_.classes * p_.capsules * p_.d1 * p_.d2 * sizeof(float));
      }
    }
    std::free(all_);
    std::free(s_gradient);
    return status_;
  }

 private:
  int64_t NarrowCount(int64_t left) const { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

  Block BlockAt(int64_t index) const {
    Block block{};
    if (index < wide_blocks_) {
      block.first = index * kLanes;
      block.count = Min(kLanes, p_.batch - block.first);
      block.wide = true;
      block.width = kLanes;
      return block;
    }
    int64_t left = narrow_samples_;
    for (int64_t n = wide_blocks_; n < index; ++n) left -= NarrowCount(left);
    block.first = p_.batch - left;
    block.count = block.width = NarrowCount(left);
    return block;
  }

  int64_t PoseFloats(const Block& block) const { return RoundUp(block.width * p_.classes * p_.d2); }
  int64_t BlockFloats(const Block& block) const {
    const int64_t inputs = block.wide ? p_.capsules * p_.d1 * kLanes : 0;
    const int64_t votes = block.wide ? 0 : block.count * p_.capsules * p_.classes * p_.d2;
    return RoundUp(inputs) + RoundUp(votes) + (1 + chunks_) * PoseFloats(block);
  }
  void Place(Block* block, float* memory) const {
    block->u = reinterpret_cast<Vec*>(memory);
    if (block->wide) memory += RoundUp(p_.capsules * p_.d1 * kLanes);
    block->poses = memory;
    block->sums = memory + PoseFloats(*block);
    block->votes = block->sums + chunks_ * PoseFloats(*block);
  }

  // Gives every block its memory at once.
  bool PlaceAll() {
    const int64_t list = RoundUp(DivideUp(blocks_ * sizeof(Block), sizeof(float)));
    int64_t total = list;
    for (int64_t n = 0; n < blocks_; ++n) total += RoundUp(BlockFloats(BlockAt(n)));
    all_ = static_cast<Block*>(Allocate(total));
    if (all_ == nullptr) return false;
    float* memory = reinterpret_cast<float*>(all_) + list;
    for (int64_t n = 0; n < blocks_; ++n) {
      all_[n] = BlockAt(n);
      Place(&all_[n], memory);
      memory += RoundUp(BlockFloats(all_[n]));
    }
    return true;
  }

  void Pack(const Block& block) const {
    if (block.wide) PackWide(p_, block.first, block.count, block.u);
  }

  // One iteration of all blocks, with every block's capsules shared out among the threads.
  void Iterate(int64_t t) {
    Run(blocks_ * chunks_,
        [this, t](int64_t index) { Accumulate(all_[index / chunks_], index % chunks_, t); });
    if (status_ != Status::kDone) return;
    const int64_t parts = Min(chunks_, AtLeast(1, p_.classes));
    Run(blocks_ * parts, [this, t, parts](int64_t index) {
      const int64_t part = index % parts;
      Finish(all_[index / parts], part * p_.classes / parts, (part + 1) * p_.classes / parts, t);
    });
  }

  // The part of s that comes from one chunk of the capsules.
  void Accumulate(const Block& block, int64_t chunk, int64_t t) {
    float* sums = block.sums + chunk * PoseFloats(block);
    std::memset(sums, 0, PoseFloats(block) * sizeof(float));
    const int64_t begin = chunk * chunk_, end = Min(begin + chunk_, p_.capsules);
    if (block.wide) {
      Vec* s = reinterpret_cast<Vec*>(sums);
      if (t == 1) return FirstSumWide(p_, block.u, begin, end, s);
      const int64_t tile = wide_tile_;
      void* scratch =
          Allocate((p_.classes * tile * (p_.d2 + 1) + tile) * static_cast<int64_t>(kLanes));
      if (scratch == nullptr) return Fail();
      SumWide(p_, block.u, reinterpret_cast<const Vec*>(block.poses), begin, end, tile,
              static_cast<Vec*>(scratch), s);
      std::free(scratch);
      return;
    }
    const int64_t tile = narrow_tile_;
    if (t == 1) {
      ForLanes(p_.d2, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        auto* first_sum = block.count == 4   ? FirstSumNarrow<N, 4>
                          : block.count == 2 ? FirstSumNarrow<N, 2>
                                             : FirstSumNarrow<N, 1>;
        first_sum(p_, block.first, begin, end, tile, block.votes, sums);
      });
      return;
    }
    void* scratch = Allocate((p_.classes + 1) * DivideUp(tile, kLanes) * kLanes);
    if (scratch == nullptr) return Fail();
    ForLanes(p_.d2, [&](auto lanes) {
      for (int64_t m = 0; m < block.count; ++m) {
        SumNarrow<decltype(lanes)::value>(p_, block.votes + m * p_.capsules * p_.classes * p_.d2,
                                          block.poses + m * p_.classes * p_.d2, begin, end, tile,
                                          static_cast<Vec*>(scratch),
                                          sums + m * p_.classes * p_.d2);
      }
    });
    std::free(scratch);
  }

  // s of one class and sample: the chunks and the bias added up. Returns its squared norm.
  float TotalInput(const Block& block, int64_t j, int64_t m, float* s) const {
    const int64_t step = block.wide ? kLanes : 1;
    const int64_t start = block.wide ? j * p_.d2 * kLanes + m : (m * p_.classes + j) * p_.d2;
    float squared_norm = 0.0f;
    for (int64_t k = 0; k < p_.d2; ++k) {
      float sum = p_.bias == nullptr ? 0.0f : p_.bias[j * p_.d2 + k];
      for (int64_t c = 0; c < chunks_; ++c) {
        sum += block.sums[c * PoseFloats(block) + start + k * step];
      }
      s[k * step] = sum;
      squared_norm += sum * sum;
    }
    return squared_norm;
  }

  // Squashes s of classes [begin, end): into the sum of poses, or into v after the last iteration.
  void Finish(const Block& block, int64_t begin, int64_t end, int64_t t) {
    const bool last = t == p_.iterations;
    const int64_t step = block.wide ? kLanes : 1;
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t m = 0; m < (last ? block.count : block.width); ++m) {
        const int64_t start = block.wide ? j * p_.d2 * kLanes + m : (m * p_.classes + j) * p_.d2;
        float* s = block.sums + start;  // The total goes where the first chunk's part was.
        const float factor = SquashFactor(TotalInput(block, j, m, s), p_.epsilon);
        if (last) {
          float* v = v_ + ((block.first + m) * p_.classes + j) * p_.d2;
          for (int64_t k = 0; k < p_.d2; ++k) v[k] = s[k * step] * factor;
        } else {
          float* poses = block.poses + start;
          for (int64_t k = 0; k < p_.d2; ++k) {
            const float pose = s[k * step] * factor;
            poses[k * step] = t == 1 ? pose : poses[k * step] + pose;
          }
        }
      }
    }
  }

  // Turns s after the last iteration into its gradient, and writes that as [batch, J, D2] too.
  void FinishGradient(const Block& block, const float* v_gradient, float* s_gradient) const {
    for (int64_t j = 0; j < p_.classes; ++j) {
      for (int64_t m = 0; m < kLanes; ++m) {
        float* s = block.sums + j * p_.d2 * kLanes + m;
        const float squared_norm = TotalInput(block, j, m, s);
        const int64_t at = ((block.first + m) * p_.classes + j) * p_.d2;
        float along = 0.0f;
        if (m < block.count) {
          for (int64_t k = 0; k < p_.d2; ++k) along += s[k * kLanes] * v_gradient[at + k];
        }
        const float factor = SquashFactor(squared_norm, p_.epsilon);
        const float slope = 2.0f * SquashFactorSlope(squared_norm, p_.epsilon) * along;
        for (int64_t k = 0; k < p_.d2; ++k) {
          const bool sample = m < block.count;
          const float g = sample ? factor * v_gradient[at + k] + slope * s[k * kLanes] : 0.0f;
          s[k * kLanes] = g;
          if (sample) s_gradient[at + k] = g;
        }
      }
    }
  }

  // The gradients that belong to capsules [first, first + tile), over all samples.
  void GradientTile(const Gradients& gradients, const float* s_gradient, int64_t first,
                    int64_t tile) {
    const int64_t group = Min(kGroup, blocks_);
    const int64_t vectors = group * (p_.classes * tile + p_.d1) + tile + tile * p_.d1;
    void* scratch = Allocate(vectors * kLanes);
    if (scratch == nullptr) return Fail();
    Vec* couplings = static_cast<Vec*>(scratch);          // [group, J, tile]
    Vec* scaled = couplings + group * p_.classes * tile;  // [group, D1]
    Vec* inverse = scaled + group * p_.d1;                // [tile]
    Vec* u_gradient = inverse + tile;                     // [tile, D1]
    for (int64_t start = 0; start < blocks_; start += group) {
      const int64_t count = Min(group, blocks_ - start);
      for (int64_t b = 0; b < count; ++b) {
        const Block& block = all_[start + b];
        Vec* c = couplings + b * p_.classes * tile;
        if (p_.iterations == 1) {
          for (int64_t n = 0; n < p_.classes * tile; ++n) {
            c[n] = Splat(1.0f / static_cast<float>(p_.classes));
          }
        } else {
          const Vec* poses = reinterpret_cast<const Vec*>(block.poses);
          LogitsWide<false>(p_, block.u, poses, first, tile, nullptr, c);
          SoftmaxWide(p_.classes, tile, c, inverse);
          for (int64_t n = 0; n < p_.classes * tile; ++n) c[n] *= inverse[n % tile];
        }
        if (gradients.u == nullptr) continue;
        InputGradientWide(p_, c, reinterpret_cast<const Vec*>(block.sums), first, tile, u_gradient);
        const float* lanes = reinterpret_cast<const float*>(u_gradient);
        for (int64_t m = 0; m < block.count; ++m) {
          float* out = gradients.u + ((block.first + m) * p_.capsules + first) * p_.d1;
          for (int64_t row = 0; row < tile * p_.d1; ++row) out[row] = lanes[row * kLanes + m];
        }
      }
      if (gradients.weight == nullptr) continue;
      for (int64_t j = 0; j < p_.classes; ++j) {
        for (int64_t i = 0; i < tile; ++i) {
          for (int64_t b = 0; b < count; ++b) {
            const Vec c = couplings[(b * p_.classes + j) * tile + i];
            const Vec* u = all_[start + b].u + (first + i) * p_.d1;
            for (int64_t d = 0; d < p_.d1; ++d) scaled[b * p_.d1 + d] = c * u[d];
          }
          float* out = gradients.weight + (j * p_.capsules + first + i) * p_.d1 * p_.d2;
          ForLanes(p_.d2, [&](auto lanes) {
            WeightGradient<decltype(lanes)::value>(start, count, s_gradient + j * p_.d2,
                                                   reinterpret_cast<const float*>(scaled), out);
          });
        }
      }
    }
    std::free(scratch);
  }

  // Adds the outer products of `scaled` [blocks, D1, lanes] and the gradient of s over the samples
  // of a few blocks to one matrix [D1, D2]; the first blocks write it.
  template <int N>
  void WeightGradient(int64_t start, int64_t count, const float* s_gradient, const float* scaled,
                      float* matrix) const {
    typedef typename VecOf<N>::Type V;
    const int64_t sample_step = p_.classes * p_.d2;
    for (int64_t k = 0; k < p_.d2; k += N) {
      ForRows(p_.d1, [&](int64_t d, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        V sum[kRows] = {};
        for (int64_t b = 0; b < count; ++b) {
          const Block& block = all_[start + b];
          const float* x = scaled + (b * p_.d1 + d) * kLanes;
          const float* g = s_gradient + block.first * sample_step + k;
          for (int64_t m = 0; m < block.count; ++m, g += sample_step) {
            const V row = *reinterpret_cast<const V*>(g);
            for (int r = 0; r < kRows; ++r) sum[r] += row * x[r * kLanes + m];
          }
        }
        for (int r = 0; r < kRows; ++r) {
          V& out = *reinterpret_cast<V*>(matrix + (d + r) * p_.d2 + k);
          out = start == 0 ? sum[r] : out + sum[r];
        }
      });
    }
  }

  void BiasGradient(const float* s_gradient, float* bias) const {
    const int64_t size = p_.classes * p_.d2;
    std::memset(bias, 0, size * sizeof(float));
    for (int64_t n = 0; n < p_.batch; ++n) {
      for (int64_t k = 0; k < size; ++k) bias[k] += s_gradient[n * size + k];
    }
  }

  template <class Work>
  void Run(int64_t count, Work work) {
    if (count <= 0) return;
    if (count == 1) return work(0);
    pool_.run(
        pool_.self,
        [](void* data, size_t index) { (*static_cast<Work*>(data))(static_cast<int64_t>(index)); },
        static_cast<size_t>(count), &work);
  }

  void Fail() {
    const int failed = static_cast<int>(Status::kOutOfMemory);
    __atomic_store_n(reinterpret_cast<int*>(&status_), failed, __ATOMIC_RELAXED);
  }

  const Problem& p_;
  const Pool& pool_;
  int64_t wide_tile_, narrow_tile_;
  int64_t wide_blocks_, narrow_samples_, blocks_;
  int64_t chunks_, chunk_;
  Block* all_ = nullptr;
  float* v_ = nullptr;
  Status status_ = Status::kDone;
};

Status RunForward(const Problem& problem, const Pool& pool, float* v) {
  return Routing(problem, pool, true).Forward(v);
}

Status RunBackward(const Problem& problem, const Pool& pool, const Gradients& gradients) {
  return Routing(problem, pool, false).Backward(gradients);
}

}  // namespace

namespace capsprune {
extern const Kernels CAPSPRUNE_KERNELS;
const Kernels CAPSPRUNE_KERNELS = {CAPSPRUNE_KERNELS_NAME, RunForward, RunBackward};
}  // namespace capsprune
