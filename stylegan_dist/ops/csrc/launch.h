// What the registration (tensor.h) and the launchers agree on. No torch headers.
//
// Each struct of parameters has launchers of its own: run_cpu; run_cuda, and for some workspace_of, the number of Acc elements
// of the memory that the threads of a GPU need.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "math.h"

namespace stylegan_dist {

enum class DType : int { FLOAT, DOUBLE, BFLOAT16, FLOAT16 };

// f(T()) where values are stored as T.
template <class F> void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::FLOAT: return f(float());
    case DType::BFLOAT16: return f(BFloat16());
    case DType::FLOAT16: return f(Float16());
    case DType::DOUBLE:
#ifdef __CUDACC__
      throw std::runtime_error("no float64 on CUDA");
#else
      return f(double());
#endif
  }
}

enum class ActOp : int { FORWARD, BACKWARD, FORWARD_ADD, BACKWARD_AT };

// Elements lie as [outer, channels, inner]; inner is 1 for channels_last and for matrices.
struct ActParams {
  ActOp op;
  DType dtype;
  int64_t outer, channels, inner;
  const void* in[2];       // as the functors of math.h want them
  const void *bias, *g;    // [channels] in Acc, or null
  void* out;
  void* sum;               // [channels] in Acc, or null: the sum of the result over outer and inner
  void* workspace;         // of workspace_of() (GPU only)
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

void run_cpu(const ActParams&);
void run_cpu(const ResampleParams&);

int64_t workspace_of(const ActParams&);
void run_cuda(const ActParams&, void* stream);
void run_cuda(const ResampleParams&, void* stream);

// body(begin, end) for parts of [0, count), on PyTorch's threads, at least `grain` at a time.
void parallel(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

template <class F> void parallel_for(int64_t count, int64_t grain, const F& f) {
  parallel(count, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
           const_cast<F*>(&f));
}

// ---- discriminator epilogue with its filter of four taps

// FORWARD: filter(phi(u + bias)); TANGENT: filter(phi' (in + h)); BACKWARD: phi' filter(in), and its sum
enum class EpilogueOp : int { FORWARD, TANGENT, BACKWARD };

// Elements lie as [planes, height, width, inner] before the filter; inner is channels for channels_last, else 1.
struct EpilogueParams {
  EpilogueOp op;
  DType dtype;
  int64_t planes, channels, height, width, inner, out_height, out_width;
  const void* in;          // of the size before the filter; for FORWARD it is u
  const void* u;           // of the size of `in`, for BACKWARD of the size of `out`
  const void *bias, *h;    // [channels] in Acc, or null
  void* out;
  void* sum;               // BACKWARD: [channels] in Acc, or null
  void* workspace;         // of workspace_of() (GPU only)
  int before;              // rows and columns of zeros before `in`, 0 to 3
  double line[4];          // correlated with the rows and columns, in this order
  double slope, gain, clamp;
};

void run_cpu(const EpilogueParams&);
int64_t workspace_of(const EpilogueParams&);
void run_cuda(const EpilogueParams&, void* stream);

// ---- fromrgb

// A matrix has a last column that meets a constant one behind the channels of an image: A [i; 1] = W i + b.
// FORWARD: phi(A [i; 1]); TANGENT: phi' (left h + h_affine [right; 1]), without the last column of left
// TO_IMAGE: left^T (phi' g), likewise; TO_AFFINE: the sum over pixels of (phi' g) [right; 1]^T
enum class FromRgbOp : int { FORWARD, TANGENT, TO_IMAGE, TO_AFFINE };

// Features lie as [outer, channels, inner], images as [outer, image_channels, inner]; for channels_last inner is 1.
struct FromRgbParams {
  FromRgbOp op;
  DType dtype;
  int64_t outer, channels, inner;
  int image_channels;             // 1 to 4
  bool channels_last;
  const void *image, *affine;     // affine: [channels, image_channels + 1] in Acc
  const void* g;                  // features
  const void *left, *h;           // like affine and image, or null for zeros
  const void *h_affine, *right;   // likewise
  void* out;                      // features; TO_IMAGE: an image; TO_AFFINE: like affine
  void* workspace;                // of workspace_of() (GPU only)
  double slope, gain, clamp;
};

void run_cpu(const FromRgbParams&);
int64_t workspace_of(const FromRgbParams&);
void run_cuda(const FromRgbParams&, void* stream);

// ---- generator epilogue

// FORWARD: z and rgb; BACKWARD: to_t and the sums of the table's gradient
// SECOND: the gradients of BACKWARD along h and h_table: z for gz, rgb for g, and to_t and sums
enum class GeneratorOp : int { FORWARD, BACKWARD, SECOND };

// Features lie as [images, channels, height, width], for channels_last with the channels innermost. A table is
// [images, 4 + colours, channels] in Acc: demodulation, bias, strength of the noise, style, weights of the colours.
struct GeneratorParams {
  GeneratorOp op;
  DType dtype;
  int64_t images, channels, height, width;  // of the output
  int colours;                              // 0 to 4
  bool channels_last;
  bool filtered;            // features t, h and to_t then have a row and a column more
  double line[4];           // the filter, with one row and column of zeros before t
  const void *t, *table;
  const int64_t* address;   // [images, 2]: noise is drawn; or null
  int64_t layer;
  const void* noise;        // [images or 1, height, width] in Acc, or null
  int64_t noise_stride;     // from one image to the next
  const void *gz, *g;       // like z and rgb, or null
  const void *h, *h_table;  // like t and table, or null
  void *z, *to_t;           // features, z null for none
  void *rgb, *sums;         // [images, colours, height, width]; like table
  void* workspace;          // of workspace_of() (GPU only)
  void* scratch;            // where filtered, features of the size of z (GPU only)
  double slope, gain, clamp;
};

void run_cpu(const GeneratorParams&);
int64_t workspace_of(const GeneratorParams&);
void run_cuda(const GeneratorParams&, void* stream);

// The noise of one layer: [images, count].
struct NoiseParams {
  int64_t images, count, layer;
  const int64_t* address;
  void* out;
  DType dtype;  // of out: FLOAT, or (GPU only) DOUBLE
};

void run_cpu(const NoiseParams&);
void run_cuda(const NoiseParams&, void* stream);

// ---- filtered_lrelu

constexpr int MOST_FILTERED_TAPS = 24, MOST_FILTERED_FACTOR = 4;  // a tile then fits into the memory of a block

// Features lie as [images, channels, height, width], or with the channels innermost. Filters correlate, and are square:
// samples = up_filter(x + bias, with zeros inserted and around), out = down_filter(phi(samples), with zeros around).
struct FilteredParams {
  DType dtype;
  bool linear;             // phi is a factor: the slope that the mask tells; else phi bends, and the mask is written
  bool channels_last;
  bool flip;               // filters are stored the other way round
  int64_t images, channels, height, width, rows, columns, out_height, out_width;  // of x, of the samples, of out
  const void* in;
  const void* bias;        // [channels] in Acc, or null
  const void *up_filter, *down_filter;  // in Acc, [taps] or, where full, [taps, taps]; null for a tap of 1
  int up, down, up_taps, down_taps;
  bool up_full, down_full;
  int64_t up_before, down_before;  // zeros in front of the first input pixel, and of the first sample
  uint8_t* mask;           // [images, channels, rows, columns / 4 rounded up] bytes of 4 samples, or null
  void* out;
  void* sum;               // [channels] in Acc, or null
  void* workspace;         // of workspace_of() (GPU only)
  double slope, gain, clamp;
};

void run_cpu(const FilteredParams&);
int64_t workspace_of(const FilteredParams&);
void run_cuda(const FilteredParams&, void* stream);

// ---- Winograd convolutions of 3x3 kernels, tiles of 2x2 outputs; float32, channels_last, CPU only

struct WinogradParams {
  int64_t images, channels, height, width;  // of `image` or `out`
  int64_t rows, columns;                    // of tiles
  int64_t before;                           // rows and columns of zeros before the image
  const float* image;
  float* out;
  float* products[16];                      // [tiles, channels] each; the first is [16, tiles, channels] where that is the result
};

void winograd_input_cpu(const WinogradParams&);     // B^T d B
void winograd_gradient_cpu(const WinogradParams&);  // A g A^T
void winograd_output_cpu(const WinogradParams&);    // A^T m A

}  // namespace stylegan_dist
