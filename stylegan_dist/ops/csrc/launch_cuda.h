// Starts `count` threads item(t). Compiled as plain C++ (STYLEGAN_DIST_EMULATE) they are a loop, so that a machine
// without a GPU tests the index arithmetic and the launch logic that the GPU will run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

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

// Starts item.blocks() blocks of THREADS threads with item.numbers() of Item::Number in common. All of them take Item::STEPS
// steps, item.step<K>(), and wait for each other after each.
template <int K, class Item, class Place>
__device__ __forceinline__ void take_steps(const Item& item, const Place& place, typename Item::Number* memory) {
  item.template step<K>(place, threadIdx.x, THREADS, memory);
  if constexpr (K + 1 < Item::STEPS) {
    __syncthreads();
    take_steps<K + 1>(item, place, memory);
  }
}

template <class Item> __global__ void __launch_bounds__(THREADS) run_block(const __grid_constant__ Item item) {
  extern __shared__ __align__(16) unsigned char memory[];
  take_steps<0>(item, item.place(blockIdx.x), reinterpret_cast<typename Item::Number*>(memory));
}

template <class Item> void launch_blocks(const Item& item, void* stream) {
  if (item.blocks() > 0x7fffffff) throw std::runtime_error("stylegan_dist: more blocks than a GPU counts");
  const size_t bytes = item.numbers() * sizeof(typename Item::Number);
  run_block<<<dim3(unsigned(item.blocks())), THREADS, bytes, static_cast<cudaStream_t>(stream)>>>(item);
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

constexpr int THREADS = 256;

template <int K, class Item, class Place>
void take_steps(const Item& item, const Place& place, typename Item::Number* memory) {
  for (int thread = THREADS - 1; thread >= 0; --thread) item.template step<K>(place, thread, THREADS, memory);
  if constexpr (K + 1 < Item::STEPS) take_steps<K + 1>(item, place, memory);
}

template <class Item> void launch_blocks(const Item& item, void*) {
  using A = typename Item::Number;
  for (int64_t block = item.blocks() - 1; block >= 0; --block) {
    // What no thread has written is not a number.
    const A nan = std::numeric_limits<A>::quiet_NaN();
    std::vector<Pack<A, 4>> memory(item.numbers() / 4 + 1, Pack<A, 4>{nan, nan, nan, nan});
    take_steps<0>(item, item.place(block), memory[0].v);
  }
}

#endif

}  // namespace stylegan_dist
