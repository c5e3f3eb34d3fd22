// The table of functions for one instruction set: this file is compiled once for each.

#include "kernels.h"

#include <new>
#include <type_traits>

#include "ahead.h"
#include "butterfly.h"
#include "scratch.h"
#include "spectrum.h"
#include "storage.h"

namespace kaleido {
namespace KALEIDO_ISA {
namespace {

template <typename T, typename Stored>
void load_as(const Vectors& v, std::int64_t first, int count, std::ptrdiff_t n, Rows<T> tile, bool imaginary) {
  const Stored* data = static_cast<const Stored*>(v.data);
  for (int r = 0; r < count; ++r) {
    const Stored* from = data + (first + r) * v.row;
    T *real = tile.at(r, 0), *imag = real + tile.plane;
    if (v.complex) {
      for (std::ptrdiff_t i = 0; i < v.features; ++i) {
        real[i] = T(from[2 * i]);
        imag[i] = T(from[2 * i + 1]);
      }
    } else {
      for (std::ptrdiff_t i = 0; i < v.features; ++i) real[i] = T(from[i]);
    }
    for (std::ptrdiff_t i = v.features; i < n; ++i) real[i] = T(0);
    if (v.complex || imaginary)
      for (std::ptrdiff_t i = v.complex ? v.features : 0; i < n; ++i) imag[i] = T(0);
  }
}

// Vectors first, ..., first + count - 1 into a tile, followed by zeros up to n; without `imaginary`, a real vector
// leaves the imaginary plane as it is.
template <typename T>
void load_rows(const Vectors& v, std::int64_t first, int count, std::ptrdiff_t n, Rows<T> tile, bool imaginary) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (v.storage == Storage::half) return load_as<T, Half>(v, first, count, n, tile, imaginary);
    if (v.storage == Storage::bfloat16) return load_as<T, BFloat16>(v, first, count, n, tile, imaginary);
  }
  load_as<T, T>(v, first, count, n, tile, imaginary);
}

template <typename T, typename Stored>
void store_as(Rows<T> tile, const Vectors& v, std::int64_t first, int count) {
  Stored* data = static_cast<Stored*>(v.data);
  for (int r = 0; r < count; ++r) {
    Stored* to = data + (first + r) * v.row;
    const T *real = tile.at(r, 0), *imag = real + tile.plane;
    if (v.complex) {
      for (std::ptrdiff_t i = 0; i < v.features; ++i) {
        to[2 * i] = Stored(real[i]);
        to[2 * i + 1] = Stored(imag[i]);
      }
    } else {
      for (std::ptrdiff_t i = 0; i < v.features; ++i) to[i] = Stored(real[i]);
    }
  }
}

// The first entries of the rows of a tile; a real destination takes the real parts.
template <typename T>
void store_rows(Rows<T> tile, const Vectors& v, std::int64_t first, int count) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (v.storage == Storage::half) return store_as<T, Half>(tile, v, first, count);
    if (v.storage == Storage::bfloat16) return store_as<T, BFloat16>(tile, v, first, count);
  }
  store_as<T, T>(tile, v, first, count);
}

// Vectors first, ..., first + count - 1 as memory: none where there are none, or where other numbers lie between them.
template <typename T>
Memory memory_of(const Vectors& v, std::int64_t first, int count) {
  if (!v.data || count == 0 || v.row != v.features * (v.complex ? 2 : 1)) return {nullptr, 0};
  const std::ptrdiff_t row = v.row * std::ptrdiff_t(v.storage == Storage::same ? sizeof(T) : sizeof(Half));
  return {static_cast<const char*>(v.data) + first * row, count * row};
}

// Calls f with a Product of as many lanes as fit n.
template <typename T, int Parts, typename F>
void with_product(bool gradients, const Factors& factors, F&& f) {
  const T* data = static_cast<const T*>(factors.data);
  const auto call = [&](auto lanes) {
    using P = Product<T, decltype(lanes)::value, Parts>;
    f(P(gradients ? P::Plan::gradients : P::Plan::forward, data, factors.n_factors, factors.log_n));
  };
  if (std::ptrdiff_t(1) << factors.log_n >= kLanes<T>)
    call(std::integral_constant<int, kLanes<T>>());
  else
    call(std::integral_constant<int, 1>());
}

int smaller(std::int64_t a, std::int64_t b) { return int(a < b ? a : b); }

