// filtered_lrelu, once, for the CPU and for the GPU. No torch headers.
//
// A block of threads makes a tile of outputs of one channel of one image. What it needs lies in memory that its threads have in
// common: the input, the samples between the filters, and the results of one of two passes of a separable filter. The work is
// cut into steps, after each of which all threads wait. In a step, a thread makes every `threads`-th piece. On a CPU a block
// has one thread.
#pragma once

#include "filtered_tiling.h"
#include "launch.h"
#include "math.h"

namespace stylegan_dist {

constexpr int MASK_BELOW = 1, MASK_CLAMPED = 2;  // of 2 bits; 0: above zero and inside the clamp

// A filter in the memory of a block, kept by a thread if the number of taps is known.
template <class A, int TAPS> struct Taps {
  A w[TAPS];
  HD explicit Taps(const A* from) {
#pragma unroll
    for (int k = 0; k < TAPS; ++k) w[k] = from[k];
  }
  HD A operator[](int k) const { return w[k]; }
};
template <class A> struct Taps<A, 0> {
  const A* w;
  HD explicit Taps(const A* from) : w(from) {}
  HD A operator[](int k) const { return w[k]; }
};

template <class A> struct alignas(4 * sizeof(A)) Four { A v[4]; };

template <class A> HD A load_as(DType dtype, const void* from, int64_t i) {
  if constexpr (sizeof(A) == 8) return static_cast<const A*>(from)[i];
  else if (dtype == DType::FLOAT) return static_cast<const float*>(from)[i];
  else if (dtype == DType::BFLOAT16) return load(static_cast<const BFloat16*>(from)[i]);
  else return load(static_cast<const Float16*>(from)[i]);
}

template <class A> HD void store_as(DType dtype, void* to, int64_t i, A x) {
  if constexpr (sizeof(A) == 8) static_cast<A*>(to)[i] = x;
  else if (dtype == DType::FLOAT) static_cast<float*>(to)[i] = x;
  else if (dtype == DType::BFLOAT16) static_cast<BFloat16*>(to)[i] = store<BFloat16>(x);
  else static_cast<Float16*>(to)[i] = store<Float16>(x);
}

// Factors and taps that are known when compiling let loops unroll; UP 0: none is known, and which filters are full neither.
template <class A, int UP, int U, bool UP_FULL, int DOWN, int D, bool DOWN_FULL, bool LINEAR> struct FilteredTile {
  using Number = A;
  static constexpr int STEPS = 7;
  static constexpr int PER_CELL = UP ? (U + UP - 1) / UP : 0;  // taps that meet an input pixel at one sample
  FilteredParams p;
  Tiling t;
  Activation<A> act;
  Split in_width, cells, groups, columns, width;

  FilteredTile(const FilteredParams& p, const Tiling& t)
      : p(p), t(t), act(p.slope, p.gain, p.clamp), in_width(t.in_width), cells(cells_of(t.columns)), groups(t.columns / 4),
        columns(t.columns), width(t.width) {}

  int64_t blocks() const { return p.images * p.channels * t.tiles; }
  int numbers() const { return t.total; }

  HD int up() const { return UP ? UP : p.up; }
  HD int down() const { return UP ? DOWN : p.down; }
  HD int up_taps() const { return UP ? U : p.up_taps; }
  HD int down_taps() const { return UP ? D : p.down_taps; }
  HD bool up_full() const { return UP ? UP_FULL : p.up_full; }
  HD bool down_full() const { return UP ? DOWN_FULL : p.down_full; }
  HD int per_cell() const { return UP ? PER_CELL : (p.up_taps + p.up - 1) / p.up; }
  // A cell is `up` samples in a row that meet the same input pixels.
  HD int cells_of(int samples) const { return (samples - 1 + up() - 1) / up() + 1; }

  struct Axis {
    int64_t out, sample, in;  // the first ones of the tile; sample and in may be outside
    int phase;                // sample t of the tile, counted from 0, is in cell ceil((t - phase) / up)
  };
  struct Place {
    int64_t image, channel, tile;
    Axis x, y;
    bool last_x, last_y;      // tiles of their row and column
  };

  HD Axis axis(int64_t out, int skip) const {
    const int64_t sample = out * down() - p.down_before - skip, in = ceil_div(sample - p.up_before, up());
    return {out, sample, in, int(in * up() - (sample - p.up_before))};
  }

  // Neighbouring blocks read and write neighbouring memory.
  HD Place place(int64_t block) const {
    Place at;
    if (p.channels_last) {
      const int64_t rest = block / p.channels;
      at.channel = block - rest * p.channels, at.image = rest / t.tiles, at.tile = rest - at.image * t.tiles;
    } else {
      const int64_t plane = block / t.tiles;
      at.tile = block - plane * t.tiles;
      at.image = plane / p.channels, at.channel = plane - at.image * p.channels;
    }
    const int64_t row = at.tile / t.across, column = at.tile - row * t.across;
    at.x = axis(column * t.width, t.skip), at.y = axis(row * t.height, 0);
    at.last_x = (column + 1) * t.width >= p.out_width, at.last_y = (row + 1) * t.height >= p.out_height;
    return at;
  }

  template <int K> HD void step(const Place& at, int thread, int threads, A* memory) const {
    A *first = memory, *second = memory + t.second;
    A *between = up_full() ? second : first, *other = up_full() ? first : second;
    if (K == 0) {
      read(at, thread, threads, memory);
    } else if (K == 1) {
      if (up_full()) up_in_both(at, thread, threads, first, second, memory + t.up_filter);
      else up_along(at, thread, threads, first, second, memory + t.up_filter);
    } else if (K == 2) {
      if (up_full()) bend_all(at, thread, threads, second);
      else up_across(at, thread, threads, second, first, memory + t.up_filter);
    } else if (K == 3) {
      if (!down_full()) down_across(thread, threads, between, other, memory + t.down_filter);
    } else if (K == 4) {
      const A sum = down_full() ? down_in_both(at, thread, threads, between, memory + t.down_filter)
                                : down_along(at, thread, threads, other, memory + t.down_filter);
      if (LINEAR && p.workspace) (down_full() ? other : between)[thread] = sum;
    } else if (LINEAR && p.workspace) {
      add<K>(at, thread, threads, down_full() ? other : between);
    }
  }

 private:
  HD int64_t at_plane(const Place& at, int64_t pixels) const {
    return p.channels_last ? at.image * pixels * p.channels + at.channel : (at.image * p.channels + at.channel) * pixels;
  }
  HD int64_t pixel_step() const { return p.channels_last ? p.channels : 1; }

  HD void read(const Place& at, int thread, int threads, A* memory) const {
    const int64_t begin = at_plane(at, p.height * p.width), step = pixel_step();
    const A bias = p.bias ? static_cast<const A*>(p.bias)[at.channel] : A(0);
    for (int i = thread; i < t.in_height * t.in_width; i += threads) {
      const int row = in_width.quotient(i);
      const int64_t y = at.y.in + row, x = at.x.in + (i - row * t.in_width);
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      memory[i] = inside ? load_as<A>(p.dtype, p.in, begin + (y * p.width + x) * step) + bias : A(0);
    }
    read_filter(p.up_filter, up_full() ? up_taps() * up_taps() : up_taps(), thread, threads, memory + t.up_filter);
    read_filter(p.down_filter, down_full() ? down_taps() * down_taps() : down_taps(), thread, threads, memory + t.down_filter);
  }

  HD void read_filter(const void* from, int count, int thread, int threads, A* to) const {
    for (int k = thread; k < count; k += threads)
      to[k] = from ? static_cast<const A*>(from)[p.flip ? count - 1 - k : k] : A(1);
  }

  // Samples of every input row, in the columns that are needed: a piece is a cell.
  HD void up_along(const Place& at, int thread, int threads, const A* from, A* to, const A* filter) const {
    const Taps<A, U> w(filter);
    for (int i = thread; i < t.in_height * cells.n; i += threads) {
      const int row = cells.quotient(i), cell = i - row * cells.n;
      const A* source = from + row * t.in_width + cell;
      const int last = cell * up() + at.x.phase;  // column of tap 0
      if constexpr (UP > 0) {
        A sums[UP] = {};
#pragma unroll
        for (int k = 0; k < PER_CELL; ++k)
#pragma unroll
          for (int a = 0; a < UP; ++a)
            if (a + k * UP < U) sums[a] += w[a + k * UP] * source[k];
#pragma unroll
        for (int a = 0; a < UP; ++a)
          if (last - a >= 0 && last - a < t.columns) to[row * t.columns + last - a] = sums[a];
      } else {
        for (int a = 0; a < p.up; ++a) {
          A sum = 0;
          for (int k = a; k < p.up_taps; k += p.up) sum += w[k] * source[k / p.up];
          if (last - a >= 0 && last - a < t.columns) to[row * t.columns + last - a] = sum;
        }
      }
    }
  }

  // All samples, bent: a piece is a cell of four columns.
  HD void up_across(const Place& at, int thread, int threads, const A* from, A* to, const A* filter) const {
    const Taps<A, U> w(filter);
    for (int i = thread; i < cells_of(t.rows) * groups.n; i += threads) {
      const int cell = groups.quotient(i), group = i - cell * groups.n;
      const A* source = from + cell * t.columns + 4 * group;
      const int last = cell * up() + at.y.phase;
      if constexpr (UP > 0) {
        Four<A> sums[UP] = {};
#pragma unroll
        for (int k = 0; k < PER_CELL; ++k) {
          const Four<A> x = *reinterpret_cast<const Four<A>*>(source + k * t.columns);
#pragma unroll
          for (int a = 0; a < UP; ++a)
#pragma unroll
            for (int j = 0; j < 4; ++j)
              if (a + k * UP < U) sums[a].v[j] += w[a + k * UP] * x.v[j];
        }
#pragma unroll
        for (int a = 0; a < UP; ++a)
          if (last - a >= 0 && last - a < t.rows) put(at, last - a, group, sums[a], to);
      } else {
        for (int a = 0; a < p.up; ++a) {
          Four<A> sums = {};
          for (int k = a; k < p.up_taps; k += p.up)
            for (int j = 0; j < 4; ++j) sums.v[j] += w[k] * source[k / p.up * t.columns + j];
          if (last - a >= 0 && last - a < t.rows) put(at, last - a, group, sums, to);
        }
      }
    }
  }

  // All samples, not bent: a piece is four cells below each other.
  HD void up_in_both(const Place& at, int thread, int threads, const A* from, A* to, const A* w) const {
    const int rows = cells_of(t.rows), pieces = (rows + TOGETHER - 1) / TOGETHER;
    for (int i = thread; i < pieces * cells.n; i += threads) {
      const int piece = cells.quotient(i), cell = i - piece * cells.n, top = piece * TOGETHER;
      if constexpr (UP > 0 && UP_FULL) {
        A sums[TOGETHER][UP][UP] = {};
#pragma unroll
        for (int l = 0; l < PER_CELL; ++l) {
          A x[TOGETHER + PER_CELL - 1];
#pragma unroll
          for (int k = 0; k < TOGETHER + PER_CELL - 1; ++k)
            x[k] = top + k < t.in_height ? from[(top + k) * t.in_width + cell + l] : A(0);
#pragma unroll
          for (int k = 0; k < PER_CELL; ++k)
#pragma unroll
            for (int a = 0; a < UP; ++a)
#pragma unroll
              for (int b = 0; b < UP; ++b) {
                if (a + k * UP >= U || b + l * UP >= U) continue;
                const A weight = w[(a + k * UP) * U + b + l * UP];
#pragma unroll
                for (int m = 0; m < TOGETHER; ++m) sums[m][a][b] += weight * x[m + k];
              }
        }
#pragma unroll
        for (int m = 0; m < TOGETHER; ++m)
#pragma unroll
          for (int a = 0; a < UP; ++a)
#pragma unroll
            for (int b = 0; b < UP; ++b) put_sample(at, (top + m) * UP - a, cell * UP - b, sums[m][a][b], to);
      } else {
        for (int m = top; m < rows && m < top + TOGETHER; ++m)
          for (int a = 0; a < p.up; ++a)
            for (int b = 0; b < p.up; ++b) {
              A sum = 0;
              for (int k = a; k < p.up_taps; k += p.up)
                for (int l = b; l < p.up_taps; l += p.up)
                  sum += w[k * p.up_taps + l] * from[(m + k / p.up) * t.in_width + cell + l / p.up];
              put_sample(at, m * p.up - a, cell * p.up - b, sum, to);
            }
      }
    }
  }

  HD void put_sample(const Place& at, int row, int column, A value, A* to) const {
    row += at.y.phase, column += at.x.phase;
    if (row >= 0 && row < t.rows && column >= 0 && column < t.columns) to[row * t.columns + column] = value;
  }

  HD void bend_all(const Place& at, int thread, int threads, A* between) const {
    for (int i = thread; i < t.rows * groups.n; i += threads) {
      const int row = groups.quotient(i), group = i - row * groups.n;
      put(at, row, group, *reinterpret_cast<const Four<A>*>(between + row * t.columns + 4 * group), between);
    }
  }

  // phi of four samples, and their byte of the mask.
  HD void put(const Place& at, int row, int group, Four<A> x, A* to) const {
    const int64_t y = at.y.sample + row, column = at.x.sample + 4 * group, bytes = (p.columns + 3) / 4;
    const bool inside = y >= 0 && y < p.rows && column >= 0 && column < p.columns;
    const int64_t byte = ((at.image * p.channels + at.channel) * p.rows + y) * bytes + column / 4;
    if (LINEAR) {
      const int mask = inside ? p.mask[byte] : 0xff;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int bits = mask >> (2 * j);
        x.v[j] = bits & MASK_CLAMPED ? A(0) : x.v[j] * (bits & MASK_BELOW ? act.gain_below : act.gain);
      }
    } else {
      int mask = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const A v = x.v[j], size = std::fabs(v) * (v > 0 ? act.gain : act.gain_below);
        // Samples that do not exist are no part of the result, nor of its derivatives.
        const int bits = (v > 0 ? 0 : MASK_BELOW) | (size > act.bound || column + j >= p.columns ? MASK_CLAMPED : 0);
        mask |= bits << (2 * j);
        x.v[j] = act.value(v);
      }
      // Of tiles that have a byte in common, the left and the upper one writes it.
      const bool mine = (at.last_y || row < t.height * down()) && (at.last_x || 4 * group < t.width * down());
      if (p.mask && inside && mine) p.mask[byte] = uint8_t(mask);
    }
    *reinterpret_cast<Four<A>*>(to + row * t.columns + 4 * group) = x;
  }

  // Where a column of samples lies in a row of them that is filtered downwards: outputs beside each other read neighbours.
  HD int sorted(int column) const { return column % down() * (t.pitch / down()) + column / down(); }

  // The rows that are kept, in all columns: a piece is TOGETHER of them in a column.
  HD void down_across(int thread, int threads, const A* from, A* to, const A* filter) const {
    const Taps<A, D> w(filter);
    for (int i = thread; i < t.height / TOGETHER * columns.n; i += threads) {
      const int piece = columns.quotient(i), column = i - piece * columns.n, row = piece * TOGETHER;
      const A* source = from + row * down() * t.columns + column;
      A sums[TOGETHER] = {};
      if constexpr (UP > 0) {
#pragma unroll
        for (int j = 0; j < (TOGETHER - 1) * DOWN + D; ++j) {
          const A x = source[j * t.columns];
#pragma unroll
          for (int m = 0; m < TOGETHER; ++m)
            if (j >= m * DOWN && j - m * DOWN < D) sums[m] += w[j - m * DOWN] * x;
        }
      } else {
        for (int m = 0; m < TOGETHER; ++m)
          for (int k = 0; k < p.down_taps; ++k) sums[m] += w[k] * source[(m * p.down + k) * t.columns];
      }
#pragma unroll
      for (int m = 0; m < TOGETHER; ++m) to[(row + m) * t.pitch + sorted(column)] = sums[m];
    }
  }

  // The outputs from these: a piece is one.
  HD A down_along(const Place& at, int thread, int threads, const A* from, const A* filter) const {
    const Taps<A, D> w(filter);
    A total = 0;
    for (int i = thread; i < t.height * t.width; i += threads) {
      const int row = width.quotient(i), column = i - row * t.width;
      const A* source = from + row * t.pitch + column;
      A sum = 0;
#pragma unroll
      for (int k = 0; k < down_taps(); ++k) sum += w[k] * source[sorted(t.skip + k)];
      total += write(at, row, column, sum);
    }
    return total;
  }

  // The outputs at once: a piece is TOGETHER of them below each other.
  HD A down_in_both(const Place& at, int thread, int threads, const A* from, const A* w) const {
    A total = 0;
    for (int i = thread; i < t.height / TOGETHER * t.width; i += threads) {
      const int piece = width.quotient(i), column = i - piece * t.width, row = piece * TOGETHER;
      const A* source = from + row * down() * t.columns + t.skip + column * down();
      A sums[TOGETHER] = {};
      if constexpr (UP > 0) {
#pragma unroll 1
        for (int l = 0; l < D; ++l)
#pragma unroll
          for (int j = 0; j < (TOGETHER - 1) * DOWN + D; ++j) {
            const A x = source[j * t.columns + l];
#pragma unroll
            for (int m = 0; m < TOGETHER; ++m)
              if (j >= m * DOWN && j - m * DOWN < D) sums[m] += w[(j - m * DOWN) * D + l] * x;
          }
      } else {
        for (int m = 0; m < TOGETHER; ++m)
          for (int k = 0; k < p.down_taps; ++k)
            for (int l = 0; l < p.down_taps; ++l)
              sums[m] += w[k * p.down_taps + l] * source[(m * p.down + k) * t.columns + l];
      }
#pragma unroll
      for (int m = 0; m < TOGETHER; ++m) total += write(at, row + m, column, sums[m]);
    }
    return total;
  }

  // Returns what has been written.
  HD A write(const Place& at, int row, int column, A value) const {
    const int64_t y = at.y.out + row, x = at.x.out + column;
    if (y >= p.out_height || x >= p.out_width) return A(0);
    store_as(p.dtype, p.out, at_plane(at, p.out_height * p.out_width) + (y * p.out_width + x) * pixel_step(), value);
    return value;
  }

  // The sum of the threads' sums, in two steps; to the workspace, [images, channels, tiles].
  template <int K> HD void add(const Place& at, int thread, int threads, A* sums) const {
    A total = 0;
    if (K == 5 && thread < PARTS) {
      for (int k = thread; k < threads; k += PARTS) total += sums[k];
      sums[threads + thread] = total;
    } else if (K == 6 && thread == 0) {
      for (int k = 0; k < PARTS && k < threads; ++k) total += sums[threads + k];
      static_cast<A*>(p.workspace)[(at.image * p.channels + at.channel) * t.tiles + at.tile] = total;
    }
  }
};

