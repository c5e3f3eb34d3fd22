// The outputs of a product of complex butterfly matrices that a power spectrum uses, and their gradients.
//
// A Fourier transform by B* gives its frequencies in bit-reversed order: the first n/2 are the even outputs, and of the
// odd ones only output 1, at half the sampling rate, is used. The last B, which follows, mixes even with odd outputs in
// its stage of stride 1 and never again. Where all outputs used but one at most are even, that stage is made one with
// the last stage of B* before it; then the even half goes through the rest of B alone, and the odd output is one inner
// product with the odd half.
#pragma once

#include "butterfly.h"
#include "scratch.h"

namespace kaleido {
namespace KALEIDO_ISA {

// Numbers 0, 2, ... and 1, 3, ... of a and b together.
template <typename T, int L, int First, std::size_t... I>
KALEIDO_INLINE Vector<T, L> every_second(Vector<T, L> a, Vector<T, L> b, std::index_sequence<I...>) {
  static_assert(L > 1, "a single lane has nothing to leave out");
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, static_cast<int>(2 * I + First)...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  return __builtin_shuffle(a, b, Vector<Index, L>{static_cast<Index>(2 * I + First)...});
#endif
}

template <typename T, int L>
class Spectrum {
 public:
  using Main = Product<T, L, 2>;
  using Plan = typename Main::Plan;
  using V = typename Main::V;
  template <int K>
  using Coefficients = typename Main::template Coefficients<K, true>;

  // `packed` is what `pack` gives; rows are the outputs used.
  Spectrum(Plan plan, const T* packed, int n_factors, int log_n, const std::int64_t* rows, std::int64_t n_rows)
      : n_factors_(n_factors),
        log_n_(log_n),
        n_(std::ptrdiff_t(1) << log_n),
        half_(n_ / 2),
        halved_(find_odd(rows, n_rows)),
        main_(plan, packed, n_factors - halved_, log_n),
        even_(plan, packed + main_numbers(), 1, log_n - 1, true, kLeaf - 1),
        odd_row_(packed + main_numbers() + even_numbers()),
        places_(n_rows) {
    for (std::int64_t k = 0; k < n_rows; ++k)
      places_.get()[k] = std::int32_t(!halved_ ? rows[k] : rows[k] % 2 ? half_ : rows[k] / 2);
  }

  const Main& main() const { return main_; }
  // Where the outputs used are, in a row of outputs.
  const std::int32_t* places() const { return places_.get(); }
  std::ptrdiff_t output_count() const { return halved_ ? half_ + 1 : n_; }
  std::ptrdiff_t output_plane() const { return halved_ ? even_.tile_plane() : main_.tile_plane(); }
  std::ptrdiff_t output_row() const { return 2 * output_plane(); }

  // From factors (F, log2 n, 2, n), interleaved, to no more numbers than they have.
  void pack(const T* factors, T* packed) const {
    if (!halved_) return main_.pack(factors, packed);
    const Scratch<T> first(main_numbers()), half(even_numbers()), odd_packed(even_numbers());
    merge(factors, first.get());
    main_.pack(first.get(), packed);
    half_of_last(factors, 0, half.get());
    even_.pack(half.get(), packed + main_numbers());
    half_of_last(factors, 1, half.get());
    const Main odd(Plan::gradients, odd_packed.get(), 1, log_n_ - 1, true);
    odd.pack(half.get(), odd_packed.get());
    const Scratch<T> memory(odd.tile_row());
    const Rows<T> row = one_hot(odd, memory.get());
    odd.backward(nullptr, row, nullptr, 1);
    for (int part = 0; part < 2; ++part)
      for (std::ptrdiff_t i = 0; i < half_; ++i)
        packed[main_numbers() + even_numbers() + part * half_ + i] = row.at(0, i)[part * row.plane];
  }

