// The backward kernel and the planning of launches, simulated, against the gradients of the definition.
#include "../../cuda/plan.h"

#include "reference.h"
#include "simulator.h"

using namespace kaleido_cuda;

// Forward launches of stages first, ..., last - 1 as planned.
template <class Number>
std::vector<Number> forward(const std::vector<Number>& factors, int log_n, int first, int last,
                            const std::vector<Number>& x, int features, int vectors, unsigned seed) {
  const int n = 1 << log_n;
  std::vector<Number> from = x;
  int from_features = features;
  for (const Pass& pass : plan_passes(log_n, first, last, sizeof(Number))) {
    std::vector<Number> to(std::size_t(vectors) * n, from_real<Number>(NAN));
    const Rows<Number> in{from.data(), from_features, from_features, vectors, Storage::same};
    const Rows<Number> out{to.data(), n, n, vectors, Storage::same};
    const auto run = [&](auto tile) {
      using Tile = decltype(tile);
      const TileMap map{log_n, pass.strided ? kLaneBits : 0,
                        pass.strided ? pass.bits : std::min(log_n, pass.bits + kLaneBits), pass.low,
                        pass.bits + kLaneBits};
      const std::int64_t tile_rows = (vectors + map.vectors_per_tile() - 1) / map.vectors_per_tile();
      const int capacity = 12;
      const MultiplyArgs<Number, Rows<Number>, RowsSink<Number>> args{
          in, {out}, {factors.data(), log_n, pass.first, pass.last}, map, tile_rows, capacity, 0};
      simulator::launch(map.tiles_per_vector(), 1, 64, std::size_t(capacity) * UnitsOfStage<Number, Tile>::kBytes, seed,
                        [&](simulator::Block& block) {
                      if (capacity >= args.stages.last - args.stages.first)
                        multiply_tiles<Number, Tile, rows_of_warp<Number, Tile>(), true>(args, block);
                      else
                        multiply_tiles<Number, Tile, rows_of_warp<Number, Tile>(), false>(args, block);
                    });
    };
    if (pass.strided) run(StridedTile<kStridedBits>{});
    else if (pass.bits == 2) run(ConsecutiveTile<2>{});
    else if (pass.bits == 3) run(ConsecutiveTile<3>{});
    else if (pass.bits == 4) run(ConsecutiveTile<4>{});
    else if (pass.bits == 5) run(ConsecutiveTile<5>{});
    else run(ConsecutiveTile<6>{});
    from = to;
    from_features = n;
  }
  return from;
}

