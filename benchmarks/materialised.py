"""K-matrices by their kernels and by one dense matrix on tensor cores: the table by which the operator chooses.

Sizes 64 to 4096, one and two BB*, 1024 to 65536 vectors, forward and training; float32 with tf32 allowed, and bfloat16
under autocast (float16, as fast, goes by the same rows). Run on a GPU, it writes ``materialised.csv`` for
``kaleido_audio/ops``, in which other GPUs keep their rows. On the processor it only shows the times.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks import report
from benchmarks.kmatrix import in_tf32, linear_map
from benchmarks.runner import Options, Results, check_memory, open_results, parse_options, run, selected
from benchmarks.timing import Contestant, Measurement
from kaleido_audio import ops
from kaleido_audio.kmatrix import KMatrix
from kaleido_audio.ops import materialised

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
FACTORS = (2, 4)
VECTORS = (1024, 4096, 16384, 65536)
QUICK_SIZES, QUICK_VECTORS = (64,), (256, 1024)
GAIN = 1.05
"""How many times faster the dense product has to be to be chosen: below, noise would choose."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        precision: "tf32" or "half".
        n: size of the vectors.
        factors: of the K-matrix.
        vectors: how many.
        training: forward and backward, with gradients of vectors and factors; else forward alone.
    """

    precision: str
    n: int
    factors: int
    vectors: int
    training: bool = False

    @property
    def name(self) -> str:
        """All of it, e.g. "tf32-n512-f2-b4096-forward"."""
        mode = "training" if self.training else "forward"
        return f"{self.precision}-n{self.n}-f{self.factors}-b{self.vectors}-{mode}"


def case_of(name: str) -> Case:
    """The case of a name.

    >>> case_of("half-n512-f2-b4096-training") == Case("half", 512, 2, 4096, training=True)
    True
    """
    precision, n, factors, vectors, mode = name.split("-")
    return Case(precision, int(n[1:]), int(factors[1:]), int(vectors[1:]), mode == "training")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, then print and write the tables and the figure."""
    options = parse_options("materialised", __doc__, argv, "parts of names such as tf32, n512, f2, b4096 or training")
    cuda = options.device.type == "cuda"
    try:
        results = open_results(options.out / f"materialised{'-cuda' if cuda else ''}.json", options)
        cases = selected(all_cases(options.quick), options.patterns, {})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finished = options.redraw or run(cases, lambda case, _: contestants(options, case), describe, results, options)
    report.publish(results, sections(results), lambda: figure(results))
    if cuda and not options.quick and not options.redraw:
        path = options.out / materialised.TABLE.name
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        others = [row for row in materialised.read_table() if row.capability != capability]
        materialised.write_table([*others, *measured_rows(results, capability)], path)
        print(f"the table, to be copied to kaleido_audio/ops: {path}")
    return 0 if finished else 130


def all_cases(quick: bool) -> list[Case]:
    """Every case."""
    sizes, vectors = (QUICK_SIZES, QUICK_VECTORS) if quick else (SIZES, VECTORS)
    return [
        Case(precision, n, factors, count, training)
        for precision in ("tf32", "half")
        for training in (False, True)
        for n in sizes
        for factors in FACTORS
        for count in vectors
    ]