  // The outputs of the real rows in `tile`, which is overwritten; if they are halved, `outputs` is other memory.
  void forward(Rows<T> tile, Rows<T> outputs, int rows) const {
    if (!halved_) return main_.forward(tile, tile, outputs, rows, true);
    if constexpr (L > 1) {
      // All but the last B* as ever; it and the even half of B are interleaved as a pair of factors is.
      const bool first = n_factors_ == 2;
      if (!first) Main(main_.plan_, main_.coefficients_, n_factors_ - 2, log_n_).forward(tile, tile, tile, rows, true);
      Pass down[kMaxPasses], up[kMaxPasses];
      std::ptrdiff_t size = 0, even_size = 0;
      for (int f = 0; f < n_factors_; f += 2) main_.passes_of_pair(f, down, size);  // keeps the last
      const int count = even_.passes_of_pair(0, up, even_size);
      for (int r = 0; r < rows; ++r) V::zero().store(outputs.at(r, half_), outputs.plane);
      block(down, up + count - 1, 0, tile, outputs, rows, first);
      for (int r = 0; r < rows; ++r)
        for (int part = 0; part < 2; ++part) {
          T* lanes = outputs.at(r, half_) + part * outputs.plane;
          for (int l = 1; l < L; ++l) lanes[0] += lanes[l];
        }
    }
  }

  // --- gradients ---

  int checkpoint_count() const { return main_.pass_count() + 1 + (halved_ ? even_.pass_count() + 1 : 0); }

  // Rows for the input of every pass and for the outputs, which are the last; the first holds the frames.
  template <typename Allocate>
  void place_checkpoints(Rows<T>* checkpoints, Allocate allocate) const {
    for (int c = 0; c < checkpoint_count(); ++c) {
      const Main& product = c <= main_.pass_count() ? main_ : even_;
      checkpoints[c] = {allocate(product.tile_row()), product.tile_row(), product.tile_plane()};
    }
  }

  void forward_with_checkpoints(const Rows<T>* checkpoints, int rows) const {
    main_.forward_with_checkpoints(checkpoints, rows, true);
    if constexpr (L > 1) {
      if (!halved_) return;
      const Rows<T>* even = checkpoints + main_.pass_count() + 1;
      split(even[-1], even[0], checkpoints[checkpoint_count() - 1], rows);
      even_.forward_with_checkpoints(even, rows, true);
    }
  }

  // From the gradient of the rows of outputs to that of the frames, which is returned, in one of the two places given.
  // `sums` (null, or as many numbers as the factors have) is added to.
  Rows<T> backward(const Rows<T>* checkpoints, Rows<T> output_grad, Rows<T> frame_grad, T* sums, int rows) const {
    if (!halved_) {
      main_.backward(checkpoints, output_grad, sums, rows);
      return output_grad;
    }
    const Rows<T>* even = checkpoints + main_.pass_count() + 1;
    even_.backward(even, output_grad, sums ? sums + main_numbers() : nullptr, rows);
    join(output_grad, frame_grad, rows);
    if (sums) add_odd_input(output_grad, even[-1], sums + main_numbers() + even_numbers(), rows);
    main_.backward(checkpoints, frame_grad, sums, rows);
    return frame_grad;
  }

  // From sums over all rows to the gradient of the factors (F, log2 n, 2, n), interleaved.
  void unpack(const T* factors, const T* sums, T* factors_grad) const {
    if (!halved_) return main_.unpack(sums, factors_grad);
    const Scratch<T> first(main_numbers()), half(even_numbers());
    main_.unpack(sums, first.get());
    unmerge(factors, first.get(), factors_grad);
    even_.unpack(sums + main_numbers(), half.get());
    to_half_of_last(half.get(), 0, factors_grad);
    odd_gradient(factors, sums + main_numbers() + even_numbers(), half.get());
    to_half_of_last(half.get(), 1, factors_grad);
  }

 private:
  static constexpr int kLeaf = 2;  // strides of several vectors in a leaf of the whole size: one less in the half

