// Products whose coefficients fit only into the shared memory of several blocks: a cluster of blocks divides each vector
// and keeps all coefficients from the first vector to the last, so that vectors pass through the GPU's memory once.
//
// Of a vector of 2^(r + t) elements each of the 2^t blocks holds 2^r, in one of two arrangements. In `ColumnsTile`, a
// block has all elements of some columns, which the t stages of the largest strides need; in `ConsecutiveTile`, a run
// of neighbouring ones for the r others. Warps of the same number in all blocks have the parts of the same vectors, and
// go from one arrangement to the other through each other's shared memory, without the rest of their blocks.
#pragma once

#include "multiply.h"

namespace kaleido_cuda {

// The last kTop bits of a register's number stand for the kTop highest bits of the index, the others and the lane for
// the 2^(kBits + 5 - kTop) columns of a block.
template <int kBits_, int kTop>
struct ColumnsTile : StridedTile<kBits_> {
  static constexpr int kStageBits = kTop;

  static constexpr KALEIDO_EVERYWHERE int register_bit(int b) { return kBits_ - kTop + b; }
  static constexpr KALEIDO_EVERYWHERE int place(int h) { return h >> (kBits_ - kTop); }
  static constexpr KALEIDO_EVERYWHERE int column(int h) { return (h & ((1 << (kBits_ - kTop)) - 1)) << kLaneBits; }
  static constexpr KALEIDO_EVERYWHERE int offset(int h, int low) { return place(h) << low | column(h); }
};

constexpr int kLeastClusterWarps = 4;  // of a block: with fewer, nothing hides the time that exchanges take

template <class Number>
struct ClusterArgs {
  Rows<Number> x, y;
  Stages<Number> stages;  // all of the product
};

// Sizes and places in shared memory: barriers, then for each warp room for its part of a vector, then coefficients.
template <class Number, int kBits, int kTop_>
struct Cluster {
  using Columns = ColumnsTile<kBits, kTop_>;
  using Run = ConsecutiveTile<kBits>;
  using Units = UnitsOfStage<Number, Run>;
  static constexpr int kTop = kTop_, kBlocks = 1 << kTop;
  static constexpr int kRunBits = kBits + kLaneBits, kLogN = kRunBits + kTop, kColumnBits = kRunBits - kTop;
  static constexpr int kRows = rows_of_warp<Number, Run>();
  static constexpr int kPartBytes = int(sizeof(Number)) << kRunBits;
  static constexpr int kMostWarps = kMultiplyWarps;
  static constexpr int kBarrierBytes = 2 * 8 * kMostWarps;

  static KALEIDO_EVERYWHERE TileMap columns() { return {kLogN, kColumnBits, kTop, kRunBits, kRunBits}; }
  static KALEIDO_EVERYWHERE TileMap run() { return {kLogN, 0, kRunBits, 0, kRunBits}; }
  static KALEIDO_EVERYWHERE std::int64_t bytes(int warps, int n_stages) {
    return kBarrierBytes + std::int64_t(warps) * kPartBytes + std::int64_t(n_stages) * Units::kBytes;
  }
};

template <class Number, int kBits, int kTop, class Block>
struct ClusterWarp {
  using Sizes = Cluster<Number, kBits, kTop>;
  using Run = typename Sizes::Run;
  using Group = Unit<Number>;  // neighbouring registers in the order of memory: what travels at once
  static constexpr int kBlocks = Sizes::kBlocks, kRows = Sizes::kRows;
  static constexpr int kNumbers = Group::kNumbers, kGroups = Run::kRegisters / kNumbers;
  static constexpr int kOfPlace = kGroups / kBlocks;  // those of one place of the columns, or from one block
  static_assert(kOfPlace >= 1);
  using ColumnsVectors = WarpVectors<Number, typename Sizes::Columns, kRows, Block>;
  using RunVectors = WarpVectors<Number, Run, kRows, Block>;

  Block& block;
  const int lane, warp, rank;
  int phase = 0;  // of both barriers

  KALEIDO_DEVICE explicit ClusterWarp(Block& block)
      : block(block), lane(block.thread() % kLanes), warp(block.thread() / kLanes), rank(block.rank()) {}

