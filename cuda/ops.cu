// The operators kaleido_audio::* for CUDA tensors. Their schemas are defined by the CPU library, which is loaded first.

#include <algorithm>
#include <climits>
#include <string>
#include <tuple>
#include <vector>

#include "gpu.h"

namespace {

using namespace kaleido;
using namespace kaleido_cuda;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// --- arguments ---

constexpr int kMostBits = 30;  // of an index in a vector

Tensor checked_factors(const Tensor& factors) {
  check_factors(factors);
  STD_TORCH_CHECK(factors.size(1) <= kMostBits, "expected n of at most 2^", kMostBits);
  return as_contiguous(factors);
}

template <class Number>
Storage storage_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Half) return Storage::half;
  if (type == ScalarType::BFloat16) return Storage::bfloat16;
  return kaleido::is_complex(type) == kaleido_cuda::is_complex<Number> ? Storage::same : Storage::real;
}

// Vectors along the last dimension of a tensor, and the tensor that holds them if it had to be copied.
struct VectorsOf {
  explicit VectorsOf(const Tensor& x) : tensor(x), features(x.size(x.dim() - 1)) {
    const bool matrix = x.dim() == 2 && (x.stride(1) == 1 || features == 1);
    if (!matrix) tensor = as_contiguous(x);
    stride = matrix ? tensor.stride(0) : features;
    count = features ? x.numel() / features : 0;
  }
  template <class Number>
  Rows<Number> rows() const {
    return {const_cast<void*>(tensor.const_data_ptr()), stride, int(features), count, storage_of<Number>(tensor)};
  }
  Tensor tensor;
  std::int64_t features, count, stride;
};

// Numbers on the GPU, not set to anything.
class Scratch {
 public:
  Scratch(std::int64_t bytes, const Tensor& like)
      : tensor_(empty_tensor(&bytes, 1, aoti_torch_dtype_uint8(), like)) {}
  template <class T>
  T* as() const {
    return static_cast<T*>(tensor_.mutable_data_ptr());
  }

 private:
  Tensor tensor_;
};

template <class Number>
struct OwnRows {
  OwnRows(std::int64_t count, int features, const Tensor& like)
      : memory(count * features * std::int64_t(sizeof(Number)), like),
        rows{memory.as<Number>(), features, features, count, Storage::same} {}
  Scratch memory;
  Rows<Number> rows;
};

template <class Number>
const Number* numbers_of(const Tensor& tensor) {
  return static_cast<const Number*>(tensor.const_data_ptr());
}

// f(number) for a number of the type that the factors hold.
template <class F>
void with_number(const Tensor& factors, F&& f) {
  switch (factors.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::ComplexFloat: return f(Complex<float>{});
    default: return f(Complex<double>{});
  }
}
template <class F>
void with_complex(const Tensor& factors, F&& f) {
  return is_double(factors.scalar_type()) ? f(Complex<double>{}) : f(Complex<float>{});
}

void set_to_zero(Tensor& tensor, const Gpu& gpu, std::int64_t bytes_of_one) {
  if (tensor.numel() == 0) return;
  STD_CUDA_CHECK(cudaMemsetAsync(tensor.mutable_data_ptr(), 0, tensor.numel() * bytes_of_one, gpu.stream));
}

// --- butterfly ---

// Factors of one type, all of them or some of their stages.
template <class Number>
struct Product {
  const Tensor& factors;
  const Gpu& gpu;

  int log_n() const { return int(factors.size(1)); }
  int n() const { return 1 << log_n(); }
  int n_stages() const { return int(factors.size(0)) * log_n(); }
  const Number* data() const { return numbers_of<Number>(factors); }

