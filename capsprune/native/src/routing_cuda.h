// Routing on an NVIDIA GPU.

#ifndef CAPSPRUNE_ROUTING_CUDA_H_
#define CAPSPRUNE_ROUTING_CUDA_H_

#include "routing.h"

namespace capsprune {

// Enqueues the work on a CUDA stream; all pointers are to the GPU's memory. Returns null, or what
// failed.
const char* RouteOnCuda(const Problem& problem, float* v, void* stream);

}  // namespace capsprune

#endif  // CAPSPRUNE_ROUTING_CUDA_H_
