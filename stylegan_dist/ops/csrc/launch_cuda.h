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

#else

template <class Item> void launch(const Item& item, int64_t count, void*) {
  for (int64_t t = count - 1; t >= 0; --t) item(t);  // backwards: no thread may count on another
}

#endif

}  // namespace stylegan_dist
