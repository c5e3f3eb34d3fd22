// Power spectra of frames, forward: what becomes of the vectors in a warp's registers, and products of two factors of
// which the odd outputs are hardly used.
#pragma once

#include <cassert>
#include <cmath>

#include "multiply.h"

namespace kaleido_cuda {

// Writes powers of magnitudes of chosen outputs, or the logarithm of their weighted sums: whole vectors only.
template <class Number>
struct PowerSink {
  using Real = RealOf<Number>;
  Real* out;                 // (count, n_rows), with a filterbank (count, n_filters)
  const std::int64_t* rows;  // (n_rows,): the outputs, in any order
  int n, n_rows;
  std::int64_t count;
  const Real* filterbank = nullptr;  // (n_rows, n_filters)
  int n_filters = 0;                 // none without a filterbank
  Real exponent = 1;                 // of the squared magnitude
  // log_scale * log(max(x + log_offset, log_floor)) of the filters' outputs, or x where log_scale is 0.
  Real log_scale = 0, log_offset = 0, log_floor = 0;

  // Of an element of all rows.
  template <int kRows>
  struct alignas(kRows * sizeof(Real) < 16 ? kRows * sizeof(Real) : 16) PowersOf {
    Real of_row[kRows];
  };

  // Shared memory: for every warp the powers of its vectors, by element.
  template <class Tile>
  static constexpr KALEIDO_EVERYWHERE int shared_bytes(int warps) {
    return warps * rows_of_warp<Number, Tile>() * Tile::kRegisters * kLanes * int(sizeof(Real));
  }
  template <class Tile, class Block>
  static KALEIDO_DEVICE PowersOf<rows_of_warp<Number, Tile>()>* powers(int warp, const Block& block) {
    return reinterpret_cast<PowersOf<rows_of_warp<Number, Tile>()>*>(block.shared() + shared_bytes<Tile>(warp));
  }

  // Of a squared magnitude, where the exponent is not 1.
  KALEIDO_DEVICE Real power(Real squared) const {
    return exponent == Real(0.5) ? std::sqrt(squared) : std::pow(squared, exponent);
  }

  // Of register h of all rows.
  template <class Vectors>
  static KALEIDO_DEVICE PowersOf<Vectors::kRows> powers_of(const Vectors& vectors, int h) {
    PowersOf<Vectors::kRows> powers;
    KALEIDO_UNROLL
    for (int row = 0; row < Vectors::kRows; ++row) powers.of_row[row] = squared_magnitude(vectors.x[row][h]);
    return powers;
  }

  // Before the first vector.
  template <class Block>
  KALEIDO_DEVICE void begin(Block& block) const {
    for (int k = block.thread(); k < n_rows; k += block.threads())
      assert(0 <= rows[k] && rows[k] < n);  // rows in [0, n)
    block.sync();
  }

  // Neighbouring lanes with different filters; every so many lanes have the same, and add up other outputs for them.
  static constexpr int kFilterLanes = 8;

  // Adds up the sums of lanes whose numbers differ in bits from kLeast to kMask. Each step leaves a lane half of its
  // kHave rows, the upper ones where its number has bit kMask, until it has one, which is that of all. Returns which, in
  // sums[.][0].
  template <int kHave, int kMask, int kLeast, int kPerLane, int kRows, class Block>
  static KALEIDO_DEVICE int add_parts(Real (&sums)[kPerLane][kRows], int lane, Block& block) {
    if constexpr (kMask < kLeast) {
      return 0;
    } else {
      constexpr int kHalf = kHave / 2;
      const bool upper = lane & kMask;
      KALEIDO_UNROLL
      for (int j = 0; j < kPerLane; ++j) {
        if constexpr (kHave > 1) {
          KALEIDO_UNROLL
          for (int row = 0; row < kHalf; ++row) {
            const Real low = sums[j][row], high = sums[j][row + kHalf];
            sums[j][row] = (upper ? high : low) + block.shuffle_xor(upper ? low : high, kMask);
          }
        } else {
          sums[j][0] += block.shuffle_xor(sums[j][0], kMask);
        }
      }
      return (upper ? kHalf : 0) + add_parts<(kHave > 1 ? kHalf : 1), kMask / 2, kLeast>(sums, lane, block);
    }
  }

