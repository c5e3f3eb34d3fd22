// How kernels are launched.
#pragma once

#include <mutex>
#include <set>
#include <utility>

#include "block.cuh"
#include "launch.h"

namespace kaleido_cuda {

template <class T>
struct AsGiven {
  using type = T;
};

struct Grid {
  std::int64_t blocks;
  int threads;
  std::int64_t shared_bytes = 0;  // of a block
  int cluster = 1;                // blocks
};

// Lets a kernel have as much shared memory as there is, once for each GPU. To ask for what one launch needs would take
// it from a larger one that another thread is about to make: the limit is the kernel's, not the launch's.
template <class Kernel>
cudaError_t allow_shared_memory(Kernel* kernel) {
  int gpu = 0, most = 0;
  if (const cudaError_t error = cudaGetDevice(&gpu)) return error;
  static std::mutex mutex;
  static std::set<std::pair<int, const void*>> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(gpu, reinterpret_cast<const void*>(kernel));
  if (allowed.count(key)) return cudaSuccess;
  if (const cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu))
    return error;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (!error) allowed.insert(key);
  return error;
}

// f(config) for the launch of a kernel.
template <class Kernel, class F>
cudaError_t with_config(Kernel* kernel, const Grid& grid, cudaStream_t stream, F&& f) {
  if (grid.shared_bytes > 48 << 10)
    if (const cudaError_t error = allow_shared_memory(kernel)) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.blocks));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = std::size_t(grid.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(grid.cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return f(config);
}

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
                   const typename AsGiven<Parameters>::type&... arguments) {
  return with_config(kernel, grid, stream, [&](const cudaLaunchConfig_t& config) {
    return cudaLaunchKernelEx(&config, kernel, arguments...);
  });
}

}  // namespace kaleido_cuda
