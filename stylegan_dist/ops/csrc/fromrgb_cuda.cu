// fromrgb on the GPU. A thread works on one output channel and V neighbouring pixels, or (channels_last) on V neighbouring
// channels, for several steps, so that its rows of the matrices stay in registers. The image is small and comes from the
// cache; features are read once or written once.
#include "reduce_cuda.h"

namespace stylegan_dist {
namespace {

constexpr int64_t ENOUGH_THREADS = 1 << 17;  // about what keeps the memory of a large GPU busy
constexpr int64_t STEPS = 32;                // at most, for one thread
constexpr int WIDE = 4;                      // V, where sizes and addresses allow

// Threads of a row of channels and steps between them (channels_last), or planes and threads of a plane.
struct Split { int64_t groups, parts; };

inline Split split(const FromRgbParams& p, int64_t vector) {
  const int64_t groups = p.channels_last ? ceil_div(p.channels, vector) : p.outer * p.channels;
  const int64_t length = p.channels_last ? p.outer : ceil_div(p.inner, vector);
  return {groups, ceil_div(length, std::clamp<int64_t>(length * groups / ENOUGH_THREADS, 1, STEPS))};
}

// Element j of V is pixel j of one channel, or (LAST) channel j of one pixel.
template <class T, int K, int V, bool LAST> struct Layout {
  using A = Acc<T>;
  static constexpr int ROWS = LAST ? V : 1, PIXELS = LAST ? 1 : V;
  using Rows = Row<A, K>[ROWS];
  using Pixels = A[PIXELS][K];
  int64_t channels, inner;

  // From image n of the batch, beginning with pixel i of it; n is 0 for LAST.
  HD void pixels(const T* image, int64_t n, int64_t i, Pixels& x) const {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if constexpr (LAST) {
        x[0][k] = load(image[i * K + k]);
      } else {
        const Pack<T, V> values = *reinterpret_cast<const Pack<T, V>*>(image + (n * K + k) * inner + i);
#pragma unroll
        for (int j = 0; j < V; ++j) x[j][k] = load(values.v[j]);
      }
    }
  }
  HD void rows(const void* matrix, int64_t channel, Rows& rows) const {
#pragma unroll
    for (int j = 0; j < ROWS; ++j) rows[j] = Row<A, K>(matrix, channel + j);
  }
};

// FORWARD, TANGENT and TO_AFFINE: all that walk along one channel.
template <class T, int K, int V, bool LAST, FromRgbOp OP> struct Walk {
  using A = Acc<T>;
  using L = Layout<T, K, V, LAST>;
  L layout;
  Activation<T> act;
  SlopeAt<T> slope;
  const T *image, *g, *h, *right;
  const void *affine, *left, *h_affine;
  T* out;
  A* partial;  // TO_AFFINE: [parts, channels, K + 1], or [outer, channels, K + 1, parts] for planes
  int64_t outer, groups, parts;

  HD void operator()(int64_t t) const {
    const int64_t slow = LAST ? t / groups : t / parts, fast = t - slow * (LAST ? groups : parts);
    const int64_t n = LAST ? 0 : slow / layout.channels, first = LAST ? fast * V : slow - n * layout.channels;
    typename L::Rows row, l, ha;
    layout.rows(affine, first, row);
    if (OP == FromRgbOp::TANGENT) layout.rows(left, first, l), layout.rows(h_affine, first, ha);
    A sums[L::ROWS][K + 1];
#pragma unroll
    for (int j = 0; j < L::ROWS; ++j)
#pragma unroll
      for (int k = 0; k <= K; ++k) sums[j][k] = 0;

    const int64_t begin = LAST ? slow : fast * V, end = LAST ? outer : layout.inner, step = LAST ? parts : parts * V;
    for (int64_t i = begin; i < end; i += step) {
      const int64_t at = LAST ? i * layout.channels + first : slow * layout.inner + i;
      typename L::Pixels x, r, dx;
      layout.pixels(image, n, i, x);
      if (OP != FromRgbOp::FORWARD) layout.pixels(right, n, i, r);
      if (OP == FromRgbOp::TANGENT) layout.pixels(h, n, i, dx);
      Pack<T, V> y;
      if (OP == FromRgbOp::TO_AFFINE) y = *reinterpret_cast<const Pack<T, V>*>(g + at);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const int c = LAST ? j : 0, q = LAST ? 0 : j;
        const A v = row[c](x[q]);
        if (OP == FromRgbOp::FORWARD) y.v[j] = store<T>(act.value(v));
        if (OP == FromRgbOp::TANGENT) y.v[j] = store<T>(slope(v) * (l[c].times(dx[q]) + ha[c](r[q])));
        if (OP == FromRgbOp::TO_AFFINE) {
          const A gv = load(y.v[j]) * slope(v);
#pragma unroll
          for (int k = 0; k < K; ++k) sums[c][k] += gv * r[q][k];
          sums[c][K] += gv;
        }
      }
      if (OP != FromRgbOp::TO_AFFINE) *reinterpret_cast<Pack<T, V>*>(out + at) = y;
    }
    if constexpr (OP == FromRgbOp::TO_AFFINE) {
#pragma unroll
      for (int j = 0; j < L::ROWS; ++j)
#pragma unroll
        for (int k = 0; k <= K; ++k) {
          const int64_t row = LAST ? slow * layout.channels + first + j : slow;  // of [.., K + 1], or of [.., K + 1, parts]
          partial[LAST ? row * (K + 1) + k : (row * (K + 1) + k) * parts + fast] = sums[j][k];
        }
    }
  }
};

