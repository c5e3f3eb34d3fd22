// Products of butterfly matrices, forward: a warp holds a few vectors, or tiles of them, in its registers from the
// first stage to the last; the coefficients wait in shared memory in the order of their use.
#pragma once

#include "layout.h"
#include "memory.h"

namespace kaleido_cuda {

// Consecutive stages of a product: those numbered first, ..., last - 1, where stage s of factor f is f * log_n + s.
template <class Number>
struct Stages {
  const Number* factors;  // (F, log_n, 2, n)
  int log_n, first, last;

  // Number of the stage of factor f that combines elements 2^bit apart.
  KALEIDO_EVERYWHERE int number(int factor, int bit) const {
    return factor * log_n + (factor % 2 ? bit : log_n - 1 - bit);
  }
  KALEIDO_EVERYWHERE bool contains(int number) const { return first <= number && number < last; }
  KALEIDO_EVERYWHERE const Number* diagonal(int number) const { return factors + (std::int64_t(number) * 2 << log_n); }
  KALEIDO_EVERYWHERE const Number* off_diagonal(int number) const { return diagonal(number) + (1 << log_n); }
};

// Where the strides of one factor fall to 1 and those of the next rise from there, the two stages of stride 1 are done as
// one, with 2 x 2 products of their coefficients.

// How many vectors a warp holds at once: more of them share each load of a coefficient, fewer leave registers. Strided
// tiles need those for addresses.
template <class Number, class Tile>
constexpr int rows_of_warp() {
  constexpr int most = Tile::kStrided ? 2 : 4;
  const int words = Tile::kRegisters * int(sizeof(Number) / 4);
  return words >= 128 ? 1 : 128 / words < most ? 128 / words : most;
}

constexpr int kMultiplyThreads = 256;
constexpr int kMultiplyWarps = kMultiplyThreads / kLanes;

// 16 bytes of coefficients, loaded at once.
template <class Number>
struct alignas(16) Unit {
  static constexpr int kNumbers = 16 / sizeof(Number);
  Number numbers[kNumbers];
};

// Of one stage of a tile: for every pair of registers (a, b) and lane, D[a], O[a], D[b] and O[b].
template <class Number, class Tile>
struct UnitsOfStage {
  static constexpr int kOfPair = 4 * sizeof(Number) / 16;
  static constexpr int kPairs = Tile::kRegisters / 2;
  static constexpr int kCount = kPairs * kOfPair * kLanes;
  static constexpr int kBytes = kCount * 16;
};

template <class Number, class Source, class Sink>
struct MultiplyArgs {
  Source source;
  Sink sink;
  Stages<Number> stages;
  TileMap map;
  std::int64_t tile_rows;  // tiles of one place in the vector
  int capacity;            // stages whose coefficients fit into shared memory
  int shared_offset;       // where they begin there, in bytes: before them comes what the sink needs
};

// `after` times `before`, the coefficients of two stages of a pair: of each, D[a], O[a], D[b] and O[b].
template <class Number>
KALEIDO_EVERYWHERE void merge(const Number (&before)[4], const Number (&after)[4], Number (&product)[4]) {
  KALEIDO_UNROLL
  for (int k = 0; k < 4; k += 2) {
    const int other = k ^ 2;
    product[k] = multiply_add(after[k], before[k], multiply(after[k + 1], before[other + 1]));
    product[k + 1] = multiply_add(after[k], before[k + 1], multiply(after[k + 1], before[other]));
  }
}

template <class Number>
KALEIDO_DEVICE void swap_if(bool swap, Number& a, Number& b) {
  const Number low = a, high = b;
  a = swap ? high : low;
  b = swap ? low : high;
}

// Register number `pair` with a zero inserted at bit q.
KALEIDO_EVERYWHERE constexpr int first_of_pair(int pair, int q) {
  return ((pair >> q) << (q + 1)) | (pair & ((1 << q) - 1));
}

// Puts the coefficients of the stages first, ..., first + count - 1 into shared memory. Neighbouring threads read
// neighbouring elements and, where there are no vectors in registers yet, ask for those of several stages before they
// wait for the first.
template <class Number, class Tile, bool kResident, class Block>
#ifdef __CUDACC__
__device__ __noinline__
#endif
    void
    load_coefficients(Stages<Number> stages, TileMap map, int tile, int first, int count, Unit<Number>* units,
                      Block& block) {
  using Units = UnitsOfStage<Number, Tile>;
  constexpr int kMost = kResident ? 12 / Units::kOfPair : 1;
  constexpr int kAtOnce = Tile::kStageBits < kMost ? Tile::kStageBits : kMost;
  [[maybe_unused]] constexpr int kUnrolled = kResident ? Tile::kStageBits : 1;
  for (int factor = first / stages.log_n; factor <= (first + count - 1) / stages.log_n; ++factor)
    KALEIDO_UNROLL_BY(1)
    for (int pair_of_tile = block.thread(); pair_of_tile < Units::kPairs * kLanes; pair_of_tile += block.threads())
      KALEIDO_UNROLL_BY(kUnrolled)
  for (int lowest_b = 0; lowest_b < Tile::kStageBits; lowest_b += kAtOnce) {
    Number values[kAtOnce][4], next[4];
    const auto is_merged = [&](int number, int b) {
      return Tile::kFromBitZero && b == 0 && factor % 2 == 0 && number + 1 < stages.last;
    };
    // f(values, number of the stage, b, first element of the pair, its lane and register) for those of the stages.
    const auto for_each = [&](auto&& f) {
      KALEIDO_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        const int b = lowest_b + j, number = stages.number(factor, map.low + b);
        if (b >= Tile::kStageBits || map.low + b >= stages.log_n || number < first || number >= first + count) continue;
        const int m = Tile::lowest(b), i = first_of_pair(pair_of_tile, map.column_bits + b);
        const int lane = Tile::lane_of(i, m);
        f(values[j], number, b, i, lane, Tile::register_of(i, lane, m));
      }
    };
    for_each([&](Number (&of_pair)[4], int number, int b, int i, int, int reg) {
      const int at_a = map.index(tile, i | (reg >> Tile::register_bit(b) & 1) << (map.column_bits + b));
      const int at_b = at_a ^ (1 << (map.low + b));
      const auto load = [&](int stage, Number (&to)[4]) {
        const Number *diagonal = stages.diagonal(stage), *off_diagonal = stages.off_diagonal(stage);
        KALEIDO_UNROLL
        for (int k = 0; k < 4; ++k) to[k] = (k % 2 ? off_diagonal : diagonal)[k < 2 ? at_a : at_b];
      };
      load(number, of_pair);
      if (is_merged(number, b)) load(number + 1, next);
    });
    for_each([&](const Number (&of_pair)[4], int number, int b, int, int lane, int reg) {
      const int q = Tile::register_bit(b), pair = (reg >> (q + 1) << q) | (reg & ((1 << q) - 1));
      Number product[4] = {of_pair[0], of_pair[1], of_pair[2], of_pair[3]};
      if (is_merged(number, b)) merge(of_pair, next, product);
      KALEIDO_UNROLL
      for (int part = 0; part < Units::kOfPair; ++part) {
        Unit<Number> unit;
        KALEIDO_UNROLL
        for (int k = 0; k < Unit<Number>::kNumbers; ++k) unit.numbers[k] = product[part * Unit<Number>::kNumbers + k];
        units[(number - first) * Units::kCount + (pair * Units::kOfPair + part) * kLanes + lane] = unit;
      }
    });
  }
}