  // Whether the outputs are halved; if so, odd_ is the odd one.
  bool find_odd(const std::int64_t* rows, std::int64_t n_rows) {
    if (L < 2 || half_ < 2 * L || n_factors_ % 2) return false;
    for (std::int64_t k = 0; k < n_rows; ++k) {
      if (rows[k] % 2 == 0) continue;
      if (odd_ >= 0 && rows[k] != odd_) return false;
      odd_ = rows[k];
    }
    if (odd_ < 0) odd_ = 1;
    return true;
  }

  // The passes from `down` of B* to `up` of the half of B, on the places from base on: see Product::block.
  void block(const Pass* down, const Pass* up, std::ptrdiff_t base, Rows<T> tile, Rows<T> outputs, int rows,
             bool real_input) const {
    if (down->kind == Kind::leaf) return leaf(*down, *up, base, tile, outputs, rows, real_input);
    Ahead nothing;
    main_.template run<true>(*down, base, tile, tile, rows, real_input, nothing);
    for (int q = 0; q < 1 << down->levels; ++q)
      block(down + 1, up - 1, base + q * down->stride, tile, outputs, rows, false);
    even_.template run<true>(*up, base / 2, outputs, outputs, rows, false, nothing);
  }

  void leaf(const Pass& down, const Pass& up, std::ptrdiff_t i, Rows<T> tile, Rows<T> outputs, int rows,
            bool real_input) const {
    const Coefficients<kLeaf> c{main_.coefficients_ + Main::group_start(down, i, 0), nullptr, L, n_};
    const Coefficients<kLeaf - 1> half{even_.coefficients_ + Main::group_start(up, i / 2, 0), nullptr, L, half_};
    int r = 0;
    constexpr int B = Main::kBlock;
    for (; r + B <= rows; r += B) leaf_rows<B>(c, half, i, tile, outputs, r, real_input);
    for (; r < rows; ++r) leaf_rows<1>(c, half, i, tile, outputs, r, real_input);
  }

  template <int B>
  KALEIDO_INLINE void leaf_rows(const Coefficients<kLeaf>& c, const Coefficients<kLeaf - 1>& half, std::ptrdiff_t i,
                                Rows<T> tile, Rows<T> outputs, int r0, bool real_input) const {
    V v[B][1 << kLeaf], even[B][1 << (kLeaf - 1)];
    Main::template load_leaf<kLeaf, B>(tile, r0, i, real_input, v);
    Main::template leaf_down<kLeaf, B>(c, v);
#pragma GCC unroll 8
    for (int r = 0; r < B; ++r) {
      T* sum = outputs.at(r0 + r, half_);
      V odd = V::load(sum, outputs.plane);
#pragma GCC unroll 8
      for (int q = 0; q < 1 << (kLeaf - 1); ++q) {
        even[r][q] = select<0>(v[r][2 * q], v[r][2 * q + 1]);
        odd = mul_add(conj(odd_row(i / 2 + q * L)), select<1>(v[r][2 * q], v[r][2 * q + 1]), odd);
      }
      odd.store(sum, outputs.plane);
    }
    Main::template leaf_up<kLeaf - 1, B, false>(half, 0, even);
    Main::template store_group<kLeaf - 1, B>(even, outputs, r0, i / 2, L);
  }

  std::ptrdiff_t main_numbers() const { return std::ptrdiff_t(n_factors_ - halved_) * log_n_ * 4 * n_; }
  std::ptrdiff_t even_numbers() const { return halved_ ? std::ptrdiff_t(log_n_ - 1) * 4 * half_ : 0; }

  // Where the coefficients of a stage start.
  std::ptrdiff_t stage_start(int factor, int stage) const {
    return (std::ptrdiff_t(factor) * log_n_ + stage) * 4 * n_;
  }