  void multiply(const Rows<Number>& x, const Rows<Number>& y, int first, int last) const {
    if (first == 0 && last == n_stages()) {
      bool done;
      STD_CUDA_CHECK(LaunchClusters<Number>::multiply(x, y, data(), int(factors.size(0)), log_n(), gpu.device,
                                                      gpu.stream, &done));
      if (done) return;
    }
    const auto passes = plan_passes(log_n(), first, last, sizeof(Number));
    // Between passes the vectors lie where they end up, if there is room for all of their elements.
    const bool in_place = y.features == n() && y.storage == Storage::same;
    const bool apart = passes.size() > 1 && !in_place;
    const OwnRows<Number> own(apart ? y.count : 0, n(), factors);
    const Rows<Number>& between = apart ? own.rows : y;
    for (std::size_t i = 0; i < passes.size(); ++i)
      STD_CUDA_CHECK(Launch<Number>::multiply(i ? between : x, i + 1 < passes.size() ? between : y, data(), log_n(),
                                              passes[i], gpu.device, gpu.stream));
  }

  std::vector<Run> runs() const {
    const auto planned = [&](int cluster) {
      return plan_runs(log_n(), n_stages(), {stages_of_group<Number>(), backward_threads<Number>(),
                                             int(sizeof(Number)), gpu.device.block_bytes, cluster});
    };
    const auto runs = planned(gpu.device.cluster);
    // What a process was given of a GPU may be too little for a cluster.
    const bool possible = std::all_of(runs.begin(), runs.end(), [&](const Run& run) { return at_once(run) > 0; });
    return possible ? runs : planned(1);
  }

  // Clusters, or blocks, of a run that the GPU holds at once.
  int at_once(const Run& run) const {
    int clusters;
    STD_CUDA_CHECK(LaunchClusters<Number>::at_once(run, gpu.device, &clusters));
    return clusters;
  }

  // launch(parts, partial) for one run, then the sum of its partial gradients.
  template <class F>
  void backward_run(const Run& run, std::int64_t count, Number* factors_grad, F&& launch) const {
    const std::int64_t per_tile = run.map.vectors_per_tile();
    // Blocks or clusters that share a place in the vector: at most one for each tile.
    const std::int64_t tile_rows = (count + per_tile - 1) / per_tile;
    const std::int64_t of_place = at_once(run) / run.map.tiles_per_vector();
    const int parts = int(std::max<std::int64_t>(1, std::min(of_place, tile_rows)));
    const std::int64_t numbers = std::int64_t(run.last - run.first) * 2 * n();
    const Scratch partial(factors_grad ? parts * per_tile * numbers * std::int64_t(sizeof(Number)) : 0, factors);
    STD_CUDA_CHECK(launch(parts, factors_grad ? partial.template as<Number>() : nullptr));
    if (factors_grad)
      STD_CUDA_CHECK(LaunchClusters<Number>::sum(partial.template as<Number>(),
                                                 factors_grad + std::int64_t(run.first) * 2 * n(), parts * per_tile,
                                                 numbers, gpu.stream));
  }

  // The gradients of x (where x_grad has data) and of the factors (where asked for). last(run, input, x_grad, ...)
  // launches the last run, which alone knows what the gradient of the outputs is.
  template <class Last>
  void backward(const Rows<Number>& x, const Rows<Number>& x_grad, Number* factors_grad, Last&& launch_last) const {
    const auto all = runs();
    // The inputs of all runs, for the coefficients' gradients.
    std::vector<OwnRows<Number>> own;
    std::vector<Rows<Number>> inputs{x};
    for (std::size_t r = 1; r < all.size(); ++r) {
      own.emplace_back(x.count, n(), factors);
      multiply(inputs.back(), own.back().rows, all[r - 1].first, all[r].first);
      inputs.push_back(own.back().rows);
    }
    const OwnRows<Number> between(all.size() > 1 ? x.count : 0, n(), factors);
    for (std::size_t r = all.size(); r-- > 0;) {
      const Rows<Number>& to = r ? between.rows : x_grad;
      backward_run(all[r], x.count, factors_grad, [&](int parts, Number* partial) {
        if (r + 1 == all.size()) return launch_last(inputs[r], to, all[r], parts, partial);
        return LaunchClusters<Number>::backward(inputs[r], between.rows, to, data(), log_n(), all[r], parts, partial,
                                                gpu.stream);
      });
    }
  }
};

