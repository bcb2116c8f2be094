// filtered_lrelu as PyTorch sees it. Fake kernels and autograd are in ../filtered_lrelu.py.
#include "tensor.h"

namespace stylegan_dist {
namespace {

MaybeTensor checked_filter(const MaybeTensor& f, const Tensor& x, int64_t factor) {
  STD_TORCH_CHECK(factor >= 1 && factor <= MOST_FILTERED_FACTOR, "stylegan_dist: filtered_lrelu has factors of 1 to 4");
  if (!f) return f;
  STD_TORCH_CHECK((f->dim() == 1 || (f->dim() == 2 && f->size(0) == f->size(1))) && f->size(0) >= 1 &&
                  f->size(0) <= MOST_FILTERED_TAPS && f->scalar_type() == acc_type(x) && on_one_device(*f, x),
                  "stylegan_dist: a filter must be [taps] or [taps, taps] of 1 to 24 taps, in float32 (float64 for float64), on "
                  "the device of x");
  return in_format(*f, false);
}

int64_t taps_of(const MaybeTensor& f) { return f ? f->size(0) : 1; }

// Makes `out` and, if `reduce`, the sums over channels. The mask is made before.
std::tuple<Tensor, Tensor> run_filtered(FilteredParams& p, Tensor x, MaybeTensor bias, MaybeTensor up_filter,
                                        MaybeTensor down_filter, bool reduce) {
  check_channels(bias, x, "bias");
  if (bias) bias = in_format(*bias, false);
  const bool last = is_channels_last(x);
  x = in_format(x, last);
  Tensor out = make(x, {x.size(0), x.size(1), p.out_height, p.out_width}, x.scalar_type(), last);
  Tensor sum = make(x, {reduce ? x.size(1) : 0}, acc_type(x), false);
  if (out.numel() == 0 || x.numel() == 0) {
    torch::stable::zero_(out);
    if (reduce) torch::stable::zero_(sum);
    return {out, sum};
  }
  p.dtype = dtype_of(x), p.channels_last = last;
  p.images = x.size(0), p.channels = x.size(1), p.height = x.size(2), p.width = x.size(3);
  p.in = x.data_ptr(), p.out = out.data_ptr(), p.sum = reduce ? sum.data_ptr() : nullptr;
  p.bias = bias ? bias->data_ptr() : nullptr;
  p.up_filter = up_filter ? up_filter->data_ptr() : nullptr, p.down_filter = down_filter ? down_filter->data_ptr() : nullptr;
  p.up_taps = int(taps_of(up_filter)), p.down_taps = int(taps_of(down_filter));
  p.up_full = up_filter && up_filter->dim() == 2, p.down_full = down_filter && down_filter->dim() == 2;
  run_with_workspace(x, p);
  return {out, sum};
}

std::tuple<Tensor, Tensor> filtered_lrelu(Tensor x, MaybeTensor bias, MaybeTensor up_filter, MaybeTensor down_filter, int64_t up,
                                          int64_t down, int64_t lo, int64_t hi, double slope, double gain, double clamp,
                                          bool keep) {
  STD_TORCH_CHECK(x.dim() == 4, "stylegan_dist: filtered_lrelu wants [N, C, H, W]");
  up_filter = checked_filter(up_filter, x, up), down_filter = checked_filter(down_filter, x, down);
  FilteredParams p{};
  const int64_t up_taps = taps_of(up_filter), down_taps = taps_of(down_filter);
  const int64_t room_y = x.size(2) * up + lo + hi - up_taps + 1 - down_taps, room_x = room_y + (x.size(3) - x.size(2)) * up;
  STD_TORCH_CHECK(room_y >= 0 && room_x >= 0, "stylegan_dist: the image is smaller than the filters");
  p.out_height = room_y / down + 1, p.out_width = room_x / down + 1;
  p.rows = (p.out_height - 1) * down + down_taps, p.columns = (p.out_width - 1) * down + down_taps;
  p.flip = true, p.up = int(up), p.down = int(down), p.up_before = lo;
  p.slope = slope, p.gain = gain, p.clamp = clamp;
  std::vector<int64_t> bytes{0};
  if (keep) bytes = {x.size(0), x.size(1), p.rows, (p.columns + 3) / 4};
  Tensor mask = make(x, bytes, ScalarType::Byte, false);
  p.mask = keep ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
  return {std::get<0>(run_filtered(p, x, bias, up_filter, down_filter, false)), mask};
}

std::tuple<Tensor, Tensor> filtered_lrelu_linear(Tensor x, MaybeTensor bias, Tensor mask, MaybeTensor up_filter,
                                                 MaybeTensor down_filter, int64_t up, int64_t down, int64_t up_before,
                                                 int64_t down_before, int64_t rows, int64_t columns, int64_t out_height,
                                                 int64_t out_width, bool flip, double slope, double gain, bool reduce) {
  STD_TORCH_CHECK(x.dim() == 4 && rows >= 0 && columns >= 0 && out_height >= 0 && out_width >= 0,
                  "stylegan_dist: filtered_lrelu_linear wants [N, C, H, W], and sizes");
  up_filter = checked_filter(up_filter, x, up), down_filter = checked_filter(down_filter, x, down);
  const std::vector<int64_t> bytes{x.size(0), x.size(1), rows, (columns + 3) / 4};
  STD_TORCH_CHECK(sizes_of(mask) == bytes && mask.scalar_type() == ScalarType::Byte && on_one_device(mask, x),
                  "stylegan_dist: a mask must have a byte for four samples, on the device of x");
  mask = in_format(mask, false);
  FilteredParams p{};
  p.linear = true, p.flip = flip, p.up = int(up), p.down = int(down), p.up_before = up_before, p.down_before = down_before;
  p.rows = rows, p.columns = columns, p.out_height = out_height, p.out_width = out_width;
  p.slope = slope, p.gain = gain, p.clamp = -1;
  p.mask = static_cast<uint8_t*>(mask.data_ptr());
  return run_filtered(p, x, bias, up_filter, down_filter, reduce);
}

}  // namespace
}  // namespace stylegan_dist

STABLE_TORCH_LIBRARY_FRAGMENT(stylegan_dist, m) {
  m.def("filtered_lrelu(Tensor x, Tensor? bias, Tensor? up_filter, Tensor? down_filter, int up, int down, int lo, int hi, "
        "float slope, float gain, float clamp, bool keep) -> (Tensor, Tensor)");
  m.def("filtered_lrelu_linear(Tensor x, Tensor? bias, Tensor mask, Tensor? up_filter, Tensor? down_filter, int up, int down, "
        "int up_before, int down_before, SymInt rows, SymInt columns, SymInt out_height, SymInt out_width, bool flip, "
        "float slope, float gain, bool reduce) -> (Tensor, Tensor)");
}

STYLEGAN_DIST_IMPL(m, {
  m.impl("filtered_lrelu", TORCH_BOX(&stylegan_dist::filtered_lrelu));
  m.impl("filtered_lrelu_linear", TORCH_BOX(&stylegan_dist::filtered_lrelu_linear));
})
