// How filtered_lrelu is cut into tiles. No torch headers.
#pragma once

#include "launch.h"
#include "math.h"

namespace stylegan_dist {

constexpr int TILE = 32;             // most outputs of a tile, in one direction
constexpr int TOGETHER = 4;          // neighbours that a piece makes, which share what it reads
constexpr int PARTS = 16;            // of a sum over a tile, before the last addition
constexpr int TILE_NUMBERS = 12 << 10;  // most numbers of a block: 48 KiB of floats, which every GPU lends unasked

// i / n for i below a million, without a division.
struct Split {
  int n;
  float inverse;
  Split() = default;
  explicit Split(int n) : n(n), inverse(1.0f / float(n)) {}
  HD int quotient(int i) const { return int((float(i) + 0.5f) * inverse); }
};

// How an operator is cut into tiles, and where the numbers of a block lie.
struct Tiling {
  int width, height;           // outputs of a tile
  int columns, rows;           // samples that they need; columns is a multiple of 4
  int in_width, in_height;     // input pixels that these need, at most
  int skip;                    // columns before the first one that is needed, so that a byte of the mask begins with a group
  int pitch;                   // of a row of samples that are filtered downwards, sorted by their place in a step of `down`
  int64_t across, tiles;       // tiles in a row, and in all, of a channel of an image
  int second, up_filter, down_filter, total;  // where the second buffer and the filters begin; the number of numbers

  Tiling(const FilteredParams& p, int width, int height, int threads)
      : width(width), height(height), across(ceil_div(p.out_width, width)), tiles(across * ceil_div(p.out_height, height)) {
    skip = int((4 - (p.down_before % 4 + 4) % 4) % 4);
    const int beyond = p.down_taps > p.down ? p.down_taps - p.down : 0, taps = int(ceil_div(p.up_taps, p.up));
    columns = whole(skip + width * p.down + beyond, 4), rows = height * p.down + beyond;
    in_width = int(ceil_div(columns - 1, p.up)) + taps, in_height = int(ceil_div(rows - 1, p.up)) + taps;
    pitch = whole(columns, p.down);
    // Every step reads one buffer and writes the other, or itself; the sums of the threads take the one that is then free.
    const int input = in_width * in_height, between = columns * rows, half_up = in_height * columns, half_down = height * pitch;
    const int sums = threads + PARTS;
    second = whole(greatest(input, p.up_full ? half_down : between, sums), 4);
    up_filter = second + whole(greatest(p.up_full ? between : half_up, p.up_full ? 0 : half_down, sums), 4);
    down_filter = up_filter + whole(p.up_full ? p.up_taps * p.up_taps : p.up_taps, 4);
    total = down_filter + (p.down_full ? p.down_taps * p.down_taps : p.down_taps);
  }

  // Tiles of about equal sizes, as large as memory allows.
  static Tiling of(const FilteredParams& p, int threads) {
    for (int most = p.down > 2 ? TILE / 2 : TILE;; most /= 2) {
      const Tiling tiling(p, even(p.out_width, most), even(p.out_height, most), threads);
      if (tiling.total <= TILE_NUMBERS || most <= TOGETHER) return tiling;
    }
  }

 private:
  static int whole(int n, int step) { return (n + step - 1) / step * step; }
  static int greatest(int a, int b, int c) { return a > b ? (a > c ? a : c) : (b > c ? b : c); }
  static int even(int64_t size, int most) { return whole(int(ceil_div(size, ceil_div(size, most))), TOGETHER); }
};

}  // namespace stylegan_dist