// f(tile) for the tile of these parameters: those of StyleGAN3 in float are known when compiling, forward and backward.
template <class A, class F> void with_tile(const FilteredParams& p, const Tiling& t, const F& f) {
  if constexpr (sizeof(A) == 4) {
    const auto is = [&](int up, int up_taps, bool up_full, int down, int down_taps, bool down_full) {
      return p.up == up && p.up_taps == up_taps && p.up_full == up_full && p.down == down && p.down_taps == down_taps &&
             p.down_full == down_full;
    };
    if (p.linear) {
      if (is(2, 12, false, 2, 12, false)) return f(FilteredTile<A, 2, 12, false, 2, 12, false, true>(p, t));
      if (is(2, 12, false, 4, 24, false)) return f(FilteredTile<A, 2, 12, false, 4, 24, false, true>(p, t));
      if (is(2, 12, true, 2, 12, false)) return f(FilteredTile<A, 2, 12, true, 2, 12, false, true>(p, t));
      if (is(2, 12, true, 4, 24, false)) return f(FilteredTile<A, 2, 12, true, 4, 24, false, true>(p, t));
    } else {
      if (is(2, 12, false, 2, 12, false)) return f(FilteredTile<A, 2, 12, false, 2, 12, false, false>(p, t));
      if (is(4, 24, false, 2, 12, false)) return f(FilteredTile<A, 4, 24, false, 2, 12, false, false>(p, t));
      if (is(2, 12, false, 2, 12, true)) return f(FilteredTile<A, 2, 12, false, 2, 12, true, false>(p, t));
      if (is(4, 24, false, 2, 12, true)) return f(FilteredTile<A, 4, 24, false, 2, 12, true, false>(p, t));
    }
  }
  if (p.linear) f(FilteredTile<A, 0, 0, false, 0, 0, false, true>(p, t));
  else f(FilteredTile<A, 0, 0, false, 0, 0, false, false>(p, t));
}

}  // namespace stylegan_dist