  // The stages of one parity of the last factor but its first, as those of a B of size n/2.
  void half_of_last(const T* factors, int parity, T* half) const {
    const T* from = factors + stage_start(n_factors_ - 1, 1) + 2 * parity;
    for (std::ptrdiff_t i = 0; i < even_numbers() / 2; ++i, half += 2, from += 4) {
      half[0] = from[0];
      half[1] = from[1];
    }
  }
  void to_half_of_last(const T* half, int parity, T* factors) const {
    T* to = factors + stage_start(n_factors_ - 1, 1) + 2 * parity;
    for (std::ptrdiff_t i = 0; i < even_numbers() / 2; ++i, half += 2, to += 4) {
      to[0] = half[0];
      to[1] = half[1];
    }
  }

  struct Complex {
    T re, im;
    Complex operator+(Complex b) const { return {re + b.re, im + b.im}; }
    Complex operator*(Complex b) const { return {re * b.re - im * b.im, re * b.im + im * b.re}; }
    Complex conj() const { return {re, -im}; }
  };
  static Complex get(const T* p, std::ptrdiff_t i) { return {p[2 * i], p[2 * i + 1]}; }
  static void put(T* p, std::ptrdiff_t i, Complex c) {
    p[2 * i] = c.re;
    p[2 * i + 1] = c.im;
  }

  // All factors but the last, with its first stage made one with the stage before.
  void merge(const T* factors, T* first) const {
    __builtin_memcpy(first, factors, std::size_t(main_numbers()) * sizeof(T));
    const T* d1 = factors + stage_start(n_factors_ - 2, log_n_ - 1);
    const T* d2 = factors + stage_start(n_factors_ - 1, 0);
    const T *o1 = d1 + 2 * n_, *o2 = d2 + 2 * n_;
    T* d = first + stage_start(n_factors_ - 2, log_n_ - 1);
    for (std::ptrdiff_t i = 0; i < n_; ++i) {
      const std::ptrdiff_t p = i ^ 1;
      put(d, i, get(d2, i) * get(d1, i) + get(o2, i) * get(o1, p));
      put(d + 2 * n_, i, get(d2, i) * get(o1, i) + get(o2, i) * get(d1, p));
    }
  }

  void unmerge(const T* factors, const T* first, T* grad) const {
    __builtin_memcpy(grad, first, std::size_t(main_numbers()) * sizeof(T));
    const std::ptrdiff_t last = stage_start(n_factors_ - 2, log_n_ - 1), next = stage_start(n_factors_ - 1, 0);
    const T *d1 = factors + last, *d2 = factors + next, *o1 = d1 + 2 * n_, *o2 = d2 + 2 * n_;
    const T *gd = first + last, *go = gd + 2 * n_;
    for (std::ptrdiff_t i = 0; i < n_; ++i) {
      const std::ptrdiff_t p = i ^ 1;
      put(grad + last, i, get(gd, i) * get(d2, i).conj() + get(go, p) * get(o2, p).conj());
      put(grad + last + 2 * n_, i, get(go, i) * get(d2, i).conj() + get(gd, p) * get(o2, p).conj());
      put(grad + next, i, get(gd, i) * get(d1, i).conj() + get(go, i) * get(o1, i).conj());
      put(grad + next + 2 * n_, i, get(gd, i) * get(o1, p).conj() + get(go, i) * get(d1, p).conj());
    }
  }

  // A row that is one at the odd output and zero elsewhere.
  Rows<T> one_hot(const Main& odd, T* memory) const {
    for (std::ptrdiff_t i = 0; i < odd.tile_row(); ++i) memory[i] = T(0);
    memory[odd_ / 2] = T(1);
    return {memory, odd.tile_row(), odd.tile_plane()};
  }

  // The even values of each row to `even`, the odd output to place half_ of `outputs`.
  void split(Rows<T> x, Rows<T> even, Rows<T> outputs, int rows) const {
    for (int r = 0; r < rows; ++r) {
      V sum = V::zero();
      for (std::ptrdiff_t i = 0; i < half_; i += L) {
        const V a = V::load(x.at(r, 2 * i), x.plane), b = V::load(x.at(r, 2 * i + L), x.plane);
        select<0>(a, b).store(even.at(r, i), even.plane);
        sum = mul_add(conj(odd_row(i)), select<1>(a, b), sum);
      }
      for (int part = 0; part < 2; ++part) {
        T total = T(0), lanes[L];
        __builtin_memcpy(lanes, &sum.part[part], sizeof lanes);
        for (const T lane : lanes) total += lane;
        outputs.at(r, half_)[part * outputs.plane] = total;
      }
    }
  }