  // The filters from `first` on, kPerLane for each of the lanes with different ones.
  template <int kPerLane, int kRows, class Vector, class Block>
  KALEIDO_DEVICE void store_filters(const PowersOf<kRows>* powers, const Vector& vector, int first, int lane,
                                    Block& block) const {
    constexpr int kParts = kLanes / kFilterLanes;
    static_assert(kParts == 4 && kRows <= kParts);
    const int part = lane / kFilterLanes, filter = first + lane % kFilterLanes;
    Real sums[kPerLane][kRows] = {};
    const auto powers_at = block.address(powers);
    const auto add = [&](int k, auto is_weight) {
      const int at = int(rows[k]) * int(sizeof(PowersOf<kRows>));
      const auto chosen = block.template load<PowersOf<kRows>>(powers_at + at);
      const Real* weights = filterbank + std::int64_t(k) * n_filters + filter;
      KALEIDO_UNROLL
      for (int j = 0; j < kPerLane; ++j) {
        const Real weight = is_weight(j) ? weights[j * kFilterLanes] : Real(0);
        KALEIDO_UNROLL
        for (int row = 0; row < kRows; ++row) sums[j][row] += weight * chosen.of_row[row];
      }
    };
    // What follows the weights of one output are those of the next, up to the end of the filterbank: sums of filters
    // that are not there may take any.
    const int beyond = (first + kPerLane * kFilterLanes + n_filters - 1) / n_filters;
    const int inside = part <= n_rows - beyond ? (n_rows - beyond - part) / kParts + 1 : 0;
    KALEIDO_UNROLL_BY(4)
    for (int turn = 0; turn < inside; ++turn) add(part + turn * kParts, [](int) { return true; });
    KALEIDO_UNROLL_BY(1)
    for (int k = part + inside * kParts; k < n_rows; k += kParts)
      add(k, [&](int j) { return filter + j * kFilterLanes < n_filters; });
    const int row = add_parts<kRows, kLanes / 2, kFilterLanes>(sums, lane, block);
    // Where there are fewer rows than parts, some lanes have the same.
    const bool writes = part % (kParts / kRows) == 0 && vector(row) < count;
    Real* to = out + vector(row) * n_filters + filter;
    KALEIDO_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const Real raised = sums[j][0] + log_offset, least = raised < log_floor ? log_floor : raised;  // NaN stays NaN
      const Real sum = log_scale == Real(0) ? sums[j][0] : log_scale * std::log(least);
      if (writes && filter + j * kFilterLanes < n_filters) to[j * kFilterLanes] = sum;
    }
  }

  // The result of vectors whose squared magnitudes are in `powers`, by element.
  template <int kRows, class Vector, class Block>
  KALEIDO_DEVICE void finish_vector(const PowersOf<kRows>* powers, const Vector& vector, int lane, Block& block) const {
    if (n_filters == 0) {
      for (int k = lane; k < n_rows; k += kLanes) {
        const PowersOf<kRows> chosen = powers[rows[k]];
        KALEIDO_UNROLL
        for (int row = 0; row < kRows; ++row)
          if (vector(row) < count) out[vector(row) * n_rows + k] = chosen.of_row[row];
      }
    }
    for (int filter = 0, filters = block.uniform(n_filters); filter < filters;) {
      // 64 at once, but 40 where that is one time only or saves nothing but lanes without a filter.
      const int left = filters - filter;
      if (left <= 5 * kFilterLanes || (left > 8 * kFilterLanes && left <= 10 * kFilterLanes)) {
        store_filters<5>(powers, vector, filter, lane, block);
        filter += 5 * kFilterLanes;
      } else {
        store_filters<8>(powers, vector, filter, lane, block);
        filter += 8 * kFilterLanes;
      }
    }
  }

