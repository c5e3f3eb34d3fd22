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

  // A barrier in shared memory (mbarrier) whose phase, which is 0 or 1, ends when `count` lanes have arrived and what
  // they expect has come: used after the next sync_cluster().
  __device__ __forceinline__ void begin_barrier(std::uint64_t* barrier, int count) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(barrier)), "r"(count) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  // One of those lanes, which expects so many bytes to be put before the phase ends.
  __device__ __forceinline__ void arrive_and_expect(std::uint64_t* barrier, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address_of(barrier)), "r"(bytes)
                 : "memory");
  }
  // At that barrier of a block of the cluster: what the lane has read may be overwritten.
  __device__ __forceinline__ void arrive(std::uint64_t* barrier, int of) const {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address_of(barrier, of)) : "memory");
  }
  // Until that phase of this block's barrier has ended; that before the first has.
  __device__ __forceinline__ void wait(std::uint64_t* barrier, int phase) const {
    int ended = 0;
    while (!ended)
      asm volatile(
          "{\n"
          ".reg .pred ended;\n"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n"
          "selp.b32 %0, 1, 0, ended;\n"
          "}"
          : "=r"(ended)
          : "r"(address_of(barrier)), "r"(phase)
          : "memory");
  }
  // Places in shared memory of the blocks of a cluster, in bytes.
  using Address = unsigned;
  __device__ __forceinline__ Address address_of(const void* pointer, int of) const {
    Address there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address_of(pointer)), "r"(of));
    return there;
  }
  // 16 bytes, and tells so to the barrier of the same block (st.async).
  template <class T>
  __device__ __forceinline__ void put(Address to, const T& value, Address barrier) const {
    static_assert(sizeof(T) == 16);
    unsigned words[4];
    memcpy(words, &value, sizeof(words));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     to),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(barrier)
                 : "memory");
  }

 private:
  static __device__ __forceinline__ unsigned address_of(const void* pointer) {
    return unsigned(__cvta_generic_to_shared(pointer));
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
