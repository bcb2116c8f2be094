// fromrgb as PyTorch sees it. Fake kernels and autograd are in ../fromrgb.py.
#include "tensor.h"

namespace stylegan_dist {
namespace {

void check(bool good, const char* what) {
  STD_TORCH_CHECK(good, "stylegan_dist: fromrgb got ", what, " of a wrong shape or dtype, or on another device");
}

bool same(const MaybeTensor& t, const Tensor& wanted) {
  return !t || (sizes_of(*t) == sizes_of(wanted) && t->scalar_type() == wanted.scalar_type() &&
                on_one_device(*t, wanted));
}

std::vector<int64_t> features_of(const Tensor& image, const Tensor& affine) {
  return {image.size(0), affine.size(0), image.size(2), image.size(3)};
}

const void* pointer(MaybeTensor& t, bool channels_last) {
  if (!t) return nullptr;
  t = in_format(*t, channels_last);
  return t->data_ptr();
}

// Runs one operator on tensors that it lays out; `g` are features, `h` and `right` like the image, `left` and
// `h_affine` like `affine`.
void run(FromRgbOp op, Tensor image, Tensor affine, MaybeTensor g, MaybeTensor left, MaybeTensor h, MaybeTensor h_affine,
         MaybeTensor right, Tensor& out, bool channels_last, double slope, double gain, double clamp) {
  check(!g || (sizes_of(*g) == features_of(image, affine) && g->scalar_type() == image.scalar_type() &&
               on_one_device(*g, image)), "g");
  check(same(left, affine) && same(h_affine, affine), "a matrix");
  check(same(h, image) && same(right, image), "an image");
  if (out.numel() == 0) return;
  if (image.numel() == 0 || (g && g->numel() == 0)) {
    torch::stable::zero_(out);
    return;
  }
  image = in_format(image, channels_last), affine = in_format(affine, false);
  FromRgbParams p{};
  p.op = op, p.dtype = dtype_of(image), p.channels_last = channels_last;
  p.channels = affine.size(0), p.image_channels = int(image.size(1));
  p.outer = channels_last ? image.numel() / image.size(1) : image.size(0);
  p.inner = channels_last ? 1 : image.size(2) * image.size(3);
  p.image = image.data_ptr(), p.affine = affine.data_ptr(), p.g = pointer(g, channels_last);
  p.left = pointer(left, false), p.h = pointer(h, channels_last);
  p.h_affine = pointer(h_affine, false), p.right = pointer(right, channels_last);
  p.out = out.data_ptr(), p.slope = slope, p.gain = gain, p.clamp = clamp;
  run_with_workspace(image, p);
}

void check_arguments(const Tensor& image, const Tensor& affine) {
  check(image.dim() == 4 && image.size(1) >= 1 && image.size(1) <= 4, "an image that is not [N, 1 to 4, H, W],");
  check(affine.dim() == 2 && affine.size(1) == image.size(1) + 1 && affine.scalar_type() == acc_type(image) &&
        on_one_device(affine, image), "a matrix that is not [channels, image channels + 1] in float32 (float64),");
}

Tensor make_features(const Tensor& image, const Tensor& affine, bool channels_last) {
  check_arguments(image, affine);
  return make(image, features_of(image, affine), image.scalar_type(), channels_last);
}

Tensor fromrgb(Tensor image, Tensor affine, bool channels_last, double slope, double gain, double clamp) {
  Tensor out = make_features(image, affine, channels_last);
  run(FromRgbOp::FORWARD, image, affine, {}, {}, {}, {}, {}, out, channels_last, slope, gain, clamp);
  return out;
}

Tensor fromrgb_tangent(Tensor image, Tensor affine, MaybeTensor left, MaybeTensor h, MaybeTensor h_affine, MaybeTensor right,
                       bool channels_last, double slope, double gain, double clamp) {
  Tensor out = make_features(image, affine, channels_last);
  check(left.has_value() == h.has_value() && h_affine.has_value() == right.has_value(), "one of a pair,");
  run(FromRgbOp::TANGENT, image, affine, {}, left, h, h_affine, right, out, channels_last, slope, gain, clamp);
  return out;
}

std::tuple<Tensor, Tensor> fromrgb_backward(Tensor g, Tensor image, Tensor affine, MaybeTensor left, MaybeTensor right,
                                            bool channels_last, double slope, double gain, double clamp) {
  check_arguments(image, affine);
  Tensor to_image = left ? make(image, sizes_of(image), image.scalar_type(), channels_last)
                         : make(image, {0}, image.scalar_type(), false);
  Tensor sums = make(image, {right ? affine.size(0) : 0, affine.size(1)}, acc_type(image), false);
  if (left)
    run(FromRgbOp::TO_IMAGE, image, affine, g, left, {}, {}, {}, to_image, channels_last, slope, gain, clamp);
  if (right)
    run(FromRgbOp::TO_AFFINE, image, affine, g, {}, {}, {}, right, sums, channels_last, slope, gain, clamp);
  return {to_image, sums};
}

}  // namespace
}  // namespace stylegan_dist

STABLE_TORCH_LIBRARY_FRAGMENT(stylegan_dist, m) {
  m.def("fromrgb(Tensor image, Tensor affine, bool channels_last, float slope, float gain, float clamp) -> Tensor");
  m.def("fromrgb_tangent(Tensor image, Tensor affine, Tensor? left, Tensor? h, Tensor? h_affine, Tensor? right, "
        "bool channels_last, float slope, float gain, float clamp) -> Tensor");
  m.def("fromrgb_backward(Tensor g, Tensor image, Tensor affine, Tensor? left, Tensor? right, bool channels_last, "
        "float slope, float gain, float clamp) -> (Tensor, Tensor)");
}

STYLEGAN_DIST_IMPL(m, {
  m.impl("fromrgb", TORCH_BOX(&stylegan_dist::fromrgb));
  m.impl("fromrgb_tangent", TORCH_BOX(&stylegan_dist::fromrgb_tangent));
  m.impl("fromrgb_backward", TORCH_BOX(&stylegan_dist::fromrgb_backward));
})