  // Of one tile for each row, whose squared magnitudes are in `powers`, the first of them tile `first`.
  template <class Tile, int kRows, class Block>
  KALEIDO_DEVICE void finish(PowersOf<kRows>* powers, int vectors_per_tile, std::int64_t first, int lane,
                             Block& block) const {
    block.sync_warp();
    if (exponent != Real(1)) {
      Real* each = reinterpret_cast<Real*>(powers);
      KALEIDO_UNROLL_BY(1)
      for (int i = lane; i < Tile::kRegisters * kLanes * kRows; i += kLanes) each[i] = power(each[i]);
    }
    block.sync_warp();  // not in the condition, with which the compiler sees warps diverge
    for (int v = 0; v < vectors_per_tile; ++v)
      finish_vector(powers + v * n, [&](int row) { return (first + row) * vectors_per_tile + v; }, lane, block);
    block.sync_warp();
  }

  template <class Tile, class Warp, class Block>
  KALEIDO_DEVICE void store(Warp& vectors, const TileMap& map, int, std::int64_t first, int lane, int warp,
                            Block& block) const {
    auto* of_warp = powers<Tile>(warp, block);
    KALEIDO_UNROLL
    for (int h = 0; h < Tile::kRegisters; ++h) of_warp[Tile::memory_element(lane, h)] = powers_of(vectors, h);
    finish<Tile>(of_warp, block.uniform(map.vectors_per_tile()), first, lane, block);
  }
};

// The power spectra of products of two factors, n = 2^Tile::kStageBits.
//
// A Fourier transform by B* gives its frequencies in bit-reversed order: the first n/2 are the even outputs, and of the
// odd ones only output 1, at half the sampling rate, is used. The B that follows mixes even with odd outputs in its stage
// of stride 1, which is made one with the last of B*, and never again. So the halves go through the rest of B one after
// the other, and where one odd output is used at most, it is an inner product with the odd half, which goes no further.
template <class Number, int kBits>
struct PowerOfHalves {
  using Real = RealOf<Number>;
  using Tile = ConsecutiveTile<kBits>;
  using Half = HalfTile<kBits>;
  using Units = UnitsOfStage<Number, Tile>;
  using HalfUnits = UnitsOfStage<Number, Half>;
  using Sink = PowerSink<Number>;
  using Args = MultiplyArgs<Number, Frames<Number>, Sink>;
  static constexpr int kLogN = Tile::kStageBits;
  static constexpr int kRows = rows_of_warp<Number, Tile>();
  static constexpr int kHalfBytes = Half::kStageBits * HalfUnits::kBytes;
  // What the sink needs, the stages of B* and of the halves of B, and the row of the odd output.
  static constexpr KALEIDO_EVERYWHERE int shared_bytes(int warps) {
    return Sink::template shared_bytes<Tile>(warps) + kLogN * Units::kBytes + 2 * kHalfBytes +
           (int(sizeof(Number)) << (kLogN - 1));
  }

  // The odd output that is used, any where none is, and -1 where there are several.
  template <class Block>
  static KALEIDO_DEVICE int odd_output(const Sink& sink, int lane, Block& block) {
    int count = 0, odd = 1;
    for (int first = 0; first < sink.n_rows; first += kLanes)
      if (first + lane < sink.n_rows && sink.rows[first + lane] & 1) {
        ++count;
        odd = int(sink.rows[first + lane]);
      }
    KALEIDO_UNROLL
    for (int mask = 1; mask < kLanes; mask *= 2) {
      count += block.shuffle_xor(count, mask);
      const int other = block.shuffle_xor(odd, mask);
      odd = other > odd ? other : odd;
    }
    return block.uniform(count) > 1 ? -1 : block.uniform(odd);
  }

