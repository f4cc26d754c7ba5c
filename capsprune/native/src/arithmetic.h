// The arithmetic that the CPU and the CUDA kernels share.

#ifndef CAPSPRUNE_ARITHMETIC_H_
#define CAPSPRUNE_ARITHMETIC_H_

#if defined(__CUDACC__)
#define CAPSPRUNE_SHARED __host__ __device__ inline
#else
#define CAPSPRUNE_SHARED inline
#endif

namespace {

CAPSPRUNE_SHARED float SquareRoot(float x) {
#if defined(__CUDA_ARCH__)
  return sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}

CAPSPRUNE_SHARED float Exponential(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  return __builtin_expf(x);
#endif
}

// What a total input s with this squared norm is multiplied by: equation (3). Two divisions, since
// the product of the denominators could overflow where neither does.
CAPSPRUNE_SHARED float SquashFactor(float squared_norm, float epsilon) {
  return squared_norm / (1.0f + squared_norm) / SquareRoot(squared_norm + epsilon);
}

// The derivative of SquashFactor by the squared norm.
CAPSPRUNE_SHARED float SquashFactorSlope(float squared_norm, float epsilon) {
  const float above = 1.0f + squared_norm;
  const float inside = squared_norm + epsilon;
  const float root = SquareRoot(inside);
  return 1.0f / above / above / root - 0.5f * (squared_norm / above) / inside / root;
}

}  // namespace

#endif  // CAPSPRUNE_ARITHMETIC_H_
