// The CUDA kernels: the phases of cuda_block.h, and their launch.

#include <cuda_runtime.h>

#include "cuda_block.h"
#include "routing_cuda.h"

namespace {

__global__ void __launch_bounds__(kBlockThreads)
    AccumulateKernel(Problem problem, CudaPlan plan, const float* poses, float* sums) {
  extern __shared__ float shared[];
  // The number of tiles has no bound; that of thread blocks in y and z does.
  const int64_t tile = blockIdx.x / plan.chunks, chunk = blockIdx.x % plan.chunks;
  const CudaBlock block(problem, plan, tile, chunk, poses, sums, shared);
  block.Accumulate([](auto phase) {
    phase(static_cast<int>(threadIdx.x));
    __syncthreads();
  });
}

__global__ void __launch_bounds__(kBlockThreads)
    FinishKernel(Problem problem, CudaPlan plan, int64_t iteration, float* sums, float* poses,
                 float* v) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index < problem.batch * problem.classes) {
    FinishOnCuda(problem, plan, index, iteration, sums, poses, v);
  }
}

}  // namespace

namespace capsprune {

const char* RouteOnCuda(const Problem& problem, float* v, void* stream_pointer) {
  if (problem.batch == 0) return nullptr;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  const CudaPlan plan(problem);
  if (!plan.Fits()) return "DynamicRouting has too many classes for one thread block's memory";
  const int64_t pose_floats = problem.batch * problem.classes * problem.d2;
  float* sums = nullptr;
  // In the stream's order: freed memory is used again only by what comes after.
  cudaError_t error =
      cudaMallocAsync(reinterpret_cast<void**>(&sums),
                      (plan.SumFloats(problem) + pose_floats) * sizeof(float), stream);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  float* poses = sums + plan.SumFloats(problem);
  const unsigned blocks = static_cast<unsigned>(plan.tiles * plan.chunks);
  const unsigned finishing =
      static_cast<unsigned>((problem.batch * problem.classes + kBlockThreads - 1) / kBlockThreads);
  for (int64_t t = 1; t <= problem.iterations; ++t) {
    AccumulateKernel<<<blocks, kBlockThreads, plan.shared * sizeof(float), stream>>>(
        problem, plan, t == 1 ? nullptr : poses, sums);
    FinishKernel<<<finishing, kBlockThreads, 0, stream>>>(problem, plan, t, sums, poses, v);
  }
  error = cudaGetLastError();
  const cudaError_t freed = cudaFreeAsync(sums, stream);
  if (error == cudaSuccess) error = freed;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace capsprune
