// PyTorch's threads, for launchers that know nothing of torch.
#include "tensor.h"

namespace stylegan_dist {

void parallel(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

}  // namespace stylegan_dist
