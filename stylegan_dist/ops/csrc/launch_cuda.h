// Starts `count` threads item(t). Compiled as plain C++ (STYLEGAN_DIST_EMULATE) they are a loop, so that a machine
// without a GPU tests the index arithmetic and the launch logic that the GPU will run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "math.h"

namespace stylegan_dist {

template <class T, int V> struct alignas(sizeof(T) * V) Pack { T v[V]; };

constexpr int BYTES = 16;  // of one memory access

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % BYTES == 0; }

#ifdef __CUDACC__

constexpr int THREADS = 256;

template <class Item> __global__ void __launch_bounds__(THREADS) run_item(const __grid_constant__ Item item, int64_t count) {
  int64_t t = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (t < count) item(t);
}

template <class Item> void launch(const Item& item, int64_t count, void* stream) {
  if (count == 0) return;
  run_item<<<dim3(unsigned(ceil_div(count, THREADS))), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(item, count);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA launch: ") + cudaGetErrorString(error));
}

// Starts `count` teams of Item::LANES threads, a power of two up to 32. Every thread fills Item::Sums::COUNT numbers in
// item.part(team, lane), the first of a team gets their sums, added as a tree, in item.finish(team, sums).
template <class Item> __global__ void __launch_bounds__(THREADS) run_team(const __grid_constant__ Item item, int64_t count) {
  const int64_t t = int64_t(blockIdx.x) * THREADS + threadIdx.x, team = t / Item::LANES;
  const int lane = int(t % Item::LANES);
  typename Item::Sums sums{};
  if (team < count) item.part(team, lane, sums);
#pragma unroll
  for (int offset = Item::LANES / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int k = 0; k < Item::Sums::COUNT; ++k) sums.v[k] += __shfl_down_sync(0xffffffffu, sums.v[k], offset, Item::LANES);
  if (lane == 0 && team < count) item.finish(team, sums);
}

template <class Item> void launch_teams(const Item& item, int64_t count, void* stream) {
  if (count == 0) return;
  const int64_t blocks = ceil_div(count * Item::LANES, THREADS);
  run_team<<<dim3(unsigned(blocks)), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(item, count);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA launch: ") + cudaGetErrorString(error));
}

#else

template <class Item> void launch(const Item& item, int64_t count, void*) {
  for (int64_t t = count - 1; t >= 0; --t) item(t);  // backwards: no thread may count on another
}

template <class Item> void launch_teams(const Item& item, int64_t count, void*) {
  for (int64_t team = count - 1; team >= 0; --team) {
    typename Item::Sums sums[Item::LANES] = {};
    for (int lane = Item::LANES - 1; lane >= 0; --lane) item.part(team, lane, sums[lane]);
    for (int offset = Item::LANES / 2; offset > 0; offset /= 2)
      for (int lane = 0; lane < offset; ++lane)
        for (int k = 0; k < Item::Sums::COUNT; ++k) sums[lane].v[k] += sums[lane + offset].v[k];
    item.finish(team, sums[0]);
  }
}

#endif

}  // namespace stylegan_dist
