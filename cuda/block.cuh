// A block of threads as the kernels' headers see it.
#pragma once

#ifndef __CUDACC__
#include "simulated_block.h"  // of tests/cuda/simulated, in the place of all this
#else

#include <cooperative_groups.h>

#include "numbers.h"

namespace kaleido_cuda {

struct Block {
  __device__ __forceinline__ int thread() const { return threadIdx.x; }
  __device__ __forceinline__ int threads() const { return blockDim.x; }
  __device__ __forceinline__ int index() const { return blockIdx.x; }
  __device__ __forceinline__ int count() const { return gridDim.x; }
  __device__ __forceinline__ char* shared() const {
    extern __shared__ __align__(128) char memory[];
    return memory;
  }
  // x, which is the same for all threads of a warp.
  __device__ __forceinline__ int uniform(int x) const { return __shfl_sync(~0u, x, 0); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void sync_warp() const { __syncwarp(); }

  __device__ __forceinline__ float shuffle_xor(float x, int mask) const { return __shfl_xor_sync(~0u, x, mask); }
  __device__ __forceinline__ double shuffle_xor(double x, int mask) const { return __shfl_xor_sync(~0u, x, mask); }
  template <class T>
  __device__ __forceinline__ Complex<T> shuffle_xor(Complex<T> z, int mask) const {
    return {shuffle_xor(z.re, mask), shuffle_xor(z.im, mask)};
  }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __device__ __forceinline__ int rank() const { return int(cooperative_groups::this_cluster().block_rank()); }
  __device__ __forceinline__ int cluster_size() const { return int(cooperative_groups::this_cluster().num_blocks()); }
  __device__ __forceinline__ void sync_cluster() const { cooperative_groups::this_cluster().sync(); }
  // The same place in the shared memory of another block of the cluster.
  template <class T>
  __device__ __forceinline__ T* of_rank(T* pointer, int of) const {
    return of == rank() ? pointer : cooperative_groups::this_cluster().map_shared_rank(pointer, of);
  }
#else  // no clusters
  __device__ __forceinline__ int rank() const { return 0; }
  __device__ __forceinline__ int cluster_size() const { return 1; }
  __device__ __forceinline__ void sync_cluster() const {}
  template <class T>
  __device__ __forceinline__ T* of_rank(T* pointer, int) const {
    return pointer;
  }
#endif
};

}  // namespace kaleido_cuda

#endif
