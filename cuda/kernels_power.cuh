// The kernels of power spectra and their launches, for one type of complex number.
#pragma once

#include "kernels.cuh"

namespace kaleido_cuda {

template <class Real>
__global__ void windowed_kernel(const Real* waveform, const Real* window, std::int64_t time, int per_item, int hop,
                                int length, std::int64_t count, Real* to) {
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count * length; i += step)
    to[i] = windowed_sample(waveform, window, time, per_item, hop, i / length, int(i % length));
}

template <class Real>
__global__ void overlap_kernel(const Real* frames_grad, const Real* window, std::int64_t items, int per_item,
                               std::int64_t time, int hop, int length, Real* waveform_grad) {
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < items * time; i += step)
    waveform_grad[i] = overlap_add(frames_grad, window, i / time, per_item, i % time, hop, length);
}

template <class Real>
__global__ void window_kernel(const Real* frames_grad, const Real* waveform, std::int64_t time, int per_item, int hop,
                              int length, std::int64_t count, Real* partial) {
  const std::int64_t first = std::int64_t(blockIdx.x) * kFramesOfChunk;
  const std::int64_t last = first + kFramesOfChunk < count ? first + kFramesOfChunk : count;
  for (int i = threadIdx.x; i < length; i += blockDim.x)
    partial[blockIdx.x * std::int64_t(length) + i] =
        window_gradient(frames_grad, waveform, time, per_item, hop, length, first, last, i);
}

// One for all types of numbers, but each file has its own.
static __global__ void link_kernel(const std::int64_t* rows, int n_rows, int n, int* head, int* next) {
  link_rows(rows, n_rows, n, int(blockIdx.x * blockDim.x + threadIdx.x), head, next);
}

template <class Number>
cudaError_t LaunchPower<Number>::power(const Frames<Number>& frames, const PowerSink<Number>& sink,
                                       const Number* factors, int log_n, const Pass& pass, const Device& device,
                                       cudaStream_t stream) {
  return with_tile<Number>(pass.bits, [&](auto tile) {
    using Tile = decltype(tile);
    const std::int64_t bytes = std::int64_t(kMultiplyThreads / kLanes) *
                               PowerSink<Number>::template shared_reals<Tile>() * sizeof(Real);
    return launch_tiles<Number, Tile>(frames, sink, bytes, factors, log_n, pass, device, stream);
  });
}

template <class Number>
cudaError_t LaunchPower<Number>::backward_all(const Frames<Number>& frames, const PowerGradient<Number>& grad,
                                              const Rows<Number>& x_grad, const Number* factors, int log_n,
                                              const Run& run, int parts, Number* partial, cudaStream_t stream) {
  return launch_backward<Number>(frames, grad, x_grad, factors, log_n, run, parts, partial, stream);
}

template <class Number>
cudaError_t LaunchPower<Number>::backward_last(const Rows<Number>& x, const PowerGradient<Number>& grad,
                                               const Rows<Number>& x_grad, const Number* factors, int log_n,
                                               const Run& run, int parts, Number* partial, cudaStream_t stream) {
  return launch_backward<Number>(x, grad, x_grad, factors, log_n, run, parts, partial, stream);
}

template <class Number>
cudaError_t LaunchPower<Number>::link(const std::int64_t* rows, int n_rows, int n, int* head, int* next,
                                      cudaStream_t stream) {
  link_kernel<<<unsigned((n + 127) / 128), 128, 0, stream>>>(rows, n_rows, n, head, next);
  return cudaGetLastError();
}

inline unsigned blocks_for(std::int64_t items) { return unsigned(std::min<std::int64_t>((items + 255) / 256, 65535)); }

template <class Number>
cudaError_t LaunchPower<Number>::windowed(const Frames<Number>& frames, Real* to, cudaStream_t stream) {
  windowed_kernel<<<blocks_for(frames.count * frames.features), 256, 0, stream>>>(
      frames.waveform, frames.window, frames.time, frames.per_item, frames.hop, frames.features, frames.count, to);
  return cudaGetLastError();
}

template <class Number>
cudaError_t LaunchPower<Number>::overlap(const Frames<Number>& frames, const Real* frames_grad, std::int64_t items,
                                         Real* waveform_grad, cudaStream_t stream) {
  overlap_kernel<<<blocks_for(items * frames.time), 256, 0, stream>>>(frames_grad, frames.window, items,
                                                                      frames.per_item, frames.time, frames.hop,
                                                                      frames.features, waveform_grad);
  return cudaGetLastError();
}

template <class Number>
cudaError_t LaunchPower<Number>::window(const Frames<Number>& frames, const Real* frames_grad, Real* partial,
                                        Real* window_grad, cudaStream_t stream) {
  const std::int64_t chunks = window_chunks(frames.count);
  window_kernel<<<unsigned(chunks), 256, 0, stream>>>(frames_grad, frames.waveform, frames.time, frames.per_item,
                                                      frames.hop, frames.features, frames.count, partial);
  if (const cudaError_t error = cudaGetLastError()) return error;
  return Launch<Real>::sum(partial, window_grad, chunks, frames.features, stream);
}

}  // namespace kaleido_cuda
