// The operators kaleido_audio::*, on LibTorch's stable ABI: one library for every torch from 2.10 on.

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace {

using namespace kaleido;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// --- which kernels ---

const Kernels* kernels_named(const std::string& name) {
  if (name == "baseline") return &kaleido::baseline::kernels();
#ifndef KALEIDO_ONLY_BASELINE
  // What -march=x86-64-v3 and -v4 stand for.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (name == "avx2" && v3) return &kaleido::avx2::kernels();
  if (name == "avx512" && v4) return &kaleido::avx512::kernels();
#endif
  return nullptr;
}

const Kernels* best_kernels() {
  const char* asked = std::getenv("KALEIDO_CPU_CAPABILITY");
  if (asked)
    if (const Kernels* kernels = kernels_named(asked)) return kernels;
  for (const char* name : {"avx512", "avx2"})
    if (const Kernels* kernels = kernels_named(name)) return kernels;
  return kernels_named("baseline");
}

const Kernels*& current_kernels() {
  static const Kernels* kernels = best_kernels();
  return kernels;
}

std::string cpu_capability() { return current_kernels()->name; }

void set_cpu_capability(std::string name) {
  const Kernels* kernels = kernels_named(name);
  STD_TORCH_CHECK(kernels != nullptr, "expected a capability of this processor among baseline, avx2 and avx512, got ",
                  name);
  current_kernels() = kernels;
}

// --- arguments ---

const TypedKernels& kernels_for(const Tensor& factors) {
  return is_double(factors.scalar_type()) ? current_kernels()->f64 : current_kernels()->f32;
}

std::int64_t element_bytes(const Tensor& factors) { return is_double(factors.scalar_type()) ? 8 : 4; }

// Memory aligned to a cache line, not set to anything.
class Buffer {
 public:
  char* allocate(std::int64_t bytes) {
    data_.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)));
    STD_TORCH_CHECK(data_ != nullptr, "out of memory: ", bytes, " bytes");
    return data_.get();
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data_;
};

enum class Packing { forward, backward };

// Checked factors, packed for the kernels.
struct PackedFactors {
  explicit PackedFactors(const Tensor& given)
      : tensor(as_contiguous(given)) {
    check_factors(tensor);
    n = tensor.size(3);
    factors = {tensor.const_data_ptr(), int(tensor.size(0)), int(tensor.size(1)), false};
    complex = is_complex(tensor.scalar_type());
  }
  void pack(Packing packing) {
    const TypedKernels& kernels = kernels_for(tensor);
    replace([&](void* packed) {
      (packing == Packing::forward ? kernels.pack_forward : kernels.pack_backward)[complex](factors, packed);
    });
  }
  // For power spectra of the outputs `rows`.
  void pack(Packing packing, const std::int64_t* rows, std::int64_t n_rows) {
    const auto pack = kernels_for(tensor).pack_spectrum[packing == Packing::backward];
    replace([&](void* packed) { pack(factors, rows, n_rows, packed); });
  }
  std::int64_t numbers() const { return (complex ? 4 : 2) * n * factors.n_factors * factors.log_n; }
  // What one vector costs, in multiplications and additions.
  std::int64_t work() const { return 2 * (complex ? 4 : 1) * factors.n_factors * factors.log_n * n; }

  Tensor tensor;
  Factors factors;
  std::int64_t n;
  bool complex;

 private:
  template <typename F>
  void replace(F&& pack) {
    char* packed = memory_.allocate(numbers() * element_bytes(tensor));
    pack(packed);
    factors.data = packed;
    factors.packed = true;
  }
  Buffer memory_;
};