  // Puts what the odd half is multiplied by for one of its outputs into shared memory, by register and lane. From input
  // to output there is one way: each stage sets one bit of the index to that of the output.
  template <class Block>
  static KALEIDO_DEVICE void load_odd_row(const Stages<Number>& stages, int odd, Number* row, Block& block) {
    for (int i = block.thread(); i < 1 << (kLogN - 1); i += block.threads()) {
      const int input = 2 * Half::split_element(i % kLanes, i / kLanes) + 1;
      Number of_stage[kLogN - 1];
      KALEIDO_UNROLL
      for (int b = 1; b < kLogN; ++b) {
        const int done = (2 << b) - 1, after = (odd & done) | (input & ~done);
        const bool stays = ((input ^ odd) >> b & 1) == 0;
        of_stage[b - 1] = (stays ? stages.diagonal(kLogN + b) : stages.off_diagonal(kLogN + b))[after];
      }
      Number product = of_stage[0];
      KALEIDO_UNROLL
      for (int b = 2; b < kLogN; ++b) product = multiply(product, of_stage[b - 1]);
      row[i] = product;
    }
  }

  // The windowed frames in memory order; of those beyond the last, the last.
  template <class Vectors>
  static KALEIDO_DEVICE void read_frames(const Frames<Number>& frames, std::int64_t first, int lane, Vectors& samples) {
    const int start = forgotten(Tile::memory_element(forgotten(lane), 0)), features = frames.features;
    std::int64_t item = first / frames.per_item;
    int of_item = int(first % frames.per_item);
    const Real *window = forgotten(frames.window + start), *of_row[kRows];
    KALEIDO_UNROLL
    for (int row = 0; row < kRows; ++row) {
      if (row > 0 && first + row < frames.count && ++of_item == frames.per_item) {
        of_item = 0;
        ++item;
      }
      of_row[row] = forgotten(frames.waveform + item * frames.time + std::int64_t(of_item) * frames.hop + start);
    }
    KALEIDO_UNROLL
    for (int h = 0; h < Tile::kRegisters; ++h) {
      const int offset = Tile::offset(h, 0);
      const bool inside = start + offset < features;
      const Real weight = inside ? window[offset] : Real(0);
      KALEIDO_UNROLL
      for (int row = 0; row < kRows; ++row) samples.x[row][h] = inside ? of_row[row][offset] * weight : Real(0);
    }
  }

