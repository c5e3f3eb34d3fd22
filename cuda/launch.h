// What ops.cu asks of the files with the kernels, one of them for each type of number.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "power.h"
#include "spectrum.h"

namespace kaleido_cuda {

// Of the GPU that is in use.
struct Device {
  int processors;            // streaming multiprocessors
  std::int64_t block_bytes;  // most shared memory of a block
  std::int64_t all_bytes;    // shared memory of a multiprocessor
  int cluster;               // most blocks of a cluster; 1 without clusters
};

constexpr int kMostBlockBytes = 227 << 10;  // what `Device::block_bytes` is at most, on any GPU until now

template <class Number>
struct Launch {
  static cudaError_t multiply(const Rows<Number>& x, const Rows<Number>& y, const Number* factors, int log_n,
                              const Pass& pass, const Device& device, cudaStream_t stream);
};

// Power spectra, for complex numbers.
template <class Number>
struct LaunchPower {
  using Real = RealOf<Number>;
  static cudaError_t power(const Frames<Number>& frames, const PowerSink<Number>& sink, const Number* factors,
                           int log_n, const Pass& pass, const Device& device, cudaStream_t stream);
  static cudaError_t link(const std::int64_t* rows, int n_rows, int n, int* head, int* next, cudaStream_t stream);
  // The windowed frames, (frames.count, frames.features).
  static cudaError_t windowed(const Frames<Number>& frames, Real* to, cudaStream_t stream);
  static cudaError_t overlap(const Frames<Number>& frames, const Real* frames_grad, std::int64_t items,
                             Real* waveform_grad, cudaStream_t stream);
  // Sums over chunks of frames; `partial` holds (window_chunks(count), length).
  static cudaError_t window(const Frames<Number>& frames, const Real* frames_grad, Real* partial, Real* window_grad,
                            cudaStream_t stream);
};

// What clusters of blocks do, or single blocks on GPUs without clusters.
template <class Number>
struct LaunchClusters {
  // The whole product in one launch of clusters, with `done` false where there is none for its size and the GPU, or it
  // does not pay.
  static cudaError_t multiply(const Rows<Number>& x, const Rows<Number>& y, const Number* factors, int n_factors,
                              int log_n, const Device& device, cudaStream_t stream, bool* done);
  static cudaError_t backward(const Rows<Number>& x, const Rows<Number>& grad, const Rows<Number>& x_grad,
                              const Number* factors, int log_n, const Run& run, int parts, Number* partial,
                              cudaStream_t stream);
  // Clusters, or blocks, of a run that the GPU holds at once.
  static cudaError_t at_once(const Run& run, const Device& device, int* clusters);
  static cudaError_t sum(const Number* partial, Number* total, std::int64_t chunks, std::int64_t numbers,
                         cudaStream_t stream);
  // Ten times the compute capability that the code which runs on this GPU was written for.
  static cudaError_t built_for(int* capability);
};

// Of power spectra, for complex numbers.
template <class Number>
struct LaunchPowerBackward {
  // The whole product backward, and the last of several runs.
  static cudaError_t all(const Frames<Number>& frames, const PowerGradient<Number>& grad, const Rows<Number>& x_grad,
                         const Number* factors, int log_n, const Run& run, int parts, Number* partial,
                         cudaStream_t stream);
  static cudaError_t last(const Rows<Number>& x, const PowerGradient<Number>& grad, const Rows<Number>& x_grad,
                          const Number* factors, int log_n, const Run& run, int parts, Number* partial,
                          cudaStream_t stream);
};

constexpr std::int64_t kFramesOfChunk = 256;
inline std::int64_t window_chunks(std::int64_t count) { return (count + kFramesOfChunk - 1) / kFramesOfChunk; }

}  // namespace kaleido_cuda