Tensor butterfly(Tensor x, Tensor given_factors, std::int64_t out_features) {
  const Tensor factors = checked_factors(given_factors);
  check_types(x, factors);
  check_devices(x, {&factors});
  const VectorsOf in(x);
  check_features(in.features, out_features, factors.size(3));
  const Gpu gpu(x);
  Tensor y = empty_product(x, factors, out_features);
  if (in.count == 0) return y;
  const VectorsOf out(y);
  with_number(factors, [&](auto number) {
    using Number = decltype(number);
    const Product<Number> product{factors, gpu};
    product.multiply(in.rows<Number>(), out.rows<Number>(), 0, product.n_stages());
  });
  return y;
}

std::tuple<Tensor, Tensor> butterfly_backward(Tensor grad, Tensor x, Tensor given_factors, bool x_grad,
                                              bool factors_grad) {
  const Tensor factors = checked_factors(given_factors);
  check_types(x, factors);
  check_devices(x, {&factors, &grad});
  const VectorsOf in(x), out(grad);
  check_gradient(grad, out.count, x, in.count, factors);
  const Gpu gpu(x);
  Tensor x_result = x_grad ? empty_as(x) : nothing_like(x);
  Tensor factors_result = factors_grad ? empty_as(factors) : nothing_like(factors);
  with_number(factors, [&](auto number) {
    using Number = decltype(number);
    if (in.count == 0) {
      set_to_zero(factors_result, gpu, sizeof(Number));
      return;
    }
    if (!x_grad && !factors_grad) return;
    const Product<Number> product{factors, gpu};
    const Rows<Number> nowhere{nullptr, 0, 0, in.count, Storage::same};
    product.backward(in.rows<Number>(), x_grad ? VectorsOf(x_result).rows<Number>() : nowhere,
                     factors_grad ? static_cast<Number*>(factors_result.mutable_data_ptr()) : nullptr,
                     [&](const Rows<Number>& input, const Rows<Number>& to, const Run& run, int parts, Number* partial) {
                       return LaunchClusters<Number>::backward(input, out.rows<Number>(), to, product.data(),
                                                               product.log_n(), run, parts, partial, gpu.stream);
                     });
  });
  return {x_result, factors_result};
}

// --- power spectrum ---

struct FramesOf {
  FramesOf(const Tensor& waveform, const Tensor& window, const Tensor& factors, const Tensor& rows, std::int64_t hop)
      : waveform(as_contiguous(waveform)), window(as_contiguous(window)), rows(as_contiguous(rows)), hop(hop) {
    check_frames(waveform, window, factors, rows, hop);
    check_devices(waveform, {&window, &factors, &rows});
    time = waveform.size(1);
    length = window.size(0);
    per_item = (time - length) / hop + 1;
    items = waveform.size(0);
    this->hop = std::min(hop, time);  // as far as frames go, any greater hop is the same
    STD_TORCH_CHECK(per_item <= INT_MAX && this->hop <= INT_MAX && rows.numel() <= INT_MAX, "expected at most ",
                    INT_MAX, " frames of a waveform, rows and samples of a hop");
  }
  template <class Number>
  Frames<Number> frames() const {
    using Real = RealOf<Number>;
    return {numbers_of<Real>(waveform), numbers_of<Real>(window), time, int(per_item), int(hop), int(length), count()};
  }
  std::int64_t count() const { return items * per_item; }

  Tensor waveform, window, rows;
  std::int64_t hop, time, length, per_item, items;
};

// The spectra of whole vectors are all in the registers of a warp.
template <class Number>
Pass only_pass(const Product<Number>& product) {
  const auto passes = plan_passes(product.log_n(), 0, product.n_stages(), sizeof(Number));
  STD_TORCH_CHECK(passes.size() == 1, "expected factors of at most ", sizeof(Number) == 16 ? 1024 : 2048,
                  " points for power spectra on a GPU, got ", product.n());
  return passes[0];
}

template <class Number>
void power_spectrum_into(const FramesOf& frames, const Tensor& factors, PowerSink<Number> sink, const Gpu& gpu) {
  const Product<Number> product{factors, gpu};
  const Pass pass = only_pass(product);
  STD_CUDA_CHECK(LaunchPower<Number>::power(frames.frames<Number>(), sink, product.data(), product.log_n(), pass,
                                            gpu.device, gpu.stream));
}

