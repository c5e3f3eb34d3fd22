// The kernels against the definition, without Python or PyTorch: for cross-compilers and their emulators.
// Prints a line and returns 1 where they differ.

#include "../../cpu/kernels.h"

#include <cmath>
#include <complex>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

using Complex = std::complex<double>;
constexpr double kTolerance[2] = {1e-5, 1e-13};  // float, double; of the largest value

template <typename T>
struct Numbers {
  std::vector<T> stored;
  std::vector<Complex> values;
  Numbers(std::size_t count, bool complex) : stored(count * (complex ? 2 : 1)), values(count) {
    for (T& x : stored) x = T(std::rand() / (RAND_MAX + 1.0) - 0.5);
    for (std::size_t i = 0; i < count; ++i)
      values[i] = complex ? Complex(stored[2 * i], stored[2 * i + 1]) : Complex(stored[i]);
  }
};

struct Definition {
  int n_factors, log_n;
  const std::vector<Complex>& t;

  std::size_t n() const { return std::size_t(1) << log_n; }
  std::size_t coefficient(int f, int s, int which, std::size_t i) const {
    return ((std::size_t(f) * log_n + s) * 2 + which) * n() + i;
  }
  std::size_t stride(int f, int s) const { return std::size_t(1) << (f % 2 ? s : log_n - 1 - s); }

  // The inputs of all stages, and the output.
  std::vector<std::vector<Complex>> states(std::vector<Complex> x) const {
    std::vector<std::vector<Complex>> result{x};
    for (int f = 0; f < n_factors; ++f)
      for (int s = 0; s < log_n; ++s) {
        const std::vector<Complex> from = result.back();
        for (std::size_t i = 0; i < n(); ++i)
          x[i] = t[coefficient(f, s, 0, i)] * from[i] + t[coefficient(f, s, 1, i)] * from[i ^ stride(f, s)];
        result.push_back(x);
      }
    return result;
  }

  // From the gradient of the output to that of the input; those of the coefficients are added.
  std::vector<Complex> backward(const std::vector<std::vector<Complex>>& states, std::vector<Complex> g,
                                std::vector<Complex>& gradients) const {
    for (int f = n_factors - 1; f >= 0; --f)
      for (int s = log_n - 1; s >= 0; --s) {
        const std::vector<Complex>& x = states[std::size_t(f) * log_n + s];
        const std::vector<Complex> from = g;
        for (std::size_t i = 0; i < n(); ++i) {
          const std::size_t k = i ^ stride(f, s);
          gradients[coefficient(f, s, 0, i)] += from[i] * std::conj(x[i]);
          gradients[coefficient(f, s, 1, i)] += from[i] * std::conj(x[k]);
          g[i] = std::conj(t[coefficient(f, s, 0, i)]) * from[i] + std::conj(t[coefficient(f, s, 1, k)]) * from[k];
        }
      }
    return g;
  }
};

bool near(const char* what, const std::vector<Complex>& expected, const std::vector<Complex>& got, double tolerance) {
  double scale = 0, error = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    scale = std::fmax(scale, std::abs(expected[i]));
    error = std::fmax(error, std::abs(expected[i] - got[i]));
  }
  if (error <= tolerance * scale) return true;
  std::printf("%s: error %g of values up to %g\n", what, error, scale);
  return false;
}

template <typename T>
std::vector<Complex> wide(const std::vector<T>& stored, bool complex) {
  std::vector<Complex> values(stored.size() / (complex ? 2 : 1));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = complex ? Complex(stored[2 * i], stored[2 * i + 1]) : Complex(stored[i]);
  return values;
}

template <typename T>
bool check(const kaleido::TypedKernels& kernels, int n_factors, int log_n, int vectors, bool complex) {
  const std::size_t n = std::size_t(1) << log_n, count = std::size_t(n_factors) * log_n * 2 * n;
  const int parts = complex ? 2 : 1;
  const double tolerance = kTolerance[sizeof(T) == 8];
  Numbers<T> t(count, complex), x(vectors * n, complex), g(vectors * n, complex);
  const Definition definition{n_factors, log_n, t.values};
  std::vector<Complex> y, x_grad, t_grad(count);
  for (int v = 0; v < vectors; ++v) {
    const auto states = definition.states({x.values.begin() + v * n, x.values.begin() + (v + 1) * n});
    const auto back = definition.backward(states, {g.values.begin() + v * n, g.values.begin() + (v + 1) * n}, t_grad);
    y.insert(y.end(), states.back().begin(), states.back().end());
    x_grad.insert(x_grad.end(), back.begin(), back.end());
  }

  const auto vectors_of = [&](std::vector<T>& data) {
    return kaleido::Vectors{data.data(), std::int64_t(parts * n), std::int64_t(n), kaleido::Storage::same, complex};
  };
  kaleido::Factors plain{t.stored.data(), n_factors, log_n, false}, packed = plain;
  std::vector<T> forward(parts * count), backward(parts * count), sums(parts * count), unpacked(parts * count);
  std::vector<T> out(x.stored.size()), x_out(x.stored.size());
  kernels.pack_forward[complex](plain, forward.data());
  packed.data = forward.data(), packed.packed = true;
  kernels.multiply[complex]({vectors_of(x.stored), vectors_of(out), packed}, 0, vectors);
  bool good = near("packed", y, wide(out, complex), tolerance);
  if (!complex) {
    kernels.multiply[0]({vectors_of(x.stored), vectors_of(out), plain}, 0, vectors);
    good &= near("not packed", y, wide(out, complex), tolerance);
  }
  kernels.pack_backward[complex](plain, backward.data());
  packed.data = backward.data();
  kernels.backward[complex]({vectors_of(x.stored), vectors_of(g.stored), vectors_of(x_out), packed, sums.data()}, 0,
                            vectors);
  packed.data = sums.data();
  kernels.unpack_backward[complex](packed, unpacked.data());
  good &= near("gradient of x", x_grad, wide(x_out, complex), tolerance);
  good &= near("gradient of the factors", t_grad, wide(unpacked, complex), tolerance);
  if (!good) std::printf("  F = %d, n = %zu, %d vectors, complex %d, %zu bytes\n", n_factors, n, vectors, complex, sizeof(T));
  return good;
}

}  // namespace

int main() {
  const kaleido::Kernels& kernels = kaleido::baseline::kernels();
  bool good = true;
  int cases = 0;
  for (int n_factors = 1; n_factors <= 4; ++n_factors)
    for (int log_n = 1; log_n <= 10; ++log_n)
      for (int vectors : {1, 3, 13})
        for (bool complex : {false, true}) {
          good &= check<float>(kernels.f32, n_factors, log_n, vectors, complex);
          good &= check<double>(kernels.f64, n_factors, log_n, vectors, complex);
          cases += 2;
        }
  std::printf("%s kernels: %d cases, %s\n", kernels.name, cases, good ? "all near the definition" : "FAILED");
  return good ? 0 : 1;
}
