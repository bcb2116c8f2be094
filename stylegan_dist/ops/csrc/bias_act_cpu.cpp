// bias_act on the threads of the CPU: loops over contiguous elements that the compiler vectorises.
#include <algorithm>
#include <vector>

#include "launch.h"
#include "math.h"

namespace stylegan_dist {
namespace {

constexpr int64_t GRAIN = 1 << 14;  // elements that are worth a thread
constexpr int LANES = 16;           // sums side by side
constexpr int64_t BLOCK = 4096;     // elements that are summed in Acc before they go to double
constexpr int MAX_PARTS = 64;       // parts of a sum over rows; fixed, so that the result depends on no thread

template <class T, class F> HD Acc<T> at(const F& f, const T* const* in, int64_t i, const Channel<T>& c) {
  T e[F::INPUTS];
  for (int k = 0; k < F::INPUTS; ++k) e[k] = in[k][i];
  return f(e, c);
}

// f by value, here and below: the stores could change what a reference refers to, and nothing would be vectorised.
// One channel, `count` neighbours. Returns their sum, if wanted.
template <class T, class F, bool SUM>
double plane(F f, const T* const* inputs, T* __restrict out, int64_t count, Channel<T> c) {
  const T* in[F::INPUTS];
  for (int k = 0; k < F::INPUTS; ++k) in[k] = inputs[k];
  double total = 0;
  for (int64_t start = 0; start < count; start += BLOCK) {
    int64_t size = std::min(BLOCK, count - start), i = 0;
    Acc<T> lanes[LANES] = {};
    if (SUM) {
      for (; i + LANES <= size; i += LANES)
        for (int l = 0; l < LANES; ++l) {
          Acc<T> y = at<T>(f, in, start + i + l, c);
          lanes[l] += y;
          out[start + i + l] = store<T>(y);
        }
    }
    for (int l = 0; i < size; ++i, ++l) {
      Acc<T> y = at<T>(f, in, start + i, c);
      if (SUM) lanes[l % LANES] += y;
      out[start + i] = store<T>(y);
    }
    if (SUM)
      for (int l = 0; l < LANES; ++l) total += lanes[l];
  }
  return total;
}

// All channels of one row; sums are added to `sums`.
template <class T, class F, bool SUM>
void row(F f, const T* const* inputs, T* __restrict out, int64_t channels, const Acc<T>* bias, const Acc<T>* g,
         Acc<T>* __restrict sums) {
  const T* in[F::INPUTS];
  for (int k = 0; k < F::INPUTS; ++k) in[k] = inputs[k];
  for (int64_t c = 0; c < channels; ++c) {
    Acc<T> y = at<T>(f, in, c, Channel<T>{bias[c], g[c]});
    if (SUM) sums[c] += y;
    out[c] = store<T>(y);
  }
}

template <class T, class F> void run(const ActParams& p, const F& f) {
  using A = Acc<T>;
  const int64_t C = p.channels;
  const T* in[F::INPUTS];
  for (int k = 0; k < F::INPUTS; ++k) in[k] = static_cast<const T*>(p.in[k]);
  T* out = static_cast<T*>(p.out);
  A* sum = static_cast<A*>(p.sum);
  std::vector<A> none(p.bias && p.g ? 0 : C);
  const A* bias = p.bias ? static_cast<const A*>(p.bias) : none.data();
  const A* g = p.g ? static_cast<const A*>(p.g) : none.data();

  if (p.inner > 1) {
    std::vector<double> sums(sum ? p.outer * C : 0);
    parallel_for(p.outer * C, std::max<int64_t>(1, GRAIN / p.inner), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* here[F::INPUTS];
        for (int k = 0; k < F::INPUTS; ++k) here[k] = in[k] + i * p.inner;
        Channel<T> c{bias[i % C], g[i % C]};
        if (sum) sums[i] = plane<T, F, true>(f, here, out + i * p.inner, p.inner, c);
        else plane<T, F, false>(f, here, out + i * p.inner, p.inner, c);
      }
    });
    if (sum)
      for (int64_t c = 0; c < C; ++c) {
        double total = 0;
        for (int64_t n = 0; n < p.outer; ++n) total += sums[n * C + c];
        sum[c] = A(total);
      }
    return;
  }

  const int64_t rows = p.outer * p.inner;  // inner may be 0
  auto one_row = [&](int64_t r, A* sums) {
    const T* here[F::INPUTS];
    for (int k = 0; k < F::INPUTS; ++k) here[k] = in[k] + r * C;
    if (sums) row<T, F, true>(f, here, out + r * C, C, bias, g, sums);
    else row<T, F, false>(f, here, out + r * C, C, bias, g, sums);
  };
  if (!sum) {
    parallel_for(rows, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, C)), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) one_row(r, nullptr);
    });
    return;
  }
  const int64_t size = std::max<int64_t>(ceil_div(rows, MAX_PARTS), ceil_div(GRAIN, std::max<int64_t>(1, C)));
  const int64_t parts = ceil_div(rows, size);
  std::vector<double> sums(parts * C);
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> block(C);
    for (int64_t part = begin; part < end; ++part)
      for (int64_t r = part * size; r < std::min(rows, (part + 1) * size);) {
        std::fill(block.begin(), block.end(), A(0));
        for (int64_t stop = std::min({rows, (part + 1) * size, r + 256}); r < stop; ++r) one_row(r, block.data());
        for (int64_t c = 0; c < C; ++c) sums[part * C + c] += block[c];
      }
  });
  for (int64_t c = 0; c < C; ++c) {
    double total = 0;
    for (int64_t part = 0; part < parts; ++part) total += sums[part * C + c];
    sum[c] = A(total);
  }
}

template <class T> void run_op(const ActParams& p) {
  Activation<T> act(p.slope, p.gain, p.clamp);
  if (p.op == ActOp::FORWARD_ADD) run<T>(p, ForwardAdd<T>{act});
  else if (p.op == ActOp::BACKWARD_AT) run<T>(p, BackwardAt<T>{SlopeAt<T>(act)});
  else if (p.op == ActOp::FORWARD) run<T>(p, Forward<T>{act});
  else if (p.constant_slope) run<T>(p, Backward<T, true>{act});
  else run<T>(p, Backward<T, false>{act});
}

}  // namespace

void run_cpu(const ActParams& p) {
  with_type(p.dtype, [&](auto zero) { run_op<decltype(zero)>(p); });
}

}  // namespace stylegan_dist
