// Where a warp's lanes keep the elements of its vectors, and where shared memory does: index maps and nothing else.
#pragma once

#include "portable.h"

namespace kaleido_cuda {

constexpr int kLanes = 32;
constexpr int kLaneBits = 5;

// Number of a thread among those of the grid, and how many there are.
template <class Block>
KALEIDO_DEVICE std::int64_t thread_of_grid(const Block& block) {
  return std::int64_t(block.index()) * block.threads() + block.thread();
}
template <class Block>
KALEIDO_DEVICE std::int64_t threads_of_grid(const Block& block) {
  return std::int64_t(block.count()) * block.threads();
}

// `value` of `bits` bits, rotated right by `by`: bit j of the result is bit (j + by) mod bits.
KALEIDO_EVERYWHERE constexpr int rotate_right(int value, int by, int bits) {
  by %= bits;
  return ((value >> by) | (value << (bits - by))) & ((1 << bits) - 1);
}

// x XOR (x >> by) XOR (x >> 2 by) ... down to the bits of a lane: what y XOR (y >> by) = x is solved by.
KALEIDO_EVERYWHERE constexpr int sum_of_shifts(int x, int by) {
  for (int known = by; known < kLaneBits; known *= 2) x ^= x >> known;
  return x;
}

constexpr int kSmallestTileBits = 2;

// A run of 2^(kBits + 5) neighbouring elements, 2^kBits of them in the registers of each lane.
//
// A stage of stride 2^b combines elements whose indices differ in bit b, so that bit has to number registers. High
// bits do from the start; each of the five low ones trades places with a register bit when its turn comes. Plainly
// done, a trade is a choice of the register to send, a shuffle and a choice of where to put what came. The choices
// vanish when the register number is stored XOR some bits of the lane: then in a trade of register bit q with lane
// bit b, every lane sends the registers whose bit q is set and puts what comes in their place.
//
// Register bit b mod kBits holds bit b of the index while the lowest bit in registers is m <= b < m + kBits; with
// m = 5 before the first trade, 4 after it, ..., 0 after the fifth, the element in register r of lane l is
//     element(l, r, m) = (rotate_right(r, m) << m) XOR l XOR (l << kBits).
// To see that a trade of lane bit b and register bit q = b mod kBits leads from m = b + 1 to m = b: it moves what
// lane l XOR (r_q << b) held in register r to lane l, which adds r_q * ((1 << b) XOR (1 << (b + kBits))) to the index:
// register bit q stood for bit b + kBits and stands for bit b now. Trading again leads back.
template <int kBits_>
struct ConsecutiveTile {
  static constexpr int kBits = kBits_;
  static constexpr int kStageBits = kBits + kLaneBits;
  static constexpr int kRegisters = 1 << kBits;
  static constexpr bool kSeveral = kBits == kSmallestTileBits;  // a tile may hold several short vectors
  static constexpr bool kStrided = false;
  static constexpr bool kFromBitZero = true;  // its lowest bit is that of the index

  // The lowest index bit in registers while the stage of stride 2^b is computed.
  static constexpr KALEIDO_EVERYWHERE int lowest(int b) { return b < kLaneBits ? b : kLaneBits; }
  static constexpr KALEIDO_EVERYWHERE int register_bit(int b) { return b % kBits; }
  static constexpr KALEIDO_EVERYWHERE bool is_traded(int b) { return b < kLaneBits; }
  // What a lane's number is XORed with for that of the lane that it trades with.
  static constexpr KALEIDO_EVERYWHERE int lane_mask(int b) { return 1 << b; }

  static constexpr KALEIDO_EVERYWHERE int element(int lane, int reg, int m) {
    return (rotate_right(reg, m, kBits) << m) ^ lane ^ (lane << kBits);
  }
  // The lane and the register that hold element i: bits of i outside of [m, m + kBits) are those of
  // lane XOR (lane << kBits), which tells the low bits of the lane from the lowest up, and the others from the top.
  static constexpr KALEIDO_EVERYWHERE int lane_of(int i, int m) {
    int low = i & ((1 << m) - 1);
    for (int known = kBits; known < kLaneBits; known *= 2) low ^= low << known;
    const int high = sum_of_shifts(i >> kBits, kBits);
    return (low & ((1 << m) - 1)) | (high & (kLanes - (1 << m)));
  }
  static constexpr KALEIDO_EVERYWHERE int register_of(int i, int lane, int m) {
    const int rotated = ((i ^ lane ^ (lane << kBits)) >> m) & (kRegisters - 1);
    return rotate_right(rotated, kBits - m % kBits, kBits);
  }
  // Memory is read and written with neighbouring lanes at neighbouring elements, in another order of registers:
  // register h holds element(lane, ., 5) for the register whose number is register_of(h) XOR lane bits.
  static constexpr KALEIDO_EVERYWHERE int memory_element(int lane, int h) {
    return (h << kLaneBits) | ((lane ^ (lane << kBits)) & (kLanes - 1));
  }
  // How far register h is from register 0 in the vector.
  static constexpr KALEIDO_EVERYWHERE int offset(int h, int) { return h << kLaneBits; }
  // v'[h] = v[h XOR flips(lane)] leads from memory order to register order and back.
  static constexpr KALEIDO_EVERYWHERE int flips(int lane) { return (lane << kBits) >> kLaneBits; }
  static constexpr KALEIDO_EVERYWHERE int memory_register(int reg) { return rotate_right(reg, kLaneBits, kBits); }
};

// The even or the odd elements of a ConsecutiveTile<kWholeBits>, from where the stage of stride 1 leaves them: its
// register r of lane l holds element r XOR l XOR (l << kWholeBits), so that registers r and r XOR 1 change places in odd
// lanes, and then even registers hold even elements and odd ones odd elements. Element 2 i or 2 i + 1 is element i of a
// half, and half of the registers, numbered r / 2, hold element split_element(l, r / 2) of it.
//
// After half of the registers have changed places by `flips`, that is where a ConsecutiveTile one bit smaller has its
// elements, for the lane of another number: split_element(l, r XOR flips(l)) = element(number(l), r, 0).
template <int kWholeBits>
struct HalfTile : ConsecutiveTile<kWholeBits - 1> {
  using Base = ConsecutiveTile<kWholeBits - 1>;
  static constexpr int kBits = Base::kBits;

