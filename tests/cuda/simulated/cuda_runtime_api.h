// What cuda/ asks of the CUDA runtime, for kernels that are run on the processor: launches check what a GPU would.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>

#include "../simulator.h"

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorInvalidConfiguration,
};
using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  int ptxVersion;
};

namespace simulator {

// The GPU that is simulated: a small one, so that blocks have several rounds to do.
struct Properties {
  int processors, block_bytes, all_bytes, cluster, capability;
};
inline Properties properties() {
  const char* named = std::getenv("KALEIDO_SIMULATED_GPU");
  const std::string gpu = named ? named : "sm_90";
  if (gpu == "sm_80") return {3, 163 << 10, 164 << 10, 1, 80};
  if (gpu == "sm_86") return {2, 99 << 10, 100 << 10, 1, 86};
  if (gpu == "sm_90") return {3, 227 << 10, 228 << 10, 8, 90};
  throw std::invalid_argument("KALEIDO_SIMULATED_GPU: expected sm_80, sm_86 or sm_90, got " + gpu);
}

// Shared memory that kernels were allowed.
inline std::map<const void*, std::size_t>& allowed_bytes() {
  static std::map<const void*, std::size_t> bytes;
  return bytes;
}

inline unsigned next_seed() {
  static unsigned seed = 0;
  return seed++;
}

}  // namespace simulator

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > simulator::properties().block_bytes) return cudaErrorInvalidValue;
  simulator::allowed_bytes()[reinterpret_cast<const void*>(kernel)] = std::size_t(bytes);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = simulator::properties().capability;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = simulator::properties().block_bytes;
  return cudaSuccess;
}

// One more than would fit, as on a GPU that is divided less well than it is here.
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel*, const cudaLaunchConfig_t* config) {
  const unsigned cluster = config->numAttrs ? config->attrs[0].val.clusterDim.x : 1;
  *clusters = simulator::properties().processors / int(cluster) + 1;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  if (bytes) std::memset(to, value, bytes);
  return cudaSuccess;
}

// Every launch lets the threads go on in another order.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  static_assert((0 + ... + sizeof(Parameters)) <= 4 << 10, "parameters of a kernel take at most 4 KiB");
  const unsigned cluster = config->numAttrs ? config->attrs[0].val.clusterDim.x : 1;
  const auto allowed = simulator::allowed_bytes().find(reinterpret_cast<const void*>(kernel));
  const std::size_t most = allowed == simulator::allowed_bytes().end() ? 48 << 10 : allowed->second;
  const bool possible = config->gridDim.x >= 1 && config->gridDim.x <= 0x7fffffffu && config->blockDim.x >= 1 &&
                        config->blockDim.x <= 1024 && config->dynamicSmemBytes <= most && cluster >= 1 &&
                        int(cluster) <= simulator::properties().cluster && config->gridDim.x % cluster == 0;
  if (!possible) return cudaErrorInvalidConfiguration;
  simulator::launch(int(config->gridDim.x / cluster), int(cluster), int(config->blockDim.x), config->dynamicSmemBytes,
                    simulator::next_seed(), [&](simulator::Block& block) {
                      simulator::current_block() = &block;
                      kernel(arguments...);
                    });
  return cudaSuccess;
}