template <typename T, int Parts>
void multiply(const Multiply& args, std::int64_t begin, std::int64_t end) {
  with_product<T, Parts>(false, args.factors, [&](const auto& product) {
    const std::ptrdiff_t n = product.n();
    // Real vectors of full length are read and written where they are, unless there are many so far apart that they
    // get in each other's way in the cache.
    const bool few = end - begin <= 4;
    const auto in_place = [&](const Vectors& v) {
      const bool close = v.row == n && n * std::ptrdiff_t(sizeof(T)) <= 8192;
      return Parts == 1 && v.storage == Storage::same && v.features == n && (few || close);
    };
    const bool read_in_place = in_place(args.x), write_in_place = in_place(args.y);
    const int tile_rows = smaller(product.tile_rows(), end - begin);
    Scratch<T> scratch(tile_rows * product.tile_row());
    const Rows<T> tile{scratch.get(), product.tile_row(), product.tile_plane()};
    for (std::int64_t first = begin; first < end; first += tile_rows) {
      const int rows = smaller(tile_rows, end - first);
      Rows<T> x = tile, y = tile;
      if (read_in_place)
        x = {static_cast<T*>(args.x.data) + first * args.x.row, args.x.row, 0};
      else
        load_rows(args.x, first, rows, n, tile, false);
      if (write_in_place) y = {static_cast<T*>(args.y.data) + first * args.y.row, args.y.row, 0};
      Ahead ahead(few ? 0 : product.steps_ahead(rows));
      ahead.will_write(memory_of<T>(args.y, first, rows));
      ahead.will_read(memory_of<T>(args.x, first + rows, smaller(tile_rows, end - first - rows)));
      product.forward(x, tile, y, rows, !args.x.complex, args.factors.packed, ahead);
      if (!write_in_place) store_rows(tile, args.y, first, rows);
    }
  });
}

// Rows of a tile whose checkpoints stay in the second-level cache.
template <typename P>
int backward_rows(const P& product, std::size_t row_bytes) {
  const std::ptrdiff_t rows = std::ptrdiff_t(294912) / ((product.pass_count() + 1) * std::ptrdiff_t(row_bytes));
  // Coefficients and their gradients pass through the cache once a tile: with long rows few of them pay only so far.
  const int least = row_bytes <= 17000 ? 8 : 4;
  return rows < least ? least : rows > 16 ? 16 : int(rows);
}

// Memory for the inputs of all passes of a tile, and for its gradient.
template <typename T, typename P>
class Checkpoints {
 public:
  Checkpoints(const P& product, int rows)
      : count_(product.pass_count()),
        size_(rows * product.tile_row()),
        memory_((count_ + 1) * size_),
        rows_(count_) {
    for (int c = 0; c < count_; ++c)
      new (rows_.get() + c) Rows<T>{memory_.get() + c * size_, product.tile_row(), product.tile_plane()};
    grad = {memory_.get() + count_ * size_, product.tile_row(), product.tile_plane()};
  }
  const Rows<T>* get() const { return rows_.get(); }

  Rows<T> grad;

 private:
  int count_;
  std::ptrdiff_t size_;
  Scratch<T> memory_;
  Scratch<Rows<T>> rows_;
};

template <typename T, int Parts>
void backward(const Backward& args, std::int64_t begin, std::int64_t end) {
  with_product<T, Parts>(true, args.factors, [&](const auto& product) {
    const std::ptrdiff_t n = product.n();
    const int tile_rows = smaller(backward_rows(product, product.tile_row() * sizeof(T)), end - begin);
    Checkpoints<T, std::decay_t<decltype(product)>> checkpoints(product, tile_rows);
    for (std::int64_t first = begin; first < end; first += tile_rows) {
      const int rows = smaller(tile_rows, end - first);
      load_rows(args.grad, first, rows, n, checkpoints.grad, Parts == 2);
      if (args.factors_grad) {
        load_rows(args.x, first, rows, n, checkpoints.get()[0], Parts == 2);
        const int next = smaller(tile_rows, end - first - rows);
        Ahead ahead(product.steps_ahead(rows));
        ahead.will_write(memory_of<T>(args.x_grad, first, rows));
        ahead.will_read(memory_of<T>(args.grad, first + rows, next));
        ahead.will_read(memory_of<T>(args.x, first + rows, next));
        product.forward_with_checkpoints(checkpoints.get(), rows, false, ahead);
      }
      product.backward(checkpoints.get(), checkpoints.grad, static_cast<T*>(args.factors_grad), rows);
      if (args.x_grad.data) store_rows(checkpoints.grad, args.x_grad, first, rows);
    }
  });
}

