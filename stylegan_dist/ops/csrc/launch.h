// What the registration (tensor.h) and the launchers agree on. No torch headers.
#pragma once

#include <cstdint>

namespace stylegan_dist {

enum class DType : int { FLOAT, DOUBLE, BFLOAT16, FLOAT16 };
enum class ActOp : int { FORWARD, BACKWARD, CURVATURE };

// Elements lie as [outer, channels, inner]; inner is 1 for channels_last and for matrices.
struct ActParams {
  ActOp op;
  DType dtype;
  int64_t outer, channels, inner;
  const void* in[3];       // as the functors of math.h want them
  const void *bias, *g, *h;  // [channels] in Acc, or null
  void* out;
  void* sum;               // [channels] in Acc, or null: the sum of the result over outer and inner
  void* workspace;         // of act_workspace() Acc elements (GPU only)
  int kind;
  double slope, gain, clamp;
  bool constant_slope;     // BACKWARD without a second input
};

// Elements lie as [planes, height, width, inner]; inner is channels for channels_last, else 1.
struct ResampleParams {
  DType dtype;
  int64_t planes, height, width, inner, out_height, out_width;
  const void* in;
  void* out;
  int up, down;
  int64_t before;
  int taps;
  double line[32];         // correlated with the input, in this order
  double gain;
};

void act_cpu(const ActParams&);
void resample_cpu(const ResampleParams&);

int64_t act_workspace(const ActParams&);
void act_cuda(const ActParams&, void* stream);
void resample_cuda(const ResampleParams&, void* stream);

// body(begin, end) for parts of [0, count), on PyTorch's threads, at least `grain` at a time.
void parallel(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

template <class F> void parallel_for(int64_t count, int64_t grain, const F& f) {
  parallel(count, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
           const_cast<F*>(&f));
}


}  // namespace stylegan_dist