  // Barriers of this warp in every block: that a row has come, and that all have taken theirs.
  KALEIDO_DEVICE auto full() const { return block.address(block.shared()) + 16 * warp; }
  KALEIDO_DEVICE auto taken() const { return full() + 8; }
  // Where a row comes: group g of the element i whose five low bits are those of `column` is at [g * kLanes + column].
  KALEIDO_DEVICE Group* part() const {
    return reinterpret_cast<Group*>(block.shared() + Sizes::kBarrierBytes + warp * Sizes::kPartBytes);
  }
  KALEIDO_DEVICE void begin() const {
    if (lane != 0) return;
    block.begin_barrier(full(), 1);
    block.begin_barrier(taken(), kBlocks);
  }

  // put(), then get() once the warps of all blocks have put.
  template <class Put, class Get>
  KALEIDO_DEVICE void exchange(Put&& put, Get&& get) {
    if (lane == 0) block.arrive_and_expect(full(), Sizes::kPartBytes);
    block.wait_as_warp(taken(), phase ^ 1);  // the first time it does not wait
    put();
    block.wait_as_warp(full(), phase);
    get();
    block.sync_warp();
    if (lane < kBlocks) block.arrive(block.in_block(lane, taken()));
    phase ^= 1;
  }

  // Exchanges numbers k and k XOR (flips mod kNumbers) of a group.
  static KALEIDO_DEVICE void flip(Group& group, unsigned flips) {
    KALEIDO_UNROLL
    for (int bit = 0; 1 << bit < kNumbers; ++bit) {
      if (!RunVectors::possible_flip(bit)) continue;
      const bool swap = flips >> bit & 1;
      KALEIDO_UNROLL
      for (int pair = 0; pair < kNumbers / 2; ++pair) {
        const int a = first_of_pair(pair, bit);
        swap_if(swap, group.numbers[a], group.numbers[a | 1 << bit]);
      }
    }
  }

  // Group g of block r's run is group r * kOfPlace + g mod kOfPlace of the columns of block g / kOfPlace, and the other
  // way round. In registers, number h of a run in the order of memory is number memory_register(.) XOR flips(lane).
  KALEIDO_DEVICE void to_run(const ColumnsVectors& columns, RunVectors& run) {
    KALEIDO_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const auto put = [&] {
        KALEIDO_UNROLL
        for (int place = 0; place < kBlocks; ++place) {
          const int to = forgotten(place);
          const Group* own = part() + forgotten(rank) * kOfPlace * kLanes + forgotten(lane);
          const auto groups_at = block.in_block(to, block.address(own));
          const auto barrier = block.in_block(to, full());
          KALEIDO_UNROLL
          for (int g = 0; g < kOfPlace; ++g) {
            Group group;
            KALEIDO_UNROLL
            for (int k = 0; k < kNumbers; ++k) group.numbers[k] = columns.x[row][(place * kOfPlace + g) * kNumbers + k];
            block.put(groups_at + g * kLanes * int(sizeof(Group)), group, barrier);
          }
        }
      };
      const auto get = [&] {
        const int own = forgotten(lane);
        const unsigned flips = Run::flips(own);
        const Group* from = part() + Run::memory_element(own, 0);
        Number x[Run::kRegisters];
        KALEIDO_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          Group group = from[(g ^ flips / kNumbers) * kLanes];
          flip(group, flips);
          KALEIDO_UNROLL
          for (int k = 0; k < kNumbers; ++k) x[g * kNumbers + k] = group.numbers[k];
        }
        KALEIDO_UNROLL
        for (int reg = 0; reg < Run::kRegisters; ++reg) run.x[row][reg] = x[Run::memory_register(reg)];
      };
      exchange(put, get);
    }
  }
  KALEIDO_DEVICE void to_columns(const RunVectors& run, ColumnsVectors& columns) {
    KALEIDO_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const auto put = [&] {
        const int own = forgotten(lane);
        const unsigned flips = Run::flips(own), groups = flips / kNumbers;
        Number x[Run::kRegisters];
        KALEIDO_UNROLL
        for (int reg = 0; reg < Run::kRegisters; ++reg) x[Run::memory_register(reg)] = run.x[row][reg];
        const Group* base = part() + forgotten(rank) * kOfPlace * kLanes + Run::memory_element(own, 0);
        KALEIDO_UNROLL
        for (int place = 0; place < kBlocks; ++place) {
          const int to = place ^ groups / kOfPlace;
          const auto groups_at = block.in_block(to, block.address(base)), barrier = block.in_block(to, full());
          KALEIDO_UNROLL
          for (int g = 0; g < kOfPlace; ++g) {
            Group group;
            KALEIDO_UNROLL
            for (int k = 0; k < kNumbers; ++k) group.numbers[k] = x[(place * kOfPlace + g) * kNumbers + k];
            flip(group, flips);
            block.put(groups_at + (g ^ groups % kOfPlace) * kLanes * int(sizeof(Group)), group, barrier);
          }
        }
      };
      const auto get = [&] {
        const Group* from = part() + lane;
        KALEIDO_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          const Group group = from[g * kLanes];
          KALEIDO_UNROLL
          for (int k = 0; k < kNumbers; ++k) columns.x[row][g * kNumbers + k] = group.numbers[k];
        }
      };
      exchange(put, get);
    }
  }
};