// --- the featurizer ---

// Windowed frames as rows of real parts, followed by zeros up to n.
template <typename T>
void load_frames(const PowerSpectrum& args, std::int64_t first, int count, std::ptrdiff_t n, Rows<T> tile) {
  const T* window = static_cast<const T*>(args.window);
  for (int r = 0; r < count; ++r) {
    const std::int64_t b = (first + r) / args.frames, t = (first + r) % args.frames;
    const T* from = static_cast<const T*>(args.waveform) + b * args.waveform_row + t * args.hop;
    T* to = tile.at(r, 0);
    for (std::ptrdiff_t i = 0; i < args.frame_length; ++i) to[i] = from[i] * window[i];
    for (std::ptrdiff_t i = args.frame_length; i < n; ++i) to[i] = T(0);
  }
}

// Calls f with a Spectrum of as many lanes as fit n.
template <typename T, typename F>
void with_spectrum(bool gradients, const Factors& factors, const std::int64_t* rows, std::int64_t n_rows, F&& f) {
  const T* data = static_cast<const T*>(factors.data);
  const auto call = [&](auto lanes) {
    using S = Spectrum<T, decltype(lanes)::value>;
    f(S(gradients ? S::Plan::gradients : S::Plan::forward, data, factors.n_factors, factors.log_n, rows, n_rows));
  };
  if (std::ptrdiff_t(1) << factors.log_n >= kLanes<T>)
    call(std::integral_constant<int, kLanes<T>>());
  else
    call(std::integral_constant<int, 1>());
}

template <typename T>
void power_spectrum(const PowerSpectrum& args, std::int64_t begin, std::int64_t end) {
  with_spectrum<T>(false, args.factors, args.rows, args.n_rows, [&](const auto& spectrum) {
    const auto& product = spectrum.main();
    const int tile_rows = smaller(product.tile_rows(), end - begin);
    const Scratch<T> tile_memory(tile_rows * product.tile_row()), output_memory(tile_rows * spectrum.output_row());
    const Rows<T> tile{tile_memory.get(), product.tile_row(), product.tile_plane()};
    const Rows<T> outputs{output_memory.get(), spectrum.output_row(), spectrum.output_plane()};
    for (std::int64_t first = begin; first < end; first += tile_rows) {
      const int rows = smaller(tile_rows, end - first);
      load_frames(args, first, rows, product.n(), tile);
      spectrum.forward(tile, outputs, rows);
      for (int r = 0; r < rows; ++r) {
        T *real = outputs.at(r, 0), *imag = real + outputs.plane;
        T* to = static_cast<T*>(args.power) + (first + r) * args.n_rows;
        // All of them at once: what is not used costs less than to pick real and imaginary parts one by one.
        for (std::ptrdiff_t i = 0; i < spectrum.output_count(); ++i) real[i] = real[i] * real[i] + imag[i] * imag[i];
        for (std::int64_t k = 0; k < args.n_rows; ++k) to[k] = real[spectrum.places()[k]];
      }
    }
  });
}

