// resample2d on the GPU: a thread makes ROWS outputs below each other (of V neighbouring channels), reads every source
// row that they need once, filters it along the row, and adds it to the outputs that it meets.
#include "launch_cuda.h"

namespace stylegan_dist {
namespace {

constexpr int ROWS = 8;

// L taps, UP and DOWN known when compiling let all loops unroll and all tap indices become constants; 0: not known.
template <class T, int V, int L, int UP, int DOWN> struct Strip {
  using A = Acc<T>;
  const T* in;
  T* out;
  int64_t height, width, inner, out_height, out_width, strips, before;
  int up_, down_, taps_;
  A line[L ? L : MAX_TAPS];
  A gain;

  // Threads: inner / V channels fastest, then columns, strips, planes.
  HD void operator()(int64_t t) const {
    const int64_t groups = inner / V;
    int64_t rest = t / groups;
    const int64_t channel = (t - rest * groups) * V;
    t = rest, rest = t / out_width;
    const int64_t ox = t - rest * out_width;
    t = rest, rest = t / strips;
    const int64_t oy = (t - rest * strips) * ROWS;
    const T* plane = in + rest * height * width * inner + channel;
    T* target = out + ((rest * out_height + oy) * out_width + ox) * inner + channel;

    const int up = UP ? UP : up_, down = DOWN ? DOWN : down_;
    const Phase v = first_meeting(oy, up, down, before), h = first_meeting(ox, up, down, before);
    A sums[ROWS][V];
#pragma unroll
    for (int k = 0; k < ROWS; ++k)
#pragma unroll
      for (int j = 0; j < V; ++j) sums[k][j] = 0;
    if (UP == 2 && v.tap == 1) add_rows<1>(plane, v, h, sums);
    else add_rows<0>(plane, v, h, sums);
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
      if (oy + k >= out_height) break;
      Pack<T, V> y;
#pragma unroll
      for (int j = 0; j < V; ++j) y.v[j] = store<T>(sums[k][j] * gain);
      *reinterpret_cast<Pack<T, V>*>(target + k * out_width * inner) = y;
    }
  }

  // TAP: the tap that the first row meets, where that is known (UP is 1 or 2).
  template <int TAP> HD void add_rows(const T* plane, Phase v, Phase h, A (&sums)[ROWS][V]) const {
    const int up = UP ? UP : up_, down = DOWN ? DOWN : down_, taps = L ? L : taps_;
    const int first = UP ? TAP : v.tap;
    const int rows = ((ROWS - 1) * down + taps - 1 - first) / up + 1;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const int64_t y = v.source + r;
      if (y < 0 || y >= height) continue;
      A row[V];
      along(plane + y * width * inner, h, row);
#pragma unroll
      for (int k = 0; k < ROWS; ++k) {
        const int tap = first + r * up - k * down;
        if (tap < 0 || tap >= taps) continue;
#pragma unroll
        for (int j = 0; j < V; ++j) sums[k][j] += line[tap] * row[j];
      }
    }
  }

  HD void along(const T* source, Phase h, A (&row)[V]) const {
    const int up = UP ? UP : up_, taps = L ? L : taps_;
#pragma unroll
    for (int j = 0; j < V; ++j) row[j] = 0;
    const int most = (taps + up - 1) / up;
#pragma unroll
    for (int k = 0; k < most; ++k) {
      const int64_t x = h.source + k;
      const int tap = h.tap + k * up;
      if (x < 0 || x >= width || tap >= taps) continue;
      const Pack<T, V> value = *reinterpret_cast<const Pack<T, V>*>(source + x * inner);
      const A weight = line[tap];
#pragma unroll
      for (int j = 0; j < V; ++j) row[j] += weight * load(value.v[j]);
    }
  }
};

template <class T, int V, int L, int UP, int DOWN> void run(const ResampleParams& p, void* stream) {
  const int64_t strips = ceil_div(p.out_height, ROWS);
  Strip<T, V, L, UP, DOWN> item{static_cast<const T*>(p.in), static_cast<T*>(p.out), p.height, p.width, p.inner,
                                p.out_height, p.out_width, strips, p.before, p.up, p.down, p.taps, {}, Acc<T>(p.gain)};
  for (int k = 0; k < p.taps; ++k) item.line[k] = Acc<T>(p.line[k]);
  launch(item, p.planes * strips * p.out_width * (p.inner / V), stream);
}

template <class T, int V> void choose(const ResampleParams& p, void* stream) {
  if (p.taps == 4 && p.up == 1 && p.down == 1) run<T, V, 4, 1, 1>(p, stream);
  else if (p.taps == 4 && p.up == 2 && p.down == 1) run<T, V, 4, 2, 1>(p, stream);
  else if (p.taps == 4 && p.up == 1 && p.down == 2) run<T, V, 4, 1, 2>(p, stream);
  else run<T, 1, 0, 0, 0>(p, stream);  // the networks have no such filter
}

template <class T> void run_type(const ResampleParams& p, void* stream) {
  constexpr int V = 8 / sizeof(T);  // 8 bytes: ROWS * V sums must fit into registers
  if (p.inner % V == 0 && aligned(p.in) && aligned(p.out)) choose<T, V>(p, stream);
  else choose<T, 1>(p, stream);
}

}  // namespace

void run_cuda(const ResampleParams& p, void* stream) {
  with_type(p.dtype, [&](auto zero) { run_type<decltype(zero)>(p, stream); });
}

}  // namespace stylegan_dist