template <class Number, class Tile, int kRows_, class Block>
struct WarpVectors {
  static constexpr int kRows = kRows_;
  static constexpr int kRegisters = Tile::kRegisters;
  using Units = UnitsOfStage<Number, Tile>;

  Number x[kRows][kRegisters];

  // Every row's lane bit b changes places with the register bit that stands for bit b + kBits, or back.
  KALEIDO_DEVICE void trade(int b, Block& block) {
    KALEIDO_UNROLL
    for (int row = 0; row < kRows; ++row)
      KALEIDO_UNROLL
    for (int reg = 0; reg < kRegisters; ++reg)
      if (reg >> Tile::register_bit(b) & 1) x[row][reg] = block.shuffle_xor(x[row][reg], Tile::lane_mask(b));
  }

  // f(a, b, c) for every two registers a and b that differ in bit q, with the coefficients D[a], O[a], D[b] and O[b].
  template <class F>
  static KALEIDO_DEVICE void for_each_pair(int q, const Unit<Number>* units, int lane, F&& f) {
    KALEIDO_UNROLL
    for (int pair = 0; pair < Units::kPairs; ++pair) {
      const int a = first_of_pair(pair, q);
      Number c[4];
      KALEIDO_UNROLL
      for (int part = 0; part < Units::kOfPair; ++part) {
        const Unit<Number> unit = units[(pair * Units::kOfPair + part) * kLanes + lane];
        KALEIDO_UNROLL
        for (int k = 0; k < Unit<Number>::kNumbers; ++k) c[part * Unit<Number>::kNumbers + k] = unit.numbers[k];
      }
      f(a, a | 1 << q, c);
    }
  }