  static constexpr KALEIDO_EVERYWHERE int split_element(int lane, int reg) {
    return reg ^ (lane >> 1) ^ (lane << kBits);
  }
  // The bits of split_element from kBits up are those of lane XOR (lane >> kWholeBits), and of element those of
  // number XOR (number >> kBits).
  static constexpr KALEIDO_EVERYWHERE int number(int lane) { return sum_of_shifts(lane ^ (lane >> kWholeBits), kBits); }
  static constexpr KALEIDO_EVERYWHERE int lane_mask(int b) {
    return sum_of_shifts((1 << b) ^ ((1 << b) >> kBits), kWholeBits);
  }
  static constexpr KALEIDO_EVERYWHERE int flips(int lane) {
    return (number(lane) ^ (lane >> 1)) & (Base::kRegisters - 1);
  }
};

// 2^kBits elements in the registers of each lane, 2^low apart, of 32 neighbouring columns: no lane needs another.
template <int kBits_>
struct StridedTile {
  static constexpr int kBits = kBits_;
  static constexpr int kStageBits = kBits;
  static constexpr int kRegisters = 1 << kBits;
  static constexpr bool kSeveral = false;
  static constexpr bool kStrided = true;
  static constexpr bool kFromBitZero = false;

  static constexpr KALEIDO_EVERYWHERE int lowest(int) { return 0; }
  static constexpr KALEIDO_EVERYWHERE int register_bit(int b) { return b; }
  static constexpr KALEIDO_EVERYWHERE bool is_traded(int) { return false; }
  static constexpr KALEIDO_EVERYWHERE int lane_mask(int) { return 0; }

  static constexpr KALEIDO_EVERYWHERE int element(int lane, int reg, int) { return (reg << kLaneBits) | lane; }
  static constexpr KALEIDO_EVERYWHERE int lane_of(int i, int) { return i & (kLanes - 1); }
  static constexpr KALEIDO_EVERYWHERE int register_of(int i, int, int) { return i >> kLaneBits; }
  static constexpr KALEIDO_EVERYWHERE int memory_element(int lane, int h) { return (h << kLaneBits) | lane; }
  static constexpr KALEIDO_EVERYWHERE int offset(int h, int low) { return h * (1 << low); }
  static constexpr KALEIDO_EVERYWHERE int flips(int) { return 0; }
  static constexpr KALEIDO_EVERYWHERE int memory_register(int reg) { return reg; }
};

// Which elements of which vectors a tile holds. Local bits below `column_bits` number neighbouring columns, the next
// `active_bits` stand for bits low, low + 1, ... of the index, and what is left over numbers further vectors.
struct TileMap {
  int log_n;
  int column_bits;  // 0 where the tile starts at bit 0 of the index
  int active_bits;
  int low;
  int local_bits;

  KALEIDO_EVERYWHERE int tiles_per_vector() const { return 1 << (log_n - column_bits - active_bits); }
  KALEIDO_EVERYWHERE int vectors_per_tile() const { return 1 << (local_bits - column_bits - active_bits); }
  // Index in the vector of a local index, for a tile of the vector.
  KALEIDO_EVERYWHERE int index(int tile, int local) const {
    const int column = local & ((1 << column_bits) - 1);
    const int active = (local >> column_bits) & ((1 << active_bits) - 1);
    const int column_tiles = low - column_bits;
    const int column_tile = tile & ((1 << column_tiles) - 1);
    const int above = tile >> column_tiles;
    return (above << (low + active_bits)) | (active << low) | (column_tile << column_bits) | column;
  }
  KALEIDO_EVERYWHERE int vector(int local) const { return local >> (column_bits + active_bits); }
};

// Place in shared memory of local index i, such that neighbouring threads of a group meet no bank twice whichever
// window of kBits index bits their registers hold (tests/cuda/ tries them all). A bank is as wide as an element here:
// 32 of 4 bytes for a warp, 16 of 8 for half of it, 8 of 16 for a quarter.
template <int kElementBytes>
KALEIDO_EVERYWHERE constexpr int swizzle(int i) {
  if (kElementBytes == 4) return i ^ (((i >> 5) & 7) << 2) ^ ((i >> 6) & 3);
  if (kElementBytes == 8) return i ^ (((i >> 4) & 3) * 5);
  return i ^ (((i >> 3) & 1) * 7);
}

// Local index of register e of thread t, whose registers hold the kBits index bits from `position` on.
template <int kBits>
KALEIDO_EVERYWHERE constexpr int window_index(int t, int e, int position) {
  return ((t >> position) << (position + kBits)) | (e << position) | (t & ((1 << position) - 1));
}

}  // namespace kaleido_cuda