// TO_IMAGE of planes: a thread adds up all channels of its pixels.
template <class T, int K, int V> struct Gather {
  using A = Acc<T>;
  using L = Layout<T, K, V, false>;
  L layout;
  SlopeAt<T> slope;
  const T *image, *g;
  const void *affine, *left;
  T* out;
  int64_t vectors;  // of a plane

  HD void operator()(int64_t t) const {
    const int64_t n = t / vectors, i = (t - n * vectors) * V;
    typename L::Pixels x;
    layout.pixels(image, n, i, x);
    A sums[V][K];
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
      for (int k = 0; k < K; ++k) sums[j][k] = 0;
    for (int64_t c = 0; c < layout.channels; ++c) {
      typename L::Rows row, l;
      layout.rows(affine, c, row), layout.rows(left, c, l);
      const Pack<T, V> y = *reinterpret_cast<const Pack<T, V>*>(g + (n * layout.channels + c) * layout.inner + i);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A gv = load(y.v[j]) * slope(row[0](x[j]));
#pragma unroll
        for (int k = 0; k < K; ++k) sums[j][k] += l[0].w[k] * gv;
      }
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      Pack<T, V> result;
#pragma unroll
      for (int j = 0; j < V; ++j) result.v[j] = store<T>(sums[j][k]);
      *reinterpret_cast<Pack<T, V>*>(out + (n * K + k) * layout.inner + i) = result;
    }
  }
};

// TO_IMAGE of channels_last: a team adds up the channels of PIXELS pixels, V channels a thread and step.
template <class T, int K, int V> struct GatherLast {
  using A = Acc<T>;
  using L = Layout<T, K, V, true>;
  static constexpr int LANES = 8, PIXELS = 4;
  struct Sums {
    static constexpr int COUNT = PIXELS * K;
    A v[COUNT];
  };
  L layout;
  SlopeAt<T> slope;
  const T *image, *g;
  const void *affine, *left;
  T* out;
  int64_t pixels;

  HD void part(int64_t team, int lane, Sums& sums) const {
    const int64_t first = team * PIXELS;
    A x[PIXELS][1][K];
#pragma unroll
    for (int q = 0; q < PIXELS; ++q) {
      if (first + q < pixels) layout.pixels(image, 0, first + q, x[q]);
#pragma unroll
      for (int k = 0; k < K; ++k) sums.v[q * K + k] = 0;
    }
    for (int64_t c = lane * V; c < layout.channels; c += LANES * V) {
      typename L::Rows row, l;
      layout.rows(affine, c, row), layout.rows(left, c, l);
#pragma unroll
      for (int q = 0; q < PIXELS; ++q) {
        if (first + q >= pixels) continue;
        const Pack<T, V> y = *reinterpret_cast<const Pack<T, V>*>(g + (first + q) * layout.channels + c);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const A gv = load(y.v[j]) * slope(row[j](x[q][0]));
#pragma unroll
          for (int k = 0; k < K; ++k) sums.v[q * K + k] += l[j].w[k] * gv;
        }
      }
    }
  }

  HD void finish(int64_t team, const Sums& sums) const {
#pragma unroll
    for (int q = 0; q < PIXELS; ++q)
      if (team * PIXELS + q < pixels)
#pragma unroll
        for (int k = 0; k < K; ++k) out[(team * PIXELS + q) * K + k] = store<T>(sums.v[q * K + k]);
  }
};

