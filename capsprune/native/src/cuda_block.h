// Routing on a GPU, written as the phases of one thread block, so that a CPU can go through them
// too: every phase is a function of the thread's number, and nothing is shared inside a phase. The
// CUDA kernel runs a phase on all threads and then waits; the CPU runs its threads in a loop.
//
// A thread block takes a few samples and some of the primary capsules, and adds up their votes,
// weighted, into memory of its own. As on the CPU no logit is kept: they come from the sum of the
// earlier poses.

#ifndef CAPSPRUNE_CUDA_BLOCK_H_
#define CAPSPRUNE_CUDA_BLOCK_H_

#include "arithmetic.h"
#include "routing.h"

namespace {

using capsprune::Problem;

constexpr int kBlockThreads = 256;
// Threads that go through the classes of one sample together.
constexpr int kReducers = 32;
constexpr int kMostSamples = kBlockThreads / kReducers;
// Every GPU gives a thread block that much without being asked.
constexpr int64_t kSharedBytes = 48 << 10;

// How the work is cut up.
struct CudaPlan {
  int64_t samples;   // Of one thread block.
  int64_t tiles;     // Groups of samples.
  int64_t chunks;    // Groups of capsules.
  int64_t chunk;     // Capsules in a group.
  bool keeps_votes;  // Otherwise they are computed twice.
  int64_t shared;    // Floats of shared memory.

  explicit CudaPlan(const Problem& p) {
    const int64_t columns = p.classes * p.d2;
    const int64_t room = kSharedBytes / static_cast<int64_t>(sizeof(float)) - kBlockThreads;
    keeps_votes = columns + p.classes + p.d1 <= room;
    const int64_t each = (keeps_votes ? columns : 0) + p.classes + p.d1;
    samples = room / each;
    samples = samples < 1 ? 1 : samples > kMostSamples ? kMostSamples : samples;
    if (samples > p.batch) samples = p.batch < 1 ? 1 : p.batch;
    tiles = (p.batch + samples - 1) / samples;
    // Enough thread blocks for the largest GPUs, of some capsules each.
    const int64_t wanted = tiles < 1 ? 1 : (512 + tiles - 1) / tiles;
    const int64_t most = (p.capsules + 3) / 4;
    chunks = wanted < most ? wanted : most;
    chunk = (p.capsules + chunks - 1) / chunks;
    chunks = (p.capsules + chunk - 1) / chunk;
    shared = samples * each + kBlockThreads;
  }
  // Whether the classes of one sample fit into shared memory at all.
  bool Fits() const { return shared * static_cast<int64_t>(sizeof(float)) <= kSharedBytes; }
  // Floats of the sums of all thread blocks.
  int64_t SumFloats(const Problem& p) const { return chunks * p.batch * p.classes * p.d2; }
};

struct CudaBlock {
  Problem p;
  CudaPlan plan;
  int64_t first_sample, samples;
  int64_t begin, end;  // Capsules.
  const float* poses;  // [batch, J, D2]: the sum of earlier poses; null in the first iteration.
  float* sums;         // [batch, J, D2] of this chunk.
  // Shared memory.
  float* u;          // [samples, D1]
  float* couplings;  // [samples, J]
  float* votes;      // [samples, J * D2], if they are kept
  float* partial;    // [kBlockThreads]

  CAPSPRUNE_SHARED CudaBlock(const Problem& problem, const CudaPlan& cut, int64_t tile,
                             int64_t chunk, const float* earlier, float* all_sums, float* shared)
      : p(problem), plan(cut), poses(earlier) {
    first_sample = tile * plan.samples;
    samples = p.batch - first_sample < plan.samples ? p.batch - first_sample : plan.samples;
    begin = chunk * plan.chunk;
    end = begin + plan.chunk < p.capsules ? begin + plan.chunk : p.capsules;
    sums = all_sums + chunk * p.batch * p.classes * p.d2;
    u = shared;
    couplings = u + plan.samples * p.d1;
    partial = couplings + plan.samples * p.classes;
    votes = partial + kBlockThreads;
  }

  CAPSPRUNE_SHARED int64_t Columns() const { return p.classes * p.d2; }

  CAPSPRUNE_SHARED void Clear(int thread) const {
    for (int64_t n = thread; n < samples * Columns(); n += kBlockThreads) {
      sums[first_sample * Columns() + n] = 0.0f;
    }
  }

  CAPSPRUNE_SHARED void LoadInputs(int thread, int64_t i) const {
    for (int64_t n = thread; n < samples * p.d1; n += kBlockThreads) {
      const int64_t sample = n / p.d1, d = n % p.d1;
      u[n] = p.u[((first_sample + sample) * p.capsules + i) * p.d1 + d];
    }
  }

  // The vote of capsule i in one column (class and value) for one sample.
  CAPSPRUNE_SHARED float Vote(int64_t i, int64_t column, int64_t sample) const {
    const int64_t j = column / p.d2, k = column % p.d2;
    const float* w = p.weight + (j * p.capsules + i) * p.d1 * p.d2 + k;
    float vote = 0.0f;
    for (int64_t d = 0; d < p.d1; ++d) vote += u[sample * p.d1 + d] * w[d * p.d2];
    return vote;
  }

  // Neighbouring threads read neighbouring values of W; a value serves all samples.
  CAPSPRUNE_SHARED void KeepVotes(int thread, int64_t i) const {
    for (int64_t column = thread; column < Columns(); column += kBlockThreads) {
      const int64_t j = column / p.d2, k = column % p.d2;
      const float* w = p.weight + (j * p.capsules + i) * p.d1 * p.d2 + k;
      float vote[kMostSamples] = {};
      for (int64_t d = 0; d < p.d1; ++d) {
        const float value = w[d * p.d2];
        for (int sample = 0; sample < kMostSamples; ++sample) {
          if (sample < samples) vote[sample] += u[sample * p.d1 + d] * value;
        }
      }
      for (int sample = 0; sample < kMostSamples; ++sample) {
        if (sample < samples) votes[sample * Columns() + column] = vote[sample];
      }
    }
  }

