// resample2d on the threads of the CPU: filter the rows that an output row needs into one row, then filter along it.
#include <algorithm>
#include <numeric>
#include <vector>

#include "launch.h"
#include "math.h"

namespace stylegan_dist {
namespace {

constexpr int64_t GRAIN = 1 << 14;

// out[m * step_out, c] = sum_k taps[k] * in[m * step_in + k, c]; K > 0 fixes the number of taps.
template <class T, int K, int STEP_IN, int STEP_OUT, int INNER>
void along(const Acc<T>* __restrict in, T* __restrict out, int64_t count, int64_t inner_, const Acc<T>* weights,
           int taps_, int step_in_, int step_out_) {
  using A = Acc<T>;
  const int64_t inner = INNER ? INNER : inner_;
  const int taps = K ? K : taps_, step_in = STEP_IN ? STEP_IN : step_in_, step_out = STEP_OUT ? STEP_OUT : step_out_;
  A w[MAX_TAPS];
  for (int k = 0; k < taps; ++k) w[k] = weights[k];
  if (STEP_IN == 1 && STEP_OUT == 1) {  // one run of elements
    for (int64_t i = 0; i < count * inner; ++i) {
      A y = 0;
      for (int k = 0; k < taps; ++k) y += w[k] * in[i + k * inner];
      out[i] = store<T>(y);
    }
    return;
  }
  for (int64_t m = 0; m < count; ++m) {
    const A* from = in + m * step_in * inner;
    T* to = out + m * step_out * inner;
    for (int64_t c = 0; c < inner; ++c) {
      A y = 0;
      for (int k = 0; k < taps; ++k) y += w[k] * from[k * inner + c];
      to[c] = store<T>(y);
    }
  }
}

template <class T, int K, int STEP_IN, int STEP_OUT>
void along(const Acc<T>* in, T* out, int64_t count, int64_t inner, const Acc<T>* w, int taps, int step_in, int step_out) {
  if (inner == 1) along<T, K, STEP_IN, STEP_OUT, 1>(in, out, count, inner, w, taps, step_in, step_out);
  else along<T, K, STEP_IN, STEP_OUT, 0>(in, out, count, inner, w, taps, step_in, step_out);
}

// row[i] (+)= sum_k w[k] * x[k * stride + i]; four rows a pass.
template <class T, bool FIRST>
void across(const T* __restrict x, int64_t stride, const Acc<T>* w, int taps, Acc<T>* __restrict row, int64_t count) {
  const T *a = x, *b = x + (taps > 1 ? stride : 0), *c = x + (taps > 2 ? 2 * stride : 0), *d = x + (taps > 3 ? 3 * stride : 0);
  const Acc<T> wa = w[0], wb = taps > 1 ? w[1] : 0, wc = taps > 2 ? w[2] : 0, wd = taps > 3 ? w[3] : 0;
  if (taps <= 2)
    for (int64_t i = 0; i < count; ++i) {
      Acc<T> y = wa * load(a[i]);
      if (taps == 2) y += wb * load(b[i]);
      row[i] = FIRST ? y : row[i] + y;
    }
  else
    for (int64_t i = 0; i < count; ++i) {
      Acc<T> y = wa * load(a[i]) + wb * load(b[i]) + wc * load(c[i]);
      if (taps > 3) y += wd * load(d[i]);
      row[i] = FIRST ? y : row[i] + y;
    }
}

template <class T> void run(const ResampleParams& p) {
  using A = Acc<T>;
  const T* x = static_cast<const T*>(p.in);
  T* out = static_cast<T*>(p.out);
  const int up = p.up, down = p.down, L = p.taps;
  const int64_t I = p.inner;

  // Taps of each phase of the zero insertion, the gain in those along the row.
  A vertical[MAX_TAPS][MAX_TAPS], horizontal[MAX_TAPS][MAX_TAPS];
  int counts[MAX_TAPS];
  for (int first = 0; first < std::min(up, L); ++first) {
    counts[first] = int(ceil_div(L - first, up));
    for (int k = 0; k < counts[first]; ++k) {
      vertical[first][k] = A(p.line[first + k * up]);
      horizontal[first][k] = A(p.line[first + k * up] * p.gain);
    }
  }

  // Source columns that any output column meets: [left, left + span).
  const Phase begin = first_meeting(0, up, down, p.before);
  const int64_t left = begin.source;
  const int64_t span = first_meeting(p.out_width - 1, up, down, p.before).source + ceil_div(L, up) + 1 - left;
  const int64_t from = std::clamp<int64_t>(left, 0, p.width), to = std::clamp<int64_t>(left + span, from, p.width);
  // Outputs in steps of `period` share a phase.
  const int period = up / std::gcd(up, down), step = period * down / up;

  parallel_for(p.planes * p.out_height, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, p.out_width * I)),
               [&](int64_t first_row, int64_t last_row) {
    std::vector<A> filtered(span * I);
    for (int64_t r = first_row; r < last_row; ++r) {
      const int64_t plane = r / p.out_height, oy = r % p.out_height;
      const Phase v = first_meeting(oy, up, down, p.before);
      T* line = out + r * p.out_width * I;
      A* row = filtered.data() + (from - left) * I;
      const int64_t count = (to - from) * I, stride = p.width * I;
      const int taps = v.tap < L ? counts[v.tap] : 0;
      const int64_t low = std::max<int64_t>(0, -v.source), high = std::min<int64_t>(taps, p.height - v.source);
      if (low >= high) std::fill(row, row + count, A(0));
      for (int64_t k = low; k < high; k += 4) {
        const T* source = x + (plane * p.height + v.source + k) * stride + from * I;
        const int rows = int(std::min<int64_t>(4, high - k));
        if (k == low) across<T, true>(source, stride, vertical[v.tap] + k, rows, row, count);
        else across<T, false>(source, stride, vertical[v.tap] + k, rows, row, count);
      }
      for (int phase = 0; phase < std::min<int64_t>(period, p.out_width); ++phase) {
        const Phase h = first_meeting(phase, up, down, p.before);
        const int64_t outputs = ceil_div(p.out_width - phase, period);
        const A* start = filtered.data() + (h.source - left) * I;
        T* target = line + phase * I;
        const int n = h.tap < L ? counts[h.tap] : 0;
        const A* w = horizontal[n ? h.tap : 0];
        if (n == 4 && step == 1 && period == 1) along<T, 4, 1, 1>(start, target, outputs, I, w, n, step, period);
        else if (n == 4 && step == 2 && period == 1) along<T, 4, 2, 1>(start, target, outputs, I, w, n, step, period);
        else if (n == 2 && step == 1 && period == 2) along<T, 2, 1, 2>(start, target, outputs, I, w, n, step, period);
        else along<T, 0, 0, 0>(start, target, outputs, I, w, n, step, period);
      }
    }
  });
}

}  // namespace

void run_cpu(const ResampleParams& p) {
  with_type(p.dtype, [&](auto zero) { run<decltype(zero)>(p); });
}

}  // namespace stylegan_dist
