// What lets the kernels' headers compile for a GPU and, for tests, as plain C++.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define KALEIDO_DEVICE __device__ __forceinline__
#define KALEIDO_EVERYWHERE __host__ __device__ __forceinline__
#define KALEIDO_UNROLL _Pragma("unroll")
#define KALEIDO_PRAGMA(x) _Pragma(#x)
#define KALEIDO_UNROLL_BY(n) KALEIDO_PRAGMA(unroll n)
#else
#define KALEIDO_DEVICE inline
#define KALEIDO_EVERYWHERE inline
#define KALEIDO_UNROLL
#define KALEIDO_UNROLL_BY(n)
#endif

namespace kaleido_cuda {

// x, of which the compiler no longer knows where it comes from.
KALEIDO_DEVICE int forgotten(int x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

KALEIDO_DEVICE unsigned forgotten(unsigned x) { return unsigned(forgotten(int(x))); }

template <class T>
KALEIDO_DEVICE T* forgotten(T* pointer) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(pointer));
#endif
  return pointer;
}

// Likewise what a reference refers to: read through it, nothing is kept that was computed from x before.
template <class T>
KALEIDO_DEVICE const T& forgotten(const T& x) {
  const T* pointer = &x;
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(pointer));
#endif
  return *pointer;
}

}  // namespace kaleido_cuda
