// The maths of a product of butterfly matrices on a tile of vectors: forward, and gradients.
//
// A tile holds a few vectors ("rows") of n values, planar: the real parts of a row, then its imaginary parts. One
// stage is y[i] = D[i] x[i] + O[i] x[i XOR stride].
//
// Neighbouring stages are done in one pass over the tile: a group of 2^K vectors that K stages combine with each
// other is held in registers, for several rows at once, which share the coefficients. The strides below the vector
// length, of B* and of the B after it, are one pass, in which values change lanes. Coefficients are packed beforehand
// in the order in which the passes read them: their places in the factors lie powers of two apart, which would put
// them all in the same banks and sets of the cache.
#pragma once

#include "ahead.h"
#include "vector.h"

namespace kaleido {
namespace KALEIDO_ISA {

#if defined(KALEIDO_VECTOR_BYTES)  // of another processor than this one, for tests
constexpr int kVectorBytes = KALEIDO_VECTOR_BYTES, kRegisters = KALEIDO_VECTOR_BYTES == 64 ? 32 : 16;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

constexpr int log2_of(std::ptrdiff_t n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

// Rows of values in memory: row r starts at data + r * row, its imaginary parts `plane` numbers later.
template <typename T>
struct Rows {
  T* data;
  std::ptrdiff_t row, plane;
  KALEIDO_INLINE T* at(int r, std::ptrdiff_t i) const { return data + r * row + i; }
};

enum class Kind { down, leaf, up };  // strides of B* of several vectors; those within a block of vectors; those of B

// K = `levels` stages of `factor`, on groups of 2^K vectors that lie `stride` apart. A leaf has the strides within
// vectors too: down to 1, up from 1 (in the next factor), or both; if `merged`, its two stages of stride 1 are one.
struct Pass {
  Kind kind;
  int factor, levels;
  bool down, up, merged;
  std::ptrdiff_t stride;
  std::ptrdiff_t packed;  // where its packed coefficients start
};

constexpr int kMaxPasses = 40;  // of a BB* of log2 n < 40

template <typename T, int L, int Parts>
class Product {
 public:
  using V = Value<T, L, Parts>;
  static constexpr int kLogLanes = log2_of(L);
  // Rows that share the load of a coefficient, as far as there are registers for their groups of four vectors.
  static constexpr int kBlock = kRegisters / (8 * Parts);
  static constexpr int kMaxTile = 32;

  // For the gradients, every pass but the leaves has its own input, and no stages are merged.
  enum class Plan { forward, gradients };

  // `coefficients` are packed, or else (real ones, forward) the factors themselves (F, log2 n, 2, n). The first factor
  // is a B*, or with `only_b` the one factor is a B. Leaves take up to `leaf_levels` strides of several vectors.
  Product(Plan plan, const T* coefficients, int n_factors, int log_n, bool only_b = false, int leaf_levels = 2)
      : plan_(plan),
        coefficients_(coefficients),
        n_factors_(n_factors),
        log_n_(log_n),
        leaf_levels_(plan == Plan::forward ? leaf_levels : 0),
        only_b_(only_b),
        n_(std::ptrdiff_t(1) << log_n) {}

  std::ptrdiff_t n() const { return n_; }
  // Distances in a tile: half a cache line (or more) beyond a power of two, lest neighbours share banks or sets.
  std::ptrdiff_t tile_plane() const { return n_ + L; }
  std::ptrdiff_t tile_row() const { return Parts * tile_plane(); }

  // Rows of a tile that, for small n, stay in the first-level cache or nearly so.
  int tile_rows() const {
    const std::ptrdiff_t rows = 36864 / (tile_row() * std::ptrdiff_t(sizeof(T)));
    const int least = 4 * kBlock;
    return rows < least ? least : rows > kMaxTile ? kMaxTile : int(rows) / kBlock * kBlock;
  }

  // How often `forward` (in its first pair of factors) and `forward_with_checkpoints` step on what is fetched ahead.
  std::ptrdiff_t steps_ahead(int rows) const {
    const int levels = log_n_ - kLogLanes < leaf_levels_ ? log_n_ - kLogLanes : leaf_levels_;
    return (n_ / L >> levels) * (rows / kBlock);
  }

  // --- packing ---

  // From factors (F, log2 n, 2, n), complex ones interleaved, to the order of the passes.
  void pack(const T* factors, T* packed) const {
    each_coefficient([&](std::ptrdiff_t to, std::ptrdiff_t from, bool merged, std::ptrdiff_t next) {
      V d = load_interleaved(factors + Parts * from), o = load_interleaved(factors + Parts * (from + n_));
      if constexpr (L > 1) {
        if (merged) {
          const V d2 = load_interleaved(factors + Parts * next), o2 = load_interleaved(factors + Parts * (next + n_));
          const V d1 = d, o1 = o;
          d = mul_add(o2, o1.template swap<1>(), mul(d2, d1));
          o = mul_add(o2, d1.template swap<1>(), mul(d2, o1));
        }
      }
      d.store(packed + to, L);
      o.store(packed + to + Parts * L, L);
    });
  }

  // The reverse, for gradients.
  void unpack(const T* packed, T* factors) const {
    each_coefficient([&](std::ptrdiff_t from, std::ptrdiff_t to, bool, std::ptrdiff_t) {
      store_interleaved(V::load(packed + from, L), factors + Parts * to);
      store_interleaved(V::load(packed + from + Parts * L, L), factors + Parts * (to + n_));
    });
  }

  // --- forward ---

  // y = product * x for `rows` rows; x may be y or the tile, or else is left as it is. With `real_input`, only the
  // real plane of x is read. At least one factor.
  void forward(Rows<T> x, Rows<T> tile, Rows<T> y, int rows, bool real_input, bool packed = true,
               Ahead ahead = Ahead()) const {
    Pass passes[kMaxPasses];
    std::ptrdiff_t size = 0;
    for (int f = 0; f < n_factors_; f += 2) {
      const int count = passes_of_pair(f, passes, size);
      const Rows<T> from = f == 0 ? x : tile, to = f + 2 >= n_factors_ ? y : tile;
      const bool real = Parts == 2 && real_input && f == 0;
      if (packed)
        block<true>(passes, passes + count - 1, 0, from, tile, to, rows, real, ahead);
      else
        block<false>(passes, passes + count - 1, 0, from, tile, to, rows, real, ahead);
    }
  }

  // --- gradients ---

  int pass_count() const {
    Pass passes[kMaxPasses];
    std::ptrdiff_t size = 0;
    int count = 0;
    for (int f = 0; f < n_factors_; f += 2) count += passes_of_pair(f, passes, size);
    return count;
  }

  // The inputs of every pass: checkpoints[0] holds x already, checkpoints[p] is the input of pass p, and with
  // `with_output` there is one more, the output.
  void forward_with_checkpoints(const Rows<T>* checkpoints, int rows, bool with_output, Ahead ahead = Ahead()) const {
    Pass passes[kMaxPasses];
    std::ptrdiff_t size = 0;
    int done = 0;
    for (int f = 0; f < n_factors_; f += 2) {
      const int count = passes_of_pair(f, passes, size);
      for (int p = 0; p < count; ++p, ++done) {
        const bool last = f + 2 >= n_factors_ && p + 1 == count;
        if (last && !with_output) return;
        const std::ptrdiff_t span = passes[p].stride << passes[p].levels;
        for (std::ptrdiff_t base = 0; base < n_; base += span)
          run<true>(passes[p], base, checkpoints[done], checkpoints[done + 1], rows, false, ahead);
      }
    }
  }

  // grad: the gradient of the output, becomes that of the input. With `gradients` (packed as the coefficients are),
  // the gradients of the coefficients are added there; without, checkpoints are not read.
  void backward(const Rows<T>* checkpoints, Rows<T> grad, T* gradients, int rows) const {
    Pass passes[kMaxPasses];
    int done = pass_count();
    for (int f = (n_factors_ - 1) / 2 * 2; f >= 0; f -= 2) {
      std::ptrdiff_t size = std::ptrdiff_t(f) * log_n_ * 2 * Parts * n_;  // of the factors before
      for (int p = passes_of_pair(f, passes, size) - 1; p >= 0; --p) {
        --done;
        if (gradients)
          run_backward<true>(passes[p], checkpoints[done], grad, gradients, rows);
        else
          run_backward<false>(passes[p], Rows<T>{}, grad, gradients, rows);
      }
    }
  }

 private:
  friend struct Profiler;  // of benchmarks/passes.cpp
  template <typename, int>
  friend class Spectrum;

  // --- passes and their coefficients ---

  // Passes of B* at factor f and of the B after it, if any, in order; `size` counts the packed numbers so far.
  int passes_of_pair(int f, Pass* passes, std::ptrdiff_t& size) const {
    const bool has_down = !only_b_, has_up = only_b_ || f + 1 < n_factors_;
    const bool forward = plan_ == Plan::forward;
    const int levels = log_n_ - kLogLanes;
    const int leaf_levels = levels < leaf_levels_ ? levels : leaf_levels_;
    int count = 0;
    const auto append = [&](Kind kind, int factor, int k, std::ptrdiff_t stride) {
      const bool leaf = kind == Kind::leaf, merged = leaf && has_down && has_up && forward && L > 1;
      if (k == 0 && kLogLanes == 0 && !forward) return;  // a single lane has no strides within it
      passes[count++] = {kind, factor, k, leaf && has_down, leaf && has_up, merged, stride, size};
      size += stage_count(passes[count - 1]) * 2 * Parts * n_;
    };
    int taken[kMaxPasses], groups = 0;
    for (int left = levels - leaf_levels; left > 0; left -= taken[groups++]) {
      // By two, or by three where the registers hold eight vectors of two rows.
      const bool three = forward && kRegisters > 16 && left % 2 && left >= 3;
      taken[groups] = left % 2 == 0 ? 2 : three ? 3 : 1;
    }
    std::ptrdiff_t stride = n_;
    for (int g = 0; g < groups; ++g) {
      stride >>= taken[g];
      if (has_down) append(Kind::down, f, taken[g], stride);
    }
    append(Kind::leaf, f, leaf_levels, L);
    for (int g = groups - 1; has_up && g >= 0; --g) {
      append(Kind::up, f + has_down, taken[g], stride);
      stride <<= taken[g];
    }
    return count;
  }

  static int stage_count(const Pass& pass) {
    return pass.kind == Kind::leaf ? (pass.levels + kLogLanes) * (pass.down + pass.up) - pass.merged : pass.levels;
  }

  // Numbers of packed coefficients of one group of a pass.
  static std::ptrdiff_t group_size(const Pass& pass) {
    return (std::ptrdiff_t(stage_count(pass)) << pass.levels) * 2 * Parts * L;
  }

  // Packed coefficients of the group at base + offset, offset < stride.
  static std::ptrdiff_t group_start(const Pass& pass, std::ptrdiff_t base, std::ptrdiff_t offset) {
    return pass.packed + ((base >> pass.levels) + offset) / L * group_size(pass);
  }

  // Index among the factor's stages, and the factor, of the j-th stage of a pass.
  int stage_index(const Pass& pass, int j, int& factor) const {
    factor = pass.factor;
    if (pass.kind == Kind::up) return log2_of(pass.stride) + j;
    if (pass.kind == Kind::down) return log_n_ - log2_of(pass.stride) - pass.levels + j;
    const int down = pass.down ? pass.levels + kLogLanes : 0;
    if (j < down) return log_n_ - down + j;
    factor += pass.down;
    return j - down;
  }

  std::ptrdiff_t stage_start(int factor, int stage) const {
    return (std::ptrdiff_t(factor) * log_n_ + stage) * 2 * n_;
  }

  // f(place of the packed diagonal, place in the factors, whether it is merged, place of the stage after it)
  // for every vector of diagonal coefficients; the off-diagonal ones follow.
  template <typename F>
  void each_coefficient(F&& f) const {
    Pass passes[kMaxPasses];
    std::ptrdiff_t size = 0;
    for (int pair = 0; pair < n_factors_; pair += 2) {
      const int count = passes_of_pair(pair, passes, size);
      for (int p = 0; p < count; ++p) {
        const Pass& pass = passes[p];
        const int stages = stage_count(pass);
        const int down = pass.levels + kLogLanes;
        for (int j = 0; j < stages; ++j) {
          int factor, next_factor;
          const bool merged = pass.merged && j == down - 1, after = pass.merged && j >= down;
          const int stage = stage_index(pass, j + after, factor), next = stage_index(pass, j + 1, next_factor);
          const std::ptrdiff_t from = stage_start(factor, stage), from_next = stage_start(next_factor, next);
          for (std::ptrdiff_t base = 0; base < n_; base += pass.stride << pass.levels)
            for (std::ptrdiff_t offset = 0; offset < pass.stride; offset += L)
              for (int q = 0; q < 1 << pass.levels; ++q) {
                const std::ptrdiff_t i = base + offset + q * pass.stride;
                f(group_start(pass, base, offset) + ((j << pass.levels) + q) * 2 * Parts * L, from + i, merged,
                  from_next + i);
              }
        }
      }
    }
  }

  static KALEIDO_INLINE V load_interleaved(const T* p) {
    if constexpr (Parts == 1) {
      return V::load(p, 0);
    } else {
      V v;
      alignas(64) T re[L], im[L];
      for (int l = 0; l < L; ++l) {
        re[l] = p[2 * l];
        im[l] = p[2 * l + 1];
      }
      __builtin_memcpy(&v.part[0], re, sizeof re);
      __builtin_memcpy(&v.part[1], im, sizeof im);
      return v;
    }
  }
  static KALEIDO_INLINE void store_interleaved(V v, T* p) {
    if constexpr (Parts == 1) {
      v.store(p, 0);
    } else {
      alignas(64) T re[L], im[L];
      __builtin_memcpy(re, &v.part[0], sizeof re);
      __builtin_memcpy(im, &v.part[1], sizeof im);
      for (int l = 0; l < L; ++l) {
        p[2 * l] = re[l];
        p[2 * l + 1] = im[l];
      }
    }
  }

  // Coefficients of the q-th vector of a group at the j-th stage.
  template <int K, bool Packed>
  struct Coefficients {
    const T* packed;         // Packed: of this group
    const T* const* stages;  // otherwise: of its stages, at the group
    std::ptrdiff_t stride, n;

    KALEIDO_INLINE V diagonal(int j, int q) const {
      if constexpr (Packed) return V::load(packed + ((j << K) + q) * 2 * Parts * L, L);
      return V::load(stages[j] + q * stride, 0);
    }
    KALEIDO_INLINE V off_diagonal(int j, int q) const {
      if constexpr (Packed) return V::load(packed + (((j << K) + q) * 2 + 1) * Parts * L, L);
      return V::load(stages[j] + q * stride + n, 0);
    }
  };

  // Which bit of the place in its group tells the first of a pair from the second, at the j-th stage.
  template <int K>
  static constexpr int pair_bit(Kind kind, int j) {
    return kind == Kind::up ? 1 << j : 1 << (K - 1 - j);
  }

  // --- forward passes ---

  // A coefficient for B rows; a single row takes it from memory.
  template <int B>
  static KALEIDO_INLINE V shared(V v) {
    return B > 1 ? in_registers(v) : v;
  }

  // The j-th stage on a group in registers.
  template <int K, int B, typename C, typename In>
  static KALEIDO_INLINE void group_stage(const C& c, int j, int bit, const In (&x)[B][1 << K], V (&y)[B][1 << K]) {
#pragma GCC unroll 8
    for (int q = 0; q < 1 << K; ++q) {
      if (q & bit) continue;
      const int p = q | bit;
      const V d = shared<B>(c.diagonal(j, q)), o = shared<B>(c.off_diagonal(j, q));
      const V d2 = shared<B>(c.diagonal(j, p)), o2 = shared<B>(c.off_diagonal(j, p));
#pragma GCC unroll 8
      for (int r = 0; r < B; ++r) {
        const In first = x[r][q], second = x[r][p];
        y[r][q] = mul_add(o, second, mul(d, first));
        y[r][p] = mul_add(o2, first, mul(d2, second));
      }
    }
  }

  template <int Stride, int K, int B, typename C>
  static KALEIDO_INLINE void lane_stage(const C& c, int j, V (&v)[B][1 << K]) {
#pragma GCC unroll 8
    for (int q = 0; q < 1 << K; ++q) {
      const V d = shared<B>(c.diagonal(j, q)), o = shared<B>(c.off_diagonal(j, q));
#pragma GCC unroll 8
      for (int r = 0; r < B; ++r) v[r][q] = mul_add(o, v[r][q].template swap<Stride>(), mul(d, v[r][q]));
    }
  }

  template <int K, int B>
  static KALEIDO_INLINE void load_group(Rows<T> x, int r0, std::ptrdiff_t i, std::ptrdiff_t stride,
                                        V (&v)[B][1 << K]) {
#pragma GCC unroll 8
    for (int r = 0; r < B; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < 1 << K; ++q) v[r][q] = in_registers(V::load(x.at(r0 + r, i + q * stride), x.plane));
  }
  template <int K, int B>
  static KALEIDO_INLINE void store_group(const V (&v)[B][1 << K], Rows<T> y, int r0, std::ptrdiff_t i,
                                         std::ptrdiff_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < B; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < 1 << K; ++q) v[r][q].store(y.at(r0 + r, i + q * stride), y.plane);
  }

  template <int K, int B, Kind kind, bool RealInput, typename C>
  static KALEIDO_INLINE void column_group(const C& c, std::ptrdiff_t i, std::ptrdiff_t stride, Rows<T> x, Rows<T> y,
                                          int r0) {
    V v[B][1 << K];
    if constexpr (RealInput) {
      Value<T, L, 1> real[B][1 << K];
#pragma GCC unroll 8
      for (int r = 0; r < B; ++r)
#pragma GCC unroll 8
        for (int q = 0; q < 1 << K; ++q) real[r][q] = Value<T, L, 1>::load(x.at(r0 + r, i + q * stride), 0);
      group_stage<K, B>(c, 0, pair_bit<K>(kind, 0), real, v);
    } else {
      load_group<K, B>(x, r0, i, stride, v);
    }
#pragma GCC unroll 8
    for (int j = RealInput; j < K; ++j) group_stage<K, B>(c, j, pair_bit<K>(kind, j), v, v);
    store_group<K, B>(v, y, r0, i, stride);
  }

  template <int K, Kind kind, bool RealInput, bool Packed>
  void columns(const Pass& pass, std::ptrdiff_t base, Rows<T> x, Rows<T> y, int rows) const {
    constexpr int B = K < 3 || kBlock == 1 ? kBlock : kBlock / 2;
    const std::ptrdiff_t stride = pass.stride;
    const T* stages[K];
    if (!Packed) stage_pointers(pass, K, base, stages);
    Coefficients<K, Packed> c{Packed ? coefficients_ + group_start(pass, base, 0) : nullptr, stages, stride, n_};
    for (std::ptrdiff_t i = base; i < base + stride; i += L) {
      int r = 0;
      for (; r + B <= rows; r += B) column_group<K, B, kind, RealInput>(c, i, stride, x, y, r);
      for (; B > 1 && r < rows; ++r) column_group<K, 1, kind, RealInput>(c, i, stride, x, y, r);
      c.packed += (K << K) * 2 * Parts * L;
      for (int j = 0; !Packed && j < K; ++j) stages[j] += L;
    }
  }

  // Where the coefficients of the stages of a pass start, not packed.
  void stage_pointers(const Pass& pass, int count, std::ptrdiff_t i, const T** stages) const {
    for (int j = 0; j < count; ++j) {
      int factor;
      const int stage = stage_index(pass, j, factor);
      stages[j] = coefficients_ + stage_start(factor, stage) + i;
    }
  }

  template <int K, int B>
  static KALEIDO_INLINE void load_leaf(Rows<T> x, int r0, std::ptrdiff_t i, bool real_input, V (&v)[B][1 << K]) {
    if (Parts == 1 || !real_input) return load_group<K, B>(x, r0, i, L, v);
#pragma GCC unroll 8
    for (int r = 0; r < B; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < 1 << K; ++q) {
        v[r][q] = V::zero();
        v[r][q].part[0] = Value<T, L, 1>::load(x.at(r0 + r, i + q * L), 0).part[0];
      }
  }

  // The strides of a block of 2^K vectors down to 1, which are the stages from 0 on.
  template <int K, int B, typename C>
  static KALEIDO_INLINE void leaf_down(const C& c, V (&v)[B][1 << K]) {
    unrolled<K>([&](auto j) KALEIDO_ALWAYS_INLINE { group_stage<K, B>(c, j, pair_bit<K>(Kind::down, j), v, v); });
    unrolled<kLogLanes>([&](auto j) KALEIDO_ALWAYS_INLINE {
      lane_stage<(L >> 1 >> decltype(j)::value), K, B>(c, K + j, v);
    });
  }

  // Up again from 1 (from 2 if Merged), which are the stages from `first` on.
  template <int K, int B, bool Merged, typename C>
  static KALEIDO_INLINE void leaf_up(const C& c, int first, V (&v)[B][1 << K]) {
    unrolled<kLogLanes - Merged>([&](auto j) KALEIDO_ALWAYS_INLINE {
      lane_stage<(1 << Merged << decltype(j)::value), K, B>(c, first + j, v);
    });
    unrolled<K>([&](auto j) KALEIDO_ALWAYS_INLINE {
      group_stage<K, B>(c, first + kLogLanes - Merged + j, pair_bit<K>(Kind::up, j), v, v);
    });
  }

  template <int K, int B, bool Down, bool Up, bool Merged, typename C>
  static KALEIDO_INLINE void leaf_group(const C& c, std::ptrdiff_t i, Rows<T> x, Rows<T> y, int r0, bool real_input) {
    V v[B][1 << K];
    load_leaf<K, B>(x, r0, i, real_input, v);
    if constexpr (Down) leaf_down<K, B>(c, v);
    if constexpr (Up) leaf_up<K, B, Merged>(c, Down ? K + kLogLanes : 0, v);
    store_group<K, B>(v, y, r0, i, L);
  }

  template <int K, bool Down, bool Up, bool Packed>
  void leaf(const Pass& pass, std::ptrdiff_t i, Rows<T> x, Rows<T> y, int rows, bool real_input,
            Ahead& ahead) const {
    constexpr int kStages = (K + kLogLanes) * (Down + Up);
    const T* stages[kStages + 1];
    if (!Packed) stage_pointers(pass, kStages, i, stages);
    const Coefficients<K, Packed> c{Packed ? coefficients_ + group_start(pass, i, 0) : nullptr, stages, L, n_};
    if constexpr (Packed && Down && Up && L > 1) {
      if (pass.merged) return leaf_rows<K, Down, Up, true>(c, i, x, y, rows, real_input, ahead);
    }
    leaf_rows<K, Down, Up, false>(c, i, x, y, rows, real_input, ahead);
  }

  template <int K, bool Down, bool Up, bool Merged, typename C>
  void leaf_rows(const C& c, std::ptrdiff_t i, Rows<T> x, Rows<T> y, int rows, bool real_input, Ahead& ahead) const {
    int r = 0;
    for (; r + kBlock <= rows; r += kBlock) {
      leaf_group<K, kBlock, Down, Up, Merged>(c, i, x, y, r, real_input);
      ahead.step();
    }
    for (; r < rows; ++r) leaf_group<K, 1, Down, Up, Merged>(c, i, x, y, r, real_input);
  }

  // One pass on the places base, ..., base + (stride << levels) - 1.
  template <bool Packed>
  void run(const Pass& pass, std::ptrdiff_t base, Rows<T> x, Rows<T> y, int rows, bool real_input,
           Ahead& ahead) const {
    if (pass.kind == Kind::leaf) {
      if (pass.levels == 0)
        any_leaf<0, Packed>(pass, base, x, y, rows, real_input, ahead);
      else if (pass.levels == 1)
        any_leaf<1, Packed>(pass, base, x, y, rows, real_input, ahead);
      else
        any_leaf<2, Packed>(pass, base, x, y, rows, real_input, ahead);
    } else if (pass.kind == Kind::down) {
      if constexpr (Parts == 2) {
        if (real_input) return any_columns<Kind::down, true, Packed>(pass, base, x, y, rows);
      }
      any_columns<Kind::down, false, Packed>(pass, base, x, y, rows);
    } else {
      any_columns<Kind::up, false, Packed>(pass, base, x, y, rows);
    }
  }

  template <int K, bool Packed>
  void any_leaf(const Pass& pass, std::ptrdiff_t i, Rows<T> x, Rows<T> y, int rows, bool real_input,
                Ahead& ahead) const {
    if (pass.down && pass.up)
      leaf<K, true, true, Packed>(pass, i, x, y, rows, real_input, ahead);
    else if (pass.down)
      leaf<K, true, false, Packed>(pass, i, x, y, rows, real_input, ahead);
    else if constexpr (Packed)
      leaf<K, false, true, Packed>(pass, i, x, y, rows, real_input, ahead);
  }

  template <Kind kind, bool RealInput, bool Packed>
  void any_columns(const Pass& pass, std::ptrdiff_t base, Rows<T> x, Rows<T> y, int rows) const {
    if (pass.levels == 1)
      columns<1, kind, RealInput, Packed>(pass, base, x, y, rows);
    else if (pass.levels == 2)
      columns<2, kind, RealInput, Packed>(pass, base, x, y, rows);
    else if constexpr (kRegisters > 16)
      columns<3, kind, RealInput, Packed>(pass, base, x, y, rows);
  }

  // The passes from `down` to `up` on the places from base on. After the first strides of B* the parts of a block do
  // not meet before the last strides of B: each is finished while it is in the cache.
  template <bool Packed>
  void block(const Pass* down, const Pass* up, std::ptrdiff_t base, Rows<T> x, Rows<T> tile, Rows<T> y, int rows,
             bool real_input, Ahead& ahead) const {
    if (down == up) return run<Packed>(*down, base, x, y, rows, real_input, ahead);  // the leaf
    const bool has_down = down->kind == Kind::down, has_up = up->kind == Kind::up;
    if (has_down) {
      run<Packed>(*down, base, x, tile, rows, real_input, ahead);
      x = tile;
      real_input = false;
    }
    const Pass& outer = has_down ? *down : *up;
    for (int q = 0; q < 1 << outer.levels; ++q)
      block<Packed>(down + has_down, up - has_up, base + q * outer.stride, x, tile, has_up ? tile : y, rows,
                    real_input, ahead);
    if (has_up) run<Packed>(*up, base, tile, y, rows, false, ahead);
  }

  // --- backward passes ---

  template <bool WithGradients>
  void run_backward(const Pass& pass, Rows<T> x, Rows<T> grad, T* gradients, int rows) const {
    if (pass.kind == Kind::leaf) {
      if constexpr (L > 1) {
        if (pass.down && pass.up)
          backward_lanes<true, true, WithGradients>(pass, x, grad, gradients, rows);
        else if (pass.down)
          backward_lanes<true, false, WithGradients>(pass, x, grad, gradients, rows);
        else
          backward_lanes<false, true, WithGradients>(pass, x, grad, gradients, rows);
      }
    } else if (pass.levels == 1) {
      pass.kind == Kind::down ? backward_columns<1, Kind::down, WithGradients>(pass, x, grad, gradients, rows)
                              : backward_columns<1, Kind::up, WithGradients>(pass, x, grad, gradients, rows);
    } else {
      pass.kind == Kind::down ? backward_columns<2, Kind::down, WithGradients>(pass, x, grad, gradients, rows)
                              : backward_columns<2, Kind::up, WithGradients>(pass, x, grad, gradients, rows);
    }
  }

  static KALEIDO_INLINE void accumulate(T* p, V v) { add(V::load(p, L), v).store(p, L); }

  // The j-th stage, backwards, on the vectors q and p of a group, at `first` and `second`: gradients of coefficients
  // are summed over the rows in registers, so that rows are the inner loop here.
  template <int K, bool WithGradients, typename Input>
  static KALEIDO_INLINE void backward_pair(const Coefficients<K, true>& c, int j, int q, int p, std::ptrdiff_t first,
                                           std::ptrdiff_t second, Rows<T> grad, T* gradients, int rows, Input input) {
    const V d = conj(c.diagonal(j, q)), o = conj(c.off_diagonal(j, q));
    const V d2 = conj(c.diagonal(j, p)), o2 = conj(c.off_diagonal(j, p));
    V sum_d = V::zero(), sum_o = V::zero(), sum_d2 = V::zero(), sum_o2 = V::zero();
    for (int r = 0; r < rows; ++r) {
      const V g = V::load(grad.at(r, first), grad.plane), g2 = V::load(grad.at(r, second), grad.plane);
      if constexpr (WithGradients) {
        const V x = conj(input(q, r)), x2 = conj(input(p, r));
        sum_d = mul_add(g, x, sum_d);
        sum_o = mul_add(g, x2, sum_o);
        sum_d2 = mul_add(g2, x2, sum_d2);
        sum_o2 = mul_add(g2, x, sum_o2);
      }
      mul_add(o2, g2, mul(d, g)).store(grad.at(r, first), grad.plane);
      mul_add(o, g, mul(d2, g2)).store(grad.at(r, second), grad.plane);
    }
    if constexpr (WithGradients) {
      T* to = gradients + ((j << K) + q) * 2 * Parts * L;
      T* to2 = gradients + ((j << K) + p) * 2 * Parts * L;
      accumulate(to, sum_d);
      accumulate(to + Parts * L, sum_o);
      accumulate(to2, sum_d2);
      accumulate(to2 + Parts * L, sum_o2);
    }
  }

  template <int K, Kind kind, bool WithGradients>
  void backward_columns(const Pass& pass, Rows<T> x, Rows<T> grad, T* gradients, int rows) const {
    const std::ptrdiff_t stride = pass.stride;
    std::ptrdiff_t start = pass.packed;
    V second_input[4][kMaxTile];  // of the second stage, if K = 2
    for (std::ptrdiff_t base = 0; base < n_; base += stride << K) {
      for (std::ptrdiff_t i = base; i < base + stride; i += L, start += (K << K) * 2 * Parts * L) {
        const Coefficients<K, true> c{coefficients_ + start, nullptr, stride, n_};
        T* to = gradients + start;
        if constexpr (WithGradients && K == 2) {
          for (int r = 0; r < rows; ++r) {
            V v[1][4];
            load_group<2, 1>(x, r, i, stride, v);
            group_stage<2, 1>(c, 0, pair_bit<2>(kind, 0), v, v);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) second_input[q][r] = v[0][q];
          }
        }
#pragma GCC unroll 2
        for (int j = K - 1; j >= 0; --j) {
          const int bit = pair_bit<K>(kind, j);
#pragma GCC unroll 4
          for (int q = 0; q < 1 << K; ++q) {
            if (q & bit) continue;
            const int p = q | bit;
            const std::ptrdiff_t first = i + q * stride, second = i + p * stride;
            if (j == 1)
              backward_pair<K, WithGradients>(c, j, q, p, first, second, grad, to, rows,
                                              [&](int k, int r) { return second_input[k][r]; });
            else
              backward_pair<K, WithGradients>(c, j, q, p, first, second, grad, to, rows, [&](int k, int r) {
                return V::load(x.at(r, i + k * stride), x.plane);
              });
          }
        }
      }
    }
  }

