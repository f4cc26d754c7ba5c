// The op `capsprune::DynamicRouting` for ONNX Runtime. A session that registers this library runs
// these kernels for the op's nodes; any other session inlines the function that the file carries.

#include <cstdio>
#include <new>
#include <thread>

#include "ort_api.h"
#include "routing.h"
#if defined(CAPSPRUNE_CUDA)
#include "routing_cuda.h"
#endif

namespace {

using namespace capsprune::ort;
using capsprune::Problem;

// More threads than this gain nothing on one block of samples.
constexpr int64_t kMostThreads = 16;

struct Kernel {
  const Api* api;
  int64_t iterations;
  float epsilon;
};

// A tensor that the runtime gave: its address and sizes.
struct Tensor {
  void* data = nullptr;
  int64_t sizes[4] = {};
  size_t dimensions = 0;
};

#define CAPSPRUNE_TRY(call) \
  if (Status* failed = (call)) return failed

Status* ReadInput(const Api& api, const KernelContext* context, size_t index, size_t dimensions,
                  Tensor* tensor) {
  const Value* value = nullptr;
  CAPSPRUNE_TRY(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return nullptr;  // An optional input that is not there.
  TensorInfo* info = nullptr;
  CAPSPRUNE_TRY(api.GetTensorTypeAndShape(value, &info));
  Status* status = api.GetDimensionsCount(info, &tensor->dimensions);
  if (status == nullptr && tensor->dimensions == dimensions) {
    status = api.GetDimensions(info, tensor->sizes, dimensions);
  }
  api.ReleaseTensorTypeAndShapeInfo(info);
  if (status != nullptr) return status;
  if (tensor->dimensions != dimensions) {
    static const char* const kShapes[] = {"u must be [batch, I, D1]",
                                          "weight must be [J, I, D1, D2]", "bias must be [J, D2]"};
    return api.CreateStatus(kInvalidArgument, kShapes[index]);
  }
  return api.GetTensorMutableData(const_cast<Value*>(value), &tensor->data);
}

// Reads the inputs and makes the output.
Status* Prepare(const Kernel& kernel, KernelContext* context, Problem* problem, float** v) {
  const Api& api = *kernel.api;
  Tensor u, weight, bias;
  CAPSPRUNE_TRY(ReadInput(api, context, 0, 3, &u));
  CAPSPRUNE_TRY(ReadInput(api, context, 1, 4, &weight));
  size_t inputs = 0;
  CAPSPRUNE_TRY(api.KernelContext_GetInputCount(context, &inputs));
  if (inputs > 2) CAPSPRUNE_TRY(ReadInput(api, context, 2, 2, &bias));

  const int64_t* w = weight.sizes;
  const bool fits = u.sizes[1] == w[1] && u.sizes[2] == w[2];
  const bool bias_fits = bias.data == nullptr || (bias.sizes[0] == w[0] && bias.sizes[1] == w[3]);
  if (!fits || !bias_fits || w[0] < 1 || w[1] < 1 || w[2] < 1 || w[3] < 1) {
    char text[256];
    std::snprintf(text, sizeof text,
                  "DynamicRouting takes u [batch, I, D1], weight [J, I, D1, D2] and bias [J, D2], "
                  "not [%lld, %lld, %lld], [%lld, %lld, %lld, %lld] and [%lld, %lld]",
                  (long long)u.sizes[0], (long long)u.sizes[1], (long long)u.sizes[2],
                  (long long)w[0], (long long)w[1], (long long)w[2], (long long)w[3],
                  (long long)bias.sizes[0], (long long)bias.sizes[1]);
    return api.CreateStatus(kInvalidArgument, text);
  }
  const int64_t sizes[] = {u.sizes[0], w[0], w[3]};
  Value* output = nullptr;
  CAPSPRUNE_TRY(api.KernelContext_GetOutput(context, 0, sizes, 3, &output));
  void* values = nullptr;
  CAPSPRUNE_TRY(api.GetTensorMutableData(output, &values));
  *v = static_cast<float*>(values);
  *problem = Problem{u.sizes[0],
                     w[1],
                     w[0],
                     w[2],
                     w[3],
                     kernel.iterations,
                     kernel.epsilon,
                     static_cast<const float*>(u.data),
                     static_cast<const float*>(weight.data),
                     static_cast<const float*>(bias.data)};
  return nullptr;
}

// The runtime's own threads.
struct ContextPool {
  const Api* api;
  const KernelContext* context;
  Status* status;

  static void Run(void* self, void (*task)(void*, size_t), size_t count, void* data) {
    ContextPool& pool = *static_cast<ContextPool*>(self);
    if (pool.status != nullptr) return;
    pool.status = pool.api->KernelContext_ParallelFor(pool.context, task, count, 0, data);
  }
};

Status* ComputeOnCpu(void* self, KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  Problem problem;
  float* v = nullptr;
  CAPSPRUNE_TRY(Prepare(kernel, context, &problem, &v));
  ContextPool threads{kernel.api, context, nullptr};
  // The runtime does not tell how many threads it has: at most one for each processor.
  const int64_t processors = std::thread::hardware_concurrency();
  const int64_t count = processors < 1 ? 1 : processors < kMostThreads ? processors : kMostThreads;
  const capsprune::Pool pool{ContextPool::Run, &threads, count};
  const capsprune::Status status = capsprune::SelectKernels()->forward(problem, pool, v);
  if (threads.status != nullptr) return threads.status;
  if (status != capsprune::Status::kDone) {
    return kernel.api->CreateStatus(kFail, "there is not enough memory for DynamicRouting");
  }
  return nullptr;
}

#if defined(CAPSPRUNE_CUDA)
Status* ComputeOnCuda(void* self, KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  Problem problem;
  float* v = nullptr;
  CAPSPRUNE_TRY(Prepare(kernel, context, &problem, &v));
  void* stream = nullptr;
  CAPSPRUNE_TRY(kernel.api->KernelContext_GetGPUComputeStream(context, &stream));
  const char* failed = capsprune::RouteOnCuda(problem, v, stream);
  return failed == nullptr ? nullptr : kernel.api->CreateStatus(kFail, failed);
}
#endif

Status* CreateKernel(const CustomOp*, const Api* api, const KernelInfo* info, void** out) {
  Kernel kernel{api, 0, 0.0f};
  CAPSPRUNE_TRY(api->KernelInfoGetAttribute_int64(info, "iterations", &kernel.iterations));
  CAPSPRUNE_TRY(api->KernelInfoGetAttribute_float(info, "epsilon", &kernel.epsilon));
  if (kernel.iterations < 1) {
    return api->CreateStatus(kInvalidArgument, "iterations of DynamicRouting must be at least 1");
  }
  Kernel* made = new (std::nothrow) Kernel(kernel);
  if (made == nullptr) return api->CreateStatus(kFail, "there is no memory left");
  *out = made;
  return nullptr;
}

CustomOp DescribeOp() {
  CustomOp op{};
  op.version = kVersion;
  op.GetName = [](const CustomOp*) { return "DynamicRouting"; };
  op.GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const CustomOp*) { return size_t{3}; };
  op.GetInputType = [](const CustomOp*, size_t) { return kFloat; };
  op.GetInputCharacteristic = [](const CustomOp*, size_t index) {
    return index == 2 ? kOptional : kRequired;
  };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
  op.GetOutputTypeCount = [](const CustomOp*) { return size_t{1}; };
  op.GetOutputType = [](const CustomOp*, size_t) { return kFloat; };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.CreateKernelV2 = CreateKernel;
  op.KernelComputeV2 = ComputeOnCpu;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return INT32_MAX; };
  return op;
}

