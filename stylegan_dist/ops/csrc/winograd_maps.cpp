// The linear maps around the products of a Winograd convolution (../winograd.py), for channels_last: a tile after the other,
// and of each all channels side by side.
#include <algorithm>
#include <vector>

#include "launch.h"
#include "math.h"

namespace stylegan_dist {
namespace {

constexpr int64_t GRAIN = 1 << 15;  // elements that are worth a thread
constexpr int64_t CHUNK = 128;      // channels at a time

// Four numbers in, four out: B^T d. Two in, four out: A g. Four in, two out: A^T m.
struct Input {
  static constexpr int FROM = 4, TO = 4;
  static HD void apply(const float* d, float* v) { v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[3]; }
};
struct Gradient {
  static constexpr int FROM = 2, TO = 4;
  static HD void apply(const float* g, float* m) { m[0] = g[0], m[1] = g[0] + g[1], m[2] = g[0] - g[1], m[3] = -g[1]; }
};
struct Output {
  static constexpr int FROM = 4, TO = 2;
  static HD void apply(const float* m, float* y) { y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3]; }
};

// Both directions of a tile for `count` channels; pointers to each of its pixels.
template <class Map> void tile(const float* const* from, float* const* to, int64_t count) {
  constexpr int F = Map::FROM, T = Map::TO;
  float half[T * F][CHUNK];
  for (int x = 0; x < F; ++x) {
    const float* in[F];
    for (int y = 0; y < F; ++y) in[y] = from[y * F + x];
    float* __restrict out = half[x];
    for (int64_t c = 0; c < count; ++c) {
      float a[F], b[T];
      for (int y = 0; y < F; ++y) a[y] = in[y][c];
      Map::apply(a, b);
      for (int y = 0; y < T; ++y) out[y * F * CHUNK + c] = b[y];
    }
  }
  for (int y = 0; y < T; ++y) {
    float* out[T];
    for (int x = 0; x < T; ++x) out[x] = to[y * T + x];
    const float* __restrict in = half[y * F];
    for (int64_t c = 0; c < count; ++c) {
      float a[F], b[T];
      for (int x = 0; x < F; ++x) a[x] = in[x * CHUNK + c];
      Map::apply(a, b);
      for (int x = 0; x < T; ++x) out[x][c] = b[x];
    }
  }
}

// f(tile number, its image, row and column) for all tiles.
template <class F> void for_tiles(const WinogradParams& p, const F& f) {
  const int64_t work = p.columns * p.channels * 16;
  parallel_for(p.images * p.rows, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, work)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t column = 0; column < p.columns; ++column) f(r * p.columns + column, r / p.rows, r % p.rows, column);
  });
}

// Tiles of `Map::FROM` pixels in both directions, two apart, the first `before` pixels outside of the image.
template <class Map> void gather(const WinogradParams& p) {
  constexpr int F = Map::FROM;
  const std::vector<float> zeros(CHUNK);
  const int64_t tiles = p.images * p.rows * p.columns, C = p.channels;
  for_tiles(p, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
    const float* pixels[F * F];
    for (int k = 0; k < F * F; ++k) {
      const int64_t y = 2 * row - p.before + k / F, x = 2 * column - p.before + k % F;
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      pixels[k] = inside ? p.image + ((n * p.height + y) * p.width + x) * C : nullptr;
    }
    for (int64_t c = 0; c < C; c += CHUNK) {
      const float* from[F * F];
      float* to[16];
      for (int k = 0; k < F * F; ++k) from[k] = pixels[k] ? pixels[k] + c : zeros.data();
      for (int k = 0; k < 16; ++k) to[k] = p.products[0] + (k * tiles + t) * C + c;
      tile<Map>(from, to, std::min(CHUNK, C - c));
    }
  });
}

}  // namespace

void winograd_input_cpu(const WinogradParams& p) { gather<Input>(p); }
void winograd_gradient_cpu(const WinogradParams& p) { gather<Gradient>(p); }

void winograd_output_cpu(const WinogradParams& p) {
  const int64_t C = p.channels;
  for_tiles(p, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
    float none[CHUNK];
    for (int64_t c = 0; c < C; c += CHUNK) {
      const float* from[16];
      float* to[4];
      for (int k = 0; k < 16; ++k) from[k] = p.products[k] + t * C + c;
      for (int k = 0; k < 4; ++k) {
        const int64_t y = 2 * row + k / 2, x = 2 * column + k % 2;
        to[k] = y < p.height && x < p.width ? p.out + ((n * p.height + y) * p.width + x) * C + c : none;
      }
      tile<Output>(from, to, std::min(CHUNK, C - c));
    }
  });
}

}  // namespace stylegan_dist
