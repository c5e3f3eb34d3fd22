// The kernels of power spectra and their launches, for one type of complex number.
#pragma once

#include "kernels.cuh"

namespace kaleido_cuda {

template <class Real>
__global__ void windowed_kernel(const Real* waveform, const Real* window, std::int64_t time, int per_item, int hop,
                                int length, std::int64_t count, Real* to) {
  const Block block{};
  for (std::int64_t i = thread_of_grid(block); i < count * length; i += threads_of_grid(block))
    to[i] = windowed_sample(waveform, window, time, per_item, hop, i / length, int(i % length));
}

template <class Real>
__global__ void overlap_kernel(const Real* frames_grad, const Real* window, std::int64_t items, int per_item,
                               std::int64_t time, int hop, int length, Real* waveform_grad) {
  const Block block{};
  for (std::int64_t i = thread_of_grid(block); i < items * time; i += threads_of_grid(block))
    waveform_grad[i] = overlap_add(frames_grad, window, i / time, per_item, i % time, hop, length);
}

template <class Real>
__global__ void window_kernel(const Real* frames_grad, const Real* waveform, std::int64_t time, int per_item, int hop,
                              int length, std::int64_t count, Real* partial) {
  const Block block{};
  const std::int64_t first = std::int64_t(block.index()) * kFramesOfChunk;
  const std::int64_t last = first + kFramesOfChunk < count ? first + kFramesOfChunk : count;
  for (int i = block.thread(); i < length; i += block.threads())
    partial[block.index() * std::int64_t(length) + i] =
        window_gradient(frames_grad, waveform, time, per_item, hop, length, first, last, i);
}

// One for all types of numbers, but each file has its own.
static __global__ void link_kernel(const std::int64_t* rows, int n_rows, int n, int* head, int* next) {
  const Block block{};
  link_rows(rows, n_rows, n, int(thread_of_grid(block)), head, next);
}

template <class Number, int kBits>
constexpr int blocks_of_halves() {
  using Tile = ConsecutiveTile<kBits>;
  return blocks_of_processor<Number, Tile, rows_of_warp<Number, Tile>(), true>();
}

template <class Number, int kBits>
__global__ void __launch_bounds__(kMultiplyThreads, (blocks_of_halves<Number, kBits>()))
    halves_kernel(const __grid_constant__ typename PowerOfHalves<Number, kBits>::Args args) {
  Block block;
  PowerOfHalves<Number, kBits>::run(args, block);
}

template <class Number, int kBits>
cudaError_t launch_halves(const Frames<Number>& frames, const PowerSink<Number>& sink, const Number* factors,
                          const Device& device, cudaStream_t stream) {
  using Halves = PowerOfHalves<Number, kBits>;
  constexpr int kLogN = Halves::kLogN, kBytes = Halves::shared_bytes(kMultiplyWarps);
  const typename Halves::Args args{frames,
                                   sink,
                                   {factors, kLogN, 0, 2 * kLogN},
                                   {kLogN, 0, kLogN, 0, kLogN},
                                   frames.count,
                                   2 * kLogN,
                                   Halves::Sink::template shared_bytes<typename Halves::Tile>(kMultiplyWarps)};
  const std::int64_t blocks = std::min((frames.count + Halves::kRows - 1) / Halves::kRows,
                                       blocks_of_gpu(device, blocks_of_halves<Number, kBits>(), kBytes));
  return launch(halves_kernel<Number, kBits>, {blocks, kMultiplyThreads, kBytes}, stream, args);
}

template <class Number>
cudaError_t LaunchPower<Number>::power(const Frames<Number>& frames, const PowerSink<Number>& sink,
                                       const Number* factors, int log_n, const Pass& pass, const Device& device,
                                       cudaStream_t stream) {
  return with_tile<Number>(pass.bits, [&](auto tile) {
    using Tile = decltype(tile);
    if constexpr (Tile::kBits > kSmallestTileBits) {
      constexpr int kBytes = PowerOfHalves<Number, Tile::kBits>::shared_bytes(kMultiplyWarps);
      if constexpr (kBytes <= kMostBlockBytes)
        if (pass.last == 2 * log_n && kBytes <= device.block_bytes)
          return launch_halves<Number, Tile::kBits>(frames, sink, factors, device, stream);
    }
    return launch_tiles<Number, Tile>(frames, sink, PowerSink<Number>::template shared_bytes<Tile>(kMultiplyWarps),
                                      factors, log_n, pass, device, stream);
  });
}

template <class Number>
cudaError_t LaunchPower<Number>::link(const std::int64_t* rows, int n_rows, int n, int* head, int* next,
                                      cudaStream_t stream) {
  return launch(link_kernel, {(n + 127) / 128, 128}, stream, rows, n_rows, n, head, next);
}

inline Grid grid_for(std::int64_t items) { return {std::min<std::int64_t>((items + 255) / 256, 65535), 256}; }

template <class Number>
cudaError_t LaunchPower<Number>::windowed(const Frames<Number>& frames, Real* to, cudaStream_t stream) {
  return launch(windowed_kernel<Real>, grid_for(frames.count * frames.features), stream, frames.waveform, frames.window,
                frames.time, frames.per_item, frames.hop, frames.features, frames.count, to);
}

template <class Number>
cudaError_t LaunchPower<Number>::overlap(const Frames<Number>& frames, const Real* frames_grad, std::int64_t items,
                                         Real* waveform_grad, cudaStream_t stream) {
  return launch(overlap_kernel<Real>, grid_for(items * frames.time), stream, frames_grad, frames.window, items,
                frames.per_item, frames.time, frames.hop, frames.features, waveform_grad);
}

template <class Number>
cudaError_t LaunchPower<Number>::window(const Frames<Number>& frames, const Real* frames_grad, Real* partial,
                                        Real* window_grad, cudaStream_t stream) {
  const std::int64_t chunks = window_chunks(frames.count);
  const cudaError_t error =
      launch(window_kernel<Real>, {chunks, 256}, stream, frames_grad, frames.waveform, frames.time, frames.per_item,
             frames.hop, frames.features, frames.count, partial);
  if (error) return error;
  return LaunchClusters<Real>::sum(partial, window_grad, chunks, frames.features, stream);
}

}  // namespace kaleido_cuda