// x as vectors along its last dimension, with the tensor that holds them if it had to be copied.
struct VectorsOf {
  explicit VectorsOf(const Tensor& x) : tensor(x) {
    const auto type = x.scalar_type();
    features = x.size(x.dim() - 1);
    const bool matrix = x.dim() == 2 && (x.stride(1) == 1 || features == 1);
    if (!matrix && !x.is_contiguous()) tensor = as_contiguous(x);
    count = features ? x.numel() / features : 0;
    const std::int64_t row = matrix ? tensor.stride(0) : features;
    const bool complex = is_complex(type);
    vectors = {const_cast<void*>(tensor.const_data_ptr()), complex ? 2 * row : row, features,
               type == ScalarType::Half       ? kaleido::Storage::half
               : type == ScalarType::BFloat16 ? kaleido::Storage::bfloat16
                                              : kaleido::Storage::same,
               complex};
  }
  Tensor tensor;
  std::int64_t features, count;
  Vectors vectors;
};

// --- threads ---

// Below this many operations a second thread costs more than it brings.
constexpr std::int64_t kWorkOfAThread = 1 << 16;

int chunk_count(std::int64_t items, std::int64_t work_of_one) {
  const std::int64_t useful = items * work_of_one / kWorkOfAThread;
  return int(std::max<std::int64_t>(
      1, std::min({std::int64_t(torch::stable::get_num_threads()), useful, (items + 3) / 4})));
}

// f(chunk, begin, end) for `chunks` equal parts of 0, ..., items - 1: the same parts whatever thread takes them.
template <typename F>
void for_chunks(int chunks, std::int64_t items, const F& f) {
  if (chunks == 1) return f(0, std::int64_t(0), items);
  torch::stable::parallel_for(0, chunks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t c = first; c < last; ++c) f(int(c), items * c / chunks, items * (c + 1) / chunks);
  });
}

// One zeroed buffer of `numbers` for each chunk, summed in the order of chunks: the same sum from run to run.
class ChunkSums {
 public:
  ChunkSums(int chunks, std::int64_t numbers, std::int64_t bytes_of_one)
      : chunks_(chunks), numbers_(numbers), bytes_(bytes_of_one), memory_(chunks * numbers * bytes_of_one + 64) {}
  void* of(int chunk) { return begin() + chunk * numbers_ * bytes_; }
  void* sum() {
    bytes_ == 8 ? sum_as<double>() : sum_as<float>();
    return begin();
  }

 private:
  char* begin() { return memory_.data() + (64 - reinterpret_cast<std::uintptr_t>(memory_.data()) % 64) % 64; }
  template <typename T>
  void sum_as() {
    T* total = reinterpret_cast<T*>(begin());
    for (int c = 1; c < chunks_; ++c)
      for (std::int64_t i = 0; i < numbers_; ++i) total[i] += total[c * numbers_ + i];
  }
  int chunks_;
  std::int64_t numbers_, bytes_;
  std::vector<char> memory_;
};

// Summed gradients of coefficients as a tensor like the factors.
Tensor factors_grad_tensor(PackedFactors& factors, ChunkSums& sums) {
  Tensor result = empty_as(factors.tensor);
  Factors packed = factors.factors;
  packed.data = sums.sum();
  kernels_for(factors.tensor).unpack_backward[factors.complex](packed, result.mutable_data_ptr());
  return result;
}

// --- butterfly ---

