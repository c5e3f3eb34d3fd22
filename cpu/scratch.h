// Memory of one thread while a kernel runs.
#pragma once

#include <cstddef>
#include <cstdlib>

namespace kaleido {
namespace KALEIDO_ISA {

// Not set to anything, freed at the end of the block; lines up with cache lines.
template <typename T>
class Scratch {
 public:
  explicit Scratch(std::ptrdiff_t count) {
    const std::size_t bytes = (std::size_t(count) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64));
    if (!data_) std::abort();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace KALEIDO_ISA
}  // namespace kaleido
