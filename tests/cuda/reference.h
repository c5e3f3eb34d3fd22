// The definitions that simulated kernels are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <random>
#include <vector>

#include "../../cuda/plan.h"

using namespace kaleido_cuda;

inline int& failures() {
  static int count = 0;
  return count;
}
inline int& checks() {
  static int count = 0;
  return count;
}
inline int report() {
  std::printf("%d checks, %d failed\n", checks(), failures());
  return failures() != 0 || checks() == 0;
}

class Random {
 public:
  explicit Random(unsigned seed) : generator_(seed) {}
  // Of variance 1/2, so that products of butterfly matrices neither grow nor vanish.
  template <class Number>
  std::vector<Number> numbers(std::size_t count) {
    std::vector<Number> result(count);
    for (Number& x : result) {
      if constexpr (is_complex<Number>)
        x = {RealOf<Number>(normal_(generator_) * 0.5), RealOf<Number>(normal_(generator_) * 0.5)};
      else
        x = Number(normal_(generator_) * std::sqrt(0.5));
    }
    return result;
  }

 private:
  std::mt19937 generator_;
  std::normal_distribution<double> normal_;
};

template <class Number>
std::vector<Number> padded(const Number* x, int features, int n) {
  std::vector<Number> result(n, from_real<Number>(0));
  std::copy_n(x, features, result.begin());
  return result;
}

// y[i] = d[i] * x[i] + o[i] * x[i XOR stride], stage after stage.
template <class Number>
void run_stages(const Stages<Number>& stages, std::vector<Number>& x) {
  for (int number = stages.first; number < stages.last; ++number) {
    const std::vector<Number> before = x;
    const int stride = 1 << StageBits{stages.log_n}(number);
    for (int i = 0; i < int(x.size()); ++i)
      x[i] = multiply_add(stages.diagonal(number)[i], before[i],
                          multiply(stages.off_diagonal(number)[i], before[i ^ stride]));
  }
}

// Gradients of the same: of x, and added to `factors_grad` (laid out as all the factors) those of the coefficients.
template <class Number>
void run_stages_backward(const Stages<Number>& stages, const std::vector<Number>& x, std::vector<Number>& grad,
                         std::vector<Number>& factors_grad) {
  std::vector<std::vector<Number>> inputs{x};
  for (int number = stages.first; number + 1 < stages.last; ++number) {
    inputs.push_back(inputs.back());
    run_stages(Stages<Number>{stages.factors, stages.log_n, number, number + 1}, inputs.back());
  }
  for (int number = stages.last - 1; number >= stages.first; --number) {
    const std::vector<Number>& in = inputs[number - stages.first];
    const int n = int(in.size()), stride = 1 << StageBits{stages.log_n}(number);
    Number* d_grad = factors_grad.data() + std::size_t(number) * 2 * n;
    const std::vector<Number> g = grad;
    for (int i = 0; i < n; ++i) {
      d_grad[i] = multiply_add(g[i], conjugate(in[i]), d_grad[i]);
      d_grad[n + i] = multiply_add(g[i], conjugate(in[i ^ stride]), d_grad[n + i]);
      grad[i] = multiply_add(conjugate(stages.diagonal(number)[i]), g[i],
                             multiply(conjugate(stages.off_diagonal(number)[i ^ stride]), g[i ^ stride]));
    }
  }
}

// Elements differ by rounding only, relative to the largest.
template <class Number>
__attribute__((format(printf, 3, 4))) void expect_close(const Number* got, const std::vector<Number>& wanted,
                                                        const char* what, ...) {
  double error = 0, largest = 1e-30;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const Number difference = multiply_add(wanted[i], from_real<Number>(-1), got[i]);
    const double e = std::sqrt(double(squared_magnitude(difference)));
    if (!(e <= error)) error = e;  // NaN stays
    largest = std::max(largest, std::sqrt(double(squared_magnitude(wanted[i]))));
  }
  ++checks();
  const double allowed = sizeof(RealOf<Number>) == 4 ? 1e-5 : 1e-13;
  if (!(error <= allowed * largest)) {
    if (++failures() > 20) return;
    std::va_list list;
    va_start(list, what);
    std::vprintf(what, list);
    va_end(list);
    std::printf(": relative error %.3g\n", error / largest);
  }
}