template <class Number, int kBits, int kTop, class Block>
KALEIDO_DEVICE void multiply_in_cluster(const ClusterArgs<Number>& args, Block& block) {
  using Sizes = Cluster<Number, kBits, kTop>;
  using Columns = typename Sizes::Columns;
  using Run = typename Sizes::Run;
  using Units = typename Sizes::Units;
  using Warp = ClusterWarp<Number, kBits, kTop, Block>;
  Warp own(block);
  Unit<Number>* units = reinterpret_cast<Unit<Number>*>(block.shared() + Sizes::kBarrierBytes +
                                                        block.threads() / kLanes * Sizes::kPartBytes);
  own.begin();
  const int n_stages = args.stages.last, log_n = Sizes::kLogN;
  load_coefficients<Number, Columns, true>(args.stages, Sizes::columns(), own.rank, 0, n_stages, units, block);
  load_coefficients<Number, Run, true>(args.stages, Sizes::run(), own.rank, 0, n_stages, units, block);
  block.sync_cluster();

  const auto units_of = [&](int number) { return units + number * Units::kCount; };
  // Few vectors are spread over all clusters.
  const auto first_of = [&](int round) {
    const int warp = forgotten(round) * (block.threads() / kLanes) + forgotten(own.warp);
    const int cluster = forgotten(block.index()) / Sizes::kBlocks, clusters = block.count() / Sizes::kBlocks;
    return (std::int64_t(warp) * clusters + cluster) * Sizes::kRows;
  };
  const std::int64_t begin = first_of(0), of_round = first_of(1) - begin;
  const int rounds = block.uniform(int((args.x.count - begin + of_round - 1) / of_round));
  for (int round = 0; round < rounds; ++round) {
    typename Warp::ColumnsVectors columns;
    typename Warp::RunVectors run;
    forgotten<ClusterArgs<Number>>(args).x.visit([&](auto open) {
      const auto read = [](const auto& vector, int i, Number& x) { x = vector(i); };
      columns.for_each(Sizes::columns(), own.rank, first_of(round), own.lane, open, read);
    });
    // Strides fall in the first factor of two and rise in the second.
    for (int number = 0; number < n_stages; number += 2 * log_n) {
      KALEIDO_UNROLL
      for (int b = kTop - 1; b >= 0; --b)
        columns.stage(Columns::register_bit(b), units_of(number + kTop - 1 - b), own.lane);
      own.to_run(columns, run);
      KALEIDO_UNROLL
      for (int b = Run::kStageBits - 1; b >= 0; --b) {
        if (Run::is_traded(b)) run.trade(b, block);
        run.stage(Run::register_bit(b), units_of(number + log_n - 1 - b), own.lane);
      }
      const int second = number + log_n;
      KALEIDO_UNROLL
      for (int b = 0; b < Run::kStageBits; ++b) {
        // The two stages of stride 1 are merged.
        if (second < n_stages && b > 0) run.stage(Run::register_bit(b), units_of(second + b), own.lane);
        if (Run::is_traded(b)) run.trade(b, block);
      }
      own.to_columns(run, columns);
      if (second == n_stages) break;
      KALEIDO_UNROLL
      for (int b = 0; b < kTop; ++b)
        columns.stage(Columns::register_bit(b), units_of(second + Run::kStageBits + b), own.lane);
    }
    forgotten<ClusterArgs<Number>>(args).y.visit_writer([&](auto open) {
      const auto write = [](const auto& vector, int i, Number& x) { vector(i, x); };
      columns.for_each(Sizes::columns(), own.rank, first_of(round), own.lane, open, write);
    });
  }
  block.sync_cluster();  // while others may still put or arrive, shared memory has to stay
}

}  // namespace kaleido_cuda
