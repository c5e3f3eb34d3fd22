// Half-precision numbers in memory, converted to and from wider types by integer arithmetic: it compiles to vector
// code on every instruction set. Rounding is to nearest, ties to even.
#pragma once

#include <cstdint>

#include "vector.h"

namespace kaleido {
namespace KALEIDO_ISA {

KALEIDO_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
KALEIDO_INLINE float float_of(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

struct BFloat16 {
  std::uint16_t bits;

  BFloat16() = default;
  KALEIDO_INLINE explicit BFloat16(float x) {
    const std::uint32_t b = bits_of(x);
    const std::uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    bits = std::uint16_t(x == x ? rounded : 0x7fc0);
  }
  KALEIDO_INLINE explicit operator float() const { return float_of(std::uint32_t(bits) << 16); }
};

struct Half {
  std::uint16_t bits;

  Half() = default;
  KALEIDO_INLINE explicit Half(float x) {
    const std::uint32_t sign = bits_of(x) & 0x80000000u;
    const std::uint32_t magnitude = bits_of(x) ^ sign;
    // Normal: move the exponent's bias from 127 to 15, and round 13 bits away.
    const std::uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Below 2^-14: adding 1/2 lines the last bit of the sum up with the smallest half, 2^-24.
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    std::uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
    // 65520 and above round to infinity.
    result = magnitude >= 0x477ff000u ? 0x7c00u : result;
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    bits = std::uint16_t(result | (sign >> 16));
  }
  KALEIDO_INLINE explicit operator float() const {
    const std::uint32_t sign = (std::uint32_t(bits) & 0x8000u) << 16;
    const std::uint32_t magnitude = std::uint32_t(bits) & 0x7fffu;
    // As a float of the same bits it is 2^112 times too small, subnormals included.
    const float scaled = float_of(magnitude << 13) * 0x1p112f;
    const float value = magnitude >= 0x7c00u ? float_of(0x7f800000u | (magnitude << 13)) : scaled;
    return float_of(bits_of(value) | sign);
  }
};

}  // namespace KALEIDO_ISA
}  // namespace kaleido
