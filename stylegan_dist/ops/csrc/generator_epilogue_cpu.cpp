// The generator's epilogue on the threads of the CPU. A task is a band of rows of an image: its noise is drawn once, then
// channels pass, as many at a time as fit into the cache. Rows are brought into Acc, filtered, bent and stored; of filtered
// rows the last four are kept. Lanes are channels for channels_last, else pixels.
#include <algorithm>
#include <cstring>
#include <vector>

#include "launch.h"
#include "noise_cpu.h"

namespace stylegan_dist {
namespace {

constexpr int64_t FRAME = 1 << 13;  // numbers in a row of several channels, about
constexpr int64_t CHUNK = 128;      // channels at a time, at most
constexpr int64_t PIXELS = 1024;    // of a row and of a band, where rows are not filtered
constexpr int64_t ROWS = 32;        // of a band of filtered rows: three more are computed for the adjoint filter
constexpr int TAPS = EPILOGUE_TAPS;

template <class A> struct LanesOf { typedef A type __attribute__((vector_size(32))); };
template <class A> using Lanes = typename LanesOf<A>::type;
template <class A> constexpr int64_t LANES = 32 / int64_t(sizeof(A));

template <class A> Lanes<A> read_lanes(const A* from) {
  Lanes<A> x;
  memcpy(&x, from, sizeof(x));
  return x;
}
template <class A> void write_lanes(A* to, Lanes<A> x) { memcpy(to, &x, sizeof(x)); }

// A row of some channels: features are [width, pitch], of pixels [.., row]; what is absent is zeros or not looked at.
template <class A> struct Strip {
  Bend<A> bend;
  int64_t width, channels, pitch, row;
  const A *table, *h_table;                // [.., pitch]
  const A *u, *hu, *gz, *e, *g;
  A *to_t, *z, *rgb, *lanes;               // rgb is added to; lanes: room for [width, K] Lanes
  double* sums;                            // [.., pitch], added to; or null
};

template <class A, int K, GeneratorOp OP, bool LAST> void bend_strip(const Strip<A>& s) {
  using X = Lanes<A>;
  constexpr int64_t L = LANES<A>;
  constexpr int S = EPILOGUE_ROWS + K;
  const auto column = [&](const A* table, int64_t c) __attribute__((always_inline)) {
    const auto at = [&](int row) { return LAST ? read_lanes<A>(table + row * s.pitch + c) : X{} + table[row * s.pitch]; };
    Column<X, K> result{at(0), at(1), at(2), at(3), {}};
    for (int k = 0; k < K; ++k) result.w[k] = at(EPILOGUE_ROWS + k);
    return result;
  };
  const auto pixel = [](const A* from) { return LAST ? X{} + *from : read_lanes<A>(from); };
  for (int64_t c = 0; c < (LAST ? s.channels : 1); c += L) {
    const Column<X, K> col = column(s.table, c);
    Column<X, K> h{};
    if (OP == GeneratorOp::SECOND) h = column(s.h_table, c);
    X sums[S] = {};
    for (int64_t x = 0; x < s.width; x += LAST ? 1 : L) {
      const int64_t i = LAST ? x * s.pitch + c : x;
      Pixel<X, K> p{read_lanes<A>(s.u + i), pixel(s.e + x), X{}, {}};
      if (OP != GeneratorOp::FORWARD) {
        p.gz = read_lanes<A>(s.gz + i);
        for (int k = 0; k < K; ++k) p.g[k] = pixel(s.g + k * s.row + x);
      }
      const Derivatives<X, K> d(s.bend, col, p);
      X rgb[K ? K : 1] = {};
      if (OP == GeneratorOp::FORWARD) {
        write_lanes<A>(s.z + i, d.y * col.s);
        for (int k = 0; k < K; ++k) rgb[k] = d.y * col.w[k];
      }
      if (OP == GeneratorOp::BACKWARD) {
        const X gv = d.gradient();
        write_lanes<A>(s.to_t + i, col.d * gv);
        d.add(gv, d.y, sums);
      }
      if (OP == GeneratorOp::SECOND) {
        const X hu = read_lanes<A>(s.hu + i), gv = d.gradient(), hv = d.gradient(h), dy = d.change(h, hu);
        write_lanes<A>(s.to_t + i, col.d * hv + h.d * gv);
        write_lanes<A>(s.z + i, dy * col.s + d.y * h.s);
        for (int k = 0; k < K; ++k) rgb[k] = dy * col.w[k] + d.y * h.w[k];
        d.add(hv, dy, sums);
        sums[0] += hu * gv;
      }
      if (OP == GeneratorOp::BACKWARD) continue;
      for (int k = 0; k < K; ++k) {
        A* to = LAST ? s.lanes + (x * K + k) * L : s.rgb + k * s.row + x;
        write_lanes<A>(to, LAST && c == 0 ? rgb[k] : read_lanes<A>(to) + rgb[k]);
      }
    }
    if (OP != GeneratorOp::FORWARD && s.sums)
      for (int r = 0; r < S; ++r)
        for (int64_t l = 0; l < L; ++l) s.sums[r * s.pitch + (LAST ? c + l : 0)] += sums[r][l];
  }
  if (!LAST || OP == GeneratorOp::BACKWARD) return;
  for (int64_t x = 0; x < s.width; ++x)
    for (int k = 0; k < K; ++k) {
      const A* from = s.lanes + (x * K + k) * L;
      A total = 0;
      for (int64_t l = 0; l < L / 2; ++l) total += from[l] + from[l + L / 2];
      s.rgb[k * s.row + x] += total;
    }
}

template <class A, int K> auto strip_of(GeneratorOp op, bool last) {
  using Op = GeneratorOp;
  switch (op) {
    case Op::FORWARD: return last ? &bend_strip<A, K, Op::FORWARD, true> : &bend_strip<A, K, Op::FORWARD, false>;
    case Op::BACKWARD: return last ? &bend_strip<A, K, Op::BACKWARD, true> : &bend_strip<A, K, Op::BACKWARD, false>;
    default: return last ? &bend_strip<A, K, Op::SECOND, true> : &bend_strip<A, K, Op::SECOND, false>;
  }
}

// `count` pixels, `step` apart, of `channels` neighbouring channels -> [count, pitch], with zeros behind them.
template <class T>
void read(const T* __restrict from, Acc<T>* __restrict to, int64_t count, int64_t channels, int64_t step, int64_t pitch) {
  if (channels == step && channels == pitch) count *= channels, channels = step = pitch = 1;
  if (pitch == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = load(from[i]);
    return;
  }
  for (int64_t x = 0; x < count; ++x, from += step, to += pitch) {
    for (int64_t c = 0; c < channels; ++c) to[c] = load(from[c]);
    for (int64_t c = channels; c < pitch; ++c) to[c] = 0;
  }
}

template <class T>
void write(const Acc<T>* __restrict from, T* __restrict to, int64_t count, int64_t channels, int64_t step, int64_t pitch) {
  if (channels == step && channels == pitch) count *= channels, channels = step = pitch = 1;
  if (pitch == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = store<T>(from[i]);
    return;
  }
  for (int64_t x = 0; x < count; ++x, from += pitch, to += step)
    for (int64_t c = 0; c < channels; ++c) to[c] = store<T>(from[c]);
}

// to[i] = sum_j line[j] from[j][i]
template <class A> void combine(const A* const* from, A* __restrict to, int64_t count, const A* line) {
  const A *p = from[0], *q = from[1], *r = from[2], *s = from[3], a = line[0], b = line[1], c = line[2], d = line[3];
  for (int64_t i = 0; i < count; ++i) to[i] = a * p[i] + b * q[i] + c * r[i] + d * s[i];
}

// The last four rows of a plane, filtered along themselves, from which one row is made.
template <class A> struct Window {
  std::vector<A> frame, rows[TAPS], zeros;
  int64_t pitch, before, count, height;  // numbers of a pixel, zeros before a row, pixels of a filtered row, rows
  A line[TAPS];

  // `width` pixels in a row, between `before` and `after` zeros; `room` for numbers that are written behind its end.
  Window(int64_t width, int64_t height, int64_t pitch, int64_t before, int64_t after, int64_t room, const double* taps,
         bool mirrored)
      : frame((width + before + after) * pitch + room), zeros(frame.size()), pitch(pitch), before(before),
        count(width + before + after - TAPS + 1), height(height) {
    for (auto& row : rows) row.resize(frame.size());
    for (int k = 0; k < TAPS; ++k) line[k] = A(taps[mirrored ? TAPS - 1 - k : k]);
  }
  A* unfiltered() { return frame.data() + before * pitch; }
  void push(int64_t r) {  // what is in the frame as row r
    const A* f = frame.data();
    const A* const taps[TAPS] = {f, f + pitch, f + 2 * pitch, f + 3 * pitch};
    combine(taps, rows[r % TAPS].data(), count * pitch, line);
  }
  void make(int64_t first, A* to) const {  // from rows first, ...
    const A* from[TAPS];
    for (int k = 0; k < TAPS; ++k)
      from[k] = first + k < 0 || first + k >= height ? zeros.data() : rows[(first + k) % TAPS].data();
    combine(from, to, count * pitch, line);
  }
};

template <class T> struct Problem {
  using A = Acc<T>;
  static constexpr int64_t L = LANES<A>;
  const GeneratorParams& p;
  const bool last = p.channels_last, backward = p.op != GeneratorOp::FORWARD, second = p.op == GeneratorOp::SECOND;
  const int colours = p.colours == 0 ? 0 : p.colours <= 3 ? 3 : 4;  // as computed, more than there are with zeros
  const int64_t C = p.channels, step = last ? C : 1, pixels = p.height * p.width;
  const int64_t chunk, width, pitch = last ? ceil_div(chunk, L) * L : 1, row = ceil_div(width, L) * L;
  const int64_t rows = ceil_div(pixels, width), band = p.filtered ? ROWS : std::max<int64_t>(1, PIXELS / width);
  const int64_t bands = ceil_div(rows, band), S = EPILOGUE_ROWS + p.colours;
  const Bend<A> bend = bend_of(p);
  std::vector<double> sums = std::vector<double>(backward ? p.images * bands * S * C : 0);

  explicit Problem(const GeneratorParams& p) : p(p), chunk(chunk_of(p)), width(width_of(p)) {}

  static int64_t chunk_of(const GeneratorParams& p) {
    if (!p.channels_last) return 1;
    return std::min(p.channels, p.filtered ? std::clamp<int64_t>(FRAME / p.width / 16 * 16, 16, CHUNK) : CHUNK);
  }
  static int64_t width_of(const GeneratorParams& p) {
    if (p.filtered) return p.width;
    return std::min({p.height * p.width, PIXELS, p.channels_last ? FRAME / std::max(chunk_of(p), L) : PIXELS});
  }
  static Bend<A> bend_of(const GeneratorParams& p) {
    const Activation<T> act(p.slope, p.gain, p.clamp);
    return {act, SlopeAt<T>(act)};
  }
  int64_t count(int64_t y) const { return std::min(width, pixels - y * width); }  // pixels of a row

  // What a thread works with.
  struct Room {
    Window<A> t, h, to_t;
    std::vector<A> u, hu, gz, flat, z, lanes, table, h_table, e, g, rgb;
    std::vector<double> sums;
    explicit Room(const Problem& q)
        : t(q.p.width + 1, q.p.height + 1, q.pitch, 1, 1, L, q.p.line, false),
          h(q.second ? q.p.width + 1 : 0, q.p.height + 1, q.pitch, 1, 1, L, q.p.line, false),
          to_t(q.p.width, q.p.height, q.pitch, 2, 2, L, q.p.line, true), u(q.row * q.pitch + q.row + L), hu(u.size()),
          gz(u.size()), flat(u.size() + q.pitch), z(u.size()), lanes(q.width * q.colours * L),
          table((EPILOGUE_ROWS + q.colours) * q.pitch), h_table(table.size()), e((q.band + 3) * q.row),
          g(q.colours * e.size()), rgb(g.size()), sums(table.size()) {}
  };

  // Row y of features: the pixels of a channel or some.
  template <class P> P* at(P* features, int64_t n, int64_t c, int64_t pixel, int64_t all) const {
    return features + (last ? (n * all + pixel) * C + c : (n * C + c) * all + pixel);
  }

  void read_table(const void* from, int64_t n, int64_t c, int64_t channels, std::vector<A>& to) const {
    for (int64_t r = 0; from && r < S; ++r)
      for (int64_t i = 0; i < pitch; ++i)
        to[r * pitch + i] = i < channels ? static_cast<const A*>(from)[(n * S + r) * C + c + i] : A(0);
  }

  // Rows y0 to y1 of the noise and of the colours' gradient, each with zeros behind it.
  void read_pixels(int64_t n, int64_t y0, int64_t y1, Room& room) const {
    if (p.address) {
      std::vector<A> drawn((y1 - y0) * width);
      const int64_t all = std::min(pixels, y1 * width) - y0 * width;
      draw_noise(Address(p.address + 2 * n), p.layer, y0 * width, all, drawn.data());
      for (int64_t y = y0; y < y1; ++y)
        std::copy_n(drawn.data() + (y - y0) * width, count(y), room.e.data() + (y - y0) * row);
    }
    for (int64_t y = y0; y < y1; ++y) {
      if (p.noise)
        std::copy_n(static_cast<const A*>(p.noise) + n * p.noise_stride + y * width, count(y), room.e.data() + (y - y0) * row);
      for (int k = 0; p.g && k < p.colours; ++k)
        std::copy_n(static_cast<const A*>(p.g) + (n * p.colours + k) * pixels + y * width, count(y),
                    room.g.data() + ((y - y0) * colours + k) * row);
      for (int64_t i = count(y); i < row; ++i) {
        room.e[(y - y0) * row + i] = 0;
        for (int k = 0; k < colours; ++k) room.g[((y - y0) * colours + k) * row + i] = 0;
      }
    }
  }

  void run(Room& room, int64_t task) {
    const auto strip = colours == 0   ? strip_of<A, 0>(p.op, last)
                       : colours == 3 ? strip_of<A, 3>(p.op, last)
                                      : strip_of<A, 4>(p.op, last);
    const bool adjoint = p.filtered && backward;
    const int64_t n = task / bands, y0 = task % bands * band, y1 = std::min(rows, y0 + band), part = task % bands;
    const int64_t from = adjoint ? std::max<int64_t>(0, y0 - 2) : y0, to = adjoint ? std::min(rows, y1 + 1) : y1;
    read_pixels(n, from, to, room);
    std::fill(room.rgb.begin(), room.rgb.end(), A(0));
    for (int64_t c = 0; c < C; c += chunk) {
      const int64_t channels = std::min(chunk, C - c);
      read_table(p.table, n, c, channels, room.table), read_table(p.h_table, n, c, channels, room.h_table);
      std::fill(room.sums.begin(), room.sums.end(), 0.0);
      int64_t next = std::max<int64_t>(0, from - 1);  // row of t that has not been looked at
      for (int64_t y = from; y < to; ++y) {
        const bool inside = y >= y0 && y < y1;
        features(room, n, c, channels, y, next);
        A* bent = adjoint ? room.to_t.unfiltered() : room.flat.data();
        const int64_t i = y - from;
        strip({bend, count(y), channels, pitch, row, room.table.data(), room.h_table.data(), room.u.data(), room.hu.data(),
               room.gz.data(), room.e.data() + i * row, room.g.data() + i * colours * row, bent, room.z.data(),
               room.rgb.data() + i * colours * row, room.lanes.data(), inside ? room.sums.data() : nullptr});
        if (p.z && inside)
          write(room.z.data(), at(static_cast<T*>(p.z), n, c, y * width, pixels), count(y), channels, step, pitch);
        if (adjoint) {
          room.to_t.push(y);
          if (y > y0) emit(room, n, c, channels, y - 1);
        } else if (backward) {
          write(bent, at(static_cast<T*>(p.to_t), n, c, y * width, pixels), count(y), channels, step, pitch);
        }
      }
      // The adjoint of the filter has a row more, and these need no more of the image.
      if (adjoint && y1 == rows)
        for (int64_t y = rows - 1; y <= rows; ++y) emit(room, n, c, channels, y);
      if (backward)
        for (int64_t r = 0; r < S; ++r)
          std::copy_n(room.sums.data() + r * pitch, channels, sums.data() + ((n * bands + part) * S + r) * C + c);
    }
    if (p.op != GeneratorOp::BACKWARD)
      for (int64_t y = y0; y < y1; ++y)
        for (int k = 0; k < p.colours; ++k)
          std::copy_n(room.rgb.data() + ((y - from) * colours + k) * row, count(y),
                      static_cast<A*>(p.rgb) + (n * p.colours + k) * pixels + y * width);
  }

  // Brings row y of t, h and gz into the room.
  void features(Room& room, int64_t n, int64_t c, int64_t channels, int64_t y, int64_t& next) const {
    const T *t = static_cast<const T*>(p.t), *h = static_cast<const T*>(p.h), *gz = static_cast<const T*>(p.gz);
    const int64_t here = y * width;
    if (p.filtered) {
      const int64_t wide = width + 1, all = wide * (rows + 1);
      for (; next <= std::min(y + 2, rows); ++next) {
        read(at(t, n, c, next * wide, all), room.t.unfiltered(), wide, channels, step, pitch);
        room.t.push(next);
        if (!h) continue;
        read(at(h, n, c, next * wide, all), room.h.unfiltered(), wide, channels, step, pitch);
        room.h.push(next);
      }
      room.t.make(y - 1, room.u.data());
      if (h) room.h.make(y - 1, room.hu.data());
    } else {
      read(at(t, n, c, here, pixels), room.u.data(), count(y), channels, step, pitch);
      if (h) read(at(h, n, c, here, pixels), room.hu.data(), count(y), channels, step, pitch);
    }
    if (gz) read(at(gz, n, c, here, pixels), room.gz.data(), count(y), channels, step, pitch);
    // Lanes behind the end of a shorter row.
    for (int64_t i = count(y) * pitch; pitch == 1 && i < row; ++i) room.u[i] = room.hu[i] = room.gz[i] = 0;
  }

  void emit(Room& room, int64_t n, int64_t c, int64_t channels, int64_t y) const {
    const int64_t wide = width + 1;
    room.to_t.make(y - 2, room.flat.data());
    write(room.flat.data(), at(static_cast<T*>(p.to_t), n, c, y * wide, wide * (rows + 1)), wide, channels, step, pitch);
  }
};

template <class T> void run_type(const GeneratorParams& p) {
  Problem<T> problem(p);
  using A = Acc<T>;
  parallel_for(p.images * problem.bands, 1, [&](int64_t begin, int64_t end) {
    typename Problem<T>::Room room(problem);
    for (int64_t task = begin; task < end; ++task) problem.run(room, task);
  });
  const int64_t count = problem.S * p.channels;
  for (int64_t n = 0; problem.backward && n < p.images; ++n)
    for (int64_t i = 0; i < count; ++i) {
      double total = 0;
      for (int64_t b = 0; b < problem.bands; ++b) total += problem.sums[(n * problem.bands + b) * count + i];
      static_cast<A*>(p.sums)[n * count + i] = A(total);
    }
}

}  // namespace

void run_cpu(const GeneratorParams& p) {
  with_type(p.dtype, [&](auto zero) { run_type<decltype(zero)>(p); });
}

void run_cpu(const NoiseParams& p) {
  parallel_for(p.images, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, p.count)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      draw_noise(Address(p.address + 2 * n), p.layer, 0, p.count, static_cast<float*>(p.out) + n * p.count);
  });
}

}  // namespace stylegan_dist
