// A part of kernels.cc: narrow blocks, in which the lanes are D2, N of them at a time.

#ifndef CAPSPRUNE_NARROW_H_
#define CAPSPRUNE_NARROW_H_

#include "arithmetic.h"
#include "loops.h"
#include "routing.h"
#include "simd.h"
#include "wide.h"

namespace {

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

}  // namespace

#endif  // CAPSPRUNE_NARROW_H_
