// Power spectra of frames, their filterbank and logarithm, and their gradients, simulated, against the definitions.
#include "../../cuda/plan.h"
#include "../../cuda/power.h"
#include "../../cuda/spectrum.h"

#include "reference.h"
#include "simulator.h"

using namespace kaleido_cuda;

template <class Real>
struct Case {
  using Number = Complex<Real>;
  int log_n, length, hop, per_item, items, n_factors;
  unsigned seed;
  int n, time, n_stages;
  std::int64_t count;
  std::vector<Number> factors;
  std::vector<Real> waveform, window;
  std::vector<std::int64_t> rows;
  Frames<Number> frames;

  // Which outputs are used: half of them, in no order, the first of them twice; or the even ones and at most one of
  // the odd ones.
  Case(int log_n, int length, int hop, int per_item, int items, int n_factors, unsigned seed, bool even = false)
      : log_n(log_n), length(length), hop(hop), per_item(per_item), items(items), n_factors(n_factors), seed(seed),
        n(1 << log_n), time(length + (per_item - 1) * hop + hop / 2), n_stages(n_factors * log_n),
        count(std::int64_t(per_item) * items) {
    Random random(seed + 1);
    factors = random.numbers<Number>(std::size_t(n_stages) * 2 * n);
    waveform = random.numbers<Real>(std::size_t(items) * time);
    window = random.numbers<Real>(length);
    std::mt19937 generator(seed);
    for (int i = 0; i < n; i += even ? 2 : 1) rows.push_back(i);
    if (even && seed % 2) rows.push_back(int(generator() % (n / 2)) * 2 + 1);
    std::shuffle(rows.begin(), rows.end(), generator);
    rows.resize(n / 2 + (even ? int(seed % 2) : 1));
    if (!even) rows.push_back(rows[0]);
    frames = {waveform.data(), window.data(), time, per_item, hop, length, count};
  }

  std::vector<Number> frame(std::int64_t row) const {
    std::vector<Number> result(n, from_real<Number>(0));
    for (int i = 0; i < length; ++i)
      result[i].re = waveform[row / per_item * time + row % per_item * hop + i] * window[i];
    return result;
  }
  Stages<Number> stages() const { return {factors.data(), log_n, 0, n_stages}; }
  std::vector<Real> powers(std::int64_t row) const {
    auto z = frame(row);
    run_stages(stages(), z);
    std::vector<Real> result;
    for (std::int64_t k : rows) result.push_back(squared_magnitude(z[k]));
    return result;
  }
};

// By the kernel of halves or that of tiles.
template <class Tile, bool kHalves, class Real>
std::vector<Real> simulate_power(const Case<Real>& c, const std::vector<Real>& filterbank, int n_filters, Real exponent,
                                 Real log_scale, Real eps, Real floor) {
  using Number = Complex<Real>;
  using Sink = PowerSink<Number>;
  const int threads = 64, warps = threads / kLanes, columns = n_filters ? n_filters : int(c.rows.size());
  std::vector<Real> out(std::size_t(c.count) * columns, Real(NAN));
  const Sink sink{out.data(), c.rows.data(), c.n,       int(c.rows.size()), c.count, filterbank.data(),
                  n_filters,  exponent,      log_scale, eps,                floor};
  const TileMap map{c.log_n, 0, c.log_n, 0, Tile::kBits + kLaneBits};
  const std::int64_t per_tile = map.vectors_per_tile();
  const int sink_bytes = Sink::template shared_bytes<Tile>(warps);
  const MultiplyArgs<Number, Frames<Number>, Sink> args{
      c.frames, sink, c.stages(), map, (c.count + per_tile - 1) / per_tile, c.n_stages, sink_bytes};
  std::size_t bytes = std::size_t(sink_bytes) + std::size_t(c.n_stages) * UnitsOfStage<Number, Tile>::kBytes;
  if constexpr (kHalves) bytes = std::size_t(PowerOfHalves<Number, Tile::kBits>::shared_bytes(warps));
  simulator::launch(2, 1, threads, bytes, c.seed, [&](simulator::Block& block) {
    if constexpr (kHalves)
      PowerOfHalves<Number, Tile::kBits>::run(args, block);
    else
      multiply_tiles<Number, Tile, rows_of_warp<Number, Tile>(), true>(args, block);
  });
  return out;
}