  CAPSPRUNE_SHARED void Logits(int thread, int64_t i) const {
    for (int64_t n = thread; n < samples * p.classes; n += kBlockThreads) {
      const int64_t sample = n / p.classes, j = n % p.classes;
      const float* pose = poses + (first_sample + sample) * Columns() + j * p.d2;
      float logit = 0.0f;
      for (int64_t k = 0; k < p.d2; ++k) {
        const int64_t column = j * p.d2 + k;
        const float vote =
            plan.keeps_votes ? votes[sample * Columns() + column] : Vote(i, column, sample);
        logit += vote * pose[k];
      }
      couplings[n] = logit;
    }
  }

  // Each reducer's largest logit of its share of the classes.
  CAPSPRUNE_SHARED void LargestOfShare(int thread) const {
    const int64_t sample = thread / kReducers;
    if (sample >= samples) return;
    float largest = -3.402823466e38f;
    for (int64_t j = thread % kReducers; j < p.classes; j += kReducers) {
      const float logit = couplings[sample * p.classes + j];
      largest = logit > largest ? logit : largest;
    }
    partial[thread] = largest;
  }

  // Turns the logits into e^(logit - largest).
  CAPSPRUNE_SHARED void Exponentials(int thread) const {
    const int64_t sample = thread / kReducers;
    if (sample >= samples) return;
    float largest = partial[sample * kReducers];
    for (int n = 1; n < kReducers; ++n) {
      const float other = partial[sample * kReducers + n];
      largest = other > largest ? other : largest;
    }
    for (int64_t j = thread % kReducers; j < p.classes; j += kReducers) {
      float& value = couplings[sample * p.classes + j];
      value = Exponential(value - largest);
    }
  }

  CAPSPRUNE_SHARED void SumOfShare(int thread) const {
    const int64_t sample = thread / kReducers;
    if (sample >= samples) return;
    float sum = 0.0f;
    for (int64_t j = thread % kReducers; j < p.classes; j += kReducers) {
      sum += couplings[sample * p.classes + j];
    }
    partial[thread] = sum;
  }

  CAPSPRUNE_SHARED void Divide(int thread) const {
    const int64_t sample = thread / kReducers;
    if (sample >= samples) return;
    float sum = 0.0f;
    for (int n = 0; n < kReducers; ++n) sum += partial[sample * kReducers + n];
    for (int64_t j = thread % kReducers; j < p.classes; j += kReducers) {
      couplings[sample * p.classes + j] /= sum;
    }
  }

  CAPSPRUNE_SHARED void AddVotes(int thread, int64_t i) const {
    const float share = 1.0f / static_cast<float>(p.classes);
    for (int64_t column = thread; column < Columns(); column += kBlockThreads) {
      const int64_t j = column / p.d2;
      for (int64_t sample = 0; sample < samples; ++sample) {
        const float vote =
            plan.keeps_votes ? votes[sample * Columns() + column] : Vote(i, column, sample);
        const float c = poses == nullptr ? share : couplings[sample * p.classes + j];
        sums[(first_sample + sample) * Columns() + column] += c * vote;
      }
    }
  }

  // All phases. `barrier` is called with a phase: it runs that on every thread, and waits.
  template <class Barrier>
  CAPSPRUNE_SHARED void Accumulate(Barrier barrier) const {
    const CudaBlock& self = *this;
    barrier([&](int thread) { self.Clear(thread); });
    for (int64_t i = begin; i < end; ++i) {
      barrier([&](int thread) { self.LoadInputs(thread, i); });
      if (plan.keeps_votes) barrier([&](int thread) { self.KeepVotes(thread, i); });
      if (poses != nullptr) {
        barrier([&](int thread) { self.Logits(thread, i); });
        barrier([&](int thread) { self.LargestOfShare(thread); });
        barrier([&](int thread) { self.Exponentials(thread); });
        barrier([&](int thread) { self.SumOfShare(thread); });
        barrier([&](int thread) { self.Divide(thread); });
      }
      barrier([&](int thread) { self.AddVotes(thread, i); });
    }
  }
};

// One class of one sample, `index` of [batch, J]: adds up the chunks and the bias, squashes, and
// writes v after the last iteration, or else adds to the poses.
CAPSPRUNE_SHARED void FinishOnCuda(const Problem& p, const CudaPlan& plan, int64_t index,
                                   int64_t iteration, float* sums, float* poses, float* v) {
  const int64_t size = p.batch * p.classes * p.d2;
  const int64_t start = index * p.d2;
  const int64_t j = index % p.classes;
  float squared_norm = 0.0f;
  for (int64_t k = 0; k < p.d2; ++k) {
    float s = p.bias == nullptr ? 0.0f : p.bias[j * p.d2 + k];
    for (int64_t c = 0; c < plan.chunks; ++c) s += sums[c * size + start + k];
    sums[start + k] = s;
    squared_norm += s * s;
  }
  const float factor = SquashFactor(squared_norm, p.epsilon);
  for (int64_t k = 0; k < p.d2; ++k) {
    const float pose = sums[start + k] * factor;
    if (iteration == p.iterations) {
      v[start + k] = pose;
    } else {
      poses[start + k] = iteration == 1 ? pose : poses[start + k] + pose;
    }
  }
}

}  // namespace

#endif  // CAPSPRUNE_CUDA_BLOCK_H_
