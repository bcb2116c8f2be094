// The mathematics of the fused operators, once, for the CPU and for the GPU. No torch headers.
//
// Values are stored as float, double, bfloat16 or float16 and computed in Acc<T>: double for double, else float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HD __host__ __device__ __forceinline__
#else
#define HD inline __attribute__((always_inline))
#endif

namespace stylegan_dist {

// ---- storage types

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

template <class T> struct AccOf { using type = float; };
template <> struct AccOf<double> { using type = double; };
template <class T> using Acc = typename AccOf<T>::type;

template <class To, class From> HD To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

HD float load(float x) { return x; }
HD double load(double x) { return x; }
HD float load(BFloat16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
HD float load(Float16 x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  // The exponent and mantissa moved into place are the value divided by 2^112, subnormal numbers too.
  uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  uint32_t value = bits_as<uint32_t>(bits_as<float>(rest) * 0x1p112f);
  value = (x.bits & 0x7c00) == 0x7c00 ? (rest | 0x7f800000u) : value;
  return bits_as<float>(value | uint32_t(x.bits & 0x8000) << 16);
#endif
}

// Rounds to nearest, ties to even, as PyTorch does.
template <class T> HD T store(Acc<T> x);
template <> HD float store<float>(float x) { return x; }
template <> HD double store<double>(double x) { return x; }
template <> HD BFloat16 store<BFloat16>(float x) {
#ifdef __CUDA_ARCH__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  uint32_t u = bits_as<uint32_t>(x);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  return {uint16_t((u & 0x7fffffffu) > 0x7f800000u ? ((u >> 16) | 0x40u) : rounded)};
#endif
}
template <> HD Float16 store<Float16>(float x) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(x))};
#else
  uint32_t u = bits_as<uint32_t>(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  uint32_t normal = (a + 0xfffu + ((a >> 13) & 1) - (112u << 23)) >> 13;
  // Below 2^-14 the result counts units of 2^-24, the spacing of floats in [0.5, 1).
  uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(a) + 0.5f) - 0x3f000000u;
  uint32_t result = a < 0x38800000u ? subnormal : normal;
  result = a >= 0x477ff000u ? 0x7c00u : result;
  result = a > 0x7f800000u ? 0x7e00u : result;
  return {uint16_t(sign | result)};
#endif
}

HD bool negative(float x) { return bits_as<int32_t>(x) < 0; }
HD bool negative(double x) { return bits_as<int64_t>(x) < 0; }
HD bool negative(BFloat16 x) { return int16_t(x.bits) < 0; }
HD bool negative(Float16 x) { return int16_t(x.bits) < 0; }

// ---- bias_act: y = clip(gain * act(x + b), -bound, bound), act with slopes 1 right of zero and `slope` left of it

template <class T> struct Activation {
  using A = Acc<T>;
  A gain;          // slope right of zero
  A gain_below;    // and left of it
  A bound;         // NaN: none, because no value compares with it
  A bound_stored;  // rounded to T: what a clamped y looks like

  Activation(double slope, double gain, double clamp)
      : gain(A(gain)), gain_below(A(gain * slope)),
        bound(clamp < 0 ? std::numeric_limits<A>::quiet_NaN() : A(clamp)),
        bound_stored(load(store<T>(bound))) {}
  Activation() = default;

  HD A clip(A y) const { return y > bound ? bound : (y < -bound ? -bound : y); }

  // The sign bit of the result tells on which side of zero v was, even where it underflows; v = 0 becomes -0.
  HD A value(A v) const {
    return clip(v <= 0 ? -std::fabs(v) * gain_below : v * gain);
  }
  // d y / d v from the stored y.
  HD A slope(T y) const {
    A slope = negative(y) ? gain_below : gain;
    return std::fabs(load(y)) >= bound_stored ? A(0) : slope;
  }
};

// What happens to one element: from INPUTS stored values and the constants of its channel.

