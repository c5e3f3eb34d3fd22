// The forward kernel, its threads run one after the other, against the definition of a product of butterfly matrices.
#include "../../cuda/cluster.h"

#include "reference.h"
#include "simulator.h"

using namespace kaleido_cuda;

template <class Number, class Tile>
void check(int log_n, int n_factors, int first, int last, int low, int vectors, int in_features, int out_features,
           int capacity, int parts, unsigned seed) {
  const int n = 1 << log_n;
  Random random(seed + 1);
  const auto factors = random.numbers<Number>(std::size_t(n_factors) * log_n * 2 * n);
  const auto x = random.numbers<Number>(std::size_t(vectors) * (in_features + 3));
  std::vector<Number> y(std::size_t(vectors) * out_features, from_real<Number>(NAN));
  const Stages<Number> stages{factors.data(), log_n, first, last};
  const bool strided = Tile::kStageBits == Tile::kBits;
  const TileMap map{log_n, strided ? kLaneBits : 0, strided ? Tile::kBits : std::min(log_n, Tile::kStageBits),
                    low, Tile::kBits + kLaneBits};
  const std::int64_t tile_rows = (vectors + map.vectors_per_tile() - 1) / map.vectors_per_tile();
  const Rows<Number> in{const_cast<Number*>(x.data()), in_features + 3, in_features, vectors, Storage::same};
  const Rows<Number> out{y.data(), out_features, out_features, vectors, Storage::same};
  const MultiplyArgs<Number, Rows<Number>, RowsSink<Number>> args{in, {out}, stages, map, tile_rows, capacity, 0};
  simulator::launch(map.tiles_per_vector() * parts, 1, 64, std::size_t(capacity) * UnitsOfStage<Number, Tile>::kBytes,
                    seed, [&](simulator::Block& block) {
                      constexpr int kRows = rows_of_warp<Number, Tile>();
                      if (capacity < args.stages.last - args.stages.first)
                        multiply_tiles<Number, Tile, kRows, false>(args, block);
                      else if (seed % 2)
                        multiply_tiles<Number, Tile, 1, true>(args, block);
                      else
                        multiply_tiles<Number, Tile, kRows, true>(args, block);
                    });
  for (int v = 0; v < vectors; ++v) {
    auto row = padded(x.data() + std::size_t(v) * (in_features + 3), in_features, n);
    run_stages(stages, row);
    row.resize(out_features);
    expect_close(y.data() + std::size_t(v) * out_features, row, "multiply log_n=%d F=%d stages %d..%d low=%d seed=%u",
                 log_n, n_factors, first, last, low, seed);
  }
}

// A cluster of blocks, with every warp count and number of factors that a launch may have.
template <class Number, int kBits, int kTop>
void check_cluster(int n_factors, int vectors, int in_features, int out_features, int warps, int clusters,
                   unsigned seed) {
  using Sizes = Cluster<Number, kBits, kTop>;
  const int log_n = Sizes::kLogN, n = 1 << log_n, n_stages = n_factors * log_n;
  Random random(seed + 1);
  const auto factors = random.numbers<Number>(std::size_t(n_stages) * 2 * n);
  const auto x = random.numbers<Number>(std::size_t(vectors) * (in_features + 3));
  std::vector<Number> y(std::size_t(vectors) * out_features, from_real<Number>(NAN));
  const Rows<Number> in{const_cast<Number*>(x.data()), in_features + 3, in_features, vectors, Storage::same};
  const Rows<Number> out{y.data(), out_features, out_features, vectors, Storage::same};
  const ClusterArgs<Number> args{in, out, {factors.data(), log_n, 0, n_stages}};
  simulator::launch(clusters, Sizes::kBlocks, warps * kLanes, std::size_t(Sizes::bytes(warps, n_stages)), seed,
                    [&](simulator::Block& block) { multiply_in_cluster<Number, kBits, kTop>(args, block); });
  for (int v = 0; v < vectors; ++v) {
    auto row = padded(x.data() + std::size_t(v) * (in_features + 3), in_features, n);
    run_stages(args.stages, row);
    row.resize(out_features);
    expect_close(y.data() + std::size_t(v) * out_features, row, "cluster log_n=%d F=%d warps=%d seed=%u", log_n,
                 n_factors, warps, seed);
  }
}

template <class Number>
void check_number() {
  for (unsigned seed : {0u, 1u}) {
    // Whole products of small n: several vectors in a tile.
    for (int log_n : {1, 2, 5, 6, 7})
      check<Number, ConsecutiveTile<2>>(log_n, 3, 0, 3 * log_n, 0, 1000 >> log_n, 1 << log_n, 1 << log_n, 100, 2, seed);
    check<Number, ConsecutiveTile<4>>(9, 2, 0, 18, 0, 9, 500, 300, 18, 2, seed);
    check<Number, ConsecutiveTile<3>>(8, 1, 0, 8, 0, 9, 256, 256, 3, 1, seed);  // coefficients in turns
    check<Number, ConsecutiveTile<4>>(9, 4, 7, 31, 0, 3, 512, 512, 10, 1, seed);  // a range of stages
    check<Number, ConsecutiveTile<4>>(9, 2, 12, 16, 0, 3, 512, 512, 10, 1, seed);
    check<Number, ConsecutiveTile<5>>(10, 2, 0, 20, 0, 3, 1024, 1024, 20, 1, seed);
    // The low bits of a larger n, and the high ones.
    check<Number, ConsecutiveTile<4>>(11, 2, 2, 20, 0, 3, 2048, 2048, 18, 1, seed);
    check<Number, StridedTile<4>>(10, 2, 0, 4, 6, 5, 1000, 1024, 4, 1, seed);
    check<Number, StridedTile<4>>(10, 4, 16, 24, 6, 5, 1000, 1024, 4, 1, seed);
  }
}

