// bias_act on the GPU. Every thread works on one channel, or on neighbours of 16 bytes, for several rows, so that the
// constants of the channel stay in registers and the channel's sum needs no atomics: partial sums go to the
// workspace and are added in a fixed order.
#include <algorithm>

#include "reduce_cuda.h"

namespace stylegan_dist {
namespace {

constexpr int64_t ENOUGH_THREADS = 1 << 17;  // about what keeps the memory of a large GPU busy
constexpr int64_t ROWS = 64;                 // at most, for one thread
constexpr int64_t VECTORS = 8;

struct Split { int64_t groups, parts; };     // parts of a channel (rows form), or of a plane

// `vector` elements a thread and access. Depends on sizes only.
Split split(const ActParams& p, int64_t vector) {
  if (p.inner == 1) {
    int64_t groups = ceil_div(p.channels, vector);
    int64_t rows = std::clamp<int64_t>(p.outer * groups / ENOUGH_THREADS, 1, ROWS);
    return {groups, ceil_div(p.outer, rows)};
  }
  int64_t vectors = ceil_div(p.inner, vector), planes = p.outer * p.channels;
  int64_t count = std::clamp<int64_t>(planes * vectors / ENOUGH_THREADS, 1, VECTORS);
  return {planes, ceil_div(vectors, count)};
}

template <class T, class F, int V> struct Operands {
  F f;
  const T* in[2];
  const void *bias, *g;
  T* out;
  Acc<T>* partial;  // or null

  HD void apply(int64_t i, const Channel<T>* c, Acc<T>* total) const {
    Pack<T, V> x[F::INPUTS], y;
#pragma unroll
    for (int k = 0; k < F::INPUTS; ++k) x[k] = *reinterpret_cast<const Pack<T, V>*>(in[k] + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      T e[F::INPUTS];
#pragma unroll
      for (int k = 0; k < F::INPUTS; ++k) e[k] = x[k].v[j];
      Acc<T> value = f(e, c[j]);
      total[j] += value;
      y.v[j] = store<T>(value);
    }
    *reinterpret_cast<Pack<T, V>*>(out + i) = y;
  }
};

// inner == 1: thread (part, group of V channels) takes rows part, part + parts, ...; partial is [parts, channels].
template <class T, class F, int V> struct Rows {
  Operands<T, F, V> o;
  int64_t rows, channels, groups, parts;
  HD void operator()(int64_t t) const {
    const int64_t part = t / groups, first = (t - part * groups) * V;
    Channel<T> c[V];
    Acc<T> total[V];
#pragma unroll
    for (int j = 0; j < V; ++j) c[j] = Channel<T>::of(o.bias, o.g, first + j), total[j] = 0;
    for (int64_t r = part; r < rows; r += parts) o.apply(r * channels + first, c, total);
    if (o.partial)
#pragma unroll
      for (int j = 0; j < V; ++j) o.partial[part * channels + first + j] = total[j];
  }
};

// inner > 1: thread (plane, lane) takes vectors lane, lane + lanes, ...; partial is [outer, channels, lanes].
template <class T, class F, int V> struct Planes {
  Operands<T, F, V> o;
  int64_t channels, inner, lanes;
  HD void operator()(int64_t t) const {
    const int64_t plane = t / lanes, lane = t - plane * lanes;
    Channel<T> c[V];
    Acc<T> total[V];
    const Channel<T> here = Channel<T>::of(o.bias, o.g, plane % channels);
#pragma unroll
    for (int j = 0; j < V; ++j) c[j] = here, total[j] = 0;
    for (int64_t i = lane * V; i < inner; i += lanes * V) o.apply(plane * inner + i, c, total);
    if (o.partial) {
      Acc<T> sum = total[0];
#pragma unroll
      for (int j = 1; j < V; ++j) sum += total[j];
      o.partial[t] = sum;
    }
  }
};

template <class T, class F, int V> void run_vector(const ActParams& p, const F& f, void* stream) {
  using A = Acc<T>;
  Operands<T, F, V> o{f, {}, p.bias, p.g, static_cast<T*>(p.out), p.sum ? static_cast<A*>(p.workspace) : nullptr};
  for (int k = 0; k < F::INPUTS; ++k) o.in[k] = static_cast<const T*>(p.in[k]);
  const Split s = split(p, V);
  if (p.inner == 1) launch(Rows<T, F, V>{o, p.outer, p.channels, s.groups, s.parts}, s.groups * s.parts, stream);
  else launch(Planes<T, F, V>{o, p.channels, p.inner, s.parts}, s.groups * s.parts, stream);
  if (!p.sum) return;
  const int64_t a = p.inner == 1 ? s.parts : p.outer, b = p.inner == 1 ? 1 : s.parts;
  reduce(static_cast<A*>(p.workspace), static_cast<A*>(p.sum), a, p.channels, b, stream);
}

template <class T, class F> void run(const ActParams& p, const F& f, void* stream) {
  constexpr int V = BYTES / sizeof(T);
  bool wide = (p.inner == 1 ? p.channels : p.inner) % V == 0 && aligned(p.out);
  for (int k = 0; k < F::INPUTS; ++k) wide = wide && aligned(p.in[k]);
  if (wide) run_vector<T, F, V>(p, f, stream);
  else run_vector<T, F, 1>(p, f, stream);
}

template <class T> void run_op(const ActParams& p, void* stream) {
  Activation<T> act(p.slope, p.gain, p.clamp);
  if (p.op == ActOp::FORWARD_ADD) run<T>(p, ForwardAdd<T>{act}, stream);
  else if (p.op == ActOp::BACKWARD_AT) run<T>(p, BackwardAt<T>{SlopeAt<T>(act)}, stream);
  else if (p.op == ActOp::FORWARD) run<T>(p, Forward<T>{act}, stream);
  else if (p.constant_slope) run<T>(p, Backward<T, true>{act}, stream);
  else run<T>(p, Backward<T, false>{act}, stream);
}

}  // namespace

int64_t workspace_of(const ActParams& p) {
  if (!p.sum) return 0;
  int64_t parts = 0;
  for (int64_t vector = 1; vector <= BYTES / 2; vector *= 2) parts = std::max(parts, split(p, vector).parts);
  parts *= p.inner == 1 ? 1 : p.outer;
  return reduce_workspace(parts, p.channels);
}

void run_cuda(const ActParams& p, void* stream) {
  with_type(p.dtype, [&](auto zero) { run_op<decltype(zero)>(p, stream); });
}

}  // namespace stylegan_dist
