// The operators as PyTorch sees them: shapes, layouts, memory. Only torch's stable ABI (2.11), so that one binary serves
// every later version, with CUDA and without. Fake kernels and derivatives are in ../fused.py.
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

void parallel(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::FLOAT;
    case ScalarType::Double: return DType::DOUBLE;
    case ScalarType::BFloat16: return DType::BFLOAT16;
    case ScalarType::Half: return DType::FLOAT16;
    default: STD_TORCH_CHECK(false, "stylegan_dist: dtype must be float32, float64, bfloat16 or float16");
  }
}

ScalarType acc_type(const Tensor& x) { return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

// Contiguous when both formats fit, as fused.py's fake kernels say.
bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

Tensor in_format(const Tensor& x, bool channels_last) {
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor make(const Tensor& like, std::vector<int64_t> size, ScalarType dtype, bool channels_last) {
  return torch::stable::empty(size, dtype, std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

std::vector<int64_t> sizes_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }

// libtorch_cuda is there only in a PyTorch with CUDA, so that this library must not link it.
[[maybe_unused]] void* current_stream(const Tensor& x) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get != nullptr, "stylegan_dist: libtorch_cuda has no aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get(x.get_device_index(), &stream));
  return stream;
}

void check_channels(const MaybeTensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(!t || (t->dim() == 1 && t->size(0) == x.size(1) && t->scalar_type() == acc_type(x) && t->is_cuda() == x.is_cuda()),
                  "stylegan_dist: ", name, " must be [channels] in float32 (float64 for float64), on the device of x");
}

// Runs one element-wise operator. `ref` decides on the layout: the last of the inputs.
std::tuple<Tensor, Tensor> run_act(ActOp op, std::vector<Tensor> inputs, MaybeTensor bias, MaybeTensor g, MaybeTensor h,
                                   int64_t kind, double slope, double gain, double clamp, bool constant, bool reduce) {
  const Tensor ref = inputs.back();
  STD_TORCH_CHECK(ref.dim() >= 2, "stylegan_dist: bias_act wants [N, C, ...]");
  check_channels(bias, ref, "bias");
  check_channels(g, ref, "g_bias");
  check_channels(h, ref, "h_bias");
  const bool last = is_channels_last(ref);
  for (auto& input : inputs) {
    STD_TORCH_CHECK(input.scalar_type() == ref.scalar_type() && sizes_of(input) == sizes_of(ref) && input.is_cuda() == ref.is_cuda(),
                    "stylegan_dist: inputs differ in shape, dtype or device");
    input = in_format(input, last);
  }
  for (auto* t : {&bias, &g, &h})
    if (*t) *t = in_format(**t, false);
  Tensor out = make(ref, sizes_of(ref), ref.scalar_type(), last);
  const int64_t channels = ref.size(1);
  Tensor sum = make(ref, {reduce ? channels : 0}, acc_type(ref), false);
  if (out.numel() == 0) {
    if (reduce) torch::stable::zero_(sum);
    return {out, sum};
  }
  ActParams p{};
  p.op = op, p.dtype = dtype_of(ref), p.channels = channels;
  p.inner = last || ref.dim() == 2 ? 1 : ref.numel() / (ref.size(0) * channels);
  p.outer = ref.numel() / (channels * p.inner);
  for (size_t k = 0; k < inputs.size(); ++k) p.in[k] = inputs[k].data_ptr();
  p.bias = bias ? bias->data_ptr() : nullptr, p.g = g ? g->data_ptr() : nullptr, p.h = h ? h->data_ptr() : nullptr;
  p.out = out.data_ptr(), p.sum = reduce ? sum.data_ptr() : nullptr;
  p.kind = int(kind), p.slope = slope, p.gain = gain, p.clamp = clamp, p.constant_slope = constant;
#if defined(STYLEGAN_DIST_CUDA) || defined(STYLEGAN_DIST_EMULATE)
#ifdef STYLEGAN_DIST_EMULATE
  constexpr bool on_gpu = true;
#else
  const bool on_gpu = ref.is_cuda();
#endif
  if (on_gpu) {
    Tensor workspace = make(ref, {act_workspace(p)}, acc_type(ref), false);
    p.workspace = workspace.data_ptr();
    act_cuda(p, ref.is_cuda() ? current_stream(ref) : nullptr);
    return {out, sum};
  }
#endif
  act_cpu(p);
  return {out, sum};
}

Tensor bias_act(Tensor x, MaybeTensor bias, int64_t kind, double slope, double gain, double clamp) {
  return std::get<0>(run_act(ActOp::FORWARD, {x}, bias, {}, {}, kind, slope, gain, clamp, false, false));
}

std::tuple<Tensor, Tensor> bias_act_backward(Tensor g, MaybeTensor g_bias, MaybeTensor ref, MaybeTensor bias, int64_t kind,
                                             double slope, double gain, double clamp, bool reduce) {
  std::vector<Tensor> inputs{g};
  if (ref) inputs.push_back(*ref);
  return run_act(ActOp::BACKWARD, inputs, bias, g_bias, {}, kind, slope, gain, clamp, !ref, reduce);
}

std::tuple<Tensor, Tensor> bias_act_curvature(Tensor g, MaybeTensor g_bias, Tensor h, MaybeTensor h_bias, Tensor x,
                                              MaybeTensor bias, int64_t kind, double gain, double clamp, bool reduce) {
  return run_act(ActOp::CURVATURE, {g, h, x}, bias, g_bias, h_bias, kind, 1, gain, clamp, false, reduce);
}

Tensor resample2d(Tensor x, std::vector<double> line, int64_t up, int64_t down, int64_t before, int64_t out_height,
                  int64_t out_width, double gain) {
  STD_TORCH_CHECK(x.dim() == 4, "stylegan_dist: resample2d wants [N, C, H, W]");
  STD_TORCH_CHECK(!line.empty() && line.size() <= 32, "stylegan_dist: 1 to 32 taps");
  STD_TORCH_CHECK(up >= 1 && down >= 1 && up <= 32 && down <= 32 && out_height >= 0 && out_width >= 0,
                  "stylegan_dist: resample2d got a factor or a size out of range");
  const bool last = is_channels_last(x);
  x = in_format(x, last);
  Tensor out = make(x, {x.size(0), x.size(1), out_height, out_width}, x.scalar_type(), last);
  if (out.numel() == 0) return out;
  ResampleParams p{};
  p.dtype = dtype_of(x);
  p.planes = last ? x.size(0) : x.size(0) * x.size(1), p.inner = last ? x.size(1) : 1;
  p.height = x.size(2), p.width = x.size(3), p.out_height = out_height, p.out_width = out_width;
  p.in = x.data_ptr(), p.out = out.data_ptr();
  p.up = int(up), p.down = int(down), p.before = before, p.taps = int(line.size()), p.gain = gain;
  for (size_t k = 0; k < line.size(); ++k) p.line[k] = line[k];
#ifdef STYLEGAN_DIST_EMULATE
  resample_cuda(p, nullptr);
#else
#ifdef STYLEGAN_DIST_CUDA
  if (x.is_cuda()) {
    resample_cuda(p, current_stream(x));
    return out;
  }
#endif
  resample_cpu(p);
#endif
  return out;
}

}  // namespace
}  // namespace stylegan_dist