// Vectors stored as half of a float or as the real part of a complex number, with a stride.
template <class Number, class Stored>
void check_storage(Storage storage, Stored (*store)(float), double unit) {
  const int log_n = 7, n = 1 << log_n, vectors = 9, features = 100, stride = 103;
  Random random(5);
  const auto factors = random.numbers<Number>(std::size_t(2) * log_n * 2 * n);
  const auto numbers = random.numbers<float>(std::size_t(vectors) * stride);
  std::vector<Stored> x, y(std::size_t(vectors) * n);
  for (float number : numbers) x.push_back(store(number));
  const Stages<Number> stages{factors.data(), log_n, 0, 2 * log_n};
  const TileMap map{log_n, 0, log_n, 0, 7};
  const Rows<Number> in{x.data(), stride, features, vectors, storage}, out{y.data(), n, n, vectors, storage};
  const MultiplyArgs<Number, Rows<Number>, RowsSink<Number>> args{in, {out}, stages, map, vectors, 2 * log_n, 0};
  simulator::launch(1, 1, 64, std::size_t(2 * log_n) * UnitsOfStage<Number, ConsecutiveTile<2>>::kBytes, 1,
                    [&](simulator::Block& block) {
                      using Tile = ConsecutiveTile<2>;
                      multiply_tiles<Number, Tile, rows_of_warp<Number, Tile>(), true>(args, block);
                    });
  for (int v = 0; v < vectors; ++v) {
    std::vector<Number> row(n, from_real<Number>(0));
    for (int i = 0; i < features; ++i) row[i] = Convert<Number, Stored>::read(&x[std::size_t(v) * stride + i]);
    run_stages(stages, row);
    for (int i = 0; i < n; ++i) {
      const double wanted = double(real_part(row[i]));
      const double got = double(real_part(Convert<Number, Stored>::read(&y[std::size_t(v) * n + i])));
      ++checks();
      if (!(std::abs(got - wanted) <= unit * std::abs(wanted) + 1e-5) && ++failures() < 20)
        std::printf("storage %d: got %g, wanted %g\n", int(storage), got, wanted);
    }
  }
}

template <class T>
T stored(float x) {
  T result;
  narrow(x, &result);
  return result;
}

// Rounding to bfloat16 is to the nearest, ties to even, and NaN stays NaN.
void check_rounding() {
  const auto expect = [](float x, float wanted) {
    const float got = widen(stored<BFloat16>(x));
    ++checks();
    if (!(got == wanted || (got != got && wanted != wanted)) && ++failures() < 20)
      std::printf("bfloat16 of %g is %g\n", double(x), double(got));
  };
  expect(1.0f, 1.0f);
  expect(1.00390625f, 1.0f);      // 1 + 2^-8, halfway: to even
  expect(1.01171875f, 1.015625f);  // 1 + 3 * 2^-8, halfway: to even
  expect(1.00390637f, 1.0078125f);
  expect(3.4e38f, INFINITY);
  expect(-INFINITY, -INFINITY);
  expect(NAN, NAN);
}

int main() {
  check_rounding();
  check_storage<float>(Storage::half, stored<Half>, 0x1p-11);
  check_storage<float>(Storage::bfloat16, stored<BFloat16>, 0x1p-8);
  check_storage<Complex<float>>(Storage::real, stored<float>, 1e-5);
  check_number<float>();
  check_number<double>();
  check_number<Complex<float>>();
  check_number<Complex<double>>();
  check<float, ConsecutiveTile<6>>(11, 2, 0, 22, 0, 3, 2048, 2048, 8, 1, 0);
  check<Complex<float>, ConsecutiveTile<6>>(11, 2, 0, 22, 0, 2, 2048, 2048, 8, 1, 0);
  for (unsigned seed : {0u, 1u, 2u}) {
    check_cluster<float, 5, 2>(2, 37, 4096, 4096, 2, 2, seed);  // three rounds, the last in part
    check_cluster<float, 5, 1>(1, 9, 2000, 1500, 1, 1, seed);
    check_cluster<float, 5, 3>(3, 5, 8000, 8192, 1, 1, seed);
    check_cluster<Complex<float>, 4, 1>(2, 9, 1000, 1024, 2, 1, seed);
    check_cluster<Complex<float>, 4, 3>(4, 9, 4096, 4096, 1, 2, seed);
    check_cluster<double, 3, 2>(2, 20, 1024, 1000, 2, 1, seed);
    check_cluster<Complex<double>, 2, 1>(3, 20, 256, 256, 2, 1, seed);
  }
  return report();
}
