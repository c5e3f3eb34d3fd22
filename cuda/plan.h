// How a product of butterfly matrices is divided into launches: which stages, which tiles, which groups.
#pragma once

#include <algorithm>
#include <vector>

#include "backward.h"

namespace kaleido_cuda {

// One launch of the forward kernel.
struct Pass {
  bool strided;
  int bits;  // kBits of the tile
  int low, first, last;
};

struct StageBits {
  int log_n;
  int operator()(int number) const {
    const int factor = number / log_n, stage = number % log_n;
    return factor % 2 ? stage : log_n - 1 - stage;
  }
};

constexpr int kStridedBits = 4;

// The largest kBits of ConsecutiveTile for which shared memory holds the coefficients of two factors' stages, 8 KiB each.
constexpr int resident_tile_bits(int element_bytes) { return element_bytes == 16 ? 3 : element_bytes == 8 ? 4 : 5; }

// kBits of ConsecutiveTile that there are kernels for: the smallest that holds a whole vector. Where none does, the
// smallest that leaves the fewest passes over the bits above, lest coefficients have to come in turns.
inline int tile_bits(int log_n, int element_bytes) {
  const int most = element_bytes == 16 ? 5 : 6;
  const auto windows = [&](int bits) { return (log_n - bits - kLaneBits + kStridedBits - 1) / kStridedBits; };
  const bool whole = log_n <= most + kLaneBits;
  int bits = whole ? kSmallestTileBits : resident_tile_bits(element_bytes);
  while (bits < most && windows(bits) > (whole ? 0 : windows(most))) ++bits;
  return bits;
}

// Launches that do the stages first, ..., last - 1: as many stages each as a tile has bits for.
inline std::vector<Pass> plan_passes(int log_n, int first, int last, int element_bytes) {
  const int bits = tile_bits(log_n, element_bytes), low_bits = std::min(log_n, bits + kLaneBits);
  const StageBits bit_of{log_n};
  // Index bits [0, low_bits) are those of consecutive tiles; above, windows of kStridedBits from the top down.
  const auto low_of = [&](int bit) {
    if (bit < low_bits) return 0;
    return log_n - kStridedBits * ((log_n - 1 - bit) / kStridedBits + 1);
  };
  std::vector<Pass> passes;
  for (int number = first; number < last; ++number) {
    const int bit = bit_of(number), low = low_of(bit);
    const bool strided = bit >= low_bits;
    if (!passes.empty() && passes.back().strided == strided && passes.back().low == low)
      passes.back().last = number + 1;
    else
      passes.push_back({strided, strided ? kStridedBits : bits, low, number, number + 1});
  }
  return passes;
}

// One launch of the backward kernel.
struct Run {
  TileMap map;
  int first, last;
  int groups_per_block, blocks, threads_per_group;
  int handover;
  int shared_bytes, barriers;  // of a block, and where in them
  std::vector<Group> groups;
};

// The arguments of a run, `parts` clusters to a place in the vector.
template <class Number, class Source, class Gradient, class Sink>
BackwardArgs<Number, Source, Gradient, Sink> backward_args(const Run& run, const Source& x, const Gradient& grad,
                                                           const Sink& x_grad, const Number* factors, int log_n,
                                                           int parts, Number* partial) {
  const std::int64_t per_tile = run.map.vectors_per_tile();
  BackwardArgs<Number, Source, Gradient, Sink> args{x,
                                                    grad,
                                                    x_grad,
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
  return args;
}

struct BackwardLimits {
  int stages_of_group, threads, element_bytes;
  std::int64_t shared_bytes;
  int cluster;  // blocks; 1 where the GPU has no clusters
};

constexpr int kLeastThreads = 256;  // of a block whose run is longer for it
constexpr int kBackwardTileBits = 9;  // of tiles that are not a whole vector, and of tiles of several vectors

// The delays of the groups and the places of their rings in shared memory; false if they do not fit.
inline bool place_rings(Run& run, const BackwardLimits& limits) {
  const int count = int(run.groups.size());
  const auto block_of = [&](int k) { return run.blocks - 1 - (count - 1 - k) / run.groups_per_block; };
  const auto in_one_block = [&](int k) { return k == 0 || block_of(k - 1) == block_of(k); };  // with the one before
  for (int k = 0; k < count; ++k)
    run.groups[k].delay = k == 0 ? 0 : run.groups[k - 1].delay + 1 + (in_one_block(k) ? 0 : run.handover);
  // A ring holds a tile from the step in which it is put there to that in which it is needed for the last time. What
  // comes from another block may be put `handover` steps early and needed as much later.
  const std::int64_t tile = std::int64_t(limits.element_bytes) << run.map.local_bits;
  std::int64_t used = 0, most = 0;
  for (int k = 0; k < count; ++k) {
    if (!in_one_block(k)) used = 0;
    Group& group = run.groups[k];
    const int back = 2 * (run.groups.back().delay - group.delay);  // steps from forwards to backwards
    const int depth = count == 1 ? 0 : k == 0 ? back + 1 : back + 2 + (in_one_block(k) ? 0 : 2 * run.handover);
    const int grad_depth = k + 1 < count && !in_one_block(k + 1) && run.handover ? 4 : 2;
    group.x_offset = int(used);
    group.x_end = int(used += depth * tile);
    group.grad_offset = int(used);
    group.grad_mask = grad_depth - 1;
    used += grad_depth * tile;
    most = std::max(most, used);
    if (most > limits.shared_bytes) return false;
  }
  run.barriers = int(most);
  run.shared_bytes = int(most) + (run.blocks > 1 ? kNeighbourBytes : 0);
  return run.shared_bytes <= limits.shared_bytes;
}

// Divides the groups of a run among blocks, as few as leave room for the rings; false if a cluster cannot hold them.
inline bool arrange(Run& run, const BackwardLimits& limits) {
  const int count = int(run.groups.size());
  if (count > kMaxGroups) return false;
  for (int most = std::max(1, limits.threads / run.threads_per_group); most >= 1; --most) {
    run.blocks = (count + most - 1) / most;
    if (run.blocks > limits.cluster) return false;
    run.groups_per_block = (count + run.blocks - 1) / run.blocks;
    for (run.handover = run.blocks > 1 ? 1 : 0; run.handover >= 0; --run.handover)
      if (place_rings(run, limits)) return true;
    // With fewer threads than that, a second run is better than idle processors.
    if ((most - 1) * run.threads_per_group < kLeastThreads) return false;
  }
  return false;
}

inline std::vector<Run> plan_runs(int log_n, int n_stages, const BackwardLimits& limits) {
  const StageBits bit_of{log_n};
  const int window = limits.stages_of_group;
  // A whole vector is a tile while its groups leave room for two in a block or cluster.
  int whole = kBackwardTileBits;
  while (whole < 11 && (1 << (whole + 1 - window)) * 2 <= limits.threads * limits.cluster &&
         (1 << (whole + 1 - window)) <= limits.threads)
    ++whole;
  const int low_bits = log_n <= whole ? log_n : kBackwardTileBits;
  // Above low_bits: windows of at most five bits, with neighbouring columns to fill the tile.
  const auto region = [&](int bit) { return bit < low_bits ? 0 : 1 + (log_n - 1 - bit) / 5; };
  const auto map_of = [&](int number_of_region) -> TileMap {
    if (number_of_region == 0) {
      const int local = std::max(low_bits, kBackwardTileBits);
      return {log_n, 0, low_bits, 0, local};
    }
    const int top = log_n - 5 * (number_of_region - 1), low = std::max(low_bits, top - 5);
    return {log_n, kBackwardTileBits - (top - low), top - low, low, kBackwardTileBits};
  };

  std::vector<Run> runs;
  int run_region = -1;
  for (int number = 0; number < n_stages;) {
    // A group: stages of one factor and region, at most as many as its window.
    const int here = region(bit_of(number)), factor = number / log_n;
    int end = number + 1;
    while (end < n_stages && end - number < window && end / log_n == factor && region(bit_of(end)) == here) ++end;
    const TileMap map = map_of(here);
    const int lowest = std::min(bit_of(number), bit_of(end - 1)) - map.low + map.column_bits;
    const Group group{number, end, std::min(lowest, map.local_bits - window), factor % 2, 0, 0, 0, 0, 0};

    bool joined = false;
    if (!runs.empty() && run_region == here) {
      Run longer = runs.back();
      longer.groups.push_back(group);
      longer.last = end;
      joined = arrange(longer, limits);
      if (joined) runs.back() = longer;
    }
    if (!joined) {
      Run run;
      run.map = map;
      run.first = number;
      run.last = end;
      run.threads_per_group = 1 << (map.local_bits - window);
      run.groups_per_block = run.blocks = 1;
      run.handover = 0;
      run.groups = {group};
      place_rings(run, limits);
      runs.push_back(run);
      run_region = here;
    }
    number = end;
  }
  return runs;
}

}  // namespace kaleido_cuda