template <class Tile, bool kHalves = false, class Real>
void check_forward(const Case<Real>& c) {
  const int n_rows = int(c.rows.size());
  Random random(c.seed + 7);
  const auto powers_of = [&](std::int64_t row, Real exponent) {
    std::vector<Real> powers = c.powers(row);
    for (Real& x : powers) x = std::pow(x, exponent);
    return powers;
  };
  for (const Real exponent : {Real(1), Real(0.5), Real(0.8)}) {
    const auto powers = simulate_power<Tile, kHalves>(c, {}, 0, exponent, Real(0), Real(0), Real(0));
    for (std::int64_t row = 0; row < c.count; ++row)
      expect_close(powers.data() + row * n_rows, powers_of(row, exponent), "power log_n=%d exponent=%g", c.log_n,
                   double(exponent));
  }
  // Every way to divide filters among lanes: 40 or 64 at once, once or several times.
  for (const int n_filters : {5, 37, 45, 80, 110}) {
    const Real exponent = n_filters == 37 ? Real(0.8) : Real(1);
    std::vector<Real> filterbank = random.numbers<Real>(std::size_t(n_rows) * n_filters);
    for (Real& weight : filterbank) weight = std::abs(weight);
    const auto bands = simulate_power<Tile, kHalves>(c, filterbank, n_filters, exponent, Real(0), Real(0), Real(0));
    const Real floor = bands[0];
    const auto logs = simulate_power<Tile, kHalves>(c, filterbank, n_filters, exponent, Real(4), Real(1e-3), floor);
    for (std::int64_t row = 0; row < c.count; ++row) {
      const std::vector<Real> wanted = powers_of(row, exponent);
      std::vector<Real> sums(n_filters, 0), logarithms;
      for (int k = 0; k < n_rows; ++k)
        for (int f = 0; f < n_filters; ++f) sums[f] += filterbank[std::size_t(k) * n_filters + f] * wanted[k];
      for (Real x : sums) logarithms.push_back(4 * std::log(std::max(x + Real(1e-3), floor)));
      expect_close(bands.data() + row * n_filters, sums, "%d filters log_n=%d", n_filters, c.log_n);
      expect_close(logs.data() + row * n_filters, logarithms, "log of %d filters log_n=%d", n_filters, c.log_n);
    }
  }
}

template <class Number, class Real, class Source, class Gradient>
void simulate_run(const Case<Real>& c, const Run& run, const Source& x, const Gradient& grad,
                  const Rows<Number>& x_grad, Number* factors_grad) {
  const int parts = 2, per_tile = run.map.vectors_per_tile(), stages = run.last - run.first;
  std::vector<Number> partial(std::size_t(parts) * per_tile * stages * 2 * c.n, from_real<Number>(NAN));
  const Number* factors = c.factors.data();
  const auto args =
      backward_args(run, x, grad, RowsGradientSink<Number>{x_grad}, factors, c.log_n, parts, partial.data());
  simulator::launch(run.map.tiles_per_vector() * parts, run.blocks, run.groups_per_block * run.threads_per_group,
                    std::size_t(run.shared_bytes), c.seed,
                    [&](simulator::Block& block) { backward_tiles<Number>(args, block); });
  simulator::launch(3, 1, 32, 0, c.seed, [&](simulator::Block& block) {
    sum_chunks(partial.data(), factors_grad, parts * per_tile, std::int64_t(stages) * 2 * c.n, block);
  });
}

