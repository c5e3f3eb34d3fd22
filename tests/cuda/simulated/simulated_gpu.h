// In the place of a GPU: kernels run on tensors of the processor.
#pragma once

#include <initializer_list>

#include "../../../cpu/tensors.h"
#include "../../../cuda/launch.h"

#define KALEIDO_DISPATCH_KEY CPU
#define STD_CUDA_CHECK(expression)                                                             \
  do {                                                                                         \
    const cudaError_t error_ = expression;                                                     \
    STD_TORCH_CHECK(error_ == cudaSuccess, "simulated CUDA error ", int(error_), " from " #expression); \
  } while (0)

namespace kaleido_cuda {

struct Gpu {
  explicit Gpu(const torch::stable::Tensor&) {
    const simulator::Properties of = simulator::properties();
    device = {of.processors, of.block_bytes, of.all_bytes, of.cluster};
  }
  cudaStream_t stream = nullptr;
  Device device;
};

inline void check_devices(const torch::stable::Tensor&, std::initializer_list<const torch::stable::Tensor*>) {}

}  // namespace kaleido_cuda
