// The kernels that clusters of blocks run, and what goes with them, for all types of numbers.
//
// They are a file of their own because they are compiled anew for GPUs with clusters; code for the others may serve both
// (build.py).
#include <map>
#include <tuple>

#include "cluster.h"
#include "grid.cuh"

namespace kaleido_cuda {

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

template <class Number, class Source, class Gradient>
cudaError_t launch_backward(const Source& x, const Gradient& grad, const Rows<Number>& x_grad, const Number* factors,
                            int log_n, const Run& run, int parts, Number* partial, cudaStream_t stream) {
  using Sink = RowsGradientSink<Number>;
  const auto args = backward_args(run, x, grad, Sink{x_grad}, factors, log_n, parts, partial);
  return launch(backward_kernel<Number, Source, Gradient, Sink>,
                {std::int64_t(run.map.tiles_per_vector()) * parts * run.blocks,
                 run.groups_per_block * run.threads_per_group, run.shared_bytes, run.blocks},
                stream, args);
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
cudaError_t LaunchClusters<Number>::multiply(const Rows<Number>& x, const Rows<Number>& y, const Number* factors,
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
cudaError_t LaunchClusters<Number>::at_once(const Run& run, const Device& device, int* clusters) {
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
cudaError_t LaunchClusters<Number>::backward(const Rows<Number>& x, const Rows<Number>& grad,
                                             const Rows<Number>& x_grad, const Number* factors, int log_n,
                                             const Run& run, int parts, Number* partial, cudaStream_t stream) {
  return launch_backward<Number>(x, RowsGradient<Number>{grad}, x_grad, factors, log_n, run, parts, partial, stream);
}

template <class Number>
cudaError_t LaunchClusters<Number>::sum(const Number* partial, Number* total, std::int64_t chunks,
                                        std::int64_t numbers, cudaStream_t stream) {
  const std::int64_t blocks = std::min<std::int64_t>((numbers + 127) / 128, 4096);
  return launch(sum_kernel<Number>, {blocks, 128}, stream, partial, total, chunks, numbers);
}

template <class Number>
cudaError_t LaunchClusters<Number>::built_for(int* capability) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, sum_kernel<Number>);
  *capability = attributes.ptxVersion;
  return error;
}

template <class Number>
cudaError_t LaunchPowerBackward<Number>::all(const Frames<Number>& frames, const PowerGradient<Number>& grad,
                                             const Rows<Number>& x_grad, const Number* factors, int log_n,
                                             const Run& run, int parts, Number* partial, cudaStream_t stream) {
  return launch_backward<Number>(frames, grad, x_grad, factors, log_n, run, parts, partial, stream);
}

template <class Number>
cudaError_t LaunchPowerBackward<Number>::last(const Rows<Number>& x, const PowerGradient<Number>& grad,
                                              const Rows<Number>& x_grad, const Number* factors, int log_n,
                                              const Run& run, int parts, Number* partial, cudaStream_t stream) {
  return launch_backward<Number>(x, grad, x_grad, factors, log_n, run, parts, partial, stream);
}

template struct LaunchClusters<float>;
template struct LaunchClusters<double>;
template struct LaunchClusters<Complex<float>>;
template struct LaunchClusters<Complex<double>>;
template struct LaunchPowerBackward<Complex<float>>;
template struct LaunchPowerBackward<Complex<double>>;

}  // namespace kaleido_cuda