template <typename T>
void power_spectrum_backward(const PowerSpectrumBackward& args, std::int64_t begin, std::int64_t end) {
  const PowerSpectrum& forward = args.forward;
  with_spectrum<T>(true, forward.factors, forward.rows, forward.n_rows, [&](const auto& spectrum) {
    const auto& product = spectrum.main();
    const std::ptrdiff_t n = product.n();
    const int tile_rows = smaller(backward_rows(product, product.tile_row() * sizeof(T)), end - begin);
    const int count = spectrum.checkpoint_count();
    const Scratch<T> memory(tile_rows * (count + 2) * product.tile_row());
    T* free = memory.get();
    const auto allocate = [&](std::ptrdiff_t row) {
      T* here = free;
      free += tile_rows * row;
      return here;
    };
    const Scratch<Rows<T>> checkpoints(count);
    spectrum.place_checkpoints(checkpoints.get(), allocate);
    const Rows<T> frames = checkpoints.get()[0], outputs = checkpoints.get()[count - 1];
    const Rows<T> frame_grad{allocate(frames.row), frames.row, frames.plane};
    const Rows<T> output_grad{allocate(outputs.row), outputs.row, outputs.plane};
    const T* window = static_cast<const T*>(forward.window);
    for (std::int64_t first = begin; first < end; first += tile_rows) {
      const int rows = smaller(tile_rows, end - first);
      load_frames(forward, first, rows, n, frames);
      for (int r = 0; r < rows; ++r)
        for (std::ptrdiff_t i = 0; i < n; ++i) frames.at(r, frames.plane)[i] = T(0);
      spectrum.forward_with_checkpoints(checkpoints.get(), rows);
      for (int r = 0; r < rows; ++r) {
        const T *real = outputs.at(r, 0), *imag = real + outputs.plane;
        T *real_grad = output_grad.at(r, 0), *imag_grad = real_grad + outputs.plane;
        for (std::ptrdiff_t i = 0; i < outputs.row; ++i) real_grad[i] = T(0);
        const T* grad = static_cast<const T*>(args.grad) + (first + r) * forward.n_rows;
        for (std::int64_t k = 0; k < forward.n_rows; ++k) {
          const std::ptrdiff_t i = spectrum.places()[k];
          real_grad[i] += 2 * grad[k] * real[i];
          imag_grad[i] += 2 * grad[k] * imag[i];
        }
      }
      const Rows<T> result = spectrum.backward(checkpoints.get(), output_grad, frame_grad,
                                               static_cast<T*>(args.factors_grad), rows);
      for (int r = 0; r < rows; ++r) {
        const std::int64_t b = (first + r) / forward.frames, t = (first + r) % forward.frames;
        const std::int64_t start = b * forward.waveform_row + t * forward.hop;
        const T* grad = result.at(r, 0);
        if (args.waveform_grad) {
          T* to = static_cast<T*>(args.waveform_grad) + (start - args.first_sample);
          for (std::ptrdiff_t i = 0; i < forward.frame_length; ++i) to[i] += grad[i] * window[i];
        }
        if (args.window_grad) {
          const T* samples = static_cast<const T*>(forward.waveform) + start;
          T* to = static_cast<T*>(args.window_grad);
          for (std::ptrdiff_t i = 0; i < forward.frame_length; ++i) to[i] += grad[i] * samples[i];
        }
      }
    }
  });
}

// --- packing ---

template <typename T, int Parts, bool Gradients>
void pack(const Factors& factors, void* packed) {
  with_product<T, Parts>(Gradients, factors, [&](const auto& product) {
    product.pack(static_cast<const T*>(factors.data), static_cast<T*>(packed));
  });
}

template <typename T, int Parts>
void unpack(const Factors& packed, void* factors) {
  with_product<T, Parts>(true, packed, [&](const auto& product) {
    product.unpack(static_cast<const T*>(packed.data), static_cast<T*>(factors));
  });
}

template <typename T, bool Gradients>
void pack_spectrum(const Factors& factors, const std::int64_t* rows, std::int64_t n_rows, void* packed) {
  with_spectrum<T>(Gradients, factors, rows, n_rows, [&](const auto& spectrum) {
    spectrum.pack(static_cast<const T*>(factors.data), static_cast<T*>(packed));
  });
}

template <typename T>
void unpack_spectrum(const Factors& factors, const std::int64_t* rows, std::int64_t n_rows, const void* sums,
                     void* factors_grad) {
  with_spectrum<T>(true, factors, rows, n_rows, [&](const auto& spectrum) {
    spectrum.unpack(static_cast<const T*>(factors.data), static_cast<const T*>(sums), static_cast<T*>(factors_grad));
  });
}

template <typename T>
constexpr TypedKernels typed_kernels() {
  return {{multiply<T, 1>, multiply<T, 2>},
          {backward<T, 1>, backward<T, 2>},
          power_spectrum<T>,
          power_spectrum_backward<T>,
          {pack<T, 1, false>, pack<T, 2, false>},
          {pack<T, 1, true>, pack<T, 2, true>},
          {unpack<T, 1>, unpack<T, 2>},
          {pack_spectrum<T, false>, pack_spectrum<T, true>},
          unpack_spectrum<T>};
}

#define KALEIDO_STRING(x) #x
#define KALEIDO_NAME(x) KALEIDO_STRING(x)
constexpr Kernels kTable{KALEIDO_NAME(KALEIDO_ISA), typed_kernels<float>(), typed_kernels<double>()};

}  // namespace

const Kernels& kernels() { return kTable; }

}  // namespace KALEIDO_ISA
}  // namespace kaleido
