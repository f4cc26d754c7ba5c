// A part of kernels.cc: wide blocks, in which lane l of every vector is sample l of the block.

#ifndef CAPSPRUNE_WIDE_H_
#define CAPSPRUNE_WIDE_H_

#include "arithmetic.h"
#include "loops.h"
#include "routing.h"
#include "simd.h"

namespace {

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

}  // namespace

#endif  // CAPSPRUNE_WIDE_H_
