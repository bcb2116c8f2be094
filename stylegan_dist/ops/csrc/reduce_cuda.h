// Sums over channels on the GPU: threads leave partial sums in the workspace, which are added in a fixed order.
#pragma once

#include <algorithm>

#include "launch_cuda.h"

namespace stylegan_dist {

constexpr int64_t FAN_IN = 64;  // of one step of the sum

// [a, channels, b] -> [segments, channels]: thread (segment, channel) adds every segments-th.
template <class A> struct Reduce {
  const A* from;
  A* to;
  int64_t a, channels, b, segments;
  HD void operator()(int64_t t) const {
    const int64_t segment = t / channels, c = t - segment * channels;
    A total = 0;
    for (int64_t q = segment; q < a * b; q += segments) {
      const int64_t i = q / b;
      total += from[(i * channels + c) * b + (q - i * b)];
    }
    to[segment * channels + c] = total;
  }
};

// Elements of a workspace that begins with a * b = `parts` partial sums of each channel.
inline int64_t reduce_workspace(int64_t parts, int64_t channels) { return (parts + parts / (FAN_IN - 1) + 1) * channels; }

// The first a * channels * b elements of the workspace, [a, channels, b], to sum [channels].
template <class A> void reduce(A* workspace, A* sum, int64_t a, int64_t channels, int64_t b, void* stream) {
  A *from = workspace, *free = from + a * channels * b;
  for (;;) {
    const int64_t segments = std::max<int64_t>(1, a * b / FAN_IN);
    A* to = segments == 1 ? sum : free;
    launch(Reduce<A>{from, to, a, channels, b, segments}, segments * channels, stream);
    if (segments == 1) return;
    from = to, free = to + segments * channels, a = segments, b = 1;
  }
}

}  // namespace stylegan_dist
