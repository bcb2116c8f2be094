// Layer noise on the CPU, many blocks of four numbers at once.
#pragma once

#include <algorithm>

#include "noise.h"

namespace stylegan_dist {

constexpr int64_t NOISE_BLOCKS = 64;

// to[i] is number first + i of the map.
template <class A> void draw_noise(const Address& address, int64_t layer, int64_t first, int64_t count, A* to) {
  uint32_t words[4][NOISE_BLOCKS];
  float drawn[NOISE_BLOCKS * 4];
  for (int64_t block = first / 4; block * 4 < first + count; block += NOISE_BLOCKS) {
    for (int i = 0; i < NOISE_BLOCKS; ++i) {
      const Words w = address.words(uint32_t(block) + uint32_t(i), uint32_t(layer));
      for (int j = 0; j < 4; ++j) words[j][i] = w.w[j];
    }
    for (int i = 0; i < NOISE_BLOCKS; ++i) {
      const Pair p = box_muller(words[0][i], words[1][i]), q = box_muller(words[2][i], words[3][i]);
      drawn[4 * i] = p.a, drawn[4 * i + 1] = p.b, drawn[4 * i + 2] = q.a, drawn[4 * i + 3] = q.b;
    }
    const int64_t begin = std::max(first, block * 4), end = std::min(first + count, (block + NOISE_BLOCKS) * 4);
    for (int64_t i = begin; i < end; ++i) to[i - first] = drawn[i - block * 4];
  }
}

}  // namespace stylegan_dist