Tensor butterfly(Tensor x, Tensor factors, std::int64_t out_features) {
  check_types(x, factors);
  PackedFactors packed(factors);
  VectorsOf in(x);
  check_features(in.features, out_features, packed.n);
  Tensor y = empty_product(x, factors, out_features);
  if (in.count == 0) return y;
  const VectorsOf out(y);
  // To rearrange the coefficients costs about what it saves on three vectors.
  if (packed.complex || in.count > 3) packed.pack(Packing::forward);
  const kaleido::Multiply args{in.vectors, out.vectors, packed.factors};
  const auto kernel = kernels_for(factors).multiply[packed.complex];
  for_chunks(chunk_count(in.count, packed.work()), in.count,
             [&](int, std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
  return y;
}

std::tuple<Tensor, Tensor> butterfly_backward(Tensor grad, Tensor x, Tensor factors, bool x_grad, bool factors_grad) {
  check_types(x, factors);
  PackedFactors packed(factors);
  const VectorsOf in(x), out(grad);
  check_gradient(grad, out.count, x, in.count, factors);
  Tensor x_result = x_grad ? empty_as(x) : nothing_like(x);
  const int chunks = chunk_count(in.count, 3 * packed.work());
  ChunkSums sums(chunks, factors_grad ? packed.numbers() : 0, element_bytes(factors));
  if (in.count && (x_grad || factors_grad)) {
    packed.pack(Packing::backward);
    kaleido::Backward args{in.vectors, out.vectors, {}, packed.factors, nullptr};
    if (x_grad) args.x_grad = VectorsOf(x_result).vectors;
    const auto kernel = kernels_for(factors).backward[packed.complex];
    for_chunks(chunks, in.count, [&](int chunk, std::int64_t begin, std::int64_t end) {
      kaleido::Backward own = args;
      if (factors_grad) own.factors_grad = sums.of(chunk);
      kernel(own, begin, end);
    });
  }
  return {x_result, factors_grad ? factors_grad_tensor(packed, sums) : nothing_like(factors)};
}

// --- power spectrum ---

struct FramesOf {
  FramesOf(const Tensor& waveform, const Tensor& window, PackedFactors& factors, const Tensor& rows, std::int64_t hop)
      : waveform_(as_contiguous(waveform)), window_(as_contiguous(window)), rows_(as_contiguous(rows)) {
    check_frames(waveform, window, factors.tensor, rows, hop);
    const std::int64_t length = window.size(0), time = waveform.size(1);
    const std::int64_t* row = static_cast<const std::int64_t*>(rows_.const_data_ptr());
    for (std::int64_t k = 0; k < rows.numel(); ++k)
      STD_TORCH_CHECK(0 <= row[k] && row[k] < factors.n, "expected rows in [0, ", factors.n, "), got ", row[k]);
    count = waveform.size(0) * ((time - length) / hop + 1);
    args = {waveform_.const_data_ptr(), time,          (time - length) / hop + 1, hop,
            window_.const_data_ptr(),   length,        row,                       rows.numel(),
            factors.factors,            nullptr};
  }
  kaleido::PowerSpectrum args;
  std::int64_t count;

 private:
  Tensor waveform_, window_, rows_;
};

Tensor power_spectrum(Tensor waveform, Tensor window, Tensor factors, Tensor rows, std::int64_t hop) {
  PackedFactors packed(factors);
  FramesOf frames(waveform, window, packed, rows, hop);
  Tensor power = empty_tensor({waveform.size(0), frames.args.frames, frames.args.n_rows}, waveform);
  if (frames.count == 0) return power;
  packed.pack(Packing::forward, frames.args.rows, frames.args.n_rows);
  frames.args.factors = packed.factors;
  frames.args.power = power.mutable_data_ptr();
  const auto kernel = kernels_for(factors).power_spectrum;
  for_chunks(chunk_count(frames.count, packed.work()), frames.count,
             [&](int, std::int64_t begin, std::int64_t end) { kernel(frames.args, begin, end); });
  return power;
}

std::tuple<Tensor, Tensor, Tensor> power_spectrum_backward(Tensor grad, Tensor waveform, Tensor window,
                                                           Tensor factors, Tensor rows, std::int64_t hop,
                                                           bool waveform_grad, bool window_grad, bool factors_grad) {
  PackedFactors packed(factors);
  FramesOf frames(waveform, window, packed, rows, hop);
  const Factors unpacked = packed.factors;
  kaleido::PowerSpectrum& args = frames.args;
  const Tensor given = as_contiguous(grad);
  STD_TORCH_CHECK(given.numel() == frames.count * args.n_rows &&
                      given.scalar_type() == waveform.scalar_type(),
                  "grad does not belong to the waveform, window and rows");
  const std::int64_t bytes = element_bytes(factors), length = args.frame_length;
  const int chunks = chunk_count(frames.count, 3 * packed.work());
  ChunkSums factor_sums(chunks, factors_grad ? packed.numbers() : 0, bytes);
  ChunkSums window_sums(chunks, window_grad ? length : 0, bytes);
  const auto sample_of = [&](std::int64_t frame) {
    return frame / args.frames * args.waveform_row + frame % args.frames * args.hop;
  };
  struct Samples {
    std::int64_t first = 0;
    std::vector<char> grad;
  };
  std::vector<Samples> samples(chunks);
  const auto kernel = kernels_for(factors).power_spectrum_backward;
  if (frames.count) {
    packed.pack(Packing::backward, args.rows, args.n_rows);
    args.factors = packed.factors;
    for_chunks(chunks, frames.count, [&](int chunk, std::int64_t begin, std::int64_t end) {
      kaleido::PowerSpectrumBackward own{args, given.const_data_ptr(), nullptr, 0, nullptr, nullptr};
      if (waveform_grad) {
        Samples& s = samples[chunk];
        s.first = sample_of(begin);
        s.grad.resize((sample_of(end - 1) + length - s.first) * bytes);
        own.waveform_grad = s.grad.data();
        own.first_sample = s.first;
      }
      if (window_grad) own.window_grad = window_sums.of(chunk);
      if (factors_grad) own.factors_grad = factor_sums.of(chunk);
      kernel(own, begin, end);
    });
  }
  Tensor waveform_result = nothing_like(waveform), window_result = nothing_like(waveform);
  if (waveform_grad) {
    waveform_result = torch::stable::new_zeros(waveform, waveform.sizes());
    const auto add = [&](auto* total) {
      using T = std::remove_pointer_t<decltype(total)>;
      for (const Samples& s : samples) {
        const T* part = reinterpret_cast<const T*>(s.grad.data());
        for (std::size_t i = 0; i < s.grad.size() / sizeof(T); ++i) total[s.first + std::int64_t(i)] += part[i];
      }
    };
    bytes == 8 ? add(static_cast<double*>(waveform_result.mutable_data_ptr()))
               : add(static_cast<float*>(waveform_result.mutable_data_ptr()));
  }
  if (window_grad) {
    window_result = empty_tensor({length}, waveform);
    std::copy_n(static_cast<const char*>(window_sums.sum()), length * bytes,
                static_cast<char*>(window_result.mutable_data_ptr()));
  }
  Tensor factors_result = nothing_like(factors);
  if (factors_grad) {
    factors_result = empty_as(packed.tensor);
    kernels_for(factors).unpack_spectrum(unpacked, args.rows, args.n_rows, factor_sums.sum(),
                                         factors_result.mutable_data_ptr());
  }
  return {waveform_result, window_result, factors_result};
}

}  // namespace

STABLE_TORCH_LIBRARY(kaleido_audio, m) {
  m.def("butterfly(Tensor x, Tensor factors, int out_features) -> Tensor");
  // The same without a rule for gradients: torch's dispatcher enters Python for such rules even where none is needed.
  m.def("butterfly_no_grad(Tensor x, Tensor factors, int out_features) -> Tensor");
  m.def(
      "butterfly_backward(Tensor grad, Tensor x, Tensor factors, bool x_grad, bool factors_grad) -> (Tensor, Tensor)");
  m.def("power_spectrum(Tensor waveform, Tensor window, Tensor factors, Tensor rows, int hop) -> Tensor");
  m.def(
      "power_spectrum_backward(Tensor grad, Tensor waveform, Tensor window, Tensor factors, Tensor rows, int hop, "
      "bool waveform_grad, bool window_grad, bool factors_grad) -> (Tensor, Tensor, Tensor)");
  m.def("cpu_capability() -> str");
  m.def("set_cpu_capability(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(kaleido_audio, CPU, m) {
  m.impl("butterfly", TORCH_BOX(&butterfly));
  m.impl("butterfly_no_grad", TORCH_BOX(&butterfly));
  m.impl("butterfly_backward", TORCH_BOX(&butterfly_backward));
  m.impl("power_spectrum", TORCH_BOX(&power_spectrum));
  m.impl("power_spectrum_backward", TORCH_BOX(&power_spectrum_backward));
}

STABLE_TORCH_LIBRARY_IMPL(kaleido_audio, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("set_cpu_capability", TORCH_BOX(&set_cpu_capability));
}
