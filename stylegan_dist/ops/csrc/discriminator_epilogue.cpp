// The discriminator's epilogue as PyTorch sees it. Fake kernels and autograd are in ../discriminator_epilogue.py.
#include "tensor.h"

namespace stylegan_dist {
namespace {

using Line = std::vector<double>;

// `in` of the size before the filter, `u` of the size of the output for BACKWARD, else of the size of `in`.
std::tuple<Tensor, Tensor> run_filtered(EpilogueOp op, Tensor in, Tensor u, MaybeTensor bias, MaybeTensor h, Line line,
                                        int64_t before, int64_t after, double slope, double gain, double clamp, bool reduce) {
  STD_TORCH_CHECK(u.dim() == 4 && in.dim() == 4, "stylegan_dist: a filter wants [N, C, H, W]");
  STD_TORCH_CHECK(line.size() == 4 && before >= 0 && before <= 3 && after >= 0 && after <= 3,
                  "stylegan_dist: the filter has 4 taps, and 0 to 3 zeros before and after");
  check_channels(bias, u, "bias");
  check_channels(h, u, "h_bias");
  const int64_t height = u.size(2) + before + after - 3, width = u.size(3) + before + after - 3;
  STD_TORCH_CHECK(height >= 0 && width >= 0, "stylegan_dist: the image is smaller than the filter");
  std::vector<int64_t> filtered = sizes_of(u);
  filtered[2] = height, filtered[3] = width;
  const bool backward = op == EpilogueOp::BACKWARD;
  STD_TORCH_CHECK(sizes_of(in) == (backward ? filtered : sizes_of(u)) && in.scalar_type() == u.scalar_type() &&
                  on_one_device(in, u), "stylegan_dist: inputs differ in shape, dtype or device");
  const bool last = is_channels_last(u);
  in = in_format(in, last), u = in_format(u, last);
  for (auto* t : {&bias, &h})
    if (*t) *t = in_format(**t, false);
  Tensor out = make(u, backward ? sizes_of(u) : filtered, u.scalar_type(), last);
  Tensor sum = make(u, {reduce ? u.size(1) : 0}, acc_type(u), false);
  if (out.numel() == 0) {
    if (reduce) torch::stable::zero_(sum);
    return {out, sum};
  }
  EpilogueParams p{};
  p.op = op, p.dtype = dtype_of(u), p.channels = u.size(1), p.inner = last ? p.channels : 1;
  p.planes = last ? u.size(0) : u.size(0) * p.channels;
  p.height = in.size(2), p.width = in.size(3), p.out_height = out.size(2), p.out_width = out.size(3);
  p.in = in.data_ptr(), p.u = u.data_ptr(), p.out = out.data_ptr(), p.sum = reduce ? sum.data_ptr() : nullptr;
  p.bias = bias ? bias->data_ptr() : nullptr, p.h = h ? h->data_ptr() : nullptr;
  p.before = int(backward ? 3 - before : before);  // the adjoint of a filter is the filter mirrored
  for (int k = 0; k < 4; ++k) p.line[k] = line[backward ? 3 - k : k];
  p.slope = slope, p.gain = gain, p.clamp = clamp;
  run_with_workspace(u, p);
  return {out, sum};
}

Tensor discriminator_epilogue(Tensor u, MaybeTensor bias, MaybeTensor residual, Line line, int64_t before, int64_t after,
                              double slope, double gain, double clamp) {
  if (line.empty()) {
    std::vector<Tensor> inputs{u};
    if (residual) inputs.insert(inputs.begin(), *residual);
    const ActOp op = residual ? ActOp::FORWARD_ADD : ActOp::FORWARD;
    return std::get<0>(run_act(op, inputs, bias, {}, slope, gain, clamp, false, false));
  }
  STD_TORCH_CHECK(!residual, "stylegan_dist: either a filter or a residual");
  return std::get<0>(run_filtered(EpilogueOp::FORWARD, u, u, bias, {}, line, before, after, slope, gain, clamp, false));
}

std::tuple<Tensor, Tensor> discriminator_epilogue_backward(Tensor g, Tensor u, MaybeTensor bias, Line line, int64_t before,
                                                           int64_t after, double slope, double gain, double clamp,
                                                           bool reduce) {
  if (line.empty()) return run_act(ActOp::BACKWARD_AT, {g, u}, bias, {}, slope, gain, clamp, false, reduce);
  return run_filtered(EpilogueOp::BACKWARD, g, u, bias, {}, line, before, after, slope, gain, clamp, reduce);
}

Tensor discriminator_epilogue_tangent(Tensor h, MaybeTensor h_bias, Tensor u, MaybeTensor bias, Line line, int64_t before,
                                      int64_t after, double slope, double gain, double clamp) {
  if (line.empty())
    return std::get<0>(run_act(ActOp::BACKWARD_AT, {h, u}, bias, h_bias, slope, gain, clamp, false, false));
  return std::get<0>(run_filtered(EpilogueOp::TANGENT, h, u, bias, h_bias, line, before, after, slope, gain, clamp, false));
}

}  // namespace
}  // namespace stylegan_dist

STABLE_TORCH_LIBRARY_FRAGMENT(stylegan_dist, m) {
  m.def("discriminator_epilogue(Tensor u, Tensor? bias, Tensor? residual, float[] line, int before, int after, float slope, "
        "float gain, float clamp) -> Tensor");
  m.def("discriminator_epilogue_backward(Tensor g, Tensor u, Tensor? bias, float[] line, int before, int after, float slope, "
        "float gain, float clamp, bool reduce) -> (Tensor, Tensor)");
  m.def("discriminator_epilogue_tangent(Tensor h, Tensor? h_bias, Tensor u, Tensor? bias, float[] line, int before, int after, "
        "float slope, float gain, float clamp) -> Tensor");
}

STYLEGAN_DIST_IMPL(m, {
  m.impl("discriminator_epilogue", TORCH_BOX(&stylegan_dist::discriminator_epilogue));
  m.impl("discriminator_epilogue_backward", TORCH_BOX(&stylegan_dist::discriminator_epilogue_backward));
  m.impl("discriminator_epilogue_tangent", TORCH_BOX(&stylegan_dist::discriminator_epilogue_tangent));
})
