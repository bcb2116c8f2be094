// The generator's epilogue as PyTorch sees it. Fake kernels and autograd are in ../generator_epilogue.py.
#include "tensor.h"

namespace stylegan_dist {
namespace {

using Line = std::vector<double>;

void check(bool good, const char* what) {
  STD_TORCH_CHECK(good, "stylegan_dist: generator_epilogue got ", what, " of a wrong shape or dtype, or on another device");
}

bool is(const MaybeTensor& t, const std::vector<int64_t>& size, ScalarType dtype, const Tensor& x) {
  return !t || (sizes_of(*t) == size && t->scalar_type() == dtype && on_one_device(*t, x));
}

const void* pointer(MaybeTensor& t, bool channels_last) {
  if (!t) return nullptr;
  t = in_format(*t, channels_last);
  return t->data_ptr();
}

void draw(const Tensor& address, int64_t layer, int64_t count, Tensor& out) {
  const auto* rows = static_cast<const int64_t*>(address.data_ptr());
  run_on_device(out, NoiseParams{address.size(0), count, layer, rows, out.data_ptr(), dtype_of(out)});
}

struct Shape {
  int64_t n, c, height, width, colours;
  bool last;
  std::vector<int64_t> features, images;
};

Shape shape_of(const Tensor& t, const Tensor& table, const Line& line) {
  check(t.dim() == 4 && (line.empty() || (line.size() == 4 && t.size(2) > 1 && t.size(3) > 1)), "features or a filter");
  check(table.dim() == 3 && table.size(0) == t.size(0) && table.size(1) >= 4 && table.size(1) <= 8 &&
        table.size(2) == t.size(1) && table.scalar_type() == acc_type(t) && on_one_device(table, t), "a table");
  const int64_t less = line.empty() ? 0 : 1;
  Shape s{t.size(0), t.size(1), t.size(2) - less, t.size(3) - less, table.size(1) - 4, is_channels_last(t), {}, {}};
  s.features = {s.n, s.c, s.height, s.width}, s.images = {s.n, s.colours, s.height, s.width};
  return s;
}

// Runs one operator; what it makes is in z, rgb, to_t and sums.
void run(GeneratorOp op, const Shape& s, Tensor t, Tensor table, MaybeTensor noise, int64_t layer, MaybeTensor gz,
         MaybeTensor g, MaybeTensor h, MaybeTensor h_table, const Line& line, double slope, double gain, double clamp,
         Tensor* z, Tensor* rgb, Tensor* to_t, Tensor* sums) {
  const ScalarType acc = acc_type(t);
  check(is(gz, s.features, t.scalar_type(), t) && is(g, s.images, acc, t) && is(h, sizes_of(t), t.scalar_type(), t) &&
        is(h_table, sizes_of(table), acc, t), "a gradient");
  const bool drawn = noise && noise->scalar_type() == ScalarType::Long;
  if (drawn) check(is(noise, {s.n, 2}, ScalarType::Long, t), "addresses");
  else if (noise) check(noise->dim() == 4 && is(noise, {noise->size(0) == 1 ? 1 : s.n, 1, s.height, s.width}, acc, t), "noise");
  if (t.numel() == 0) {
    for (Tensor* out : {z, rgb, to_t, sums})
      if (out && out->numel()) torch::stable::zero_(*out);
    return;
  }
  t = in_format(t, s.last), table = in_format(table, false);
  GeneratorParams p{};
  p.op = op, p.dtype = dtype_of(t), p.images = s.n, p.channels = s.c, p.height = s.height, p.width = s.width;
  p.colours = int(s.colours), p.channels_last = s.last, p.filtered = !line.empty();
  for (size_t k = 0; k < line.size(); ++k) p.line[k] = line[k];
  p.t = t.data_ptr(), p.table = table.data_ptr(), p.layer = layer;
  p.gz = pointer(gz, s.last), p.g = pointer(g, false), p.h = pointer(h, s.last), p.h_table = pointer(h_table, false);
  p.z = z ? z->data_ptr() : nullptr, p.rgb = rgb ? rgb->data_ptr() : nullptr;
  p.to_t = to_t ? to_t->data_ptr() : nullptr, p.sums = sums ? sums->data_ptr() : nullptr;
  p.slope = slope, p.gain = gain, p.clamp = clamp;
  if (noise) {
    noise = in_format(*noise, false);
    if (drawn) p.address = static_cast<const int64_t*>(noise->data_ptr());
    else p.noise = noise->data_ptr(), p.noise_stride = noise->size(0) == 1 ? 0 : s.height * s.width;
  }
  MaybeTensor maps, scratch;
  if (on_gpu(t)) {
    if (drawn) {  // once, instead of by every thread of channels; not longer than this operator runs
      maps = make(t, {s.n, s.height * s.width}, acc, false);
      draw(*noise, layer, s.height * s.width, *maps);
      p.noise = maps->data_ptr(), p.noise_stride = s.height * s.width;
    }
    if (p.filtered && op != GeneratorOp::FORWARD)
      scratch = make(t, s.features, t.scalar_type(), s.last), p.scratch = scratch->data_ptr();
  }
  run_with_workspace(t, p);
}

std::tuple<Tensor, Tensor> generator_epilogue(Tensor t, Tensor table, MaybeTensor noise, int64_t layer, Line line, double slope,
                                              double gain, double clamp, bool makes_z) {
  const Shape s = shape_of(t, table, line);
  Tensor z = makes_z ? make(t, s.features, t.scalar_type(), s.last) : make(t, {0}, t.scalar_type(), false);
  Tensor rgb = make(t, s.images, acc_type(t), false);
  run(GeneratorOp::FORWARD, s, t, table, noise, layer, {}, {}, {}, {}, line, slope, gain, clamp, makes_z ? &z : nullptr, &rgb,
      nullptr, nullptr);
  return {z, rgb};
}

std::tuple<Tensor, Tensor> generator_epilogue_backward(MaybeTensor gz, MaybeTensor g, Tensor t, Tensor table, MaybeTensor noise,
                                                       int64_t layer, Line line, double slope, double gain, double clamp) {
  const Shape s = shape_of(t, table, line);
  Tensor to_t = make(t, sizes_of(t), t.scalar_type(), s.last), sums = make(t, sizes_of(table), acc_type(t), false);
  run(GeneratorOp::BACKWARD, s, t, table, noise, layer, gz, g, {}, {}, line, slope, gain, clamp, nullptr, nullptr, &to_t,
      &sums);
  return {to_t, sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> generator_epilogue_double_backward(
    MaybeTensor h, MaybeTensor h_table, MaybeTensor gz, MaybeTensor g, Tensor t, Tensor table, MaybeTensor noise, int64_t layer,
    Line line, double slope, double gain, double clamp) {
  const Shape s = shape_of(t, table, line);
  Tensor to_t = make(t, sizes_of(t), t.scalar_type(), s.last), sums = make(t, sizes_of(table), acc_type(t), false);
  Tensor to_gz = gz ? make(t, s.features, t.scalar_type(), s.last) : make(t, {0}, t.scalar_type(), false);
  Tensor to_g = make(t, s.images, acc_type(t), false);
  run(GeneratorOp::SECOND, s, t, table, noise, layer, gz, g, h, h_table, line, slope, gain, clamp, gz ? &to_gz : nullptr, &to_g,
      &to_t, &sums);
  return {to_gz, to_g, to_t, sums};
}

Tensor layer_noise(Tensor address, int64_t layer, int64_t height, int64_t width) {
  check(address.dim() == 2 && address.size(1) == 2 && address.scalar_type() == ScalarType::Long, "addresses");
  address = in_format(address, false);
  Tensor out = make(address, {address.size(0), 1, height, width}, ScalarType::Float, false);
  if (out.numel()) draw(address, layer, height * width, out);
  return out;
}

}  // namespace
}  // namespace stylegan_dist

STABLE_TORCH_LIBRARY_FRAGMENT(stylegan_dist, m) {
  m.def("generator_epilogue(Tensor t, Tensor table, Tensor? noise, int layer, float[] line, float slope, float gain, "
        "float clamp, bool makes_z) -> (Tensor, Tensor)");
  m.def("generator_epilogue_backward(Tensor? gz, Tensor? g, Tensor t, Tensor table, Tensor? noise, int layer, float[] line, "
        "float slope, float gain, float clamp) -> (Tensor, Tensor)");
  m.def("generator_epilogue_double_backward(Tensor? h, Tensor? h_table, Tensor? gz, Tensor? g, Tensor t, Tensor table, "
        "Tensor? noise, int layer, float[] line, float slope, float gain, float clamp) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("layer_noise(Tensor address, int layer, int height, int width) -> Tensor");
}

STYLEGAN_DIST_IMPL(m, {
  m.impl("generator_epilogue", TORCH_BOX(&stylegan_dist::generator_epilogue));
  m.impl("generator_epilogue_backward", TORCH_BOX(&stylegan_dist::generator_epilogue_backward));
  m.impl("generator_epilogue_double_backward", TORCH_BOX(&stylegan_dist::generator_epilogue_double_backward));
  m.impl("layer_noise", TORCH_BOX(&stylegan_dist::layer_noise));
})