  // The stride within a vector of stage s of `Down` stages of B* and those of a B after them.
  template <int Down>
  static constexpr int lane_stride(int s) {
    return s < Down ? 1 << (Down - 1 - s) : 1 << (s - Down);
  }

  // Stages within vectors, backwards: those of B*, of a B, or of both.
  template <bool Down, bool Up, bool WithGradients>
  void backward_lanes(const Pass& pass, Rows<T> x, Rows<T> grad, T* gradients, int rows) const {
    static_assert(L > 1, "a single lane has no strides within it");
    constexpr int kStages = kLogLanes * (Down + Up), kDown = Down ? kLogLanes : 0;
    V input[kStages][kMaxTile], g[kMaxTile];
    std::ptrdiff_t start = pass.packed;
    for (std::ptrdiff_t i = 0; i < n_; i += L, start += kStages * 2 * Parts * L) {
      const Coefficients<0, true> c{coefficients_ + start, nullptr, L, n_};
      for (int r = 0; r < rows; ++r) {
        g[r] = V::load(grad.at(r, i), grad.plane);
        if constexpr (WithGradients) input[0][r] = V::load(x.at(r, i), x.plane);
      }
      if constexpr (WithGradients) {
        unrolled<kStages - 1>([&](auto t) {
          constexpr int s = decltype(t)::value;
          constexpr int stride = lane_stride<kDown>(s);
          const V d = c.diagonal(s, 0), o = c.off_diagonal(s, 0);
          for (int r = 0; r < rows; ++r)
            input[s + 1][r] = mul_add(o, input[s][r].template swap<stride>(), mul(d, input[s][r]));
        });
      }
      unrolled<kStages>([&](auto t) {
        constexpr int s = kStages - 1 - decltype(t)::value;
        constexpr int stride = lane_stride<kDown>(s);
        const V d = conj(c.diagonal(s, 0)), o = conj(c.off_diagonal(s, 0)).template swap<stride>();
        V sum_d = V::zero(), sum_o = V::zero();
        for (int r = 0; r < rows; ++r) {
          if constexpr (WithGradients) {
            const V in = conj(input[s][r]);
            sum_d = mul_add(g[r], in, sum_d);
            sum_o = mul_add(g[r], in.template swap<stride>(), sum_o);
          }
          g[r] = mul_add(o, g[r].template swap<stride>(), mul(d, g[r]));
        }
        if constexpr (WithGradients) {
          T* to = gradients + start + s * 2 * Parts * L;
          accumulate(to, sum_d);
          accumulate(to + Parts * L, sum_o);
        }
      });
      for (int r = 0; r < rows; ++r) g[r].store(grad.at(r, i), grad.plane);
    }
  }

  Plan plan_;
  const T* coefficients_;
  int n_factors_, log_n_, leaf_levels_;
  bool only_b_;
  std::ptrdiff_t n_;
};

}  // namespace KALEIDO_ISA
}  // namespace kaleido
