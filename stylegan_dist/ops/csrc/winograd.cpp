// The linear maps of a Winograd convolution as PyTorch sees them (../winograd.py). On CPUs only: GPUs have cuDNN.
#include "tensor.h"

namespace stylegan_dist {
namespace {

void check(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float && (x.numel() == 0 || fits_channels_last(x)),
                  "stylegan_dist: Winograd convolutions want [N, C, H, W] in float32 and channels_last");
}

WinogradParams tiles_of(const Tensor& image, int64_t rows, int64_t columns) {
  check(image);
  WinogradParams p{};
  p.images = image.size(0), p.channels = image.size(1), p.height = image.size(2), p.width = image.size(3);
  p.rows = rows, p.columns = columns;
  return p;
}

void gather(const Tensor& image, int64_t rows, int64_t columns, int64_t before, const Tensor& out,
            void (*run)(const WinogradParams&)) {
  WinogradParams p = tiles_of(image, rows, columns);
  STD_TORCH_CHECK(sizes_of(out) == std::vector<int64_t>({16, p.images * rows * columns, p.channels}) && out.is_contiguous() &&
                  out.scalar_type() == ScalarType::Float, "stylegan_dist: tiles are not [16, tiles, channels] in float32");
  p.before = before, p.image = static_cast<const float*>(image.data_ptr());
  p.products[0] = static_cast<float*>(out.data_ptr());
  if (out.numel()) run(p);
}

void winograd_input(Tensor x, int64_t rows, int64_t columns, int64_t before, Tensor out) {
  gather(x, rows, columns, before, out, winograd_input_cpu);
}

void winograd_gradient(Tensor y, int64_t rows, int64_t columns, Tensor out) {
  gather(y, rows, columns, 0, out, winograd_gradient_cpu);
}

Tensor winograd_output(std::vector<Tensor> products, int64_t height, int64_t width) {
  STD_TORCH_CHECK(products.size() == 16, "stylegan_dist: Winograd convolutions have 16 products");
  const Tensor& first = products[0];
  WinogradParams p = tiles_of(first, (height + 1) / 2, (width + 1) / 2);
  for (int k = 0; k < 16; ++k) {
    check(products[k]);
    STD_TORCH_CHECK(sizes_of(products[k]) == std::vector<int64_t>({p.images, p.channels, p.rows, p.columns}),
                    "stylegan_dist: a product is not [N, C, (H + 1) / 2, (W + 1) / 2]");
    p.products[k] = static_cast<float*>(products[k].data_ptr());
  }
  Tensor out = make(first, {p.images, p.channels, height, width}, ScalarType::Float, true);
  p.height = height, p.width = width, p.out = static_cast<float*>(out.data_ptr());
  if (out.numel()) winograd_output_cpu(p);
  return out;
}

}  // namespace
}  // namespace stylegan_dist

STABLE_TORCH_LIBRARY_FRAGMENT(stylegan_dist, m) {
  m.def("winograd_input(Tensor x, int rows, int columns, int before, Tensor(a!) out) -> ()");
  m.def("winograd_gradient(Tensor y, int rows, int columns, Tensor(a!) out) -> ()");
  m.def("winograd_output(Tensor[] products, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(stylegan_dist, CPU, m) {
  m.impl("winograd_input", TORCH_BOX(&stylegan_dist::winograd_input));
  m.impl("winograd_gradient", TORCH_BOX(&stylegan_dist::winograd_gradient));
  m.impl("winograd_output", TORCH_BOX(&stylegan_dist::winograd_output));
}
