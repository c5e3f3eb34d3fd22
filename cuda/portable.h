// What lets the kernels' headers compile for a GPU and, for tests, as plain C++.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define KALEIDO_DEVICE __device__ __forceinline__
#define KALEIDO_EVERYWHERE __host__ __device__ __forceinline__
#define KALEIDO_UNROLL _Pragma("unroll")
#else
#define KALEIDO_DEVICE inline
#define KALEIDO_EVERYWHERE inline
#define KALEIDO_UNROLL
#endif
