// The kernels and their launches, for one type of number: included by a .cu file for each.
#pragma once

#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <utility>

#include "block.cuh"
#include "cluster.h"
#include "launch.h"

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

template <class Number, int kBits, int kTop>
__global__ void __launch_bounds__(kMultiplyThreads, 1)
    cluster_kernel(const __grid_constant__ ClusterArgs<Number> args) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  Block block;
  multiply_in_cluster<Number, kBits, kTop>(args, block);
#endif
}

template <class Number, class Source, class Gradient, class Sink>
__global__ void __launch_bounds__(backward_threads<Number>(), 1)
    backward_kernel(const __grid_constant__ BackwardArgs<Number, Source, Gradient, Sink> args) {
  Block block;
  backward_tiles<Number>(args, block);
}

template <class Number>
__global__ void sum_kernel(const Number* partial, Number* total, std::int64_t chunks, std::int64_t numbers) {
  const Block block{};
  sum_chunks(partial, total, chunks, numbers, block);
}

template <class T>
struct AsGiven {
  using type = T;
};

struct Grid {
  std::int64_t blocks;
  int threads;
  std::int64_t shared_bytes = 0;  // of a block
  int cluster = 1;                // blocks
};

// Lets a kernel have as much shared memory as there is, once for each GPU. To ask for what one launch needs would take
// it from a larger one that another thread is about to make: the limit is the kernel's, not the launch's.
template <class Kernel>
cudaError_t allow_shared_memory(Kernel* kernel) {
  int gpu = 0, most = 0;
  if (const cudaError_t error = cudaGetDevice(&gpu)) return error;
  static std::mutex mutex;
  static std::set<std::pair<int, const void*>> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(gpu, reinterpret_cast<const void*>(kernel));
  if (allowed.count(key)) return cudaSuccess;
  if (const cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu))
    return error;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (!error) allowed.insert(key);
  return error;
}

// f(config) for the launch of a kernel.
template <class Kernel, class F>
cudaError_t with_config(Kernel* kernel, const Grid& grid, cudaStream_t stream, F&& f) {
  if (grid.shared_bytes > 48 << 10)
    if (const cudaError_t error = allow_shared_memory(kernel)) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.blocks));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = std::size_t(grid.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(grid.cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return f(config);
}

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
                   const typename AsGiven<Parameters>::type&... arguments) {
  return with_config(kernel, grid, stream, [&](const cudaLaunchConfig_t& config) {
    return cudaLaunchKernelEx(&config, kernel, arguments...);
  });
}

// How many clusters of a kernel the GPU holds at once. Processors come in groups, which clusters do not cross: there
// may be room for fewer than processors / cluster, and those left over would double the time of all.
template <class Kernel>
cudaError_t clusters_at_once(Kernel* kernel, const Grid& grid, int* clusters) {
  int gpu = 0;
  if (const cudaError_t error = cudaGetDevice(&gpu)) return error;
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, std::int64_t, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key =
      std::make_tuple(gpu, reinterpret_cast<const void*>(kernel), grid.threads, grid.shared_bytes, grid.cluster);
  if (const auto found = known.find(key); found != known.end()) {
    *clusters = found->second;
    return cudaSuccess;
  }
  const cudaError_t error = with_config(kernel, grid, nullptr, [&](const cudaLaunchConfig_t& config) {
    return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
  });
  if (!error) known[key] = *clusters;
  return error;
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
    const std::int64_t blocks =
        device.processors * std::max<std::int64_t>(1, std::min<std::int64_t>(most, device.all_bytes / (bytes + 1024)));
    const std::int64_t parts = std::max<std::int64_t>(1, std::min((tile_rows + rows - 1) / rows, blocks / tiles));
    return launch(kernel, {tiles * parts, kMultiplyThreads, bytes}, stream, args);
  };
  if (capacity < total) return launch_rows(multiply_kernel<Number, Tile, kRows, false, Source, Sink>, kRows, 1);
  // With fewer vectors than warps, each has its own: in single precision, where vectors are long enough to matter.
  constexpr bool kFew = kRows > 1 && Tile::kBits >= 4 && sizeof(RealOf<Number>) == 4;
  if constexpr (kFew && std::is_same_v<Source, Rows<Number>>) {
    if (tile_rows * tiles <= std::int64_t(device.processors) * kMultiplyThreads / kLanes)
      return launch_rows(multiply_kernel<Number, Tile, 1, true, Source, Sink>, 1, 1);
  }
  return launch_rows(multiply_kernel<Number, Tile, kRows, true, Source, Sink>, kRows,
                     blocks_of_processor<Number, Tile, kRows, true>());
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

