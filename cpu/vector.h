// Vectors of lanes, and real or complex values held in them: GCC and Clang vector extensions, any instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#define KALEIDO_ALWAYS_INLINE __attribute__((always_inline))
#define KALEIDO_INLINE inline KALEIDO_ALWAYS_INLINE

namespace kaleido {
// One namespace an instruction set: the same templates are compiled several times into one library, and the linker
// would otherwise keep one copy of each for all.
namespace KALEIDO_ISA {

template <typename T, int L>
struct VectorOf {
  typedef T type __attribute__((vector_size(L * sizeof(T))));
};
template <typename T>
struct VectorOf<T, 1> {
  typedef T type;
};
template <typename T, int L>
using Vector = typename VectorOf<T, L>::type;

template <typename T, int L, int Stride, std::size_t... I>
KALEIDO_INLINE Vector<T, L> swapped(Vector<T, L> v, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(v, v, static_cast<int>(I ^ Stride)...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  return __builtin_shuffle(v, Vector<Index, L>{static_cast<Index>(I ^ Stride)...});
#endif
}

// A value in each of L lanes: one number (Parts = 1), or a real and an imaginary part (Parts = 2).
template <typename T, int L, int Parts>
struct Value {
  Vector<T, L> part[Parts];

  static KALEIDO_INLINE Value zero() {
    Value v;
    for (int i = 0; i < Parts; ++i) v.part[i] = Vector<T, L>{};
    return v;
  }
  // The imaginary parts lie `plane` numbers after the real ones.
  static KALEIDO_INLINE Value load(const T* p, std::ptrdiff_t plane) {
    Value v;
    for (int i = 0; i < Parts; ++i) __builtin_memcpy(&v.part[i], p + i * plane, sizeof(v.part[i]));
    return v;
  }
  KALEIDO_INLINE void store(T* p, std::ptrdiff_t plane) const {
    for (int i = 0; i < Parts; ++i) __builtin_memcpy(p + i * plane, &part[i], sizeof(part[i]));
  }
  // Lane i of the result is lane i XOR Stride of this.
  template <int Stride>
  KALEIDO_INLINE Value swap() const {
    Value v;
    for (int i = 0; i < Parts; ++i) v.part[i] = swapped<T, L, Stride>(part[i], std::make_index_sequence<L>());
    return v;
  }
};

template <typename T, int L>
KALEIDO_INLINE Value<T, L, 1> mul(Value<T, L, 1> a, Value<T, L, 1> b) {
  return {{a.part[0] * b.part[0]}};
}
template <typename T, int L>
KALEIDO_INLINE Value<T, L, 2> mul(Value<T, L, 2> a, Value<T, L, 2> b) {
  return {{a.part[0] * b.part[0] - a.part[1] * b.part[1], a.part[0] * b.part[1] + a.part[1] * b.part[0]}};
}
template <typename T, int L>
KALEIDO_INLINE Value<T, L, 2> mul(Value<T, L, 2> a, Value<T, L, 1> b) {
  return {{a.part[0] * b.part[0], a.part[1] * b.part[0]}};
}

// c + a * b
template <typename T, int L>
KALEIDO_INLINE Value<T, L, 1> mul_add(Value<T, L, 1> a, Value<T, L, 1> b, Value<T, L, 1> c) {
  return {{c.part[0] + a.part[0] * b.part[0]}};
}
template <typename T, int L>
KALEIDO_INLINE Value<T, L, 2> mul_add(Value<T, L, 2> a, Value<T, L, 2> b, Value<T, L, 2> c) {
  // Each sum in two steps, so that each is a fused multiply-add.
  auto real = c.part[0] + a.part[0] * b.part[0];
  auto imag = c.part[1] + a.part[0] * b.part[1];
  return {{real - a.part[1] * b.part[1], imag + a.part[1] * b.part[0]}};
}
template <typename T, int L>
KALEIDO_INLINE Value<T, L, 2> mul_add(Value<T, L, 2> a, Value<T, L, 1> b, Value<T, L, 2> c) {
  return {{c.part[0] + a.part[0] * b.part[0], c.part[1] + a.part[1] * b.part[0]}};
}

template <typename T, int L>
KALEIDO_INLINE Value<T, L, 1> conj(Value<T, L, 1> a) {
  return a;
}
template <typename T, int L>
KALEIDO_INLINE Value<T, L, 2> conj(Value<T, L, 2> a) {
  return {{a.part[0], -a.part[1]}};
}

template <typename T, int L, int Parts>
KALEIDO_INLINE Value<T, L, Parts> add(Value<T, L, Parts> a, Value<T, L, Parts> b) {
  for (int i = 0; i < Parts; ++i) a.part[i] += b.part[i];
  return a;
}

// The same value, held in registers from here on: compilers would otherwise load it again at each of its uses, and
// loads, not arithmetic, would then set the pace.
template <typename T, int L, int Parts>
KALEIDO_INLINE Value<T, L, Parts> in_registers(Value<T, L, Parts> v) {
#if defined(__x86_64__)
#if defined(__AVX512F__)
  constexpr int kWidest = 64;
#elif defined(__AVX__)
  constexpr int kWidest = 32;
#else
  constexpr int kWidest = 16;
#endif
  if constexpr (L * sizeof(T) <= kWidest)
    for (int i = 0; i < Parts; ++i) asm("" : "+v"(v.part[i]));
#elif defined(__aarch64__)
  for (int i = 0; i < Parts; ++i) asm("" : "+w"(v.part[i]));
#endif
  return v;
}

// Calls f(integral_constant 0), ..., f(integral_constant N - 1).
template <typename F, int... I>
KALEIDO_INLINE void unrolled(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, typename F>
KALEIDO_INLINE void unrolled(F&& f) {
  unrolled(f, std::make_integer_sequence<int, N>());
}

}  // namespace KALEIDO_ISA
}  // namespace kaleido