template <class Number>
void check(int log_n, int n_factors, int vectors, int in_features, int out_features, int cluster,
           std::int64_t shared_bytes, unsigned seed) {
  const int n = 1 << log_n, n_stages = n_factors * log_n;
  Random random(seed + 1);
  const auto factors = random.numbers<Number>(std::size_t(n_stages) * 2 * n);
  const auto x = random.numbers<Number>(std::size_t(vectors) * in_features);
  const auto grad = random.numbers<Number>(std::size_t(vectors) * out_features);
  const Stages<Number> all{factors.data(), log_n, 0, n_stages};

  const auto y = forward(factors, log_n, 0, n_stages, x, in_features, vectors, seed);
  std::vector<Number> wanted_factors(factors.size(), from_real<Number>(0)), wanted_x;
  for (int v = 0; v < vectors; ++v) {
    auto row = padded(x.data() + std::size_t(v) * in_features, in_features, n);
    auto row_grad = padded(grad.data() + std::size_t(v) * out_features, out_features, n);
    auto output = row;
    run_stages(all, output);
    expect_close(y.data() + std::size_t(v) * n, output, "planned forward log_n=%d F=%d", log_n, n_factors);
    run_stages_backward(all, row, row_grad, wanted_factors);
    wanted_x.insert(wanted_x.end(), row_grad.begin(), row_grad.begin() + in_features);
  }

  const BackwardLimits limits{stages_of_group<Number>(), backward_threads<Number>(), int(sizeof(Number)), shared_bytes,
                              cluster};
  const auto runs = plan_runs(log_n, n_stages, limits);
  std::vector<Number> got_factors(factors.size(), from_real<Number>(NAN)), g = grad;
  int g_features = out_features;
  for (auto run = runs.rbegin(); run != runs.rend(); ++run) {
    auto input = run->first ? forward(factors, log_n, 0, run->first, x, in_features, vectors, seed) : x;
    const int features = run->first ? n : in_features;
    std::vector<Number> g_next(std::size_t(vectors) * features, from_real<Number>(NAN));
    const int parts = 2, per_tile = run->map.vectors_per_tile(), run_stages_count = run->last - run->first;
    std::vector<Number> partial(std::size_t(parts) * per_tile * run_stages_count * 2 * n, from_real<Number>(NAN));
    const Rows<Number> from{input.data(), features, features, vectors, Storage::same};
    const RowsGradient<Number> grads{{g.data(), g_features, g_features, vectors, Storage::same}};
    const RowsGradientSink<Number> to{{g_next.data(), features, features, vectors, Storage::same}};
    const Number* coefficients = factors.data();
    const auto args = backward_args(*run, from, grads, to, coefficients, log_n, parts, partial.data());
    simulator::launch(run->map.tiles_per_vector() * parts, run->blocks, run->groups_per_block * run->threads_per_group,
                      std::size_t(run->shared_bytes), seed,
                      [&](simulator::Block& block) { backward_tiles<Number>(args, block); });
    simulator::launch(3, 1, 32, 0, seed, [&](simulator::Block& block) {
      sum_chunks(partial.data(), got_factors.data() + (std::size_t(run->first) * 2 << log_n), parts * per_tile,
                 std::int64_t(run_stages_count) * 2 * n, block);
    });
    g = g_next;
    g_features = features;
  }
  expect_close(g.data(), wanted_x, "x gradient log_n=%d F=%d vectors=%d cluster=%d runs=%d seed=%u", log_n, n_factors,
               vectors, cluster, int(runs.size()), seed);
  expect_close(got_factors.data(), wanted_factors, "factor gradients log_n=%d F=%d vectors=%d cluster=%d runs=%d seed=%u",
               log_n, n_factors, vectors, cluster, int(runs.size()), seed);
}

// Neighbouring threads of a group meet no bank of shared memory twice, for every window.
template <int kBytes, int kBits>
void check_banks() {
  const int threads = 128 / kBytes;
  for (int position = 0; position + kBits <= 11; ++position)
    for (int start = 0; start < 256; start += threads)
      for (int e = 0; e < 1 << kBits; ++e) {
        std::vector<int> banks;
        for (int t = start; t < start + threads; ++t)
          banks.push_back(swizzle<kBytes>(window_index<kBits>(t, e, position)) % threads);
        std::sort(banks.begin(), banks.end());
        ++checks();
        if (std::unique(banks.begin(), banks.end()) != banks.end() && ++failures() < 20)
          std::printf("bank conflict: %d bytes, window at %d, thread %d\n", kBytes, position, start);
      }
}

template <class Number>
void check_number() {
  for (unsigned seed : {0u, 1u}) {
    check<Number>(1, 1, 100, 2, 2, 1, 90000, seed);
    check<Number>(3, 2, 100, 7, 5, 1, 90000, seed);
    check<Number>(6, 3, 20, 64, 64, 1, 90000, seed);
    check<Number>(9, 2, 7, 500, 300, 1, 200000, seed);
    check<Number>(9, 2, 3, 512, 512, 8, 200000, seed);
    check<Number>(9, 1, 1, 512, 512, 1, 20000, seed);
    check<Number>(10, 2, 3, 1024, 1024, 1, 200000, seed);
    check<Number>(10, 2, 3, 1024, 1000, 8, 200000, seed);
  }
  // Clusters with more tiles than rings hold.
  for (unsigned seed : {1u, 2u, 3u}) check<Number>(10, 2, 75, 1000, 1024, 8, 200000, seed);
  for (unsigned seed : {1u, 2u, 3u}) check<Number>(9, 2, 60, 512, 512, 8, 100000, seed);
  check<Number>(11, 2, 2, 2048, 2048, 8, 200000, 1);
  check<Number>(12, 2, 2, 4096, 4096, 1, 200000, 1);
  check<Number>(13, 1, 1, 8000, 8192, 1, 200000, 1);
}

int main() {
  check_banks<4, 3>();
  check_banks<8, 2>();
  check_banks<16, 1>();
  check_number<float>();
  check_number<double>();
  check_number<Complex<float>>();
  check_number<Complex<double>>();
  return report();
}