Tensor power_spectrum(Tensor waveform, Tensor window, Tensor given_factors, Tensor rows, std::int64_t hop) {
  const Tensor factors = checked_factors(given_factors);
  const FramesOf frames(waveform, window, factors, rows, hop);
  const Gpu gpu(waveform);
  Tensor power = empty_tensor({frames.items, frames.per_item, rows.numel()}, waveform);
  if (power.numel() == 0) return power;
  with_complex(factors, [&](auto number) {
    using Number = decltype(number);
    const PowerSink<Number> sink{static_cast<RealOf<Number>*>(power.mutable_data_ptr()),
                                 numbers_of<std::int64_t>(frames.rows), int(factors.size(3)), int(rows.numel()),
                                 frames.count()};
    power_spectrum_into<Number>(frames, factors, sink, gpu);
  });
  return power;
}

Tensor log_filterbank(Tensor waveform, Tensor window, Tensor given_factors, Tensor rows, std::int64_t hop,
                      Tensor filterbank, double power, double log_scale, double eps, double floor) {
  const Tensor factors = checked_factors(given_factors);
  const FramesOf frames(waveform, window, factors, rows, hop);
  check_devices(waveform, {&filterbank});
  STD_TORCH_CHECK(filterbank.dim() == 2 && filterbank.size(0) == rows.numel() &&
                      filterbank.scalar_type() == waveform.scalar_type() && filterbank.size(1) <= INT_MAX,
                  "expected a filterbank (len(rows), n_bands) of the waveform's type");
  STD_TORCH_CHECK(power > 0, "expected power > 0, got ", power);
  const Tensor weights = as_contiguous(filterbank);
  const Gpu gpu(waveform);
  Tensor result = empty_tensor({frames.items, frames.per_item, filterbank.size(1)}, waveform);
  if (result.numel() == 0) return result;
  with_complex(factors, [&](auto number) {
    using Number = decltype(number);
    using Real = RealOf<Number>;
    const PowerSink<Number> sink{static_cast<Real*>(result.mutable_data_ptr()),
                                 numbers_of<std::int64_t>(frames.rows),
                                 int(factors.size(3)),
                                 int(rows.numel()),
                                 frames.count(),
                                 numbers_of<Real>(weights),
                                 int(filterbank.size(1)),
                                 Real(power / 2),
                                 Real(log_scale),
                                 Real(eps),
                                 Real(floor)};
    power_spectrum_into<Number>(frames, factors, sink, gpu);
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> power_spectrum_backward(Tensor grad, Tensor waveform, Tensor window,
                                                           Tensor given_factors, Tensor rows, std::int64_t hop,
                                                           bool waveform_grad, bool window_grad, bool factors_grad) {
  const Tensor factors = checked_factors(given_factors), given = as_contiguous(grad);
  const FramesOf frames(waveform, window, factors, rows, hop);
  check_devices(waveform, {&grad});
  STD_TORCH_CHECK(grad.numel() == frames.count() * rows.numel() && grad.scalar_type() == waveform.scalar_type(),
                  "grad does not belong to the waveform, window and rows");
  const Gpu gpu(waveform);
  Tensor waveform_result = waveform_grad ? empty_as(frames.waveform) : nothing_like(waveform);
  Tensor window_result = window_grad ? empty_as(frames.window) : nothing_like(window);
  Tensor factors_result = factors_grad ? empty_as(factors) : nothing_like(factors);
  with_complex(factors, [&](auto number) {
    using Number = decltype(number);
    using Real = RealOf<Number>;
    using Launches = LaunchPower<Number>;
    if (grad.numel() == 0) {
      set_to_zero(waveform_result, gpu, sizeof(Real));
      set_to_zero(window_result, gpu, sizeof(Real));
      set_to_zero(factors_result, gpu, sizeof(Number));
      return;
    }
    const Product<Number> product{factors, gpu};
    only_pass(product);
    const int n = product.n(), n_rows = int(rows.numel());
    const Frames<Number> source = frames.frames<Number>();
    const Scratch links((std::int64_t(n) + n_rows) * std::int64_t(sizeof(int)), factors);
    int *head = links.as<int>(), *next = head + n;
    STD_CUDA_CHECK(Launches::link(numbers_of<std::int64_t>(frames.rows), n_rows, n, head, next, gpu.stream));
    const PowerGradient<Number> spectrum_grad{numbers_of<Real>(given), head, next, n_rows, source.count};

    // The gradients of the windowed frames, as real numbers.
    const bool frames_grad = waveform_grad || window_grad;
    const OwnRows<Real> own(frames_grad ? source.count : 0, source.features, waveform);
    const Rows<Number> to{frames_grad ? own.rows.data : nullptr, source.features, source.features, source.count,
                          Storage::real};
    Number* coefficients_grad = factors_grad ? static_cast<Number*>(factors_result.mutable_data_ptr()) : nullptr;
    const auto runs = product.runs();
    if (runs.size() == 1) {
      product.backward_run(runs[0], source.count, coefficients_grad, [&](int parts, Number* partial) {
        return LaunchPowerBackward<Number>::all(source, spectrum_grad, to, product.data(), product.log_n(), runs[0],
                                                parts, partial, gpu.stream);
      });
    } else {
      const OwnRows<Real> windowed(source.count, source.features, waveform);
      STD_CUDA_CHECK(Launches::windowed(source, static_cast<Real*>(windowed.rows.data), gpu.stream));
      const Rows<Number> x{windowed.rows.data, source.features, source.features, source.count, Storage::real};
      product.backward(x, to, coefficients_grad,
                       [&](const Rows<Number>& input, const Rows<Number>& output, const Run& run, int parts,
                           Number* partial) {
                         return LaunchPowerBackward<Number>::last(input, spectrum_grad, output, product.data(),
                                                                  product.log_n(), run, parts, partial, gpu.stream);
                       });
    }
    const Real* of_frames = static_cast<const Real*>(own.rows.data);
    if (waveform_grad)
      STD_CUDA_CHECK(Launches::overlap(source, of_frames, frames.items,
                                       static_cast<Real*>(waveform_result.mutable_data_ptr()), gpu.stream));
    if (window_grad) {
      const OwnRows<Real> partial(window_chunks(source.count), source.features, waveform);
      STD_CUDA_CHECK(Launches::window(source, of_frames, static_cast<Real*>(partial.rows.data),
                                      static_cast<Real*>(window_result.mutable_data_ptr()), gpu.stream));
    }
  });
  return {waveform_result, window_result, factors_result};
}

#define KALEIDO_TEXT_OF(tokens) #tokens
#define KALEIDO_TEXT(macro) KALEIDO_TEXT_OF(macro)

// Ten times the compute capabilities that there is code for, in rising order, as "80:90"; the last has PTX too.
std::string cuda_architectures() { return KALEIDO_TEXT(KALEIDO_CUDA_ARCHITECTURES); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(kaleido_audio, m) {
  m.def("cuda_architectures() -> str");
  // log_scale * log(max(filterbank^T |z|^power + eps, floor)), or without the logarithm where log_scale is 0; no gradients.
  m.def(
      "log_filterbank(Tensor waveform, Tensor window, Tensor factors, Tensor rows, int hop, Tensor filterbank, "
      "float power, float log_scale, float eps, float floor) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(kaleido_audio, KALEIDO_DISPATCH_KEY, m) {
  m.impl("butterfly", TORCH_BOX(&butterfly));
  m.impl("butterfly_no_grad", TORCH_BOX(&butterfly));
  m.impl("butterfly_backward", TORCH_BOX(&butterfly_backward));
  m.impl("power_spectrum", TORCH_BOX(&power_spectrum));
  m.impl("power_spectrum_backward", TORCH_BOX(&power_spectrum_backward));
  m.impl("log_filterbank", TORCH_BOX(&log_filterbank));
}

STABLE_TORCH_LIBRARY_IMPL(kaleido_audio, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&cuda_architectures));
}
