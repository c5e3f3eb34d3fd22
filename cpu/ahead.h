// Memory fetched into the second-level cache while the kernels compute on other memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vector.h"

namespace kaleido {
namespace KALEIDO_ISA {

struct Memory {
  const void* begin;
  std::ptrdiff_t bytes;  // 0 for none
};

// What a tile will need soon, a few lines at every step of the computation: all at once, they would make it wait.
// Hardware fetches ahead by itself only once a stream is running, and the stream of a tile ends with the tile.
class Ahead {
 public:
  // Spread over so many steps; with none, nothing is fetched.
  explicit Ahead(std::ptrdiff_t steps = 0) : steps_(steps) {}

  // At most twice, and once. Past the end up to a line a step more is asked for, in vain.
  void will_read(Memory memory) { add(reads_[n_reads_], n_reads_, memory); }
  void will_write(Memory memory) { add(writes_[n_writes_], n_writes_, memory); }

  KALEIDO_INLINE void step() {
    if (steps_ == 0) return;
    --steps_;
    for (int i = 0; i < n_reads_; ++i) reads_[i].template step<0>();
    for (int i = 0; i < n_writes_; ++i) writes_[i].template step<1>();
  }

 private:
  static constexpr std::ptrdiff_t kLine = 64;
  static constexpr int kSecondLevel = 2;

  struct Stream {
    std::uintptr_t next;
    std::ptrdiff_t lines_a_step;

    template <int Written>
    KALEIDO_INLINE void step() {
#pragma GCC unroll 4
      for (std::ptrdiff_t l = 0; l < lines_a_step; ++l)
        __builtin_prefetch(reinterpret_cast<const void*>(next + std::uintptr_t(l * kLine)), Written, kSecondLevel);
      next += std::uintptr_t(lines_a_step * kLine);
    }
  };

  void add(Stream& stream, int& count, Memory memory) {
    if (memory.bytes == 0 || steps_ == 0) return;
    const std::ptrdiff_t lines = (memory.bytes + kLine - 1) / kLine;
    stream = {reinterpret_cast<std::uintptr_t>(memory.begin), (lines + steps_ - 1) / steps_};
    ++count;
  }

  std::ptrdiff_t steps_;
  Stream reads_[2], writes_[1];
  int n_reads_ = 0, n_writes_ = 0;
};

}  // namespace KALEIDO_ISA
}  // namespace kaleido
