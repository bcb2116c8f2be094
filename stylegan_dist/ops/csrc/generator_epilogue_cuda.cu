// The generator's epilogue on the GPU. The unit of work are PIXELS neighbouring pixels of a row and, for channels_last, V
// neighbouring channels of each. What is added over channels (colours) is made by teams that share the channels of a unit,
// what is added over pixels (a table's gradient) by threads that walk over the units of a channel. The filter is read from
// the cache, four rows for one; its adjoint is a second launch, from a scratch tensor.
#include "noise.h"
#include "reduce_cuda.h"

namespace stylegan_dist {
namespace {

constexpr int TAPS = EPILOGUE_TAPS;
constexpr int PIXELS = 4;                    // one block of the noise
constexpr int WIDE = 4;                      // V, where sizes and addresses allow
constexpr int64_t ENOUGH_THREADS = 1 << 17;  // about what keeps the memory of a large GPU busy
constexpr int64_t STEPS = 32;                // at most, for one thread

// An image of unfiltered features is one long row.
struct Grid {
  int64_t height, width, columns, units;  // units of a row, of an image
  explicit Grid(const GeneratorParams& p)
      : height(p.filtered ? p.height : 1), width(p.filtered ? p.width : p.height * p.width), columns(ceil_div(width, PIXELS)),
        units(height * columns) {}
};

// Threads of the channels of an image, and threads that share its units.
struct Split { int64_t groups, parts; };

inline Split split(const GeneratorParams& p, int64_t channels) {
  const int64_t groups = p.channels / channels, units = Grid(p).units;
  return {groups, ceil_div(units, std::clamp<int64_t>(units * p.images * groups / ENOUGH_THREADS, 1, STEPS))};
}

// V channels of each pixel, one if not LAST.
template <class T, int K, int V, bool LAST> struct Unit {
  using A = Acc<T>;
  using Col = Column<A, K>;
  static constexpr int S = EPILOGUE_ROWS + K;
  static_assert(LAST || V == 1, "neighbours in memory are pixels of one channel");
  using Block = A[PIXELS][V];

  int64_t channels, height, width, columns;
  int colours;  // of K
  bool filtered;
  A line[TAPS];
  Bend<A> bend;
  const T *t, *h, *gz;
  const A *table, *h_table, *noise, *g;
  int64_t noise_stride;

  explicit Unit(const GeneratorParams& p)
      : channels(p.channels), colours(p.colours), filtered(p.filtered),
        t(static_cast<const T*>(p.t)), h(static_cast<const T*>(p.h)), gz(static_cast<const T*>(p.gz)),
        table(static_cast<const A*>(p.table)), h_table(static_cast<const A*>(p.h_table)),
        noise(static_cast<const A*>(p.noise)), g(static_cast<const A*>(p.g)), noise_stride(p.noise_stride) {
    const Grid grid(p);
    height = grid.height, width = grid.width, columns = grid.columns;
    for (int k = 0; k < TAPS; ++k) line[k] = A(p.line[k]);
    const Activation<T> act(p.slope, p.gain, p.clamp);
    bend = Bend<A>(act, SlopeAt<T>(act));
  }

  HD int64_t at(int64_t n, int64_t c, int64_t y, int64_t x, int64_t more) const {
    const int64_t row = LAST ? n * (height + more) + y : (n * channels + c) * (height + more) + y;
    return LAST ? (row * (width + more) + x) * channels + c : row * (width + more) + x;
  }

  HD void columns_of(const A* from, int64_t n, int64_t c, Col (&to)[V]) const {
    const int rows = EPILOGUE_ROWS + colours;
#pragma unroll
    for (int r = 0; r < S; ++r) {
      Pack<A, V> row{};
      if (from && r < rows) row = *reinterpret_cast<const Pack<A, V>*>(from + (n * rows + r) * channels + c);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (r == 0) to[j].d = row.v[j];
        if (r == 1) to[j].b = row.v[j];
        if (r == 2) to[j].sigma = row.v[j];
        if (r == 3) to[j].s = row.v[j];
        if (r > 3) to[j].w[r > 3 ? r - 4 : 0] = row.v[j];
      }
    }
  }

