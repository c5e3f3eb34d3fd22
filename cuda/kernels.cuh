// The kernels of products and their launches, for one type of number: included by a .cu file for each.
#pragma once

#include "grid.cuh"

namespace kaleido_cuda {

// That the registers of the vectors leave room for; coefficients that come in turns take registers too.
template <class Number, class Tile, int kRows, bool kResident>
constexpr int blocks_of_processor() {
  if (kRows < rows_of_warp<Number, Tile>()) return 1;
  constexpr std::size_t bytes = kRows * Tile::kRegisters * sizeof(Number);
  return kResident && bytes <= (sizeof(Number) == 16 ? 128 : 256) ? 2 : 1;
}

template <class Number, class Tile, int kRows, bool kResident, class Source, class Sink>
__global__ void __launch_bounds__(kMultiplyThreads, (blocks_of_processor<Number, Tile, kRows, kResident>()))
    multiply_kernel(const __grid_constant__ MultiplyArgs<Number, Source, Sink> args) {
  Block block;
  multiply_tiles<Number, Tile, kRows, kResident>(args, block);
}

// As many as the GPU holds at once, at most so many to a processor.
inline std::int64_t blocks_of_gpu(const Device& device, int most, std::int64_t shared_bytes) {
  const std::int64_t fit = device.all_bytes / (shared_bytes + 1024);
  return device.processors * std::max<std::int64_t>(1, std::min<std::int64_t>(most, fit));
}

template <class Number, class Tile, class Source, class Sink>
cudaError_t launch_tiles(const Source& source, const Sink& sink, std::int64_t sink_bytes, const Number* factors,
                         int log_n, const Pass& pass, const Device& device, cudaStream_t stream) {
  using Units = UnitsOfStage<Number, Tile>;
  const int column_bits = pass.strided ? kLaneBits : 0;
  const int active_bits = pass.strided ? Tile::kBits : std::min(log_n, Tile::kStageBits);
  const TileMap map{log_n, column_bits, active_bits, pass.low, Tile::kBits + kLaneBits};
  const std::int64_t tile_rows = (source.count + map.vectors_per_tile() - 1) / map.vectors_per_tile();
  const int total = pass.last - pass.first;
  const std::int64_t room = (device.block_bytes - sink_bytes) / Units::kBytes;
  const int capacity = int(std::max<std::int64_t>(1, std::min<std::int64_t>(total, room)));
  const std::int64_t bytes = sink_bytes + std::int64_t(capacity) * Units::kBytes;

  const MultiplyArgs<Number, Source, Sink> args{source, sink,      {factors, log_n, pass.first, pass.last},
                                                map,    tile_rows, capacity,
                                                int(sink_bytes)};
  constexpr int kRows = rows_of_warp<Number, Tile>();
  const std::int64_t tiles = map.tiles_per_vector();
  const auto launch_rows = [&](auto kernel, int rows, int most) {
    const std::int64_t blocks = blocks_of_gpu(device, most, bytes);
    const std::int64_t parts = std::max<std::int64_t>(1, std::min((tile_rows + rows - 1) / rows, blocks / tiles));
    return launch(kernel, {tiles * parts, kMultiplyThreads, bytes}, stream, args);
  };
  // Spectra of two factors whose coefficients fit have a kernel of their own (power.h), but for the shortest; more
  // factors seldom fit.
  constexpr bool kMayFit = std::is_same_v<Source, Rows<Number>> || Tile::kBits == kSmallestTileBits;
  if (!kMayFit || capacity < total)
    return launch_rows(multiply_kernel<Number, Tile, kRows, false, Source, Sink>, kRows, 1);
  if constexpr (kMayFit) {
    // With fewer vectors than warps, each has its own: in single precision, where vectors are long enough to matter.
    constexpr bool kFew = kRows > 1 && Tile::kBits >= 4 && sizeof(RealOf<Number>) == 4;
    if constexpr (kFew && std::is_same_v<Source, Rows<Number>>) {
      if (tile_rows * tiles <= std::int64_t(device.processors) * kMultiplyWarps)
        return launch_rows(multiply_kernel<Number, Tile, 1, true, Source, Sink>, 1, 1);
    }
    return launch_rows(multiply_kernel<Number, Tile, kRows, true, Source, Sink>, kRows,
                       blocks_of_processor<Number, Tile, kRows, true>());
  }
}

// f(tile) for the tile of a pass over consecutive elements.
template <class Number, class F>
cudaError_t with_tile(int bits, F&& f) {
  switch (bits) {
    case 2: return f(ConsecutiveTile<2>{});
    case 3: return f(ConsecutiveTile<3>{});
    case 4: return f(ConsecutiveTile<4>{});
    case 5: return f(ConsecutiveTile<5>{});
    case 6:
      if constexpr (sizeof(Number) < 16) return f(ConsecutiveTile<6>{});
  }
  return cudaErrorInvalidValue;
}

template <class Number>
cudaError_t Launch<Number>::multiply(const Rows<Number>& x, const Rows<Number>& y, const Number* factors, int log_n,
                                     const Pass& pass, const Device& device, cudaStream_t stream) {
  const RowsSink<Number> sink{y};
  if (pass.strided)
    return launch_tiles<Number, StridedTile<kStridedBits>>(x, sink, 0, factors, log_n, pass, device, stream);
  return with_tile<Number>(pass.bits, [&](auto tile) {
    return launch_tiles<Number, decltype(tile)>(x, sink, 0, factors, log_n, pass, device, stream);
  });
}

}  // namespace kaleido_cuda
