// filtered_lrelu on the threads of the CPU: a task is a tile.
#include <algorithm>
#include <vector>

#include "filtered_lrelu.h"

namespace stylegan_dist {
namespace {

constexpr int64_t GRAIN = 1 << 12;  // outputs that are worth a thread

template <int K, class Item> void take_steps(const Item& item, const typename Item::Place& place, typename Item::Number* memory) {
  item.template step<K>(place, 0, 1, memory);
  if constexpr (K + 1 < Item::STEPS) take_steps<K + 1>(item, place, memory);
}

template <class A> void run(FilteredParams p) {
  const Tiling tiling = Tiling::of(p, 1);
  std::vector<A> partial(p.sum ? p.images * p.channels * tiling.tiles : 0);
  p.workspace = p.sum ? partial.data() : nullptr;
  with_tile<A>(p, tiling, [&](const auto& item) {
    parallel_for(item.blocks(), std::max<int64_t>(1, GRAIN / (tiling.width * tiling.height)), [&](int64_t begin, int64_t end) {
      std::vector<Four<A>> memory(item.numbers() / 4 + 1);
      for (int64_t block = begin; block < end; ++block) take_steps<0>(item, item.place(block), memory[0].v);
    });
  });
  for (int64_t c = 0; p.sum && c < p.channels; ++c) {
    double total = 0;
    for (int64_t n = 0; n < p.images; ++n)
      for (int64_t k = 0; k < tiling.tiles; ++k) total += partial[(n * p.channels + c) * tiling.tiles + k];
    static_cast<A*>(p.sum)[c] = A(total);
  }
}

}  // namespace

void run_cpu(const FilteredParams& p) {
  if (p.dtype == DType::DOUBLE) run<double>(p);
  else run<float>(p);
}

}  // namespace stylegan_dist