  // Pixels x to x + count of features without a filter; the others are zero.
  HD void read(const T* from, int64_t n, int64_t c, int64_t y, int64_t x, int count, Block& to) const {
    const int64_t first = at(n, c, y, x, 0);
#pragma unroll
    for (int q = 0; q < PIXELS; ++q) {
      Pack<T, V> pixel{};
      if (from && q < count) pixel = *reinterpret_cast<const Pack<T, V>*>(from + first + q * (LAST ? channels : 1));
#pragma unroll
      for (int j = 0; j < V; ++j) to[q][j] = load(pixel.v[j]);
    }
  }

  // The same behind the filter, if there is one. Zeros are before the first row and column, and behind the last.
  HD void read_filtered(const T* from, int64_t n, int64_t c, int64_t y, int64_t x, int count, Block& to) const {
    if (!filtered || !from) return read(from, n, c, y, x, count, to);
#pragma unroll
    for (int q = 0; q < PIXELS; ++q)
#pragma unroll
      for (int j = 0; j < V; ++j) to[q][j] = 0;
#pragma unroll
    for (int r = 0; r < TAPS; ++r) {
      const int64_t row = y - 1 + r;
      if (row < 0 || row > height) continue;
      const int64_t first = at(n, c, row, x - 1, 1);
      Block sums;
#pragma unroll
      for (int q = 0; q < PIXELS; ++q)
#pragma unroll
        for (int j = 0; j < V; ++j) sums[q][j] = 0;
#pragma unroll
      for (int i = 0; i < PIXELS + TAPS - 1; ++i) {
        if (x - 1 + i < 0 || x - 1 + i > width) continue;
        const Pack<T, V> pixel = *reinterpret_cast<const Pack<T, V>*>(from + first + i * (LAST ? channels : 1));
#pragma unroll
        for (int q = 0; q < PIXELS; ++q)
#pragma unroll
          for (int j = 0; j < V; ++j)
            if (i - q >= 0 && i - q < TAPS) sums[q][j] += line[i - q] * load(pixel.v[j]);
      }
#pragma unroll
      for (int q = 0; q < PIXELS; ++q)
#pragma unroll
        for (int j = 0; j < V; ++j) to[q][j] += line[r] * sums[q][j];
    }
  }

  HD void write(T* to, int64_t n, int64_t c, int64_t y, int64_t x, int count, const Block& from) const {
    const int64_t first = at(n, c, y, x, 0);
#pragma unroll
    for (int q = 0; q < PIXELS; ++q) {
      Pack<T, V> pixel;
#pragma unroll
      for (int j = 0; j < V; ++j) pixel.v[j] = store<T>(from[q][j]);
      if (q < count) *reinterpret_cast<Pack<T, V>*>(to + first + q * (LAST ? channels : 1)) = pixel;
    }
  }