template <class T, int K, int V, bool LAST, FromRgbOp OP>
void walk(const FromRgbParams& p, const Activation<T>& act, const SlopeAt<T>& slope, void* stream) {
  using A = Acc<T>;
  const Split s = split(p, V);
  const T* image = static_cast<const T*>(p.image);
  A* workspace = static_cast<A*>(p.workspace);
  // Where there is nothing, the image meets a matrix of zeros.
  const Walk<T, K, V, LAST, OP> item{{p.channels, p.inner}, act, slope, image, static_cast<const T*>(p.g),
                                     p.h ? static_cast<const T*>(p.h) : image,
                                     p.right ? static_cast<const T*>(p.right) : image, p.affine, p.left, p.h_affine,
                                     static_cast<T*>(p.out), workspace, p.outer, s.groups, s.parts};
  launch(item, s.groups * s.parts, stream);
  if (OP != FromRgbOp::TO_AFFINE) return;
  reduce(workspace, static_cast<A*>(p.out), LAST ? s.parts : p.outer, p.channels * (K + 1), LAST ? 1 : s.parts, stream);
}

template <class T, int K, int V, bool LAST> void run(const FromRgbParams& p, void* stream) {
  const Activation<T> act(p.slope, p.gain, p.clamp);
  const SlopeAt<T> slope(act);
  const T *image = static_cast<const T*>(p.image), *g = static_cast<const T*>(p.g);
  T* out = static_cast<T*>(p.out);
  switch (p.op) {
    case FromRgbOp::FORWARD: return walk<T, K, V, LAST, FromRgbOp::FORWARD>(p, act, slope, stream);
    case FromRgbOp::TANGENT: return walk<T, K, V, LAST, FromRgbOp::TANGENT>(p, act, slope, stream);
    case FromRgbOp::TO_AFFINE: return walk<T, K, V, LAST, FromRgbOp::TO_AFFINE>(p, act, slope, stream);
    case FromRgbOp::TO_IMAGE:
      if constexpr (LAST) {
        using Item = GatherLast<T, K, V>;
        return launch_teams(Item{{p.channels, p.inner}, slope, image, g, p.affine, p.left, out, p.outer},
                            ceil_div(p.outer, Item::PIXELS), stream);
      } else {
        const int64_t vectors = ceil_div(p.inner, V);
        return launch(Gather<T, K, V>{{p.channels, p.inner}, slope, image, g, p.affine, p.left, out, vectors},
                      p.outer * vectors, stream);
      }
  }
}

template <class T, int K> void run_channels(const FromRgbParams& p, void* stream) {
  bool wide = (p.channels_last ? p.channels : p.inner) % WIDE == 0;
  for (const void* q : {p.image, p.g, p.h, p.right, static_cast<const void*>(p.out)}) wide = wide && aligned(q);
  if (p.channels_last) wide ? run<T, K, WIDE, true>(p, stream) : run<T, K, 1, true>(p, stream);
  else wide ? run<T, K, WIDE, false>(p, stream) : run<T, K, 1, false>(p, stream);
}

template <class T> void run_type(const FromRgbParams& p, void* stream) {
  switch (p.image_channels) {
    case 1: return run_channels<T, 1>(p, stream);
    case 2: return run_channels<T, 2>(p, stream);
    case 3: return run_channels<T, 3>(p, stream);
    case 4: return run_channels<T, 4>(p, stream);
  }
}

}  // namespace

int64_t workspace_of(const FromRgbParams& p) {
  if (p.op != FromRgbOp::TO_AFFINE) return 0;
  const int64_t parts = std::max(split(p, 1).parts, split(p, WIDE).parts) * (p.channels_last ? 1 : p.outer);
  return reduce_workspace(parts, p.channels * (p.image_channels + 1));
}

void run_cuda(const FromRgbParams& p, void* stream) {
  with_type(p.dtype, [&](auto zero) { run_type<decltype(zero)>(p, stream); });
}

}  // namespace stylegan_dist
