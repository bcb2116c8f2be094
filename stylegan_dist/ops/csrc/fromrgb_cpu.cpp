// fromrgb on the threads of the CPU. Planes: loops along the pixels of one output channel. channels_last: along the
// output channels of one pixel, with transposed matrices.
#include <algorithm>
#include <vector>

#include "launch.h"
#include "math.h"

namespace stylegan_dist {
namespace {

constexpr int64_t GRAIN = 1 << 14;  // elements that are worth a thread
constexpr int64_t BLOCK = 1024;     // pixels that are summed in Acc before they go to double
constexpr int LANES = 16;           // sums side by side
constexpr int MAX_PARTS = 64;       // parts of a sum over pixels; fixed, so that the result depends on no thread

template <class T, int K> struct Problem {
  using A = Acc<T>;
  const FromRgbParams& p;
  const Activation<T> act;
  const SlopeAt<T> slope;
  const T *image, *g, *h, *right;
  T* out;
  int64_t C, inner;

  explicit Problem(const FromRgbParams& p)
      : p(p), act(p.slope, p.gain, p.clamp), slope(act), image(static_cast<const T*>(p.image)),
        g(static_cast<const T*>(p.g)),
        // Where there is nothing, the image meets a matrix of zeros.
        h(p.h ? static_cast<const T*>(p.h) : image), right(p.right ? static_cast<const T*>(p.right) : image),
        out(static_cast<T*>(p.out)), C(p.channels), inner(p.inner) {}

  // ---- planes

  static void pixel(const T* image, int64_t inner, int64_t i, A* x) {
    for (int k = 0; k < K; ++k) x[k] = load(image[k * inner + i]);
  }

  template <bool TANGENT> void features() const {
    parallel_for(p.outer * C, std::max<int64_t>(1, GRAIN / inner), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t n = plane / C, c = plane - n * C, first = n * K * inner, count = inner;
        const Row<A, K> row(p.affine, c), left(p.left, c), h_affine(p.h_affine, c);
        const T *x_in = image + first, *h_in = h + first, *r_in = right + first;
        const Activation<T> act = this->act;
        const SlopeAt<T> slope = this->slope;
        T* __restrict to = out + plane * inner;
        for (int64_t i = 0; i < count; ++i) {
          A x[K], dx[K], r[K];
          pixel(x_in, count, i, x);
          if (TANGENT) {
            pixel(h_in, count, i, dx), pixel(r_in, count, i, r);
            to[i] = store<T>(slope(row(x)) * (left.times(dx) + h_affine(r)));
          } else {
            to[i] = store<T>(act.value(row(x)));
          }
        }
      }
    });
  }

