// What the operators call: one table of functions an instruction set, free of PyTorch's headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kaleido {

enum class Storage { same, half, bfloat16 };  // of vectors, beside coefficients in float

struct Vectors {
  void* data;
  std::int64_t row;       // numbers from one vector to the next; a complex number is two
  std::int64_t features;  // entries of a vector
  Storage storage;
  bool complex;
};

struct Factors {
  const void* data;  // packed by the functions below; in `multiply` also the factors (F, log2 n, 2, n) if real
  int n_factors, log_n;
  bool packed;
};

struct Multiply {
  Vectors x, y;
  Factors factors;
};

struct Backward {
  Vectors x, grad;   // x without data where the coefficients' gradients are not asked for
  Vectors x_grad;    // without data where it is not asked for
  Factors factors;
  void* factors_grad;  // packed, added to; null where it is not asked for
};

struct PowerSpectrum {
  const void* waveform;  // (batch, time)
  std::int64_t waveform_row, frames, hop;
  const void* window;
  std::int64_t frame_length;
  const std::int64_t* rows;  // outputs used
  std::int64_t n_rows;
  Factors factors;           // complex, packed by `pack_spectrum`
  void* power;               // (batch, frames, n_rows)
};

struct PowerSpectrumBackward {
  PowerSpectrum forward;  // `power` unused
  const void* grad;       // (batch, frames, n_rows)
  // Added to; null where it is not asked for. waveform_grad holds the samples from `first_sample` on, counted over
  // all waveforms.
  void* waveform_grad;
  std::int64_t first_sample;
  void *window_grad, *factors_grad;  // the latter for `unpack_spectrum`
};

// Each works on the vectors (or frames) begin, ..., end - 1 of all, in one thread.
struct TypedKernels {
  void (*multiply[2])(const Multiply&, std::int64_t begin, std::int64_t end);  // real and complex factors
  void (*backward[2])(const Backward&, std::int64_t begin, std::int64_t end);
  // Frames are counted over all waveforms: frame t of waveform b is b * frames + t.
  void (*power_spectrum)(const PowerSpectrum&, std::int64_t begin, std::int64_t end);
  void (*power_spectrum_backward)(const PowerSpectrumBackward&, std::int64_t begin, std::int64_t end);
  // From factors (F, log2 n, 2, n), real or interleaved complex, to the order in which the kernels read coefficients:
  // as many numbers, or less. For forward and for backward, and the way back, for gradients.
  void (*pack_forward[2])(const Factors&, void* packed);
  void (*pack_backward[2])(const Factors&, void* packed);
  void (*unpack_backward[2])(const Factors& packed, void* factors);
  // The same for power spectra (for forward, for backward, back), which depends on the outputs used.
  void (*pack_spectrum[2])(const Factors&, const std::int64_t* rows, std::int64_t n_rows, void* packed);
  void (*unpack_spectrum)(const Factors&, const std::int64_t* rows, std::int64_t n_rows, const void* sums,
                          void* factors_grad);
};

struct Kernels {
  const char* name;
  TypedKernels f32, f64;
};

namespace baseline {
const Kernels& kernels();
}
#ifndef KALEIDO_ONLY_BASELINE
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
#endif

}  // namespace kaleido