const CustomOp* CpuOp() {
  static const CustomOp op = DescribeOp();
  return &op;
}

#if defined(CAPSPRUNE_CUDA)
const CustomOp* CudaOp() {
  static const CustomOp op = [] {
    CustomOp described = DescribeOp();
    described.GetExecutionProviderType = [](const CustomOp*) { return "CUDAExecutionProvider"; };
    described.KernelComputeV2 = ComputeOnCuda;
    return described;
  }();
  return &op;
}
#endif

// The domain has to outlive every session that it was added to: it lives as long as the library.
struct Domain {
  const Api* api = nullptr;
  CustomOpDomain* domain = nullptr;
  Status* status = nullptr;

  explicit Domain(const ApiBase* base) {
    api = base->GetApi(kVersion);
    if (api == nullptr) return;
    status = api->CreateCustomOpDomain("capsprune", &domain);
    if (status == nullptr) status = api->CustomOpDomain_Add(domain, CpuOp());
#if defined(CAPSPRUNE_CUDA)
    if (status == nullptr) status = api->CustomOpDomain_Add(domain, CudaOp());
#endif
  }
};

}  // namespace

// ONNX Runtime calls this when the library is registered with a session's options.
extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(SessionOptions* options,
                                                                            const ApiBase* base) {
  // One process can hold several builds of ONNX Runtime, each with a table of its own.
  const Api* api = base->GetApi(kVersion);
  if (api == nullptr) return nullptr;  // Too old for the op: the function in the file is used.
  static const Domain domain(base);
  if (domain.api != api) {
    const Domain* another = new (std::nothrow) Domain(base);
    if (another == nullptr) return api->CreateStatus(kFail, "there is no memory left");
    if (another->status != nullptr) return another->status;
    return api->AddCustomOpDomain(options, another->domain);
  }
  if (domain.status != nullptr) {
    return api->CreateStatus(kFail, api->GetErrorMessage(domain.status));
  }
  return api->AddCustomOpDomain(options, domain.domain);
}