def contestants(options: Options, case: Case) -> Mapping[str, Contestant]:
    """The kernels, and the same product materialised."""
    device = options.device
    check_memory("all", 4.0 * case.n * (8 * case.vectors + 8 * case.n), options.max_bytes, device)
    torch.manual_seed(0)
    factors = KMatrix(case.n, width=case.factors // 2).to(device).factors.detach().clone()
    x = torch.randn(case.vectors, case.n, device=device)
    result = x if case.precision == "tf32" else x.bfloat16()
    g = torch.randn_like(result) if case.training else None
    found = {}
    for name, materialise in (("kernels", False), ("dense", True)):
        contestant = linear_map(partial(ops.butterfly_multiply, materialise=materialise), x, factors, g, threads=1)
        tf32 = case.precision == "tf32"
        call = in_tf32(contestant.call) if tf32 else _under_autocast(contestant.call, device)
        found[name] = Contestant(call, grad=contestant.grad)
    return found


def _under_autocast(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    def half() -> object:
        # No cache of rounded factors: each call of a training step rounds its own.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return call()

    return half


def describe(case: Case, measurement: Measurement) -> str:
    """One line: both times of a vector, and their ratio."""
    times = (measurement.time(name) for name in ("kernels", "dense"))
    kernels, dense = (report.microseconds(None if t is None else t.scaled(1 / case.vectors)) for t in times)
    ratio = report.ratio_text(measurement.ratio("kernels", "dense"))
    return f"kernels {kernels} us, dense {dense} us a vector: {ratio}"


def measured_rows(results: Results, capability: str) -> list[materialised.Row]:
    """From how many vectors on the dense product was faster, and stayed so up to the most that were measured."""
    series: dict[tuple[str, int, int, bool], list[tuple[int, float]]] = {}
    for case in map(case_of, results.measurements):
        ratio = results.get(case.name).ratio("kernels", "dense")
        if ratio is not None:
            key = (case.precision, case.n, case.factors, case.training)
            series.setdefault(key, []).append((case.vectors, ratio.median))
    rows = []
    for (precision, n, factors, training), points in sorted(series.items()):
        least = None
        for vectors, faster in sorted(points, reverse=True):
            if faster < GAIN:
                break
            least = vectors
        if least is not None:
            rows.append(materialised.Row(capability, precision, n, factors, training, least))
    return rows


def sections(results: Results) -> list[str]:
    """All that is printed."""
    parts = [report.heading(results.environment)]
    cases = [case_of(name) for name in results.measurements]
    for precision, training in sorted({(case.precision, case.training) for case in cases}):
        mine = [case for case in cases if (case.precision, case.training) == (precision, training)]
        vectors = sorted({case.vectors for case in mine})
        rows = [
            [
                str(n),
                str(factors),
                *(
                    report.short_ratio(
                        results.get(Case(precision, n, factors, count, training).name).ratio("kernels", "dense")
                    )
                    for count in vectors
                ),
            ]
            for n, factors in sorted({(case.n, case.factors) for case in mine})
        ]
        title = f"Time of the kernels over that of the materialised product, {precision}, {report.mode_text(training)}"
        parts.append(f"{title}:\n\n{report.table(['n', 'factors', *(f'{v} vectors' for v in vectors)], rows)}")
    return [*parts, report.skipped_lines(results)]


def figure(results: Results) -> Figure | None:
    """The ratios over the number of vectors, one line for each n."""
    cases = [case for case in map(case_of, results.measurements) if case.factors == FACTORS[0]]
    panels = sorted({(case.precision, case.training) for case in cases})
    if not panels:
        return None
    drawn = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    drawn.suptitle(f"One BB*: kernels and materialised, {report.hardware(results.environment)}", fontsize=12)
    sizes = sorted({case.n for case in cases})
    for axes, (precision, training) in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, n in enumerate(sizes):
            points = [
                (case.vectors, ratio.median)
                for case in sorted(cases, key=lambda case: case.vectors)
                if (case.precision, case.training, case.n) == (precision, training, n)
                and (ratio := results.get(case.name).ratio("kernels", "dense")) is not None
            ]
            if points:
                colour = colormaps["viridis"](0.8 * (1 - i / max(1, len(sizes) - 1)))
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=f"n = {n}")
        axes.axhline(1, color="#444444", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        report.plain_log_axis(axes.yaxis)
        axes.set(
            title=f"{precision}, {report.mode_text(training)}",
            xlabel="vectors",
            ylabel="kernels' time / dense product's",
        )
        axes.grid(alpha=0.35)
        axes.legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    sys.exit(main())