STABLE_TORCH_LIBRARY(stylegan_dist, m) {
  m.def("bias_act(Tensor x, Tensor? bias, int kind, float slope, float gain, float clamp) -> Tensor");
  m.def("bias_act_backward(Tensor g, Tensor? g_bias, Tensor? ref, Tensor? bias, int kind, float slope, float gain, "
        "float clamp, bool reduce) -> (Tensor, Tensor)");
  m.def("bias_act_curvature(Tensor g, Tensor? g_bias, Tensor h, Tensor? h_bias, Tensor x, Tensor? bias, int kind, "
        "float gain, float clamp, bool reduce) -> (Tensor, Tensor)");
  m.def("resample2d(Tensor x, float[] line, int up, int down, int before, SymInt out_height, SymInt out_width, "
        "float gain) -> Tensor");
}

#define REGISTER(m)                                                            \
  m.impl("bias_act", TORCH_BOX(&stylegan_dist::bias_act));                     \
  m.impl("bias_act_backward", TORCH_BOX(&stylegan_dist::bias_act_backward));   \
  m.impl("bias_act_curvature", TORCH_BOX(&stylegan_dist::bias_act_curvature)); \
  m.impl("resample2d", TORCH_BOX(&stylegan_dist::resample2d));

STABLE_TORCH_LIBRARY_IMPL(stylegan_dist, CPU, m) { REGISTER(m) }
#ifdef STYLEGAN_DIST_CUDA
STABLE_TORCH_LIBRARY_IMPL(stylegan_dist, CUDA, m) { REGISTER(m) }
#endif
