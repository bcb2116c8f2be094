// What the operators as PyTorch sees them have in common: dtypes, layouts, memory, streams, registration. Only torch's
// stable ABI (2.11), so that one binary serves every later version, with CUDA and without.
#pragma once

#include <dlfcn.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "launch.h"

namespace stylegan_dist {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::FLOAT;
    case ScalarType::Double: return DType::DOUBLE;
    case ScalarType::BFloat16: return DType::BFLOAT16;
    case ScalarType::Half: return DType::FLOAT16;
    default: STD_TORCH_CHECK(false, "stylegan_dist: dtype must be float32, float64, bfloat16 or float16");
  }
}

inline ScalarType acc_type(const Tensor& x) { return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

inline bool fits_channels_last(const Tensor& x) {
  if (x.dim() != 4) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

// Contiguous when both formats fit, as fused.py's fake kernels say.
inline bool is_channels_last(const Tensor& x) { return !x.is_contiguous() && fits_channels_last(x); }

// What comes through the stable ABI says that something has failed, and not what; here it can only be this.
template <class Make> Tensor allocated(const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    STD_TORCH_CHECK(false, "stylegan_dist: can't allocate memory");
  }
}

inline Tensor in_format(const Tensor& x, bool channels_last) {
  return allocated([&] {
    return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  });
}

inline Tensor make(const Tensor& like, std::vector<int64_t> size, ScalarType dtype, bool channels_last) {
  return allocated([&] {
    return torch::stable::empty(size, dtype, std::nullopt, like.device(), std::nullopt,
                                channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  });
}

inline std::vector<int64_t> sizes_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }

// libtorch_cuda is there only in a PyTorch with CUDA, so that this library must not link it.
inline void* current_stream(const Tensor& x) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get != nullptr, "stylegan_dist: libtorch_cuda has no aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(x.get_device_index(), &stream) == AOTI_TORCH_SUCCESS, "stylegan_dist: no current stream");
  return stream;
}

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// While it lives, launches go to the device of x, which need not be the current one: a process may see several.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) {
    if (!x.is_cuda()) return;  // STYLEGAN_DIST_EMULATE
    guard_.emplace(x.get_device_index());
    stream = current_stream(x);
  }
  void* stream = nullptr;

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

#ifdef STYLEGAN_DIST_EMULATE
constexpr bool HAS_CPU = false, HAS_GPU = true;  // the launchers of a GPU, on the memory of the CPU
#elif defined(STYLEGAN_DIST_CUDA)
constexpr bool HAS_CPU = true, HAS_GPU = true;
#else
constexpr bool HAS_CPU = true, HAS_GPU = false;
#endif

inline bool on_gpu(const Tensor& x) { return HAS_GPU && (!HAS_CPU || x.is_cuda()); }

template <class Params> void run_on_device(const Tensor& x, const Params& p) {
  if constexpr (HAS_GPU)
    if (on_gpu(x)) return run_cuda(p, OnDevice(x).stream);
  if constexpr (HAS_CPU) run_cpu(p);
}

template <class Params> void run_with_workspace(const Tensor& x, Params& p) {
  MaybeTensor workspace;
  if constexpr (HAS_GPU)
    if (on_gpu(x)) workspace = make(x, {workspace_of(p)}, acc_type(x), false), p.workspace = workspace->data_ptr();
  run_on_device(x, p);
}

inline void check_channels(const MaybeTensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(!t || (t->dim() == 1 && t->size(0) == x.size(1) && t->scalar_type() == acc_type(x) && on_one_device(*t, x)),
                  "stylegan_dist: ", name, " must be [channels] in float32 (float64 for float64), on the device of x");
}

// Runs an element-wise operator (bias_act.cpp). The last of the inputs decides on the layout. Returns the result, and its
// sum over each channel if `reduce`.
std::tuple<Tensor, Tensor> run_act(ActOp op, std::vector<Tensor> inputs, MaybeTensor bias, MaybeTensor g, double slope,
                                   double gain, double clamp, bool constant, bool reduce);

}  // namespace stylegan_dist

// Registers functions under their own names for every device that this library serves.
#ifdef STYLEGAN_DIST_CUDA
#define STYLEGAN_DIST_IMPL(m, body)                   \
  STABLE_TORCH_LIBRARY_IMPL(stylegan_dist, CPU, m) body \
  STABLE_TORCH_LIBRARY_IMPL(stylegan_dist, CUDA, m) body
#else
#define STYLEGAN_DIST_IMPL(m, body) STABLE_TORCH_LIBRARY_IMPL(stylegan_dist, CPU, m) body
#endif
