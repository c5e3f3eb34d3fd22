// The GPU that an operator works on.
#pragma once

#ifndef __CUDACC__
#include "simulated_gpu.h"  // of tests/cuda/simulated, in the place of all this
#else

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <initializer_list>
#include <mutex>
#include <vector>

#include "../cpu/tensors.h"
#include "launch.h"

#define KALEIDO_DISPATCH_KEY CUDA

namespace kaleido_cuda {

constexpr int kPortableCluster = 8;

inline Device properties_of(int index) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, index));
    return value;
  };
  int built_for = 0;
  STD_CUDA_CHECK(LaunchClusters<float>::built_for(&built_for));
  // Code for older GPUs that the driver has compiled for this one knows nothing of clusters.
  const bool clusters = attribute(cudaDevAttrClusterLaunch) && built_for >= 90;
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor), clusters ? kPortableCluster : 1};
}

// The GPU of a tensor, made the current one while this lives, and the stream to work on.
class Gpu {
 public:
  explicit Gpu(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    const int index = tensor.get_device_index();
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
    stream = static_cast<cudaStream_t>(current);
    static std::mutex mutex;
    static std::vector<Device> known;
    const std::lock_guard<std::mutex> lock(mutex);
    while (int(known.size()) <= index) known.push_back({});
    if (known[index].processors == 0) known[index] = properties_of(index);
    device = known[index];
  }
  cudaStream_t stream;
  Device device;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline void check_devices(const torch::stable::Tensor& tensor,
                          std::initializer_list<const torch::stable::Tensor*> others) {
  for (const torch::stable::Tensor* other : others)
    STD_TORCH_CHECK(other->is_cuda() && other->get_device_index() == tensor.get_device_index(),
                    "expected all tensors on one GPU: move them to one device");
}

}  // namespace kaleido_cuda

#endif
