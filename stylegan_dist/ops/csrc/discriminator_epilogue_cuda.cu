// The discriminator's epilogue with its filter on the GPU. A thread walks down ROWS rows of K columns (of V neighbouring
// channels). It activates a source row once, filters it along the row, and keeps the last four in registers, from which
// it makes the next output row: the activation costs (K + 3) / K * (ROWS + 3) / ROWS times as much as without a filter.
#include "reduce_cuda.h"

namespace stylegan_dist {
namespace {

constexpr int TAPS = EPILOGUE_TAPS;
constexpr int ROWS = 13;  // 16 source rows: a multiple of TAPS, so that a row's place in the window is a constant
constexpr int FEWEST = 2;  // of the columns of a thread


struct Grid { int64_t columns, strips; };

inline Grid grid(const EpilogueParams& p, int k) { return {ceil_div(p.out_width, k), ceil_div(p.out_height, ROWS)}; }

// Which of `count` neighbours from `first` on are in [0, size).
struct Range {
  int low, high;
  HD Range(int64_t first, int64_t size, int count)
      : low(first < 0 ? int(-first) : 0), high(size - first < count ? int(size - first) : count) {}
  HD bool has(int i) const { return i >= low && i < high; }
};

// MASKED: times the slope at u behind the filter.
template <class T, class F, bool MASKED, int V, int K> struct Walk {
  using A = Acc<T>;
  F f;                      // before the filter
  SlopeAt<T> slope;         // behind it, if MASKED
  const T* in[2];           // of f
  const T* u;               // MASKED
  const void *bias, *h;
  T* out;
  A* partial;               // or null; [planes, strips, columns, inner]
  int64_t channels, height, width, inner, out_height, out_width, columns, strips;
  int before;
  A line[TAPS];

  // Threads: inner / V channels fastest, then columns, strips, planes.
  HD void operator()(int64_t t) const {
    const int64_t groups = inner / V;
    int64_t rest = t / groups;
    const int64_t first = (t - rest * groups) * V;
    const int64_t tile = rest;
    t = rest, rest = t / columns;
    const int64_t ox = (t - rest * columns) * K;
    t = rest, rest = t / strips;
    const int64_t oy = (t - rest * strips) * ROWS;
    // The first tap of the first output meets row y0, column x0; both may be outside.
    const int64_t y0 = oy - before, x0 = ox - before;
    int64_t offset = ((rest * height + y0) * width + x0) * inner + first;
    int64_t target = ((rest * out_height + oy) * out_width + ox) * inner + first;
    const Range rows{y0, height, ROWS + TAPS - 1}, cols{x0, width, K + TAPS - 1};
    const int out_rows = int(out_height - oy < ROWS ? out_height - oy : ROWS);
    const int out_cols = int(out_width - ox < K ? out_width - ox : K);

    Channel<T> c[V];
    A total[V], window[TAPS][K][V];
#pragma unroll
    for (int j = 0; j < V; ++j) c[j] = Channel<T>::of(bias, h, inner == 1 ? rest % channels : first + j), total[j] = 0;
#pragma unroll 1
    for (int r = 0; r < out_rows + TAPS - 1; r += TAPS) {
#pragma unroll
      for (int q = 0; q < TAPS; ++q) {
        along(offset, rows.has(r + q), cols, c, window[q]);
        offset += width * inner;
        const int row = r + q - (TAPS - 1);
        if (row < 0 || row >= out_rows) continue;
#pragma unroll
        for (int x = 0; x < K; ++x) {
          if (x >= out_cols) continue;
          A y[V];
#pragma unroll
          for (int j = 0; j < V; ++j) {
            y[j] = 0;
#pragma unroll
            for (int k = 0; k < TAPS; ++k) y[j] += line[k] * window[(q + 1 + k) % TAPS][x][j];
          }
          put(target + x * inner, c, y, total);
        }
        target += out_width * inner;
      }
    }
    if (MASKED && partial)
#pragma unroll
      for (int j = 0; j < V; ++j) partial[tile * inner + first + j] = total[j];
  }

  // K outputs of the filter along the row that begins at `offset`.
  HD void along(int64_t offset, bool inside, const Range& cols, const Channel<T>* c, A (&sums)[K][V]) const {
#pragma unroll
    for (int x = 0; x < K; ++x)
#pragma unroll
      for (int j = 0; j < V; ++j) sums[x][j] = 0;
#pragma unroll
    for (int q = 0; q < K + TAPS - 1; ++q) {
      if (!inside || !cols.has(q)) continue;
      Pack<T, V> e[F::INPUTS];
#pragma unroll
      for (int k = 0; k < F::INPUTS; ++k) e[k] = *reinterpret_cast<const Pack<T, V>*>(in[k] + offset + q * inner);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        T value[F::INPUTS];
#pragma unroll
        for (int k = 0; k < F::INPUTS; ++k) value[k] = e[k].v[j];
        const A activated = f(value, c[j]);
#pragma unroll
        for (int x = 0; x < K; ++x)
          if (q - x >= 0 && q - x < TAPS) sums[x][j] += line[q - x] * activated;
      }
    }
  }

