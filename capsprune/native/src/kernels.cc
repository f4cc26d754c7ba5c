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
#include "loops.h"
#include "narrow.h"
#include "routing.h"
#include "simd.h"
#include "wide.h"

namespace {

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
