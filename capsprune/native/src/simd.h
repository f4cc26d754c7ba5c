// The vector of floats that a kernel is written with; its width is that of the instruction set this
// file is compiled for. GCC and Clang turn their vector extensions into AVX-512, AVX2, SSE2 or
// NEON.

#ifndef CAPSPRUNE_SIMD_H_
#define CAPSPRUNE_SIMD_H_

#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
// How many output values are held in registers at once.
constexpr int kColumns = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kColumns = 8;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kColumns = 16;
#else
constexpr int kLanes = 4;
constexpr int kColumns = 8;
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t IntVec __attribute__((vector_size(kLanes * sizeof(float))));
// The same, at any address.
typedef float LooseVec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vec Splat(float x) { return x - Vec{}; }
inline Vec Load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }

// The first `count` values at p, and zeros.
inline Vec LoadFirst(const float* p, int count) {
  Vec v{};
  std::memcpy(&v, p, count * sizeof(float));
  return v;
}
inline void StoreFirst(float* p, Vec v, int count) { std::memcpy(p, &v, count * sizeof(float)); }

// The larger of two; the second where one is not a number.
inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }

// The sum of the lanes.
template <int N>
inline float SumLanes(const float* lanes) {
  typedef float Half __attribute__((vector_size(N / 2 * sizeof(float))));
  Half low, high;
  std::memcpy(&low, lanes, sizeof(Half));
  std::memcpy(&high, lanes + N / 2, sizeof(Half));
  low += high;
  return SumLanes<N / 2>(reinterpret_cast<const float*>(&low));
}
template <>
inline float SumLanes<1>(const float* lanes) {
  return lanes[0];
}
inline float Sum(Vec v) { return SumLanes<kLanes>(reinterpret_cast<const float*>(&v)); }

// e^x for x <= 0, to about 1e-7 relative; what is below e^-87 is e^-87, and NaN stays NaN.
inline Vec ExpOfNegative(Vec x) {
  const Vec lowest = Splat(-87.0f);
  x = x < lowest ? lowest : x;
  // Adding this constant leaves round(x / ln 2) in the low bits of the sum.
  const float kShift = 12582912.0f;
  Vec shifted = x * 1.44269504088896341f + kShift;
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  Vec n = shifted - kShift;
  // ln 2 in two parts, so that the difference is exact.
  Vec r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  // Taylor's series on [-ln 2 / 2, ln 2 / 2].
  Vec p = Splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  bits = (bits << 23) + (127u << 23);  // 2^n: the shift keeps n alone.
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

}  // namespace

#endif  // CAPSPRUNE_SIMD_H_