  HD void put(int64_t i, const Channel<T>* c, const A (&y)[V], A (&total)[V]) const {
    Pack<T, V> stored, at{};
    if (MASKED) at = *reinterpret_cast<const Pack<T, V>*>(u + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A value = MASKED ? y[j] * slope(load(at.v[j]) + c[j].bias) : y[j];
      if (MASKED) total[j] += value;
      stored.v[j] = store<T>(value);
    }
    *reinterpret_cast<Pack<T, V>*>(out + i) = stored;
  }
};

template <class T, class F, bool MASKED, int V, int K>
void run_vector(const EpilogueParams& p, const F& f, const Activation<T>& act, void* stream) {
  using A = Acc<T>;
  const Grid g = grid(p, K);
  const T* u = static_cast<const T*>(p.u);
  A* workspace = static_cast<A*>(p.workspace);
  Walk<T, F, MASKED, V, K> item{f, SlopeAt<T>(act), {static_cast<const T*>(p.in), u}, u, p.bias, p.h, static_cast<T*>(p.out),
                                p.sum ? workspace : nullptr, p.channels, p.height, p.width, p.inner, p.out_height,
                                p.out_width, g.columns, g.strips, p.before, {}};
  for (int k = 0; k < TAPS; ++k) item.line[k] = A(p.line[k]);
  launch(item, p.planes * g.strips * g.columns * (p.inner / V), stream);
  if (!p.sum) return;
  const int64_t tiles = g.strips * g.columns, images = p.inner == 1 ? p.planes / p.channels : p.planes * tiles;
  reduce(workspace, static_cast<A*>(p.sum), images, p.channels, p.inner == 1 ? tiles : 1, stream);
}

template <class T, bool MASKED, class F> void run(const EpilogueParams& p, const F& f, const Activation<T>& act, void* stream) {
  const bool wide = p.inner % 2 == 0 && aligned(p.in) && aligned(p.u) && aligned(p.out);
  if (wide) run_vector<T, F, MASKED, 2, 4>(p, f, act, stream);
  else run_vector<T, F, MASKED, 1, FEWEST>(p, f, act, stream);  // more columns would scatter the stores of one channel
}

template <class T> void run_op(const EpilogueParams& p, void* stream) {
  const Activation<T> act(p.slope, p.gain, p.clamp);
  switch (p.op) {
    case EpilogueOp::FORWARD: return run<T, false>(p, Forward<T>{act}, act, stream);
    case EpilogueOp::TANGENT: return run<T, false>(p, BackwardAt<T>{SlopeAt<T>(act)}, act, stream);
    case EpilogueOp::BACKWARD: return run<T, true>(p, Identity<T>{}, act, stream);
  }
}

}  // namespace

int64_t workspace_of(const EpilogueParams& p) {
  if (!p.sum) return 0;
  const Grid g = grid(p, FEWEST);
  return reduce_workspace(p.planes * g.strips * g.columns * p.inner / p.channels, p.channels);
}

void run_cuda(const EpilogueParams& p, void* stream) {
  with_type(p.dtype, [&](auto zero) { run_op<decltype(zero)>(p, stream); });
}

}  // namespace stylegan_dist
