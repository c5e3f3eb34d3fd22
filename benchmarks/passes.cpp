// Time of every pass of the CPU kernels, on a tile in the cache: `make profile`.
//
// A pass is a few stages done in registers; "of the limit" is the share of the processor's fused multiply-adds that the
// arithmetic of the definition takes: 4 n log2 n / lanes vector operations a vector and BB*, four times as many if
// complex. The rate of multiply-adds is measured beside.

#include "../cpu/butterfly.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <initializer_list>

namespace kaleido {
namespace KALEIDO_ISA {

struct Profiler {
  template <typename F>
  static double seconds(F&& f, int calls) {
    double best = 1e9;
    f();
    for (int round = 0; round < 31; ++round) {
      const double start = now();
      for (int i = 0; i < calls; ++i) f();
      const double taken = (now() - start) / calls;
      best = taken < best ? taken : best;
    }
    return best;
  }

  static double now() {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
  }

  // Multiply-adds of whole vectors a second, in ten independent chains.
  static double peak() {
    const double taken = seconds(
        [] {
          using V = Vector<float, kLanes<float>>;
          V a = V{} + 0.5f, v0 = a, v1 = a, v2 = a, v3 = a, v4 = a, v5 = a, v6 = a, v7 = a, v8 = a, v9 = a;
          for (int i = 0; i < 10000; ++i) {
            for (V* v : {&v0, &v1, &v2, &v3, &v4, &v5, &v6, &v7, &v8, &v9}) *v = *v * a + a;
            asm volatile("" : "+v"(v0), "+v"(v1), "+v"(v2), "+v"(v3), "+v"(v4));
            asm volatile("" : "+v"(v5), "+v"(v6), "+v"(v7), "+v"(v8), "+v"(v9));
          }
        },
        1);
    return 100000 / taken;
  }

  static float* numbers(std::ptrdiff_t count) {
    float* p = static_cast<float*>(std::aligned_alloc(64, std::size_t(count * 4 + 127) / 64 * 64));
    for (std::ptrdiff_t i = 0; i < count; ++i) p[i] = 0.9f * (float(std::rand()) / float(RAND_MAX) - 0.5f);
    return p;
  }

  template <int Parts>
  static void print(int log_n, double peak) {
    using P = Product<float, kLanes<float>, Parts>;
    const std::ptrdiff_t n = std::ptrdiff_t(1) << log_n, count = 2 * log_n * 2 * n * Parts;
    const float* factors = numbers(count);
    float* packed = numbers(count);
    const P forward(P::Plan::forward, packed, 2, log_n), gradients(P::Plan::gradients, packed, 2, log_n);
    const int rows = forward.tile_rows();
    const double operation = 1 / peak, stage = 2.0 * n / kLanes<float> * Parts * Parts * operation;

    std::printf("\n%s BB*, n = %td, tiles of %d vectors\n", Parts == 1 ? "real" : "complex", n, rows);
    forward.pack(factors, packed);
    Rows<float> tile{numbers(rows * forward.tile_row()), forward.tile_row(), forward.tile_plane()};
    Pass passes[kMaxPasses];
    std::ptrdiff_t size = 0;
    const int pass_count = forward.passes_of_pair(0, passes, size);
    for (int p = 0; p < pass_count; ++p) {
      const Pass& pass = passes[p];
      const std::ptrdiff_t span = pass.stride << pass.levels;
      const int stages = pass.kind == Kind::leaf ? 2 * (pass.levels + P::kLogLanes) : pass.levels;
      const double taken = seconds(
          [&] {
            Ahead nothing;
            for (std::ptrdiff_t base = 0; base < n; base += span)
              forward.template run<true>(pass, base, tile, tile, rows, false, nothing);
          },
          20);
      const char* kind = pass.kind == Kind::leaf   ? "strides down and up again, to"
                         : pass.kind == Kind::down ? "strides down to"
                                                   : "strides up from";
      line(kind, pass.kind == Kind::leaf ? 1 : pass.stride, stages, taken / rows, stages * stage);
    }
    const int all = 2 * log_n;
    line("forward", 0, all, seconds([&] { forward.forward(tile, tile, tile, rows, false); }, 20) / rows, all * stage);

    gradients.pack(factors, packed);
    const int checkpoints = gradients.pass_count();
    Rows<float> inputs[kMaxPasses];
    for (int c = 0; c < checkpoints; ++c) inputs[c] = {numbers(rows * tile.row), tile.row, tile.plane};
    float* sums = numbers(count);
    line("forward again, keeping the input of every pass", 0, all,
         seconds([&] { gradients.forward_with_checkpoints(inputs, rows, false); }, 20) / rows, all * stage);
    line("backward (recomputation, gradients of x and of the factors)", 0, all,
         seconds([&] { gradients.backward(inputs, tile, sums, rows); }, 20) / rows, 2.5 * all * stage);
    line("packing the coefficients, once a call", 0, 0, seconds([&] { forward.pack(factors, packed); }, 3), 0);
  }

  static void line(const char* what, std::ptrdiff_t stride, int stages, double taken, double limit) {
    char label[80];
    stride ? std::snprintf(label, sizeof label, "%s %td", what, stride) : std::snprintf(label, sizeof label, "%s", what);
    std::printf("  %-60s %3d stages %8.3f us a vector", label, stages, taken * 1e6);
    limit > 0 ? std::printf("  %3.0f %% of the limit\n", 100 * limit / taken) : std::printf("\n");
  }
};

}  // namespace KALEIDO_ISA
}  // namespace kaleido

int main() {
  using kaleido::KALEIDO_ISA::Profiler;
  const double peak = Profiler::peak();
  std::printf("%d-byte vectors, %.2f billion multiply-adds of vectors a second; fastest of 31 rounds, one thread\n",
              kaleido::KALEIDO_ISA::kVectorBytes, peak / 1e9);
  for (int log_n : {9, 10}) {
    Profiler::print<1>(log_n, peak);
    Profiler::print<2>(log_n, peak);
  }
}
