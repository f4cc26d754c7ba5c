// Chooses the build of the kernels when the library is first used.

#include <cstdlib>
#include <cstring>

#include "routing.h"

namespace capsprune {

// Each is there if the file was compiled for it; see build.py.
#if defined(CAPSPRUNE_X86)
extern const Kernels kKernelsAvx512;
extern const Kernels kKernelsAvx2;
#endif
extern const Kernels kKernelsBaseline;

namespace {

struct Candidate {
  const Kernels* kernels;
  bool runs;
};

}  // namespace

const Kernels* SelectKernels(const char* name) {
#if defined(CAPSPRUNE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw");
#endif
  const Candidate candidates[] = {
#if defined(CAPSPRUNE_X86)
    {&kKernelsAvx512, avx512},
    {&kKernelsAvx2, avx2},
#endif
    {&kKernelsBaseline, true},
  };
  for (const Candidate& candidate : candidates) {
    const bool wanted = name == nullptr || std::strcmp(name, candidate.kernels->name) == 0;
    if (candidate.runs && wanted) return candidate.kernels;
  }
  return nullptr;
}

}  // namespace capsprune
