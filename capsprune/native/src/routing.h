// The routing of capsules (Sabour et al. 2017, equations 1 to 4) on a CPU: what callers see.
//
// All tensors are float32, contiguous, and laid out as in the ONNX op `capsprune::DynamicRouting`:
// u is [batch, I, D1], weight is [J, I, D1, D2], bias is [J, D2] or null, v is [batch, J, D2].

#ifndef CAPSPRUNE_ROUTING_H_
#define CAPSPRUNE_ROUTING_H_

#include <cstddef>
#include <cstdint>

namespace capsprune {

struct Problem {
  int64_t batch, capsules, classes, d1, d2;
  int64_t iterations;
  float epsilon;
  const float* u;
  const float* weight;
  const float* bias;
};

// What backward makes; what is null is not computed.
struct Gradients {
  const float* v;  // Given: the gradient of v, [batch, J, D2].
  float* u;        // [batch, I, D1].
  float* weight;   // [J, I, D1, D2].
  float* bias;     // [J, D2].
};

// Runs tasks 0 to count - 1, in any order and at the same time, and returns when all are done.
struct Pool {
  void (*run)(void* self, void (*task)(void* data, size_t index), size_t count, void* data);
  void* self;
  // How many tasks are worth making, at least 1.
  int64_t threads;
};

enum class Status { kDone, kOutOfMemory };

// One build of the kernels, for one instruction set.
struct Kernels {
  const char* name;
  Status (*forward)(const Problem&, const Pool&, float* v);
  // Only the last iteration carries gradients.
  Status (*backward)(const Problem&, const Pool&, const Gradients&);
};

// The best build that this processor can run, or the one named so; null if there is none.
const Kernels* SelectKernels(const char* name = nullptr);

}  // namespace capsprune

#endif  // CAPSPRUNE_ROUTING_H_
