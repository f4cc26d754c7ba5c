// What Python calls through ctypes.

#include <atomic>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "cuda_block.h"
#include "routing.h"

#define CAPSPRUNE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using capsprune::Gradients;
using capsprune::Kernels;
using capsprune::Pool;
using capsprune::Problem;

// GNU OpenMP's entry for a parallel region: runs the function on every thread of the caller's team.
// PyTorch has it in the process; it is handed in, so that this library needs no OpenMP of its own.
using OpenMp = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

struct Threads {
  OpenMp openmp;
  int64_t count;
};

struct Job {
  void (*task)(void*, size_t);
  size_t count;
  void* data;
  std::atomic<size_t> next{0};

  // Takes tasks until none is left.
  static void Work(void* self) {
    Job* job = static_cast<Job*>(self);
    for (size_t index; (index = job->next.fetch_add(1)) < job->count;) job->task(job->data, index);
  }
};

void RunTasks(void* self, void (*task)(void*, size_t), size_t count, void* data) {
  const Threads& threads = *static_cast<const Threads*>(self);
  Job job;
  job.task = task;
  job.count = count;
  job.data = data;
  const size_t wanted = threads.count < 1 ? 1 : static_cast<size_t>(threads.count);
  const size_t used = wanted < count ? wanted : count;
  if (used > 1 && threads.openmp != nullptr) {
    threads.openmp(Job::Work, &job, static_cast<unsigned>(used), 0);
    return;
  }
  std::vector<std::thread> helpers;
  try {
    helpers.reserve(used - 1);
    for (size_t n = 1; n < used; ++n) helpers.emplace_back(Job::Work, &job);
  } catch (const std::exception&) {
    // No thread or no memory for one: those that there are do the work.
  }
  Job::Work(&job);
  for (std::thread& helper : helpers) helper.join();
}

const Kernels* chosen_kernels = nullptr;

const Kernels* Chosen() {
  return chosen_kernels != nullptr ? chosen_kernels : capsprune::SelectKernels();
}

}  // namespace

// The version of what is exported here; Python refuses a library of another one.
CAPSPRUNE_EXPORT int capsprune_abi() { return 1; }

// Whether the library has the op for ONNX Runtime's CUDA provider too.
CAPSPRUNE_EXPORT int capsprune_has_cuda() {
#if defined(CAPSPRUNE_CUDA)
  return 1;
#else
  return 0;
#endif
}

// The instruction set in use: "avx512", "avx2", "neon" or "baseline".
CAPSPRUNE_EXPORT const char* capsprune_instruction_set() { return Chosen()->name; }

// Uses another instruction set from now on, for tests and measurements; null: the best again.
// Returns 0, or 1 if this processor or this build does not have it.
CAPSPRUNE_EXPORT int capsprune_use_instruction_set(const char* name) {
  const Kernels* found = capsprune::SelectKernels(name);
  if (found == nullptr) return 1;
  chosen_kernels = found;
  return 0;
}

// Writes v. Returns 0, or 1 if there is not enough memory.
CAPSPRUNE_EXPORT int capsprune_routing_forward(const int64_t* sizes, float epsilon, const float* u,
                                               const float* weight, const float* bias,
                                               OpenMp openmp, int64_t threads, float* v) {
  const Problem problem{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                        sizes[5], epsilon,  u,        weight,   bias};
  Threads team{openmp, threads};
  const Pool pool{RunTasks, &team, threads};
  return static_cast<int>(Chosen()->forward(problem, pool, v));
}

// Writes the gradients that are not null. Returns likewise.
CAPSPRUNE_EXPORT int capsprune_routing_backward(const int64_t* sizes, float epsilon, const float* u,
                                                const float* weight, const float* bias,
                                                OpenMp openmp, int64_t threads,
                                                const float* v_gradient, float* u_gradient,
                                                float* weight_gradient, float* bias_gradient) {
  const Problem problem{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                        sizes[5], epsilon,  u,        weight,   bias};
  const Gradients gradients{v_gradient, u_gradient, weight_gradient, bias_gradient};
  Threads team{openmp, threads};
  const Pool pool{RunTasks, &team, threads};
  return static_cast<int>(Chosen()->backward(problem, pool, gradients));
}

// The CUDA kernels' arithmetic, gone through by one thread: their test where there is no GPU.
// Returns 0, or 1 if there is not enough memory or the classes do not fit.
CAPSPRUNE_EXPORT int capsprune_routing_emulate_cuda(const int64_t* sizes, float epsilon,
                                                    const float* u, const float* weight,
                                                    const float* bias, float* v) {
  const Problem problem{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                        sizes[5], epsilon,  u,        weight,   bias};
  const CudaPlan plan(problem);
  if (!plan.Fits()) return 1;
  try {
    // What shared memory holds at first is anything.
    std::vector<float> shared(static_cast<size_t>(plan.shared), 1e30f);
    std::vector<float> sums(static_cast<size_t>(plan.SumFloats(problem)), 1e30f);
    const size_t pose_floats = static_cast<size_t>(problem.batch * problem.classes * problem.d2);
    std::vector<float> poses(pose_floats, 1e30f);
    for (int64_t t = 1; t <= problem.iterations; ++t) {
      for (int64_t block = 0; block < plan.tiles * plan.chunks; ++block) {
        const CudaBlock one(problem, plan, block / plan.chunks, block % plan.chunks,
                            t == 1 ? nullptr : poses.data(), sums.data(), shared.data());
        one.Accumulate([](auto phase) {
          // Backwards, so that a phase that needs what another thread does in it is found out.
          for (int thread = kBlockThreads - 1; thread >= 0; --thread) phase(thread);
        });
      }
      for (int64_t index = 0; index < problem.batch * problem.classes; ++index) {
        FinishOnCuda(problem, plan, index, t, sums.data(), poses.data(), v);
      }
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
