// filtered_lrelu on the GPU: a block of threads makes a tile, in shared memory.
#include "filtered_lrelu.h"
#include "reduce_cuda.h"

namespace stylegan_dist {
namespace {

template <class A> void run(FilteredParams p, void* stream) {
  const Tiling tiling = Tiling::of(p, THREADS);
  if (!p.sum) p.workspace = nullptr;
  with_tile<A>(p, tiling, [&](const auto& item) { launch_blocks(item, stream); });
  if (p.sum)
    reduce(static_cast<A*>(p.workspace), static_cast<A*>(p.sum), p.images, p.channels, tiling.tiles, stream);
}

}  // namespace

int64_t workspace_of(const FilteredParams& p) {
  return p.sum ? reduce_workspace(p.images * Tiling::of(p, THREADS).tiles, p.channels) : 0;
}

void run_cuda(const FilteredParams& p, void* stream) {
#ifdef STYLEGAN_DIST_EMULATE
  if (p.dtype == DType::DOUBLE) return run<double>(p, stream);
#endif
  if (p.dtype == DType::DOUBLE) throw std::runtime_error("no float64 on CUDA");
  run<float>(p, stream);
}

}  // namespace stylegan_dist