  KALEIDO_DEVICE void stage(int q, const Unit<Number>* units, int lane) {
    for_each_pair(q, units, lane, [&](int a, int b, const Number(&c)[4]) {
      KALEIDO_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const Number xa = x[row][a], xb = x[row][b];
        x[row][a] = multiply_add(c[0], xa, multiply(c[1], xb));
        x[row][b] = multiply_add(c[2], xb, multiply(c[3], xa));
      }
    });
  }

  // Exchanges registers h and h XOR flips(lane): leads from the order of memory to that of registers and back.
  KALEIDO_DEVICE void flip(int lane) {
    KALEIDO_UNROLL
    for (int bit = 0; bit < Tile::kBits; ++bit) {
      if (!possible_flip(bit)) continue;
      const bool swap = Tile::flips(lane) >> bit & 1;
      KALEIDO_UNROLL
      for (int row = 0; row < kRows; ++row)
        KALEIDO_UNROLL
      for (int pair = 0; pair < Units::kPairs; ++pair) {
        const int a = first_of_pair(pair, bit);
        swap_if(swap, x[row][a], x[row][a | 1 << bit]);
      }
    }
  }
  static constexpr KALEIDO_EVERYWHERE bool possible_flip(int bit) {
    int all = 0;
    for (int lane = 0; lane < kLanes; ++lane) all |= Tile::flips(lane);
    return all >> bit & 1;
  }

  KALEIDO_DEVICE void to_register_order(int lane) {
    flip(lane);
    KALEIDO_UNROLL
    for (int row = 0; row < kRows; ++row) {
      Number from[kRegisters];
      KALEIDO_UNROLL
      for (int reg = 0; reg < kRegisters; ++reg) from[reg] = x[row][reg];
      KALEIDO_UNROLL
      for (int reg = 0; reg < kRegisters; ++reg) x[row][reg] = from[Tile::memory_register(reg)];
    }
  }
  KALEIDO_DEVICE void to_memory_order(int lane) {
    KALEIDO_UNROLL
    for (int row = 0; row < kRows; ++row) {
      Number from[kRegisters];
      KALEIDO_UNROLL
      for (int reg = 0; reg < kRegisters; ++reg) from[reg] = x[row][reg];
      KALEIDO_UNROLL
      for (int reg = 0; reg < kRegisters; ++reg) x[row][Tile::memory_register(reg)] = from[reg];
    }
    flip(lane);
  }

  // f(open(vector), index, value&) for every element in memory order, `first` the first of the warp's tiles.
  template <class Open, class F>
  KALEIDO_DEVICE void for_each(const TileMap& map, int tile, std::int64_t first, int lane, const Open& open, F&& f) {
    if constexpr (Tile::kSeveral) {
      const std::int64_t vectors = map.vectors_per_tile();
      KALEIDO_UNROLL
      for (int row = 0; row < kRows; ++row)
        KALEIDO_UNROLL
      for (int h = 0; h < kRegisters; ++h) {
        const int local = Tile::memory_element(lane, h);
        f(open((first + row) * vectors + map.vector(local)), map.index(tile, local), x[row][h]);
      }
    } else {
      // Not the index of the last time: kept through all the stages, it would take the registers of the vectors. Nor are
      // bits of it known, with which sums with constants would be ORs and no part of an address.
      const int start = forgotten(map.index(tile, Tile::memory_element(forgotten(lane), 0)));
      KALEIDO_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const auto vector = open(first + row);
        KALEIDO_UNROLL
        for (int h = 0; h < kRegisters; ++h) f(vector, start + Tile::offset(h, map.low), x[row][h]);
      }
    }
  }
};

// What a warp works on in a round.
struct Place {
  int tile;            // place in the vector
  std::int64_t first;  // of its tiles at that place
};

// Few vectors are spread over all blocks. Computed anew each time: kept through the stages, it would take the registers
// of the vectors.
template <int kRows, class Args, class Block>
KALEIDO_DEVICE Place place_of(const Args& args, int round, int warp, Block& block) {
  const int index = forgotten(block.index()), count = forgotten(block.count());
  const int tile_bits = args.map.log_n - args.map.column_bits - args.map.active_bits;
  const int part = index >> tile_bits, parts = count >> tile_bits, warps = block.threads() / kLanes;
  return {index & ((1 << tile_bits) - 1), ((std::int64_t(round) * warps + warp) * parts + part) * kRows};
}
template <int kRows, class Args, class Block>
KALEIDO_DEVICE Place place_of(const Args& args, int round, Block& block) {
  return place_of<kRows>(args, round, forgotten(block.thread()) / kLanes, block);
}

// How many a warp has to do.
template <int kRows, class Args, class Block>
KALEIDO_DEVICE int rounds_of_warp(const Args& args, Block& block) {
  const std::int64_t first = place_of<kRows>(args, 0, block).first;
  const std::int64_t of_round = place_of<kRows>(args, 1, block).first - first;
  return block.uniform(int((args.tile_rows - first + of_round - 1) / of_round));
}

