// resample2d as PyTorch sees it. Its fake kernel and its adjoint are in ../fused.py.
#include "tensor.h"

namespace stylegan_dist {
namespace {

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
  run_on_device(x, p);
  return out;
}

}  // namespace
}  // namespace stylegan_dist

STABLE_TORCH_LIBRARY_FRAGMENT(stylegan_dist, m) {
  m.def("resample2d(Tensor x, float[] line, int up, int down, int before, SymInt out_height, SymInt out_width, "
        "float gain) -> Tensor");
}

STYLEGAN_DIST_IMPL(m, { m.impl("resample2d", TORCH_BOX(&stylegan_dist::resample2d)); })
