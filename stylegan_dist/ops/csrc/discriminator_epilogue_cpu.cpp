// The discriminator's epilogue with its filter, on the threads of the CPU. A band of rows of a plane is activated into a
// frame of zeros, filtered along its rows and then across them: three loops over contiguous numbers, in the cache.
#include <algorithm>
#include <vector>

#include "launch.h"
#include "math.h"

namespace stylegan_dist {
namespace {

constexpr int64_t FRAME = 1 << 16;  // numbers in a frame, about
constexpr int64_t GRAIN = 1 << 14;  // elements that are worth a thread
constexpr int CHUNK = 512;           // channels, of channels_last
constexpr int LANES = 16;           // sums side by side
constexpr int TAPS = EPILOGUE_TAPS;

// to[i] = sum_k w[k] * from[i + k * step]
template <class T> void filter(const Acc<T>* __restrict from, T* __restrict to, int64_t count, int64_t step, const Acc<T>* w) {
  const Acc<T> a = w[0], b = w[1], c = w[2], d = w[3];
  for (int64_t i = 0; i < count; ++i)
    to[i] = store<T>(a * from[i] + b * from[i + step] + c * from[i + 2 * step] + d * from[i + 3 * step]);
}

// `width` pixels of `channels` neighbouring channels, `step` apart, as f makes them: -> [width, channels].
template <class T, class F>
void source(F f, const T* const* inputs, Acc<T>* __restrict to, int64_t width, int64_t channels, int64_t step,
            const Acc<T>* bias, const Acc<T>* h) {
  const T* in[F::INPUTS];
  for (int k = 0; k < F::INPUTS; ++k) in[k] = inputs[k];
  auto at = [&](int64_t i, const Channel<T>& c) __attribute__((always_inline)) {
    T e[F::INPUTS];
    for (int k = 0; k < F::INPUTS; ++k) e[k] = in[k][i];
    return f(e, c);
  };
  if (channels == 1) {
    const Channel<T> c{*bias, *h};
    for (int64_t x = 0; x < width; ++x) to[x] = at(x, c);
    return;
  }
  for (int64_t x = 0; x < width; ++x)
    for (int64_t c = 0; c < channels; ++c) to[x * channels + c] = at(x * step + c, Channel<T>{bias[c], h[c]});
}

// `count` neighbours of one channel, or pixels `step` apart of several: times the slope at u (MASKED), stored. The sum over
// pixels goes to `sums`.
template <class T, bool MASKED>
void target(SlopeAt<T> slope, const Acc<T>* __restrict y, const T* __restrict u, T* __restrict out, int64_t count,
            int64_t channels, int64_t step, const Acc<T>* bias, double* sums) {
  using A = Acc<T>;
  A lanes[CHUNK];
  std::fill(lanes, lanes + CHUNK, A(0));
  if (channels == 1) {
    auto one = [&](int64_t i, int l) __attribute__((always_inline)) {
      const A value = MASKED ? y[i] * slope(load(u[i]) + *bias) : y[i];
      if (MASKED) lanes[l] += value;
      out[i] = store<T>(value);
    };
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
      for (int l = 0; l < LANES; ++l) one(i + l, l);
    for (int l = 0; i < count; ++i, ++l) one(i, l);
    for (int l = 0; MASKED && l < LANES; ++l) *sums += lanes[l];
    return;
  }
  for (int64_t i = 0; i < count; ++i, y += channels, u += step, out += step)
    for (int64_t c = 0; c < channels; ++c) {
      const A value = MASKED ? y[c] * slope(load(u[c]) + bias[c]) : y[c];
      if (MASKED) lanes[c] += value;
      out[c] = store<T>(value);
    }
  for (int64_t c = 0; MASKED && c < channels; ++c) sums[c] += lanes[c];
}

// `f` before the filter; MASKED: times the slope behind it, and sums.
template <class T, bool MASKED, class F> void run(const EpilogueParams& p, const F& f, const Activation<T>& act) {
  using A = Acc<T>;
  const int64_t C = p.channels, I = p.inner, H = p.height, W = p.width, OH = p.out_height, OW = p.out_width;
  const std::vector<A> none(C);
  const A *bias = p.bias ? static_cast<const A*>(p.bias) : none.data(), *h = p.h ? static_cast<const A*>(p.h) : none.data();
  const T *in = static_cast<const T*>(p.in), *u = static_cast<const T*>(p.u);
  T* out = static_cast<T*>(p.out);
  const SlopeAt<T> slope(act);
  A line[TAPS];
  for (int k = 0; k < TAPS; ++k) line[k] = A(p.line[k]);

  // A task: a band of rows of a chunk of channels of a plane.
  const int64_t chunk = std::min<int64_t>(CHUNK, I), chunks = ceil_div(I, chunk);
  const int64_t stride = (OW + TAPS - 1) * chunk;  // of a row of the frame, with the zeros beside it
  const int64_t rows = std::min(OH, std::max<int64_t>(FRAME / stride, TAPS)), bands = ceil_div(OH, rows);
  std::vector<double> sums(p.sum ? p.planes * chunks * bands * chunk : 0);
  parallel_for(p.planes * chunks * bands, std::max<int64_t>(1, GRAIN / (rows * OW * chunk)), [&](int64_t begin, int64_t end) {
    std::vector<A> frame((rows + TAPS - 1) * stride), filtered((rows + TAPS - 1) * stride), result(OW * chunk);
    std::vector<double> unwanted(chunk);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / (chunks * bands), part = task / bands % chunks, first = task % bands * rows;
      const int64_t c = I > 1 ? part * chunk : plane % C, channels = I > 1 ? std::min(chunk, C - c) : 1;
      const int64_t offset = I > 1 ? c : 0, pitch = (OW + TAPS - 1) * channels, count = std::min(rows, OH - first);
      const int64_t in_plane = plane * H * W * I + offset, out_plane = plane * OH * OW * I + offset;
      // Where every task fills the same part of its frame, the zeros stay.
      if (bands > 1 || chunks > 1 || task == begin) std::fill(frame.begin(), frame.end(), A(0));
      for (int64_t y = std::max<int64_t>(0, first - p.before); y < std::min(H, first - p.before + count + TAPS - 1); ++y) {
        const int64_t row = in_plane + y * W * I;
        const T* from[2] = {in + row, MASKED ? nullptr : u + row};
        source(f, from, frame.data() + (y - first + p.before) * pitch + p.before * channels, W, channels, I, bias + c, h + c);
      }
      // What is filtered across the end of a row is never looked at.
      filter<A>(frame.data(), filtered.data(), (count + TAPS - 1) * pitch - (TAPS - 1) * channels, channels, line);
      double* sum = p.sum ? sums.data() + task * chunk : unwanted.data();
      for (int64_t r = 0; r < count; ++r) {
        const int64_t here = out_plane + (first + r) * OW * I;
        const A* from = filtered.data() + r * pitch;
        if (!MASKED && I == 1) {
          filter<T>(from, out + here, OW, pitch, line);
          continue;
        }
        filter<A>(from, result.data(), OW * channels, pitch, line);
        target<T, MASKED>(slope, result.data(), u + here, out + here, OW, channels, I, bias + c, sum);
      }
    }
  });
  if (!p.sum) return;
  const int64_t images = I > 1 ? p.planes : p.planes / C;
  for (int64_t c = 0; c < C; ++c) {
    double total = 0;
    for (int64_t n = 0; n < images; ++n) {
      const int64_t task = (I > 1 ? n * chunks + c / chunk : n * C + c) * bands;
      for (int64_t band = 0; band < bands; ++band) total += sums[(task + band) * chunk + (I > 1 ? c % chunk : 0)];
    }
    static_cast<A*>(p.sum)[c] = A(total);
  }
}

template <class T> void run_op(const EpilogueParams& p) {
  const Activation<T> act(p.slope, p.gain, p.clamp);
  switch (p.op) {
    case EpilogueOp::FORWARD: return run<T, false>(p, Forward<T>{act}, act);
    case EpilogueOp::TANGENT: return run<T, false>(p, BackwardAt<T>{SlopeAt<T>(act)}, act);
    case EpilogueOp::BACKWARD: return run<T, true>(p, Identity<T>{}, act);
  }
}

}  // namespace

void run_cpu(const EpilogueParams& p) {
  with_type(p.dtype, [&](auto zero) { run_op<decltype(zero)>(p); });
}

}  // namespace stylegan_dist
