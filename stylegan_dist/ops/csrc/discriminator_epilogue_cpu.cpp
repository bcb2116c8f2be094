// The discriminator's epilogue with its filter, on the threads of the CPU. A band of rows of a plane is activated into a
// frame of zeros, filtered along its rows and then across them: three loops over contiguous numbers, in the cache.
#include <algorithm>
#include <vector>

#include "launch.h"
#include "math.h"

namespace stylegan_dist {
namespace {

constexpr int64_t FRAME = 1 << 15;  // numbers in a frame, about
constexpr int64_t GRAIN = 1 << 14;  // elements that are worth a thread
constexpr int64_t BLOCK = 4096;     // elements that are summed in Acc before they go to double
constexpr int LANES = 16;           // sums side by side
constexpr int TAPS = EPILOGUE_TAPS;

// to[i] = sum_k w[k] * from[i + k * step]
template <class T> void filter(const Acc<T>* __restrict from, T* __restrict to, int64_t count, int64_t step, const Acc<T>* w) {
  const Acc<T> a = w[0], b = w[1], c = w[2], d = w[3];
  for (int64_t i = 0; i < count; ++i)
    to[i] = store<T>(a * from[i] + b * from[i + step] + c * from[i + 2 * step] + d * from[i + 3 * step]);
}

template <class T, class F> struct Band {
  using A = Acc<T>;
  F f;                       // of `in` and u, before the filter
  const T *in, *u;           // of this plane
  const A *bias, *h;         // of this plane's channel, or of all if inner > 1
  int64_t width, inner;

  // A row before the filter.
  void row(int64_t y, A* __restrict to) const {
    const T* from[2] = {in + y * width * inner, u ? u + y * width * inner : nullptr};
    const F f = this->f;
    if (inner == 1) {
      const Channel<T> c{*bias, *h, 0};
      for (int64_t x = 0; x < width; ++x) to[x] = at(f, from, x, c);
      return;
    }
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < inner; ++c) to[x * inner + c] = at(f, from, x * inner + c, Channel<T>{bias[c], h[c], 0});
  }