  void to_image() const {
    const int64_t blocks = ceil_div(inner, BLOCK);
    parallel_for(p.outer * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / blocks, start = (task - n * blocks) * BLOCK, count = std::min(BLOCK, inner - start);
        const T* x_in = image + n * K * inner + start;
        const int64_t step = inner;
        A sums[K][BLOCK] = {};
        for (int64_t c = 0; c < C; ++c) {
          const Row<A, K> row(p.affine, c), left(p.left, c);
          const SlopeAt<T> slope = this->slope;
          const T* g_in = g + (n * C + c) * inner + start;
          for (int64_t i = 0; i < count; ++i) {
            A x[K];
            pixel(x_in, step, i, x);
            const A y = load(g_in[i]) * slope(row(x));
            for (int k = 0; k < K; ++k) sums[k][i] += left.w[k] * y;
          }
        }
        for (int k = 0; k < K; ++k)
          for (int64_t i = 0; i < count; ++i) out[(n * K + k) * inner + start + i] = store<T>(sums[k][i]);
      }
    });
  }

  void to_affine() const {
    std::vector<double> sums(p.outer * C * (K + 1));
    parallel_for(p.outer * C, std::max<int64_t>(1, GRAIN / inner), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t n = plane / C, c = plane - n * C, first = n * K * inner, step = inner;
        const Row<A, K> row(p.affine, c);
        const SlopeAt<T> slope = this->slope;
        const T *x_in = image + first, *r_in = right + first, *g_in = g + plane * inner;
        for (int64_t start = 0; start < inner; start += BLOCK) {
          const int64_t stop = std::min(inner, start + BLOCK);
          A lanes[K + 1][LANES] = {};
          auto add = [&](int64_t i, int l) __attribute__((always_inline)) {
            A x[K], r[K];
            pixel(x_in, step, i, x), pixel(r_in, step, i, r);
            const A y = load(g_in[i]) * slope(row(x));
            for (int k = 0; k < K; ++k) lanes[k][l] += y * r[k];
            lanes[K][l] += y;
          };
          int64_t i = start;
          for (; i + LANES <= stop; i += LANES)
            for (int l = 0; l < LANES; ++l) add(i + l, l);
          for (int l = 0; i < stop; ++i, ++l) add(i, l);
          for (int k = 0; k <= K; ++k)
            for (int l = 0; l < LANES; ++l) sums[plane * (K + 1) + k] += lanes[k][l];
        }
      }
    });
    add_up(sums, p.outer);
  }

  // ---- channels_last

  std::vector<A> transposed(const void* matrix) const {
    std::vector<A> result(C * (K + 1));
    if (matrix)
      for (int64_t c = 0; c < C; ++c)
        for (int k = 0; k <= K; ++k) result[k * C + c] = static_cast<const A*>(matrix)[c * (K + 1) + k];
    return result;
  }

  static A times(const A* matrix, int64_t C, int64_t c, const A* x) {
    A y = 0;
    for (int k = 0; k < K; ++k) y += matrix[k * C + c] * x[k];
    return y;
  }
  static A row(const A* matrix, int64_t C, int64_t c, const A* x) { return times(matrix, C, c, x) + matrix[K * C + c]; }

  template <bool TANGENT> void features_last() const {
    const std::vector<A> a = transposed(p.affine), l = transposed(p.left), ha = transposed(p.h_affine);
    parallel_for(p.outer, std::max<int64_t>(1, GRAIN / C), [&](int64_t begin, int64_t end) {
      const A *affine = a.data(), *left = l.data(), *h_affine = ha.data();
      const Activation<T> act = this->act;
      const SlopeAt<T> slope = this->slope;
      const int64_t count = C;
      for (int64_t i = begin; i < end; ++i) {
        A x[K], dx[K], r[K];
        pixel(image + i * K, 1, 0, x), pixel(h + i * K, 1, 0, dx), pixel(right + i * K, 1, 0, r);
        T* __restrict to = out + i * count;
        for (int64_t c = 0; c < count; ++c) {
          const A v = row(affine, count, c, x);
          to[c] = store<T>(TANGENT ? slope(v) * (times(left, count, c, dx) + row(h_affine, count, c, r)) : act.value(v));
        }
      }
    });
  }

  // to[c] = phi' g of pixel i
  static void slope_times(SlopeAt<T> slope, const A* affine, const A* x, const T* __restrict g, A* __restrict to, int64_t count) {
    for (int64_t c = 0; c < count; ++c) to[c] = load(g[c]) * slope(row(affine, count, c, x));
  }

  void to_image_last() const {
    const std::vector<A> a = transposed(p.affine), l = transposed(p.left);
    parallel_for(p.outer, std::max<int64_t>(1, GRAIN / C), [&](int64_t begin, int64_t end) {
      const A* left = l.data();
      std::vector<A> gv(C);
      for (int64_t i = begin; i < end; ++i) {
        A x[K];
        pixel(image + i * K, 1, 0, x);
        slope_times(slope, a.data(), x, g + i * C, gv.data(), C);
        for (int k = 0; k < K; ++k) out[i * K + k] = store<T>(dot(left + k * C, gv.data(), C));
      }
    });
  }

  static A dot(const A* a, const A* b, int64_t count) {
    A lanes[LANES] = {}, total = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
      for (int l = 0; l < LANES; ++l) lanes[l] += a[i + l] * b[i + l];
    for (int l = 0; i < count; ++i, ++l) lanes[l] += a[i] * b[i];
    for (int l = 0; l < LANES; ++l) total += lanes[l];
    return total;
  }

  void to_affine_last() const {
    const int64_t size = std::max(ceil_div(p.outer, MAX_PARTS), ceil_div(GRAIN, C)), parts = ceil_div(p.outer, size);
    const std::vector<A> a = transposed(p.affine);
    std::vector<double> sums(parts * C * (K + 1));
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> block(C * (K + 1)), gv(C);
      for (int64_t part = begin; part < end; ++part)
        for (int64_t i = part * size, last = std::min(p.outer, i + size); i < last;) {
          std::fill(block.begin(), block.end(), A(0));
          for (const int64_t stop = std::min(last, i + 256); i < stop; ++i) {
            A x[K], r[K];
            pixel(image + i * K, 1, 0, x), pixel(right + i * K, 1, 0, r);
            slope_times(slope, a.data(), x, g + i * C, gv.data(), C);
            add_outer(gv.data(), r, block.data(), C);
          }
          for (int64_t c = 0; c < C; ++c)
            for (int k = 0; k <= K; ++k) sums[(part * C + c) * (K + 1) + k] += block[k * C + c];
        }
    });
    add_up(sums, parts);
  }

  // to[k, c] += gv[c] * (r, 1)[k]
  static void add_outer(const A* __restrict gv, const A* r, A* __restrict to, int64_t count) {
    for (int k = 0; k <= K; ++k) {
      const A factor = k < K ? r[k] : A(1);
      for (int64_t c = 0; c < count; ++c) to[k * count + c] += gv[c] * factor;
    }
  }

  // [parts, C, K + 1] -> [C, K + 1]
  void add_up(const std::vector<double>& sums, int64_t parts) const {
    const int64_t size = C * (K + 1);
    for (int64_t i = 0; i < size; ++i) {
      double total = 0;
      for (int64_t part = 0; part < parts; ++part) total += sums[part * size + i];
      static_cast<A*>(p.out)[i] = A(total);
    }
  }

  void run() const {
    const bool last = p.channels_last;
    switch (p.op) {
      case FromRgbOp::FORWARD: return last ? features_last<false>() : features<false>();
      case FromRgbOp::TANGENT: return last ? features_last<true>() : features<true>();
      case FromRgbOp::TO_IMAGE: return last ? to_image_last() : to_image();
      case FromRgbOp::TO_AFFINE: return last ? to_affine_last() : to_affine();
    }
  }
};

template <class T> void run_type(const FromRgbParams& p) {
  switch (p.image_channels) {
    case 1: return Problem<T, 1>(p).run();
    case 2: return Problem<T, 2>(p).run();
    case 3: return Problem<T, 3>(p).run();
    case 4: return Problem<T, 4>(p).run();
  }
}

}  // namespace

void run_cpu(const FromRgbParams& p) {
  with_type(p.dtype, [&](auto zero) { run_type<decltype(zero)>(p); });
}

}  // namespace stylegan_dist