template <class T> struct Channel {
  Acc<T> bias, g;
  // From arrays of all channels, or null for zeros.
  static HD Channel of(const void* bias, const void* g, int64_t c) {
    using A = Acc<T>;
    return {bias ? static_cast<const A*>(bias)[c] : A(0), g ? static_cast<const A*>(g)[c] : A(0)};
  }
};

template <class T> struct Forward {
  static constexpr int INPUTS = 1;  // x
  Activation<T> act;
  HD Acc<T> operator()(const T* in, const Channel<T>& c) const { return act.value(load(in[0]) + c.bias); }
};

// M(g, gb) = (g + gb) * slope: linear and its own adjoint, so that it is the derivative of the forward and of itself.
template <class T, bool CONSTANT> struct Backward {
  static constexpr int INPUTS = CONSTANT ? 1 : 2;  // g; and y, unless the slope is the same everywhere
  Activation<T> act;
  HD Acc<T> operator()(const T* in, const Channel<T>& c) const {
    return (load(in[0]) + c.g) * (CONSTANT ? act.gain : act.slope(in[INPUTS - 1]));
  }
};

// ---- resample2d: out[o] = sum_j line[j] * x[(o * down + j - before) / up] where up divides, in each direction

constexpr int MAX_TAPS = 32;

struct Phase { int64_t source; int tap; };  // the first source index and tap that meet

HD int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -((-a) / b); }

HD Phase first_meeting(int64_t out, int up, int down, int64_t before) {
  int64_t position = out * down - before;
  int64_t source = ceil_div(position, up);
  return {source, int(source * up - position)};
}

// ---- discriminator epilogue: y = phi(u + b), with a filter behind it or a residual added, phi piecewise linear
//
// y itself is kept by nobody, so that the slope comes from u: that of the y which bias_act would have stored.

template <class T> struct SlopeAt {
  using A = Acc<T>;
  A gain, gain_below;
  A low, high;  // from there on y is stored as the clamp; NaN: never

  SlopeAt() = default;
  explicit SlopeAt(const Activation<T>& act)
      : gain(act.gain), gain_below(act.gain_below), low(-edge(act, -1)), high(edge(act, 1)) {}

  HD A operator()(A v) const {
    const A slope = v > 0 ? gain : gain_below;
    return v >= high || v <= low ? A(0) : slope;
  }

 private:
  // The smallest |v| on one side whose y is stored as the clamp: y is monotone, and so are the bits of positive numbers.
  static A edge(const Activation<T>& act, A side) {
    using Bits = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
    Bits inside = -1, outside = bits_as<Bits>(std::numeric_limits<A>::infinity());
    if (!clamped(act, side * bits_as<A>(outside))) return std::numeric_limits<A>::quiet_NaN();
    while (outside - inside > 1) {
      const Bits middle = inside + (outside - inside) / 2;
      (clamped(act, side * bits_as<A>(middle)) ? outside : inside) = middle;
    }
    return bits_as<A>(outside);
  }
  static bool clamped(const Activation<T>& act, A v) {
    return std::fabs(load(store<T>(act.value(v)))) >= act.bound_stored;
  }
};

template <class T> struct ForwardAdd {
  static constexpr int INPUTS = 2;  // residual, u
  Activation<T> act;
  HD Acc<T> operator()(const T* in, const Channel<T>& c) const { return act.value(load(in[1]) + c.bias) + load(in[0]); }
};

template <class T> struct BackwardAt {
  static constexpr int INPUTS = 2;  // g, u
  SlopeAt<T> slope;
  HD Acc<T> operator()(const T* in, const Channel<T>& c) const {
    return (load(in[0]) + c.g) * slope(load(in[1]) + c.bias);
  }
};

template <class T> struct Identity {
  static constexpr int INPUTS = 1;
  HD Acc<T> operator()(const T* in, const Channel<T>&) const { return load(in[0]); }
};