template <class Number, class Source, class Gradient>
cudaError_t launch_backward(const Source& x, const Gradient& grad, const Rows<Number>& x_grad, const Number* factors,
                            int log_n, const Run& run, int parts, Number* partial, cudaStream_t stream) {
  using Sink = RowsGradientSink<Number>;
  const std::int64_t per_tile = run.map.vectors_per_tile();
  BackwardArgs<Number, Source, Gradient, Sink> args{x,
                                                    grad,
                                                    {x_grad},
                                                    {factors, log_n, run.first, run.last},
                                                    run.map,
                                                    (x.count + per_tile - 1) / per_tile,
                                                    parts,
                                                    int(run.groups.size()),
                                                    run.groups_per_block,
                                                    run.threads_per_group,
                                                    run.handover,
                                                    run.barriers,
                                                    partial,
                                                    {}};
  std::copy(run.groups.begin(), run.groups.end(), args.groups);
  return launch(backward_kernel<Number, Source, Gradient, Sink>,
                {std::int64_t(run.map.tiles_per_vector()) * parts * run.blocks,
                 run.groups_per_block * run.threads_per_group, run.shared_bytes, run.blocks},
                stream, args);
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

template <class Number, int kBits, int kTop>
cudaError_t launch_cluster(const ClusterArgs<Number>& args, const Device& device, cudaStream_t stream, bool* done) {
  using Sizes = Cluster<Number, kBits, kTop>;
  const int n_stages = args.stages.last;
  // Fewer warps, where more leave no room for the coefficients.
  int warps = Sizes::kMostWarps;
  while (warps >= kLeastClusterWarps && Sizes::bytes(warps, n_stages) > device.block_bytes) warps /= 2;
  if (warps < kLeastClusterWarps || device.cluster < Sizes::kBlocks) return cudaSuccess;
  Grid grid{Sizes::kBlocks, warps * kLanes, Sizes::bytes(warps, n_stages), Sizes::kBlocks};
  const auto kernel = cluster_kernel<Number, kBits, kTop>;
  int clusters = 0;
  if (const cudaError_t error = clusters_at_once(kernel, grid, &clusters)) return error;
  // Fewer vectors leave warps idle, in which several launches with more blocks are quicker.
  if (clusters == 0 || args.x.count < std::int64_t(clusters) * warps) return cudaSuccess;
  grid.blocks = std::int64_t(clusters) * Sizes::kBlocks;
  *done = true;
  return launch(kernel, grid, stream, args);
}

template <class Number>
cudaError_t Launch<Number>::multiply_in_cluster(const Rows<Number>& x, const Rows<Number>& y, const Number* factors,
                                                int n_factors, int log_n, const Device& device, cudaStream_t stream,
                                                bool* done) {
  *done = false;
  if constexpr (sizeof(RealOf<Number>) == 4) {
    constexpr int kBits = resident_tile_bits(sizeof(Number));
    const ClusterArgs<Number> args{x, y, {factors, log_n, 0, n_factors * log_n}};
    switch (log_n - (kBits + kLaneBits)) {
      case 1: return launch_cluster<Number, kBits, 1>(args, device, stream, done);
      case 2: return launch_cluster<Number, kBits, 2>(args, device, stream, done);
      case 3: return launch_cluster<Number, kBits, 3>(args, device, stream, done);
    }
  }
  return cudaSuccess;
}

template <class Number>
cudaError_t Launch<Number>::backward_clusters(const Run& run, const Device& device, int* clusters) {
  using Gradient = RowsGradient<Number>;
  const int threads = run.groups_per_block * run.threads_per_group;
  if (run.blocks > 1)
    return clusters_at_once(backward_kernel<Number, Rows<Number>, Gradient, RowsGradientSink<Number>>,
                            {run.blocks, threads, run.shared_bytes, run.blocks}, clusters);
  const std::int64_t of_memory = device.all_bytes / (std::max(run.shared_bytes, 1024) + 1024);
  const std::int64_t of_processor = std::min<std::int64_t>(backward_threads<Number>() / threads, of_memory);
  *clusters = device.processors * int(std::max<std::int64_t>(1, of_processor));
  return cudaSuccess;
}

template <class Number>
cudaError_t Launch<Number>::backward(const Rows<Number>& x, const Rows<Number>& grad, const Rows<Number>& x_grad,
                                     const Number* factors, int log_n, const Run& run, int parts, Number* partial,
                                     cudaStream_t stream) {
  return launch_backward<Number>(x, RowsGradient<Number>{grad}, x_grad, factors, log_n, run, parts, partial, stream);
}

template <class Number>
cudaError_t Launch<Number>::sum(const Number* partial, Number* total, std::int64_t chunks, std::int64_t numbers,
                                cudaStream_t stream) {
  const std::int64_t blocks = std::min<std::int64_t>((numbers + 127) / 128, 4096);
  return launch(sum_kernel<Number>, {blocks, 128}, stream, partial, total, chunks, numbers);
}

template <class Number>
cudaError_t Launch<Number>::built_for(int* capability) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, sum_kernel<Number>);
  *capability = attributes.ptxVersion;
  return error;
}

}  // namespace kaleido_cuda