  // What all channels of a pixel have in common: the noise, and (GRADIENT) the colours' gradient.
  template <bool GRADIENT> HD void shared(int64_t n, int64_t y, int64_t x, int q, int count, Pixel<A, K>& p) const {
    const int64_t i = y * width + x + q;
    p.e = noise && q < count ? noise[n * noise_stride + i] : A(0);
#pragma unroll
    for (int k = 0; k < K; ++k)
      p.g[k] = GRADIENT && g && k < colours && q < count ? g[(n * colours + k) * height * width + i] : A(0);
  }
  HD int count(int64_t x) const { return width - x < PIXELS ? int(width - x) : PIXELS; }
};

// z and rgb, or (TANGENT) their changes along h and h_table. A team shares the channels of a unit.
template <class T, int K, int V, bool LAST, bool TANGENT> struct Gather {
  using A = Acc<T>;
  using U = Unit<T, K, V, LAST>;
  static constexpr int LANES = 8;
  struct Sums {
    static constexpr int COUNT = PIXELS * K;
    A v[COUNT ? COUNT : 1];
  };
  U unit;
  T* z;  // or null
  A* rgb;

  HD void part(int64_t team, int lane, Sums& sums) const {
    const int64_t row = team / unit.columns, x = (team - row * unit.columns) * PIXELS;
    const int64_t n = row / unit.height, y = row - n * unit.height;
    const int count = unit.count(x);
    Pixel<A, K> common[PIXELS];
#pragma unroll
    for (int q = 0; q < PIXELS; ++q) unit.template shared<false>(n, y, x, q, count, common[q]);
#pragma unroll
    for (int i = 0; i < Sums::COUNT; ++i) sums.v[i] = 0;
    for (int64_t c = lane * V; c < unit.channels; c += LANES * V) {
      typename U::Col col[V], h[V];
      typename U::Block u, hu, out;
      unit.columns_of(unit.table, n, c, col);
      unit.read_filtered(unit.t, n, c, y, x, count, u);
      if (TANGENT) unit.columns_of(unit.h_table, n, c, h), unit.read_filtered(unit.h, n, c, y, x, count, hu);
#pragma unroll
      for (int q = 0; q < PIXELS; ++q)
#pragma unroll
        for (int j = 0; j < V; ++j) {
          Pixel<A, K> p = common[q];
          p.u = u[q][j], p.gz = 0;
          const Derivatives<A, K> d(unit.bend, col[j], p);
          const A dy = TANGENT ? d.change(h[j], hu[q][j]) : A(0);
          out[q][j] = TANGENT ? dy * col[j].s + d.y * h[j].s : d.y * col[j].s;
#pragma unroll
          for (int k = 0; k < K; ++k) sums.v[q * K + k] += TANGENT ? dy * col[j].w[k] + d.y * h[j].w[k] : d.y * col[j].w[k];
        }
      if (z) unit.write(z, n, c, y, x, count, out);
    }
  }

  HD void finish(int64_t team, const Sums& sums) const {
    const int64_t row = team / unit.columns, x = (team - row * unit.columns) * PIXELS;
    const int64_t n = row / unit.height, y = row - n * unit.height;
#pragma unroll
    for (int q = 0; q < PIXELS; ++q)
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (q < unit.count(x) && k < unit.colours)
          rgb[((n * unit.colours + k) * unit.height + y) * unit.width + x + q] = sums.v[q * K + k];
  }
};

// The gradient of u and partial sums of the table's, or (SECOND) of those along h and h_table.
template <class T, int K, int V, bool LAST, bool SECOND> struct Walk {
  using A = Acc<T>;
  using U = Unit<T, K, V, LAST>;
  U unit;
  T* to_u;
  A* partial;  // [parts, images, S, channels], or for planes [images, S, channels, parts]
  int64_t images, groups, parts, units;

  HD void operator()(int64_t t) const {
    const int64_t slow = LAST ? t / groups : t / parts, fast = t - slow * (LAST ? groups : parts);
    const int64_t n = LAST ? slow / parts : slow / groups, part = LAST ? slow - n * parts : fast;
    const int64_t c = (LAST ? fast : slow - n * groups) * V;
    typename U::Col col[V], h[V];
    unit.columns_of(unit.table, n, c, col);
    if (SECOND) unit.columns_of(unit.h_table, n, c, h);
    A sums[V][U::S];
#pragma unroll
    for (int j = 0; j < V; ++j)
#pragma unroll
      for (int r = 0; r < U::S; ++r) sums[j][r] = 0;

    for (int64_t i = part; i < units; i += parts) {
      const int64_t y = i / unit.columns, x = (i - y * unit.columns) * PIXELS;
      const int count = unit.count(x);
      typename U::Block u, hu, gz, out;
      unit.read_filtered(unit.t, n, c, y, x, count, u);
      unit.read(unit.gz, n, c, y, x, count, gz);
      if (SECOND) unit.read_filtered(unit.h, n, c, y, x, count, hu);
#pragma unroll
      for (int q = 0; q < PIXELS; ++q) {
        Pixel<A, K> p;
        unit.template shared<true>(n, y, x, q, count, p);  // zeros behind the end of a row, as gz
#pragma unroll
        for (int j = 0; j < V; ++j) {
          p.u = u[q][j], p.gz = gz[q][j];
          const Derivatives<A, K> d(unit.bend, col[j], p);
          const A gv = d.gradient();
          if (SECOND) {
            const A hv = d.gradient(h[j]);
            out[q][j] = col[j].d * hv + h[j].d * gv;
            d.add(hv, d.change(h[j], hu[q][j]), sums[j]);
            sums[j][0] += hu[q][j] * gv;
          } else {
            out[q][j] = col[j].d * gv;
            d.add(gv, d.y, sums[j]);
          }
        }
      }
      unit.write(to_u, n, c, y, x, count, out);
    }
    const int rows = EPILOGUE_ROWS + unit.colours;
#pragma unroll
    for (int r = 0; r < U::S; ++r)
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (r >= rows) continue;
        const int64_t row = LAST ? (part * images + n) * rows + r : n * rows + r;
        const int64_t where = row * unit.channels + c + j;
        partial[LAST ? where : where * parts + part] = sums[j][r];
      }
  }
};

