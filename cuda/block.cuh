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
  // x, which is the same for all threads of a warp, in a register of the warp's: an address plus that costs nothing, and
  // the compiler sees that threads go the same way where that depends on x.
  __device__ __forceinline__ int uniform(int x) const { return int(__reduce_or_sync(~0u, unsigned(x))); }

  // Places in shared memory, of this block or of another one of its cluster, in bytes.
  using Address = unsigned;
  __device__ __forceinline__ Address address(const void* shared) const {
    return Address(__cvta_generic_to_shared(shared));
  }
  template <class T>
  __device__ __forceinline__ T load(Address from) const {
    constexpr int kWords = sizeof(T) / 4;
    static_assert(kWords == 1 || kWords == 2 || kWords % 4 == 0);
    unsigned w[kWords];
    if constexpr (kWords == 1) {
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(w[0]) : "r"(from) : "memory");
    } else if constexpr (kWords == 2) {
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "r"(from) : "memory");
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4)
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[i]), "=r"(w[i + 1]), "=r"(w[i + 2]), "=r"(w[i + 3])
                     : "r"(from + 4 * i)
                     : "memory");
    }
    T x;
    memcpy(&x, w, sizeof(x));
    return x;
  }
  template <class T>
  __device__ __forceinline__ void store(Address to, const T& x) const {
    constexpr int kWords = sizeof(T) / 4;
    static_assert(kWords == 1 || kWords == 2 || kWords == 4);
    unsigned w[kWords];
    memcpy(w, &x, sizeof(x));
    if constexpr (kWords == 1)
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(w[0]) : "memory");
    else if constexpr (kWords == 2)
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(w[0]), "r"(w[1]) : "memory");
    else
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                   : "memory");
  }

  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void sync_warp() const { __syncwarp(); }

  __device__ __forceinline__ int shuffle_xor(int x, int mask) const { return __shfl_xor_sync(~0u, x, mask); }
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
  // The same place in another block of the cluster.
  __device__ __forceinline__ Address in_block(int of, Address place) const {
    Address there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(place), "r"(of));
    return there;
  }
  // A barrier of 8 bytes (mbarrier) whose phase, which is 0 or 1, ends when `count` threads have arrived and what they
  // expect has come: used after the next sync_cluster().
  __device__ __forceinline__ void begin_barrier(Address barrier, int count) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  // One of those threads, which expects so many bytes to be put before the phase ends.
  __device__ __forceinline__ void arrive_and_expect(Address barrier, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  }
  // At any block's barrier: what the thread has read may be overwritten.
  __device__ __forceinline__ void arrive(Address barrier) const {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
  }
  // Until that phase of this block's barrier has ended; that before the first has.
  __device__ __forceinline__ void wait(Address barrier, int phase) const {
    while (!has_ended(barrier, phase)) continue;
  }
  // The same, of all threads of a warp at once, which the compiler then sees.
  __device__ __forceinline__ void wait_as_warp(Address barrier, int phase) const {
    while (!__all_sync(~0u, has_ended(barrier, phase))) continue;
  }
  // May take a while to say no.
  __device__ __forceinline__ int has_ended(Address barrier, int phase) const {
    int ended;
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n"
        "selp.b32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(barrier), "r"(phase)
        : "memory");
    return ended;
  }
  // Writes x to any block, and tells so to that barrier of the same block (st.async).
  template <class T>
  __device__ __forceinline__ void put(Address to, const T& x, Address barrier) const {
    constexpr int kWords = sizeof(T) / 4;
    static_assert(kWords == 1 || kWords == 2 || kWords == 4);
    unsigned w[kWords];
    memcpy(w, &x, sizeof(w));
#define KALEIDO_PUT "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes"
    if constexpr (kWords == 1)
      asm volatile(KALEIDO_PUT ".b32 [%0], %1, [%2];" ::"r"(to), "r"(w[0]), "r"(barrier) : "memory");
    else if constexpr (kWords == 2)
      asm volatile(KALEIDO_PUT ".v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to), "r"(w[0]), "r"(w[1]), "r"(barrier)
                   : "memory");
    else
      asm volatile(KALEIDO_PUT ".v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]),
                   "r"(w[3]), "r"(barrier)
                   : "memory");
#undef KALEIDO_PUT
  }
#else  // no clusters
  __device__ __forceinline__ int rank() const { return 0; }
  __device__ __forceinline__ int cluster_size() const { return 1; }
  __device__ __forceinline__ void sync_cluster() const {}
  __device__ __forceinline__ Address in_block(int, Address place) const { return place; }
  __device__ __forceinline__ void begin_barrier(Address, int) const {}
  __device__ __forceinline__ void arrive_and_expect(Address, int) const {}
  __device__ __forceinline__ void arrive(Address) const {}
  __device__ __forceinline__ void wait(Address, int) const {}
  __device__ __forceinline__ void wait_as_warp(Address, int) const {}
  template <class T>
  __device__ __forceinline__ void put(Address, const T&, Address) const {}
#endif
};

}  // namespace kaleido_cuda

#endif
