// The part of ONNX Runtime's C API that an op needs, so that it can be built where the official
// header is not (the Python packages have none). The API's table of functions only ever grows at
// its end; the gaps here are entries that are not used. Where the official header is found,
// ort_api_check.cc compares every entry with it.

#ifndef CAPSPRUNE_ORT_API_H_
#define CAPSPRUNE_ORT_API_H_

#include <cstddef>
#include <cstdint>

namespace capsprune {
namespace ort {

// Asked of the runtime: the first version with every entry used here, with a margin.
constexpr uint32_t kVersion = 18;

// Owned by ONNX Runtime and only ever pointed to.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct CustomOp;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1 };
enum InputKind : int { kRequired = 0, kOptional = 1 };
enum MemoryType : int { kDefaultMemory = 0 };

// OrtApi. `gap_N` starts at entry N.
struct Api {
  Status* (*CreateStatus)(ErrorCode code, const char* message);
  void* gap_1[1];
  const char* (*GetErrorMessage)(const Status* status);
  void* gap_3[23];
  Status* (*CreateCustomOpDomain)(const char* domain, CustomOpDomain** out);
  Status* (*CustomOpDomain_Add)(CustomOpDomain* domain, const CustomOp* op);
  Status* (*AddCustomOpDomain)(SessionOptions* options, CustomOpDomain* domain);
  void* gap_29[22];
  Status* (*GetTensorMutableData)(Value* value, void** out);
  void* gap_52[8];
  Status* (*GetTensorElementType)(const TensorInfo* info, ElementType* out);
  Status* (*GetDimensionsCount)(const TensorInfo* info, size_t* out);
  Status* (*GetDimensions)(const TensorInfo* info, int64_t* sizes, size_t count);
  void* gap_63[2];
  Status* (*GetTensorTypeAndShape)(const Value* value, TensorInfo** out);
  void* gap_66[19];
  Status* (*KernelInfoGetAttribute_float)(const KernelInfo* info, const char* name, float* out);
  Status* (*KernelInfoGetAttribute_int64)(const KernelInfo* info, const char* name, int64_t* out);
  void* gap_87[1];
  Status* (*KernelContext_GetInputCount)(const KernelContext* context, size_t* out);
  void* gap_89[1];
  Status* (*KernelContext_GetInput)(const KernelContext* context, size_t index, const Value** out);
  Status* (*KernelContext_GetOutput)(KernelContext* context, size_t index, const int64_t* sizes,
                                     size_t dimensions, Value** out);
  void* gap_92[1];
  void (*ReleaseStatus)(Status* status);
  void* gap_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(TensorInfo* info);
  void* gap_100[1];
  void (*ReleaseCustomOpDomain)(CustomOpDomain* domain);
  void* gap_102[91];
  Status* (*KernelContext_GetGPUComputeStream)(const KernelContext* context, void** out);
  void* gap_194[80];
  Status* (*KernelContext_ParallelFor)(const KernelContext* context, void (*task)(void*, size_t),
                                       size_t count, size_t batches, void* data);
};

// OrtApiBase.
struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);
  void (*KernelDestroy)(void* kernel);
  InputKind (*GetInputCharacteristic)(const CustomOp* op, size_t index);
  InputKind (*GetOutputCharacteristic)(const CustomOp* op, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info,
                            void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  Status* (*InferOutputShapeFn)(const CustomOp* op, ShapeInferContext* context);
  int (*GetStartVersion)(const CustomOp* op);
  int (*GetEndVersion)(const CustomOp* op);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // namespace ort
}  // namespace capsprune

#endif  // CAPSPRUNE_ORT_API_H_
