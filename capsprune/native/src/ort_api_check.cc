// Compares ort_api.h with ONNX Runtime's official header, where that is found. No code comes of it.

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#define CAPSPRUNE_OFFICIAL_HEADER
#elif __has_include(<onnxruntime/onnxruntime_c_api.h>)
#include <onnxruntime/onnxruntime_c_api.h>
#define CAPSPRUNE_OFFICIAL_HEADER
#elif __has_include(<onnxruntime/core/session/onnxruntime_c_api.h>)
#include <onnxruntime/core/session/onnxruntime_c_api.h>
#define CAPSPRUNE_OFFICIAL_HEADER
#endif

#if defined(CAPSPRUNE_OFFICIAL_HEADER)

#include "ort_api.h"

namespace ours = capsprune::ort;

static_assert(ORT_API_VERSION >= ours::kVersion, "the official header is too old to compare with");

#define CHECK_API(entry) \
  static_assert(offsetof(ours::Api, entry) == offsetof(OrtApi, entry), #entry " has moved")
CHECK_API(CreateStatus);
CHECK_API(GetErrorMessage);
CHECK_API(CreateCustomOpDomain);
CHECK_API(CustomOpDomain_Add);
CHECK_API(AddCustomOpDomain);
CHECK_API(GetTensorMutableData);
CHECK_API(GetTensorElementType);
CHECK_API(GetDimensionsCount);
CHECK_API(GetDimensions);
CHECK_API(GetTensorTypeAndShape);
CHECK_API(KernelInfoGetAttribute_float);
CHECK_API(KernelInfoGetAttribute_int64);
CHECK_API(KernelContext_GetInputCount);
CHECK_API(KernelContext_GetInput);
CHECK_API(KernelContext_GetOutput);
CHECK_API(ReleaseStatus);
CHECK_API(ReleaseTensorTypeAndShapeInfo);
CHECK_API(ReleaseCustomOpDomain);
CHECK_API(KernelContext_GetGPUComputeStream);
CHECK_API(KernelContext_ParallelFor);

#define CHECK_BASE(entry)                                                             \
  static_assert(offsetof(ours::ApiBase, entry) == offsetof(OrtApiBase, entry), #entry \
                " has "                                                               \
                "moved")
CHECK_BASE(GetApi);
CHECK_BASE(GetVersionString);

#define CHECK_OP(entry)                                                          \
  static_assert(offsetof(ours::CustomOp, entry) == offsetof(OrtCustomOp, entry), \
                #entry " has moved")
CHECK_OP(version);
CHECK_OP(CreateKernel);
CHECK_OP(GetName);
CHECK_OP(GetExecutionProviderType);
CHECK_OP(GetInputType);
CHECK_OP(GetInputTypeCount);
CHECK_OP(GetOutputType);
CHECK_OP(GetOutputTypeCount);
CHECK_OP(KernelCompute);
CHECK_OP(KernelDestroy);
CHECK_OP(GetInputCharacteristic);
CHECK_OP(GetOutputCharacteristic);
CHECK_OP(GetInputMemoryType);
CHECK_OP(GetVariadicInputMinArity);
CHECK_OP(GetVariadicInputHomogeneity);
CHECK_OP(GetVariadicOutputMinArity);
CHECK_OP(GetVariadicOutputHomogeneity);
CHECK_OP(CreateKernelV2);
CHECK_OP(KernelComputeV2);
CHECK_OP(InferOutputShapeFn);
CHECK_OP(GetStartVersion);
CHECK_OP(GetEndVersion);
CHECK_OP(GetMayInplace);
CHECK_OP(ReleaseMayInplace);
CHECK_OP(GetAliasMap);
CHECK_OP(ReleaseAliasMap);

static_assert(int(ours::kFail) == ORT_FAIL, "");
static_assert(int(ours::kInvalidArgument) == ORT_INVALID_ARGUMENT, "");
static_assert(int(ours::kFloat) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "");
static_assert(int(ours::kRequired) == INPUT_OUTPUT_REQUIRED, "");
static_assert(int(ours::kOptional) == INPUT_OUTPUT_OPTIONAL, "");
static_assert(int(ours::kDefaultMemory) == OrtMemTypeDefault, "");
static_assert(sizeof(ours::ElementType) == sizeof(ONNXTensorElementDataType), "");
static_assert(sizeof(ours::InputKind) == sizeof(OrtCustomOpInputOutputCharacteristic), "");
static_assert(sizeof(ours::MemoryType) == sizeof(OrtMemType), "");

#endif  // CAPSPRUNE_OFFICIAL_HEADER