template <class Real>
void check_backward(const Case<Real>& c, int cluster, int n_runs) {
  using Number = Complex<Real>;
  const int n_rows = int(c.rows.size());
  Random random(c.seed + 9);
  const auto grad = random.numbers<Real>(std::size_t(c.count) * n_rows);
  std::vector<int> head(c.n, -7), next(n_rows, -7);
  for (int i = 0; i < c.n + 3; ++i) link_rows(c.rows.data(), n_rows, c.n, i, head.data(), next.data());

  const BackwardLimits limits{stages_of_group<Number>(), backward_threads<Number>(), int(sizeof(Number)), 220000,
                              cluster};
  const auto runs = plan_runs(c.log_n, c.n_stages, limits);
  std::vector<Number> got_factors(c.factors.size(), from_real<Number>(NAN));
  std::vector<Real> frames_grad(std::size_t(c.count) * c.length, Real(NAN)), windowed;
  for (std::int64_t row = 0; row < c.count; ++row)
    for (int i = 0; i < c.length; ++i) windowed.push_back(c.frame(row)[i].re);
  const Rows<Number> x{windowed.data(), c.length, c.length, c.count, Storage::real};
  const Rows<Number> x_grad{frames_grad.data(), c.length, c.length, c.count, Storage::real};
  const PowerGradient<Number> power_grad{grad.data(), head.data(), next.data(), n_rows, c.count};
  std::vector<Number> between(std::size_t(c.count) * c.n, from_real<Number>(NAN));
  const Rows<Number> g{between.data(), c.n, c.n, c.count, Storage::same};
  for (std::size_t r = runs.size(); r-- > 0;) {
    const Run& run = runs[r];
    std::vector<Number> inputs;
    for (std::int64_t row = 0; row < c.count; ++row) {
      auto input = c.frame(row);
      run_stages(Stages<Number>{c.factors.data(), c.log_n, 0, run.first}, input);
      inputs.insert(inputs.end(), input.begin(), input.end());
    }
    const Rows<Number> input{inputs.data(), c.n, c.n, c.count, Storage::same};
    const Rows<Number>& to = r ? g : x_grad;
    const bool is_last = r + 1 == runs.size();
    Number* factors_grad = got_factors.data() + std::size_t(run.first) * 2 * c.n;
    if (runs.size() == 1)
      simulate_run<Number>(c, run, c.frames, power_grad, to, factors_grad);
    else if (is_last)
      simulate_run<Number>(c, run, input, power_grad, to, factors_grad);
    else
      simulate_run<Number>(c, run, r ? input : x, RowsGradient<Number>{g}, to, factors_grad);
  }
  ++checks();
  if (int(runs.size()) != n_runs && ++failures())
    std::printf("log_n=%d cluster=%d: expected %d runs, got %d\n", c.log_n, cluster, n_runs, int(runs.size()));

  std::vector<Number> wanted_factors(c.factors.size(), from_real<Number>(0));
  std::vector<Real> wanted_frames, wanted_waveform(c.waveform.size(), 0), wanted_window(c.length, 0);
  for (std::int64_t row = 0; row < c.count; ++row) {
    const auto x = c.frame(row);
    auto z = x;
    run_stages(c.stages(), z);
    std::vector<Number> g(c.n, from_real<Number>(0));
    for (int k = 0; k < n_rows; ++k) {
      const Real twice = 2 * grad[row * n_rows + k];
      g[c.rows[k]] = multiply_add(z[c.rows[k]], from_real<Number>(twice), g[c.rows[k]]);
    }
    run_stages_backward(c.stages(), x, g, wanted_factors);
    const std::int64_t start = row / c.per_item * c.time + row % c.per_item * c.hop;
    for (int i = 0; i < c.length; ++i) {
      wanted_frames.push_back(g[i].re);
      wanted_waveform[start + i] += g[i].re * c.window[i];
      wanted_window[i] += g[i].re * c.waveform[start + i];
    }
  }
  expect_close(frames_grad.data(), wanted_frames, "gradient of frames log_n=%d cluster=%d", c.log_n, cluster);
  expect_close(got_factors.data(), wanted_factors, "gradient of factors log_n=%d cluster=%d", c.log_n, cluster);

  std::vector<Real> waveform_grad, window_grad, samples;
  for (std::int64_t item = 0; item < c.items; ++item)
    for (std::int64_t t = 0; t < c.time; ++t)
      waveform_grad.push_back(
          overlap_add(frames_grad.data(), c.window.data(), item, c.per_item, t, c.hop, c.length));
  for (int i = 0; i < c.length; ++i)  // in two chunks
    window_grad.push_back(
        window_gradient(frames_grad.data(), c.waveform.data(), c.time, c.per_item, c.hop, c.length, 0, 2, i) +
        window_gradient(frames_grad.data(), c.waveform.data(), c.time, c.per_item, c.hop, c.length, 2, c.count, i));
  for (std::int64_t row = 0; row < c.count; ++row)
    for (int i = 0; i < c.length; ++i)
      samples.push_back(windowed_sample(c.waveform.data(), c.window.data(), c.time, c.per_item, c.hop, row, i));
  expect_close(waveform_grad.data(), wanted_waveform, "gradient of waveforms hop=%d", c.hop);
  expect_close(window_grad.data(), wanted_window, "gradient of the window hop=%d", c.hop);
  expect_close(samples.data(), windowed, "windowed frames hop=%d", c.hop);
}

template <class Real>
void check_number() {
  for (unsigned seed : {0u, 1u}) {
    check_forward<ConsecutiveTile<2>>(Case<Real>(1, 2, 1, 70, 2, 2, seed));
    check_forward<ConsecutiveTile<2>>(Case<Real>(5, 30, 7, 9, 3, 2, seed));  // several vectors in a tile
    check_forward<ConsecutiveTile<4>>(Case<Real>(9, 400, 160, 5, 2, 2, seed));
    const bool single = sizeof(Real) == 4;
    check_backward(Case<Real>(5, 30, 7, 9, 3, 2, seed), 8, single ? 1 : 2);
    check_backward(Case<Real>(5, 30, 40, 9, 3, 2, seed), 1, single ? 2 : 5);  // samples between frames
    check_backward(Case<Real>(9, 400, 160, 2, 2, 2, seed), 8, single ? 1 : 3);
  }
  check_forward<ConsecutiveTile<5>>(Case<Real>(10, 1024, 256, 2, 2, 2, 1));
  for (const bool even : {false, true})
    for (unsigned seed : {0u, 1u}) {
      check_forward<ConsecutiveTile<3>, true>(Case<Real>(8, 200, 80, 9, 2, 2, seed, even));
      check_forward<ConsecutiveTile<4>, true>(Case<Real>(9, 400, 160, 5, 2, 2, seed, even));
    }
}

int main() {
  check_number<float>();
  check_number<double>();
  return report();
}