  static A at(const F& f, const T* const* from, int64_t i, const Channel<T>& c) {
    T e[F::INPUTS];
    for (int k = 0; k < F::INPUTS; ++k) e[k] = from[k][i];
    return f(e, c);
  }
};

// g times the slope at u, stored; the sum over one channel.
template <class T>
double times_slope(Activation<T> act, const Acc<T>* __restrict g, const T* __restrict u, T* __restrict out, int64_t count, Acc<T> bias) {
  using A = Acc<T>;
  double total = 0;
  for (int64_t start = 0; start < count; start += BLOCK) {
    const int64_t stop = std::min(count, start + BLOCK);
    A lanes[LANES] = {};
    int64_t i = start;
    for (; i + LANES <= stop; i += LANES)
      for (int l = 0; l < LANES; ++l) {
        const A y = g[i + l] * slope_at(act, load(u[i + l]) + bias);
        lanes[l] += y;
        out[i + l] = store<T>(y);
      }
    for (int l = 0; i < stop; ++i, ++l) {
      const A y = g[i] * slope_at(act, load(u[i]) + bias);
      lanes[l] += y;
      out[i] = store<T>(y);
    }
    for (int l = 0; l < LANES; ++l) total += lanes[l];
  }
  return total;
}

// The same for pixels of all channels.
template <class T>
void times_slope(Activation<T> act, const Acc<T>* __restrict g, const T* __restrict u, T* __restrict out, int64_t pixels,
                 int64_t channels, const Acc<T>* bias, Acc<T>* __restrict sums) {
  for (int64_t p = 0; p < pixels; ++p, g += channels, u += channels, out += channels)
    for (int64_t c = 0; c < channels; ++c) {
      const Acc<T> y = g[c] * slope_at(act, load(u[c]) + bias[c]);
      sums[c] += y;
      out[c] = store<T>(y);
    }
}

// `f` before the filter; `masked`: times the slope at u behind it.
template <class T, class F> void run(const EpilogueParams& p, const F& f, const Activation<T>& act, bool masked) {
  using A = Acc<T>;
  const int64_t C = p.channels, I = p.inner, H = p.height, W = p.width, OH = p.out_height, OW = p.out_width;
  const std::vector<A> none(C);
  const A *bias = p.bias ? static_cast<const A*>(p.bias) : none.data(), *h = p.h ? static_cast<const A*>(p.h) : none.data();
  const T *in = static_cast<const T*>(p.in), *u = static_cast<const T*>(p.u);
  T* out = static_cast<T*>(p.out);
  A line[TAPS];
  for (int k = 0; k < TAPS; ++k) line[k] = A(p.line[k]);

  const int64_t stride = (OW + TAPS - 1) * I;  // of a row of the frame, with the zeros beside it
  const int64_t rows = std::min(OH, std::max<int64_t>(FRAME / stride, TAPS)), bands = ceil_div(OH, rows);
  std::vector<double> sums(p.sum ? p.planes * bands * I : 0);
  parallel_for(p.planes * bands, std::max<int64_t>(1, GRAIN / (rows * OW * I)), [&](int64_t begin, int64_t end) {
    const int64_t size = (rows + TAPS - 1) * stride;
    std::vector<A> frame(size), filtered(size), result(masked ? rows * OW * I : 0), block(I);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / bands, first = (task - plane * bands) * rows, count = std::min(rows, OH - first);
      const A* b = I > 1 ? bias : bias + plane % C;
      const int64_t in_plane = plane * H * W * I, out_band = (plane * OH + first) * OW * I;
      const Band<T, F> band{f, in + in_plane, masked ? nullptr : u + in_plane, b, I > 1 ? h : h + plane % C, W, I};
      for (int64_t r = 0; r < count + TAPS - 1; ++r) {
        const int64_t y = first + r - p.before;
        A *row = frame.data() + r * stride, *content = row + p.before * I;
        if (y < 0 || y >= H) {
          std::fill(row, row + stride, A(0));
          continue;
        }
        std::fill(row, content, A(0));
        std::fill(content + W * I, row + stride, A(0));
        band.row(y, content);
      }
      // What is filtered across the end of a row is never looked at.
      filter<A>(frame.data(), filtered.data(), (count + TAPS - 1) * stride - (TAPS - 1) * I, I, line);
      for (int64_t r = 0; r < count; ++r) {
        const A* from = filtered.data() + r * stride;
        if (masked) filter<A>(from, result.data() + r * OW * I, OW * I, stride, line);
        else filter<T>(from, out + out_band + r * OW * I, OW * I, stride, line);
      }
      if (!masked) continue;
      double* sum = p.sum ? sums.data() + task * I : nullptr;
      if (I == 1) {
        const double total = times_slope<T>(act, result.data(), u + out_band, out + out_band, count * OW, *b);
        if (sum) *sum = total;
        continue;
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t here = out_band + r * OW * I;
        std::fill(block.begin(), block.end(), A(0));
        times_slope<T>(act, result.data() + r * OW * I, u + here, out + here, OW, I, b, block.data());
        if (sum)
          for (int64_t c = 0; c < I; ++c) sum[c] += block[c];
      }
    }
  });
  if (!p.sum) return;
  // [planes, bands, inner] and a channel is a place in inner, or a plane
  A* sum = static_cast<A*>(p.sum);
  const int64_t images = I > 1 ? p.planes : p.planes / C;
  for (int64_t c = 0; c < C; ++c) {
    double total = 0;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t band = 0; band < bands; ++band)
        total += I > 1 ? sums[(n * bands + band) * I + c] : sums[(n * C + c) * bands + band];
    sum[c] = A(total);
  }
}

template <class T> void run_op(const EpilogueParams& p) {
  const Activation<T> act(PIECEWISE, p.slope, p.gain, p.clamp);
  switch (p.op) {
    case EpilogueOp::FORWARD: return run<T>(p, Forward<T, false>{act}, act, false);
    case EpilogueOp::TANGENT: return run<T>(p, BackwardAt<T>{act}, act, false);
    case EpilogueOp::BACKWARD: return run<T>(p, Identity<T>{}, act, true);
  }
}

}  // namespace

void epilogue_cpu(const EpilogueParams& p) {
  switch (p.dtype) {
    case DType::FLOAT: return run_op<float>(p);
    case DType::DOUBLE: return run_op<double>(p);
    case DType::BFLOAT16: return run_op<BFloat16>(p);
    case DType::FLOAT16: return run_op<Float16>(p);
  }
}

}  // namespace stylegan_dist
