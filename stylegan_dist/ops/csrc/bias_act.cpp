// bias_act and its derivatives, as PyTorch sees them. Fake kernels and autograd are in ../bias_act.py.
#include "tensor.h"

namespace stylegan_dist {

std::tuple<Tensor, Tensor> run_act(ActOp op, std::vector<Tensor> inputs, MaybeTensor bias, MaybeTensor g, double slope,
                                   double gain, double clamp, bool constant, bool reduce) {
  const Tensor ref = inputs.back();
  STD_TORCH_CHECK(ref.dim() >= 2, "stylegan_dist: x must be [N, C, ...]");
  check_channels(bias, ref, "bias");
  check_channels(g, ref, "g_bias");
  const bool last = is_channels_last(ref);
  for (auto& input : inputs) {
    STD_TORCH_CHECK(input.scalar_type() == ref.scalar_type() && sizes_of(input) == sizes_of(ref) && on_one_device(input, ref),
                    "stylegan_dist: inputs differ in shape, dtype or device");
    input = in_format(input, last);
  }
  for (auto* t : {&bias, &g})
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
  p.bias = bias ? bias->data_ptr() : nullptr, p.g = g ? g->data_ptr() : nullptr;
  p.out = out.data_ptr(), p.sum = reduce ? sum.data_ptr() : nullptr;
  p.slope = slope, p.gain = gain, p.clamp = clamp, p.constant_slope = constant;
  run_with_workspace(ref, p);
  return {out, sum};
}

namespace {

Tensor bias_act(Tensor x, MaybeTensor bias, double slope, double gain, double clamp) {
  return std::get<0>(run_act(ActOp::FORWARD, {x}, bias, {}, slope, gain, clamp, false, false));
}

std::tuple<Tensor, Tensor> bias_act_backward(Tensor g, MaybeTensor g_bias, MaybeTensor y, double slope, double gain,
                                             double clamp, bool reduce) {
  std::vector<Tensor> inputs{g};
  if (y) inputs.push_back(*y);
  return run_act(ActOp::BACKWARD, inputs, {}, g_bias, slope, gain, clamp, !y, reduce);
}

}  // namespace
}  // namespace stylegan_dist

STABLE_TORCH_LIBRARY_FRAGMENT(stylegan_dist, m) {
  m.def("bias_act(Tensor x, Tensor? bias, float slope, float gain, float clamp) -> Tensor");
  m.def("bias_act_backward(Tensor g, Tensor? g_bias, Tensor? y, float slope, float gain, float clamp, bool reduce) "
        "-> (Tensor, Tensor)");
}

STYLEGAN_DIST_IMPL(m, {
  m.impl("bias_act", TORCH_BOX(&stylegan_dist::bias_act));
  m.impl("bias_act_backward", TORCH_BOX(&stylegan_dist::bias_act_backward));
})