  template <class Block>
  static KALEIDO_DEVICE void run(const Args& args, Block& block) {
    using Whole = WarpVectors<Number, Tile, kRows, Block>;
    const int lane = block.thread() % kLanes, warp = block.thread() / kLanes, number = Half::number(lane);
    Unit<Number>* units = reinterpret_cast<Unit<Number>*>(block.shared() + args.shared_offset);
    Unit<Number>* half_units = units + kLogN * Units::kCount;
    Number* odd_row = reinterpret_cast<Number*>(half_units + 2 * Half::kStageBits * HalfUnits::kCount);
    args.sink.begin(block);
    load_coefficients<Number, Tile, true>(args.stages, args.map, 0, 0, kLogN, units, block);
    const int odd = odd_output(args.sink, lane, block);
    const TileMap half_map{kLogN, 0, kLogN - 1, 1, kLogN - 1};
    for (int parity = 0; parity < (odd < 0 ? 2 : 1); ++parity)
      load_coefficients<Number, ConsecutiveTile<kBits - 1>, true>(
          args.stages, half_map, parity, kLogN + 1, kLogN - 1,
          half_units + parity * Half::kStageBits * HalfUnits::kCount, block);
    if (odd >= 0) load_odd_row(args.stages, odd, odd_row, block);
    block.sync();

    const int rounds = rounds_of_warp<kRows>(args, block);
    for (int round = 0; round < rounds; ++round) {
      const auto& now = forgotten<Args>(args);
      Whole whole;
      {
        WarpVectors<Real, Tile, kRows, Block> samples;
        read_frames(now.source, place_of<kRows>(now, round, block).first, lane, samples);
        samples.to_register_order(lane);
        Whole::for_each_pair(Tile::register_bit(kLogN - 1), units, lane, [&](int a, int b, const Number(&c)[4]) {
          KALEIDO_UNROLL
          for (int row = 0; row < kRows; ++row) {
            const Real xa = samples.x[row][a], xb = samples.x[row][b];
            whole.x[row][a] = scale_add(c[0], xa, scale(c[1], xb));
            whole.x[row][b] = scale_add(c[2], xb, scale(c[3], xa));
          }
        });
      }
      KALEIDO_UNROLL
      for (int k = 1; k < kLogN; ++k) {
        const int b = kLogN - 1 - k;
        if (Tile::is_traded(b)) whole.trade(b, block);
        whole.stage(Tile::register_bit(b), units + k * Units::kCount, lane);
      }

      KALEIDO_UNROLL
      for (int row = 0; row < kRows; ++row)
        KALEIDO_UNROLL
      for (int reg = 0; reg < Tile::kRegisters; reg += 2) swap_if(lane & 1, whole.x[row][reg], whole.x[row][reg + 1]);
      auto* powers = Sink::template powers<Tile>(forgotten(warp), block);
      if (odd >= 0) store_odd(whole, odd_row, powers + odd, lane, block);
      for (int parity = 0; parity < (odd < 0 ? 2 : 1); ++parity) {
        WarpVectors<Number, Half, kRows, Block> half;
        KALEIDO_UNROLL
        for (int row = 0; row < kRows; ++row)
          KALEIDO_UNROLL
        for (int reg = 0; reg < Half::kRegisters; ++reg) {
          half.x[row][reg] = whole.x[row][2 * reg];
          whole.x[row][2 * reg] = whole.x[row][2 * reg + 1];
        }
        half.flip(lane);
        KALEIDO_UNROLL
        for (int b = 0; b < Half::kStageBits; ++b) {
          half.stage(Half::register_bit(b), half_units + (parity * Half::kStageBits + b) * HalfUnits::kCount, number);
          if (Half::is_traded(b)) half.trade(b, block);
        }
        store_half(half, powers + parity, number);
      }
      const auto& then = forgotten<Args>(args);
      then.sink.template finish<Tile>(powers, 1, place_of<kRows>(then, round, block).first, lane, block);
    }
  }

  // The powers of the odd output, an inner product of every row with the odd half, which is in the odd registers.
  template <class Whole, class Powers, class Block>
  static KALEIDO_DEVICE void store_odd(const Whole& whole, const Number* odd_row, Powers* to, int lane, Block& block) {
    Real sums[2][kRows] = {};
    KALEIDO_UNROLL
    for (int reg = 0; reg < Half::kRegisters; ++reg) {
      const Number weight = odd_row[reg * kLanes + lane];
      KALEIDO_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const Number sum = multiply_add(weight, whole.x[row][2 * reg + 1], Number{sums[0][row], sums[1][row]});
        sums[0][row] = sum.re;
        sums[1][row] = sum.im;
      }
    }
    const int row = Sink::template add_parts<kRows, kLanes / 2, 1>(sums, lane, block);
    if (lane % (kLanes / kRows) == 0) to->of_row[row] = squared_magnitude(Number{sums[0][0], sums[1][0]});
  }

  // The powers of a half's outputs, which are two elements apart.
  template <class Vectors, class Powers>
  static KALEIDO_DEVICE void store_half(const Vectors& half, Powers* to, int number) {
    KALEIDO_UNROLL
    for (int reg = 0; reg < Half::kRegisters; ++reg)
      to[2 * Half::element(number, reg, kLaneBits)] = Sink::powers_of(half, reg);
  }
};

}  // namespace kaleido_cuda
