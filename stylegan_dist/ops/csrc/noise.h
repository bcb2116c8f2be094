// The layers' noise as randomness.py defines it: Philox4x32-10 (Salmon et al. 2011, section 3.3), normal by Box and Muller
// (1958) in double, rounded once to float. No torch headers.
//
// Only operations that IEEE 754 defines, with fma wherever a product meets a sum, so that neither a library's logarithm nor a
// compiler that joins operations can make one device draw other bits than another.
#pragma once

#include "math.h"

namespace stylegan_dist {

struct Words { uint32_t w[4]; };

HD Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(c0) * 0xD2511F53u, b = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(b >> 32) ^ c1 ^ key0, c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ key1, c3 = uint32_t(a);
    key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Where the noise of an image stands: a row of `randomness.noise_address`.
struct Address {
  uint64_t key, index;
  HD Address(const int64_t* row) : key(uint64_t(row[0])), index(uint64_t(row[1])) {}
  HD Words words(uint32_t block, uint32_t layer) const {
    return philox(block, layer, uint32_t(index), uint32_t(index >> 32), uint32_t(key), uint32_t(key >> 32));
  }
};

// (w + 1/2) / 2^32, exactly. A word below the mantissa of 2^52 is that number plus 2^52.
HD double unit_interval(uint32_t w) {
  return (bits_as<double>(0x4330000000000000u | uint64_t(w)) - 0x1p52 + 0.5) * 0x1p-32;
}

// The logarithm of a normal number: u = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1)).
HD double log_of(double u) {
  constexpr uint64_t root = 0x3fe6a09e667f3bcdu, one = 0x3ff0000000000000u;  // sqrt(1/2) and 1
  const uint64_t shifted = bits_as<uint64_t>(u) + (one - root);
  const double m = bits_as<double>((shifted & 0x000fffffffffffffu) + root);
  const double e = bits_as<double>(0x4330000000000000u | (shifted >> 52)) - (0x1p52 + 1023);
  const double f = (m - 1) / (m + 1), z = f * f;
  double p = 1.0 / 23;
  p = std::fma(p, z, 1.0 / 21), p = std::fma(p, z, 1.0 / 19), p = std::fma(p, z, 1.0 / 17), p = std::fma(p, z, 1.0 / 15);
  p = std::fma(p, z, 1.0 / 13), p = std::fma(p, z, 1.0 / 11), p = std::fma(p, z, 1.0 / 9), p = std::fma(p, z, 1.0 / 7);
  p = std::fma(p, z, 1.0 / 5), p = std::fma(p, z, 1.0 / 3);
  const double twice = 2 * f, log_m = std::fma(twice, p * z, twice);
  return std::fma(e, 0x1.62e42fefa39efp-1, std::fma(e, 0x1.abc9e3b39803fp-56, log_m));  // ln 2 in two parts
}

struct Pair { float a, b; };

// Two independent normals: sqrt(-2 log u) (cos, sin)(2 pi v).
HD Pair box_muller(uint32_t first, uint32_t second) {
  const double radius = std::sqrt(-2 * log_of(unit_interval(first)));
  const double angle = 0x1.921fb54442d18p+2 * unit_interval(second);
  const uint32_t quadrant = ((second >> 29) + 1) >> 1;  // the nearest multiple of pi / 2, 0 to 4
  const double q = unit_interval(quadrant) * 0x1p32 - 0.5;  // the same number
  // pi / 2 in two parts; what is left is in [-pi / 4, pi / 4].
  const double t = std::fma(-q, 0x1.1a62633145c07p-54, std::fma(-q, 0x1.921fb54442d18p+0, angle)), z = t * t;
  double s = 1.0 / 355687428096000, c = 1.0 / 20922789888000;  // 1 / 17! and 1 / 16!
  s = std::fma(s, z, -1.0 / 1307674368000), c = std::fma(c, z, -1.0 / 87178291200);
  s = std::fma(s, z, 1.0 / 6227020800), c = std::fma(c, z, 1.0 / 479001600);
  s = std::fma(s, z, -1.0 / 39916800), c = std::fma(c, z, -1.0 / 3628800);
  s = std::fma(s, z, 1.0 / 362880), c = std::fma(c, z, 1.0 / 40320);
  s = std::fma(s, z, -1.0 / 5040), c = std::fma(c, z, -1.0 / 720);
  s = std::fma(s, z, 1.0 / 120), c = std::fma(c, z, 1.0 / 24);
  s = std::fma(s, z, -1.0 / 6), c = std::fma(c, z, -0.5);
  s = std::fma(t, s * z, t), c = std::fma(c, z, 1.0);
  const double along = quadrant & 1 ? s : c, across = quadrant & 1 ? c : s;
  const double cosine = (quadrant + 1) & 2 ? -along : along, sine = quadrant & 2 ? -across : across;
  return {float(radius * cosine), float(radius * sine)};
}

}  // namespace stylegan_dist