// With kResident, all coefficients are in shared memory from the start; else they come in turns, which costs registers.
//
// Where the compiler cannot see that the threads of a warp take the same way, it doubles every shuffle that may come
// after that, or all of the loop. So the bounds of loops with shuffles are those of the warp (`Block::uniform`).
template <class Number, class Tile, int kRows, bool kResident, class Source, class Sink, class Block>
KALEIDO_DEVICE void multiply_tiles(const MultiplyArgs<Number, Source, Sink>& args, Block& block) {
  using Warp = WarpVectors<Number, Tile, kRows, Block>;
  using Units = UnitsOfStage<Number, Tile>;
  const Stages<Number> stages = args.stages;
  const TileMap map = args.map;
  const int lane = block.thread() % kLanes, warp = block.thread() / kLanes;
  Unit<Number>* units = reinterpret_cast<Unit<Number>*>(block.shared() + args.shared_offset);
  const int total = stages.last - stages.first;
  args.sink.begin(block);
  int rounds = 0;
  if (kResident) {
    const int tile = place_of<kRows>(args, 0, block).tile;
    load_coefficients<Number, Tile, kResident>(stages, map, tile, stages.first, total, units, block);
    block.sync();
    rounds = rounds_of_warp<kRows>(args, block);
  }
  const int first_factor = stages.first / stages.log_n, last_factor = (stages.last - 1) / stages.log_n;
  // Where coefficients change, all warps make as many rounds as the first, because they wait for each other, and have
  // no register left to count them.
  const auto goes_on = [&](int round) {
    return kResident ? round < rounds : place_of<kRows>(args, round, 0, block).first < args.tile_rows;
  };
  for (int round = 0; goes_on(round); ++round) {
    Warp vectors;
    const auto& now = forgotten<MultiplyArgs<Number, Source, Sink>>(args);
    now.source.visit([&](auto open) {
      const Place place = place_of<kRows>(now, round, block);
      const auto read = [](const auto& vector, int i, Number& x) { x = vector(i); };
      vectors.for_each(now.map, place.tile, place.first, lane, open, read);
    });
    vectors.to_register_order(lane);
    int begun = 0;  // the first stage whose coefficients are in shared memory, less stages.first
    const auto run_stage = [&](int factor, int b) {
      if (map.low + b >= stages.log_n) return;
      const int number = stages.number(factor, map.low + b);
      if (!stages.contains(number)) return;
      const int slot = number - stages.first;
      if constexpr (!kResident) {
        if (slot % args.capacity == 0) {
          begun = slot;
          block.sync();
          const int count = total - slot < args.capacity ? total - slot : args.capacity;
          const int tile = place_of<kRows>(args, round, block).tile;
          load_coefficients<Number, Tile, kResident>(stages, map, tile, number, count, units, block);
          block.sync();
        }
      }
      if (Tile::kFromBitZero && b == 0 && factor % 2 && number > stages.first) return;  // merged with the one before
      vectors.stage(Tile::register_bit(b), units + (slot - begun) * Units::kCount, lane);
    };
    const auto trade_all = [&](bool down) {
      KALEIDO_UNROLL
      for (int k = 0; k < kLaneBits; ++k) {
        const int b = down ? kLaneBits - 1 - k : k;
        if (Tile::is_traded(b)) vectors.trade(b, block);
      }
    };
    if (first_factor % 2) trade_all(true);
    for (int factor = first_factor; factor <= last_factor; ++factor) {
      if (factor % 2 == 0) {
        KALEIDO_UNROLL
        for (int k = 0; k < Tile::kStageBits; ++k) {
          const int b = Tile::kStageBits - 1 - k;
          if (Tile::is_traded(b)) vectors.trade(b, block);
          run_stage(factor, b);
        }
      } else {
        KALEIDO_UNROLL
        for (int b = 0; b < Tile::kStageBits; ++b) {
          run_stage(factor, b);
          if (Tile::is_traded(b)) vectors.trade(b, block);
        }
      }
    }
    if (last_factor % 2 == 0) trade_all(false);
    vectors.to_memory_order(lane);
    const auto& then = forgotten<MultiplyArgs<Number, Source, Sink>>(args);
    const Place place = place_of<kRows>(then, round, block);
    then.sink.template store<Tile>(vectors, then.map, place.tile, place.first, lane, warp, block);
  }
}

// Writes the vectors.
template <class Number>
struct RowsSink {
  Rows<Number> rows;

  template <class Block>
  KALEIDO_DEVICE void begin(Block&) const {}

  template <class Tile, class Warp, class Block>
  KALEIDO_DEVICE void store(Warp& vectors, const TileMap& map, int tile, std::int64_t first, int lane, int, Block&)
      const {
    rows.visit_writer([&](auto open) {
      vectors.for_each(map, tile, first, lane, open, [](const auto& vector, int i, Number& x) { vector(i, x); });
    });
  }
};

}  // namespace kaleido_cuda