  // The reverse of `split`, for gradients.
  void join(Rows<T> output_grad, Rows<T> grad, int rows) const {
    for (int r = 0; r < rows; ++r) {
      for (int part = 0; part < 2; ++part)
        for (std::ptrdiff_t i = 0; i < half_; ++i)
          grad.at(r, 2 * i)[part * grad.plane] = output_grad.at(r, i)[part * output_grad.plane];
      const Complex g = odd_output(output_grad, r);
      for (std::ptrdiff_t i = 0; i < half_; ++i) {
        const Complex product = Complex{odd_row_[i], odd_row_[half_ + i]} * g;
        grad.at(r, 2 * i + 1)[0] = product.re;
        grad.at(r, 2 * i + 1)[grad.plane] = product.im;
      }
    }
  }

  // The sum over rows of the conjugate gradient of the odd output times the odd values.
  void add_odd_input(Rows<T> output_grad, Rows<T> x, T* sum, int rows) const {
    for (int r = 0; r < rows; ++r) {
      const Complex g = odd_output(output_grad, r).conj();
      for (std::ptrdiff_t i = 0; i < half_; ++i) {
        const T* value = x.at(r, 2 * i + 1);
        const Complex product = g * Complex{value[0], value[x.plane]};
        sum[i] += product.re;
        sum[half_ + i] += product.im;
      }
    }
  }

  // The odd output is linear in the odd values, and so the sum of its gradients over all rows is the gradient at the
  // sum of all values, each times the gradient of the output.
  void odd_gradient(const T* factors, const T* input, T* half_grad) const {
    const Scratch<T> half(even_numbers()), packed(even_numbers()), gradients(even_numbers());
    half_of_last(factors, 1, half.get());
    const Main odd(Plan::gradients, packed.get(), 1, log_n_ - 1, true);
    odd.pack(half.get(), packed.get());
    for (std::ptrdiff_t i = 0; i < even_numbers(); ++i) gradients.get()[i] = T(0);
    const int count = odd.pass_count();
    const Scratch<T> memory((count + 1) * odd.tile_row());
    Rows<T> checkpoints[kMaxPasses];
    for (int c = 0; c < count; ++c)
      checkpoints[c] = {memory.get() + c * odd.tile_row(), odd.tile_row(), odd.tile_plane()};
    for (int part = 0; part < 2; ++part)
      for (std::ptrdiff_t i = 0; i < half_; ++i)
        checkpoints[0].at(0, i)[part * odd.tile_plane()] = input[part * half_ + i];
    odd.forward_with_checkpoints(checkpoints, 1, false);
    odd.backward(checkpoints, one_hot(odd, memory.get() + count * odd.tile_row()), gradients.get(), 1);
    odd.unpack(gradients.get(), half_grad);
  }

  template <int First>
  static KALEIDO_INLINE V select(V a, V b) {
    V v;
    for (int part = 0; part < 2; ++part)
      v.part[part] = every_second<T, L, First>(a.part[part], b.part[part], std::make_index_sequence<L>());
    return v;
  }
  // The conjugate of the row of the odd output in the matrix of the odd half.
  KALEIDO_INLINE V odd_row(std::ptrdiff_t i) const { return V::load(odd_row_ + i, half_); }
  Complex odd_output(Rows<T> outputs, int r) const {
    const T* value = outputs.at(r, half_);
    return {value[0], value[outputs.plane]};
  }

  int n_factors_, log_n_;
  std::ptrdiff_t n_, half_;
  std::int64_t odd_ = -1;
  bool halved_;
  Main main_, even_;
  const T* odd_row_;
  Scratch<std::int32_t> places_;
};

}  // namespace KALEIDO_ISA
}  // namespace kaleido