constexpr int EPILOGUE_TAPS = 4;

// ---- fromrgb: y = phi(W i + b) for images i of K channels, phi piecewise linear

// One row of a matrix [W, b]: K numbers and the one that is added.
template <class A, int K> struct Row {
  A w[K], b;
  Row() = default;
  HD explicit Row(const void* matrix, int64_t row) {
    const A* from = static_cast<const A*>(matrix) + row * (K + 1);
    for (int k = 0; k < K; ++k) w[k] = matrix ? from[k] : A(0);
    b = matrix ? from[K] : A(0);
  }
  HD A times(const A* x) const {
    A y = 0;
    for (int k = 0; k < K; ++k) y += w[k] * x[k];
    return y;
  }
  HD A operator()(const A* x) const { return times(x) + b; }
};

// ---- generator epilogue: y = phi(d u + sigma e + b), z = y s, rgb_k = y w_k, phi piecewise linear
//
// X is a number, or several numbers of several channels or pixels side by side.

constexpr int EPILOGUE_ROWS = 4;  // of a table beside those of the weights

// The column of a table that belongs to a channel of an image.
template <class X, int K> struct Column {
  X d, b, sigma, s, w[K ? K : 1];
  HD X colours(const X* g) const {
    X sum = g[0] * w[0];
    for (int k = 1; k < K; ++k) sum += g[k] * w[k];
    return sum;
  }
};

// What is known of a pixel of a channel: the filtered input, the noise, and the gradients of z and of the colours.
template <class X, int K> struct Pixel { X u, e, gz, g[K ? K : 1]; };

// phi and its slope, which is that of the y that bias_act would have stored (SlopeAt).
template <class A> struct Bend {
  A gain, gain_below, bound, low, high;
  Bend() = default;
  template <class T> Bend(const Activation<T>& act, const SlopeAt<T>& slope)
      : gain(act.gain), gain_below(act.gain_below), bound(act.bound), low(slope.low), high(slope.high) {}

  template <class X> HD X value(X v) const {
    const X zero{}, y = v > zero ? v * gain : v * gain_below, most = zero + bound;
    return y > most ? most : (y < -most ? -most : y);
  }
  template <class X> HD X slope(X v) const {
    const X zero{}, slope = v > zero ? zero + gain : zero + gain_below;
    return v >= zero + high ? zero : (v <= zero + low ? zero : slope);
  }
};

// Its derivatives at a pixel, of which those without an h are linear in the gradients, and those with one also in the column
// h, and in hu, which goes with u.
template <class X, int K> struct Derivatives {
  const Column<X, K>& c;
  const Pixel<X, K>& p;
  X y, m;

  template <class A> HD Derivatives(const Bend<A>& bend, const Column<X, K>& c, const Pixel<X, K>& p) : c(c), p(p) {
    const X v = c.d * p.u + (c.sigma * p.e + c.b);
    y = bend.value(v), m = bend.slope(v);
  }
  // The gradient of v.
  HD X gradient() const {
    X g = p.gz * c.s;
    if (K) g += c.colours(p.g);
    return m * g;
  }
  // The change of y.
  HD X change(const Column<X, K>& h, X hu) const { return m * (c.d * hu + (h.d * p.u + (h.sigma * p.e + h.b))); }
  // The gradient of v where the gradients are given and s and w change.
  HD X gradient(const Column<X, K>& h) const {
    X g = p.gz * h.s;
    if (K) g += h.colours(p.g);
    return m * g;
  }
  // Adds the gradient of the column, in its order, where that of v is gv and y stands for what met s and w.
  HD void add(X gv, X y, X* sums) const {
    sums[0] += gv * p.u, sums[1] += gv, sums[2] += gv * p.e, sums[3] += p.gz * y;
    for (int k = 0; k < K; ++k) sums[EPILOGUE_ROWS + k] += p.g[k] * y;
  }
};

}  // namespace stylegan_dist
