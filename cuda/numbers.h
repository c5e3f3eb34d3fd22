// The numbers that kernels compute in: float, double and Complex of either.
#pragma once

#include "portable.h"

namespace kaleido_cuda {

template <class T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

template <class T>
struct NumberTraits {
  using Real = T;
  static constexpr bool kComplex = false;
};
template <class T>
struct NumberTraits<Complex<T>> {
  using Real = T;
  static constexpr bool kComplex = true;
};
template <class Number>
using RealOf = typename NumberTraits<Number>::Real;
template <class Number>
constexpr bool is_complex = NumberTraits<Number>::kComplex;

KALEIDO_EVERYWHERE float multiply(float a, float b) { return a * b; }
KALEIDO_EVERYWHERE double multiply(double a, double b) { return a * b; }
template <class T>
KALEIDO_EVERYWHERE Complex<T> multiply(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// a * b + c
KALEIDO_EVERYWHERE float multiply_add(float a, float b, float c) { return a * b + c; }
KALEIDO_EVERYWHERE double multiply_add(double a, double b, double c) { return a * b + c; }
template <class T>
KALEIDO_EVERYWHERE Complex<T> multiply_add(Complex<T> a, Complex<T> b, Complex<T> c) {
  return {a.re * b.re + (c.re - a.im * b.im), a.re * b.im + (a.im * b.re + c.im)};
}

KALEIDO_EVERYWHERE float conjugate(float a) { return a; }
KALEIDO_EVERYWHERE double conjugate(double a) { return a; }
template <class T>
KALEIDO_EVERYWHERE Complex<T> conjugate(Complex<T> a) {
  return {a.re, -a.im};
}

KALEIDO_EVERYWHERE float squared_magnitude(float a) { return a * a; }
KALEIDO_EVERYWHERE double squared_magnitude(double a) { return a * a; }
template <class T>
KALEIDO_EVERYWHERE T squared_magnitude(Complex<T> a) {
  return a.re * a.re + a.im * a.im;
}

KALEIDO_EVERYWHERE float scale(float a, float s) { return a * s; }
KALEIDO_EVERYWHERE double scale(double a, double s) { return a * s; }
template <class T>
KALEIDO_EVERYWHERE Complex<T> scale(Complex<T> a, T s) {
  return {a.re * s, a.im * s};
}

// a * s + c
template <class T>
KALEIDO_EVERYWHERE Complex<T> scale_add(Complex<T> a, T s, Complex<T> c) {
  return {a.re * s + c.re, a.im * s + c.im};
}

KALEIDO_EVERYWHERE float real_part(float a) { return a; }
KALEIDO_EVERYWHERE double real_part(double a) { return a; }
template <class T>
KALEIDO_EVERYWHERE T real_part(Complex<T> a) {
  return a.re;
}

// A number of type Number with the given real part.
template <class Number>
KALEIDO_EVERYWHERE Number from_real(RealOf<Number> x) {
  if constexpr (is_complex<Number>)
    return {x, RealOf<Number>(0)};
  else
    return x;
}

}  // namespace kaleido_cuda
