// What a kernel reads its vectors from and writes them to.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

#include "numbers.h"

namespace kaleido_cuda {

#ifdef __CUDACC__
using Half = __half;
#else
using Half = _Float16;
#endif

struct BFloat16 {
  std::uint16_t bits;
};

KALEIDO_EVERYWHERE float widen(float x) { return x; }
KALEIDO_EVERYWHERE float widen(BFloat16 x) {
  const std::uint32_t bits = std::uint32_t(x.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof(wide));
  return wide;
}
#ifdef __CUDACC__
KALEIDO_EVERYWHERE float widen(Half x) { return __half2float(x); }
#else
KALEIDO_EVERYWHERE float widen(Half x) { return float(x); }
#endif

// To the nearest, ties to even.
KALEIDO_EVERYWHERE void narrow(float x, float* to) { *to = x; }
KALEIDO_EVERYWHERE void narrow(float x, BFloat16* to) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = is_nan ? std::uint16_t((bits >> 16) | 0x40u) : std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#ifdef __CUDACC__
KALEIDO_EVERYWHERE void narrow(float x, Half* to) { *to = __float2half_rn(x); }
#else
KALEIDO_EVERYWHERE void narrow(float x, Half* to) { *to = Half(x); }
#endif

// How the elements of a tensor are stored: as the number computed in, as its real part, or as half of a float.
enum class Storage { same, real, half, bfloat16 };

// The elements of vectors, as the number that is computed in.
template <class Number, class Stored>
struct Convert {
  static KALEIDO_DEVICE Number read(const Stored* p) { return *p; }
  static KALEIDO_DEVICE void write(Stored* p, Number x) { *p = x; }
};
template <class T>
struct Convert<Complex<T>, T> {
  static KALEIDO_DEVICE Complex<T> read(const T* p) { return {*p, T(0)}; }
  // What a real tensor can take of the gradient of a complex one.
  static KALEIDO_DEVICE void write(T* p, Complex<T> x) { *p = x.re; }
};
template <>
struct Convert<float, Half> {
  static KALEIDO_DEVICE float read(const Half* p) { return widen(*p); }
  static KALEIDO_DEVICE void write(Half* p, float x) { narrow(x, p); }
};
template <>
struct Convert<float, BFloat16> {
  static KALEIDO_DEVICE float read(const BFloat16* p) { return widen(*p); }
  static KALEIDO_DEVICE void write(BFloat16* p, float x) { narrow(x, p); }
};

// Calls f with a null pointer to the type that Number is stored as.
template <class Number, class F>
KALEIDO_DEVICE void with_storage(Storage storage, F&& f) {
  if constexpr (is_complex<Number>) {
    if (storage == Storage::real) return f(static_cast<RealOf<Number>*>(nullptr));
  }
  if constexpr (sizeof(Number) == 4) {
    if (storage == Storage::half) return f(static_cast<Half*>(nullptr));
    if (storage == Storage::bfloat16) return f(static_cast<BFloat16*>(nullptr));
  }
  f(static_cast<Number*>(nullptr));
}

// The rows of a matrix.
template <class Number>
struct Rows {
  void* data;
  std::int64_t stride;  // elements from row to row
  int features;         // elements of a row; those beyond count as zeros and are not written
  std::int64_t count;
  Storage storage;

  // Calls f(open), where open(row) is the row and open(row)(i) its element i.
  template <class F>
  KALEIDO_DEVICE void visit(F&& f) const {
    with_storage<Number>(storage, [&](auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      f([this](std::int64_t row) {
        const Stored* from = forgotten(static_cast<const Stored*>(data) + row * stride);  // once for all elements
        const int limit = forgotten(row < count ? features : 0);
        return [=](int i) -> Number {
          return i < limit ? Convert<Number, Stored>::read(from + i) : from_real<Number>(0);
        };
      });
    });
  }
  // Likewise for writing: open(row)(i, x).
  template <class F>
  KALEIDO_DEVICE void visit_writer(F&& f) const {
    with_storage<Number>(storage, [&](auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      f([this](std::int64_t row) {
        Stored* to = forgotten(static_cast<Stored*>(data) + row * stride);
        const int limit = forgotten(row < count ? features : 0);
        return [=](int i, Number x) {
          if (i < limit) Convert<Number, Stored>::write(to + i, x);
        };
      });
    });
  }
};

// The windowed frames of waveforms, as real parts.
template <class Number>
struct Frames {
  using Real = RealOf<Number>;
  const Real* waveform;  // (items, time)
  const Real* window;    // (features,)
  std::int64_t time;
  int per_item;  // frames of an item
  int hop;
  int features;
  std::int64_t count;

  template <class F>
  KALEIDO_DEVICE void visit(F&& f) const {
    f([this](std::int64_t row) {
      const Real* samples = waveform + row / per_item * time + row % per_item * hop;
      const int limit = forgotten(row < count ? features : 0);
      return [=, window = window](int i) -> Number {
        return from_real<Number>(i < limit ? samples[i] * window[i] : Real(0));
      };
    });
  }
};

}  // namespace kaleido_cuda