// The adjoint of the filter.
void unfilter(const GeneratorParams& p, void* stream) {
  ResampleParams r{};
  r.dtype = p.dtype, r.planes = p.channels_last ? p.images : p.images * p.channels, r.inner = p.channels_last ? p.channels : 1;
  r.height = p.height, r.width = p.width, r.out_height = p.height + 1, r.out_width = p.width + 1;
  r.in = p.scratch, r.out = p.to_t, r.up = r.down = 1, r.before = TAPS - 2, r.taps = TAPS, r.gain = 1;
  for (int k = 0; k < TAPS; ++k) r.line[k] = p.line[TAPS - 1 - k];
  run_cuda(r, stream);
}

template <class T, int K, int V, bool LAST> void run(const GeneratorParams& p, void* stream) {
  using A = Acc<T>;
  using U = Unit<T, K, V, LAST>;
  const U unit(p);
  const int64_t units = Grid(p).units;
  T* z = static_cast<T*>(p.z);
  A* rgb = static_cast<A*>(p.rgb);
  if (p.op == GeneratorOp::FORWARD)
    return launch_teams(Gather<T, K, V, LAST, false>{unit, z, rgb}, p.images * units, stream);
  const bool second = p.op == GeneratorOp::SECOND;
  if (second) launch_teams(Gather<T, K, V, LAST, true>{unit, z, rgb}, p.images * units, stream);
  const Split s = split(p, V);
  T* to = static_cast<T*>(p.filtered ? p.scratch : p.to_t);
  A* workspace = static_cast<A*>(p.workspace);
  const int64_t threads = p.images * s.groups * s.parts;
  if (second) launch(Walk<T, K, V, LAST, true>{unit, to, workspace, p.images, s.groups, s.parts, units}, threads, stream);
  else launch(Walk<T, K, V, LAST, false>{unit, to, workspace, p.images, s.groups, s.parts, units}, threads, stream);
  reduce(workspace, static_cast<A*>(p.sums), LAST ? s.parts : 1, p.images * (EPILOGUE_ROWS + p.colours) * p.channels,
         LAST ? 1 : s.parts, stream);
  if (p.filtered) unfilter(p, stream);
}

// Colours that there are not are zeros. Only what is trained with, channels_last and RGB, has kernels of its own: every kernel
// takes time to compile.
template <class T> void run_type(const GeneratorParams& p, void* stream) {
  bool wide = p.channels_last && p.channels % WIDE == 0 && p.colours <= 3;
  for (const void* q : {p.t, p.h, p.gz, p.table, p.h_table, static_cast<const void*>(p.z), static_cast<const void*>(p.to_t)})
    wide = wide && aligned(q);
  if (wide) return p.colours == 0 ? run<T, 0, WIDE, true>(p, stream) : run<T, 3, WIDE, true>(p, stream);
  p.channels_last ? run<T, 4, 1, true>(p, stream) : run<T, 4, 1, false>(p, stream);
}

// A thread draws a block of four numbers.
template <class A> struct Draw {
  const int64_t* address;
  uint32_t layer;
  int64_t count, blocks;
  A* out;
  HD void operator()(int64_t t) const {
    const int64_t n = t / blocks, block = t - n * blocks;
    const Words w = Address(address + 2 * n).words(uint32_t(block), layer);
    const Pair p = box_muller(w.w[0], w.w[1]), q = box_muller(w.w[2], w.w[3]);
    const float drawn[4] = {p.a, p.b, q.a, q.b};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (block * 4 + i < count) out[n * count + block * 4 + i] = drawn[i];
  }
};

template <class A> void draw(const NoiseParams& p, void* stream) {
  const int64_t blocks = ceil_div(p.count, 4);
  launch(Draw<A>{p.address, uint32_t(p.layer), p.count, blocks, static_cast<A*>(p.out)}, p.images * blocks, stream);
}

}  // namespace

void run_cuda(const NoiseParams& p, void* stream) {
  if (p.dtype == DType::DOUBLE) draw<double>(p, stream);
  else draw<float>(p, stream);
}

int64_t workspace_of(const GeneratorParams& p) {
  if (p.op == GeneratorOp::FORWARD) return 0;
  return reduce_workspace(std::max(split(p, 1).parts, p.channels % WIDE ? 1 : split(p, WIDE).parts),
                          p.images * (EPILOGUE_ROWS + p.colours) * p.channels);
}

void run_cuda(const GeneratorParams& p, void* stream) {
  with_type(p.dtype, [&](auto zero) { run_type<decltype(zero)>(p, stream); });
}

}  // namespace stylegan_dist
