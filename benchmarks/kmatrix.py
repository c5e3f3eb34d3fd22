"""K-matrices beside dense layers and the FFT: sizes 64 to 16384, batches 1 to 65536, forward and training.

Every case times the product BB* of a batch of vectors (K), the dense matrix of the same size (``F.linear``) and the
Fourier transform of the same batch, in turns in one process. With a batch of 1 a sample repeats the call on the same
operands, so that the weights of both stay in the caches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks import machine, report
from benchmarks.report import Target
from benchmarks.runner import (
    Options,
    Results,
    Skip,
    check_memory,
    open_results,
    parse_options,
    run,
    selected,
    skip,
)
from benchmarks.timing import Contestant, Measurement, Settings, Spread, measure
from kaleido_audio import ops
from kaleido_audio.kmatrix import KMatrix

SIZES = tuple(1 << k for k in range(6, 15))
BATCHES = (1, 16, 256, 4096, 65536)
COMPLEX_BATCHES = (1, 4096)
QUICK_SIZES, QUICK_BATCHES = (64, 512), (1, 256)
GEMM = 1024
"""Size of the matrix product whose rate is reported beside the limit."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        kind: "real" or "complex": contestants side by side; "scaling": K with one thread and with more.
        n: size of the vectors.
        batch: number of vectors.
        training: forward and backward, with gradients of the vectors and of the weights; else forward alone.
        threads: that torch may use.
    """

    kind: str
    n: int
    batch: int
    training: bool = False
    threads: int = 1

    @property
    def name(self) -> str:
        """All of it, e.g. "real-n512-b4096-forward-t1"."""
        mode = "training" if self.training else "forward"
        return f"{self.kind}-n{self.n}-b{self.batch}-{mode}-t{self.threads}"


TARGETS = (
    Target("BB*, n=512, batch 4096, forward, against F.linear", Case("real", 512, 4096).name, "dense", "K", 20, 30),
    Target("BB*, n=1024, batch 4096, forward, against F.linear", Case("real", 1024, 4096).name, "dense", "K", 30, 50),
    Target("BB*, n=512, batch 1, no_grad, weights of both in cache", Case("real", 512, 1).name, "dense", "K", 5, 8),
    Target("BB*, n=1024, batch 1, no_grad, weights of both in cache", Case("real", 1024, 1).name, "dense", "K", 15, 25),
    Target(
        "BB*, n=512, batch 4096, forward + backward, against Linear's",
        Case("real", 512, 4096, training=True).name,
        "dense",
        "K",
        12,
        20,
    ),
    Target("BB*, n=512, batch 4096, against torch.fft.rfft", Case("real", 512, 4096).name, "K", "rfft", 1.0, 0.7),
    Target(
        "complex BB*, n=512, batch 4096, against torch.fft.fft", Case("complex", 512, 4096).name, "K", "fft", 2, 1.3
    ),
    Target(
        "BB*, n=512, batch 4096, two threads against one",
        Case("scaling", 512, 4096, threads=2).name,
        "K, 1 thread",
        "K",
        1.8,
        1.95,
    ),
    Target(
        "BB*, n=1024, batch 4096, two threads against one",
        Case("scaling", 1024, 4096, threads=2).name,
        "K, 1 thread",
        "K",
        1.8,
        1.95,
    ),
)

LARGE = 65536
"""Vectors of the targets on a GPU."""

CUDA_TARGETS = (
    *(
        Target(
            f"BB*, n={n}, batch {LARGE}, forward, against a copy", Case("real", n, LARGE).name, "K", "copy", 4 / 3, 1.1
        )
        for n in (512, 1024)
    ),
    # A copy moves 8 n bytes a vector, forward and backward at least 12 n: half of that bandwidth is 3 copies.
    *(
        Target(
            f"BB*, n={n}, batch {LARGE}, forward + backward, against a copy",
            Case("real", n, LARGE, training=True).name,
            "K",
            "copy",
            3,
            2,
        )
        for n in (512, 1024)
    ),
    *(
        Target(
            f"BB*, n={n}, batch {LARGE}, forward, against dense{mode}",
            Case("real", n, LARGE).name,
            f"dense{mode}",
            f"K{mode}",
            reach,
            aim,
        )
        for mode, n, reach, aim in (
            ("", 512, 5, 8),
            ("", 1024, 10, 15),
            ("", 4096, 40, 60),
            (", tf32", 1024, 1.4, 2),
            (", tf32", 4096, 4, 6),
        )
    ),
    Target(
        f"complex BB*, n=512, batch {LARGE}, against torch.fft.fft",
        Case("complex", 512, LARGE).name,
        "K",
        "fft",
        2,
        1.3,
    ),
)
GRAPH_MICROSECONDS = 6.0
"""That n = 1024 with batch 1 may take in a CUDA graph."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, then print and write the tables and the figure."""
    options = parse_options(
        "kmatrix",
        __doc__,
        argv,
        "'targets' (the table of targets), 'limit' (its instruction limits), or parts of names such as n512-b4096, "
        "training, complex or t1",
    )
    try:
        results = open_results(options.out / f"kmatrix{'-cuda' if options.device.type == 'cuda' else ''}.json", options)
        every = all_cases(options)
        wanted = CUDA_TARGETS if options.device.type == "cuda" else TARGETS
        targets = {target.case for target in wanted} & {case.name for case in every}
        limits = {case.name for case in every if case.batch == 4096 and _has_limit(case)}
        cases = selected(every, options.patterns, {"targets": targets, "limit": limits})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finished = options.redraw or run(cases, Builder(options).contestants, describe, results, options)
    report.publish(results, sections(results), lambda: figure(results))
    return 0 if finished else 130


def all_cases(options: Options) -> list[Case]:
    """Every case, those of the targets first: they are known early in a long run."""
    sizes, batches = (QUICK_SIZES, QUICK_BATCHES) if options.quick else (SIZES, BATCHES)
    cuda = options.device.type == "cuda"
    cases = [
        Case("real", 512, 4096),
        Case("real", 1024, 4096),
        Case("real", 512, 1),
        Case("real", 1024, 1),
        Case("real", 512, 4096, training=True),
        Case("complex", 512, 4096),
    ]
    if cuda and not options.quick:
        cases = [case_of(name) for name in dict.fromkeys(target.case for target in CUDA_TARGETS)] + cases
    scaling = sorted({2, *options.threads} - {1})
    cases += [Case("scaling", n, 4096, threads=t) for t in scaling for n in (512, 1024) if not cuda]
    for threads in options.threads:
        for training in (False, True):
            cases += [Case("real", n, b, training, threads) for n in sizes for b in batches]
    for training in (False, True):
        complex_batches = {*COMPLEX_BATCHES, *((LARGE,) if cuda else ())}
        cases += [Case("complex", n, b, training) for n in sizes for b in batches if b in complex_batches]
    return list(dict.fromkeys(cases))


def _has_limit(case: Case) -> bool:
    return case.kind == "real" and not case.training and case.threads == 1


class Builder:
    """Makes the contestants of a case, within the limits of memory and time.

    Args:
        options: of the command line.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.peak = machine.multiply_adds(machine.capability()) if options.device.type == "cpu" else None
        self.flops = _matmul_rate(options.device)

    def contestants(self, case: Case, results: Results) -> Mapping[str, Contestant]:
        """The contestants by name, K first."""
        cores = results.environment["cores"] or 1
        if case.threads > cores:
            raise Skip(f"all: {case.threads} threads on {cores} cores")
        self._check("K", self._k_bytes(case))
        torch.manual_seed(0)
        device = self.options.device
        dtype = torch.complex64 if case.kind == "complex" else torch.float32
        k = KMatrix(case.n, dtype=dtype).to(device)
        x = torch.randn(case.batch, case.n, dtype=dtype, device=device)
        g = torch.randn(case.batch, case.n, dtype=dtype, device=device) if case.training else None
        factors = k.factors.detach().clone()
        found = {"K": linear_map(ops.butterfly_multiply, x, factors, g, case.threads)}
        if case.kind == "scaling":
            found["K, 1 thread"] = Contestant(found["K"].call, threads=1)
            return found
        try:
            self._check("dense", self._dense_bytes(case))
            self._check_time(case)
            weight = torch.randn(case.n, case.n, dtype=dtype, device=device).div_(case.n**0.5)
            found["dense"] = linear_map(F.linear, x, weight, g, case.threads)
        except Skip as reason:
            skip(results, case, str(reason))
        if not case.training:
            transform, name = (torch.fft.fft, "fft") if case.kind == "complex" else (torch.fft.rfft, "rfft")
            found[name] = Contestant(lambda: transform(x), case.threads)
        if case.batch == 1 and case.kind == "real" and not case.training and "dense" in found:
            linear = nn.Linear(case.n, case.n, bias=False, device=device)
            found["KMatrix module"] = Contestant(lambda: k(x), case.threads)
            found["Linear module"] = Contestant(lambda: linear(x), case.threads)
        if device.type == "cuda":
            found.update(self._on_gpu(case, x, factors, g, found))
        elif _has_limit(case):
            found["gemm"] = Contestant(_matmul(device))
            if self.peak is not None:
                found["peak"] = Contestant(self.peak)
        return found

    def _on_gpu(
        self, case: Case, x: Tensor, factors: Tensor, g: Tensor | None, found: Mapping[str, Contestant]
    ) -> dict[str, Contestant]:
        """What is compared on a GPU alone: a copy; the matrix made anew from K's factors; tf32; a CUDA graph."""
        added = {"copy": Contestant(x.clone, case.threads)}
        if case.kind != "real":
            return added
        materialised = {}
        if case.batch >= case.n and "dense" in found:
            materialised["materialised"] = linear_map(_materialised, x, factors, g, case.threads)
        for name, contestant in {"K": found["K"], "dense": found.get("dense"), **materialised}.items():
            if contestant is not None:
                added[f"{name}, tf32"] = Contestant(in_tf32(contestant.call), case.threads, contestant.grad)
        if case.batch == 1 and not case.training:
            added["K, CUDA graph"] = Contestant(_graphed(lambda: ops.butterfly_multiply(x, factors)), case.threads)
        return {**added, **materialised}

    def _check(self, what: str, needed: float) -> None:
        check_memory(what, needed, self.options.max_bytes, self.options.device)

    def _k_bytes(self, case: Case) -> float:
        item = 8 if case.kind == "complex" else 4
        vectors = item * case.batch * case.n
        stages = 2 * (case.n.bit_length() - 1)
        needed = vectors * (6 if case.training else 3) + item * 4 * stages * case.n
        if ops.backend(torch.empty(1, device=self.options.device)) == "reference":
            # Plain PyTorch keeps every stage for the backward, or builds the dense matrix, partial products and all.
            through_stages = case.batch <= case.n
            needed += 2 * stages * vectors if through_stages and case.training else 0
            needed += 0 if through_stages else item * case.n**2 * (2 * stages if case.training else 6)
        return needed

    def _dense_bytes(self, case: Case) -> float:
        item = 8 if case.kind == "complex" else 4
        return item * (case.n**2 * (2 if case.training else 1) + case.batch * case.n * (5 if case.training else 3))

    def _check_time(self, case: Case) -> None:
        flops = 2.0 * case.n**2 * case.batch * (3 if case.training else 1) * (4 if case.kind == "complex" else 1)
        seconds = flops / (self.flops * case.threads)
        if seconds > self.options.settings.call_seconds:
            raise Skip(f"dense: a call would take about {seconds:.2g} s")


def linear_map(
    multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, gradient: Tensor | None, threads: int
) -> Contestant:
    """``multiply(x, weight)``; with a gradient of the result, also the gradients of both operands."""
    if gradient is None:
        return Contestant(lambda: multiply(x, weight), threads)
    operands = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    return Contestant(lambda: torch.autograd.grad(multiply(*operands), operands, gradient), threads, grad=True)


def _materialised(x: Tensor, factors: Tensor) -> Tensor:
    """K's product by way of its dense matrix, gradients too: for batches that are larger than the matrix."""
    return ops.butterfly_multiply(x, factors, materialise=True)


def in_tf32(call: Callable[[], object]) -> Callable[[], object]:
    """The call with matrix products of float32 that tensor cores may round to tf32."""

    def tf32() -> object:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return call()
        finally:
            torch.set_float32_matmul_precision(before)

    return tf32


def _graphed(call: Callable[[], object]) -> Callable[[], object]:
    """The replay of a call that was captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        call()
    return graph.replay


def _matmul(device: torch.device) -> Callable[[], object]:
    a, b, out = (torch.randn(GEMM, GEMM, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def _matmul_rate(device: torch.device) -> float:
    """Floating-point operations a second of one thread's matrix product: enough to foresee what takes too long."""
    quick = Settings(rounds=3, min_rounds=3, case_seconds=1.0)
    seconds = measure({"gemm": Contestant(_matmul(device))}, quick, device).time("gemm")
    return 2 * GEMM**3 / seconds.low if seconds else float("inf")


def describe(case: Case, measurement: Measurement) -> str:
    """One line: times of a vector, and how many times K's the others take."""
    parts = []
    for name, values in measurement.seconds.items():
        if name in ("gemm", "peak") or not values:
            continue
        time = report.microseconds(measurement.time(name))
        ratio = "" if name == "K" else f" ({report.short_ratio(measurement.ratio(name, 'K'))})"
        parts.append(f"{name} {time} us{ratio}")
    rounds = max((len(values) for values in measurement.seconds.values()), default=0)
    return f"{', '.join(parts)}; {rounds} rounds"


# Tables


def sections(results: Results) -> list[str]:
    """All that is printed, the targets and the table for the README last."""
    cases = [case_of(name) for name in results.measurements]
    cuda = results.environment["device"] == "cuda"
    parts = [report.heading(results.environment), _listing(cases, results), *_grids(cases, results)]
    parts += [_modules_table(cases, results), report.skipped_lines(results)]
    if cuda:
        parts += [_copy_table(cases, results), _precision_table(cases, results), _targets_section(results)]
    else:
        parts += [_limit_table(cases, results), _targets_section(results)]
    return [*parts, _readme_table(cases, results)]


def case_of(name: str) -> Case:
    """The case of a name.

    >>> case_of("real-n512-b4096-training-t1") == Case("real", 512, 4096, training=True)
    True
    """
    kind, n, batch, mode, threads = name.split("-")
    return Case(kind, int(n[1:]), int(batch[1:]), mode == "training", int(threads[1:]))


def _transform(case: Case) -> str:
    return "fft" if case.kind == "complex" else "rfft"


def _a_vector(seconds: Spread | None, case: Case) -> str:
    return "-" if seconds is None else report.microseconds(seconds.scaled(1 / case.batch))


def _listing(cases: Sequence[Case], results: Results) -> str:
    rows = []
    for case in sorted(cases, key=lambda c: (c.kind, c.threads, c.training, c.n, c.batch)):
        found = results.get(case.name)
        other = "K, 1 thread" if case.kind == "scaling" else _transform(case)
        rows.append([
            case.name,
            _a_vector(found.time("K"), case),
            _a_vector(found.time("dense"), case),
            report.ratio_text(found.ratio("dense", "K")),
            _a_vector(found.time(other), case),
            report.ratio_text(found.ratio(other, "K")),
        ])  # fmt: skip
    if not rows:
        return ""
    headers = ["case", "K", "dense", "dense / K", "other", "other / K"]
    return (
        "Microseconds a vector, and ratios of the times. Other: torch.fft.rfft (real), torch.fft.fft (complex), K with "
        "one thread (scaling).\n\n" + report.table(headers, rows)
    )


def _grids(cases: Sequence[Case], results: Results) -> list[str]:
    """Sizes by batches, one table for each peer, mode and number of threads."""
    tables = []
    for kind, training, threads in sorted({(c.kind, c.training, c.threads) for c in cases if c.kind != "scaling"}):
        mine = [c for c in cases if (c.kind, c.training, c.threads) == (kind, training, threads)]
        sizes, batches = sorted({c.n for c in mine}), sorted({c.batch for c in mine})
        for peer, name in (("dense", "F.linear"), (_transform(mine[0]), f"torch.fft.{_transform(mine[0])}")):
            cells = {(c.n, c.batch): report.short_ratio(results.get(c.name).ratio(peer, "K")) for c in mine}
            if any(cell != "-" for cell in cells.values()):
                rows = [[str(n), *(cells.get((n, b), "-") for b in batches)] for n in sizes]
                headers = ["n", *(f"batch {b}" for b in batches)]
                where = report.threads_text(results.environment, threads)
                title = report.listed(f"{name}'s time over K's", kind, report.mode_text(training), where)
                tables.append(f"{title}:\n\n{report.table(headers, rows)}")
    return tables


def _modules_table(cases: Sequence[Case], results: Results) -> str:
    rows = []
    for case in sorted(cases, key=lambda c: (c.threads, c.n)):
        found = results.get(case.name)
        ratio = found.ratio("Linear module", "KMatrix module")
        if ratio is not None:
            times = [report.microseconds(found.time(f"{name} module")) for name in ("KMatrix", "Linear")]
            rows.append([str(case.n), str(case.threads), *times, report.ratio_text(ratio)])
    if not rows:
        return ""
    headers = ["n", "threads", "KMatrix (us)", "nn.Linear (us)", "nn.Linear / KMatrix"]
    return "Batch 1 through the modules, no_grad:\n\n" + report.table(headers, rows)


def _copy_table(cases: Sequence[Case], results: Results) -> str:
    rows = []
    for case in sorted(cases, key=lambda c: (c.kind, c.training, c.n, c.batch)):
        found = results.get(case.name)
        if found.ratio("K", "copy") is not None:
            rows.append([
                case.name,
                _a_vector(found.time("copy"), case),
                *(report.ratio_text(found.ratio(name, "copy")) for name in ("K", "dense", _transform(case))),
            ])  # fmt: skip
    if not rows:
        return ""
    headers = ["case", "copy (us a vector)", "K / copy", "dense / copy", "FFT / copy"]
    return "Against a copy of the batch on the device (x.clone()):\n\n" + report.table(headers, rows)


def _precision_table(cases: Sequence[Case], results: Results) -> str:
    """K beside dense products at both precisions, and beside its own dense matrix: where tensor cores would pay."""
    names = ("K, tf32", "dense", "dense, tf32", "materialised", "materialised, tf32")
    rows = []
    for case in sorted(cases, key=lambda c: (c.training, c.n, c.batch)):
        found = results.get(case.name)
        ratios = [found.ratio(name, "K") for name in names]
        if any(ratio is not None for ratio in ratios[1:]):
            rows.append([case.name, _a_vector(found.time("K"), case), *map(report.ratio_text, ratios)])
    if not rows:
        return ""
    how = (
        "Times over K's, float32. Materialised: the dense matrix made from the factors in every call, and its product; "
        "tf32: with torch.set_float32_matmul_precision('high'), where K may be materialised too."
    )
    return f"{how}\n\n{report.table(['case', 'K (us a vector)', *names], rows)}"


def limit_share(case: Case, measurement: Measurement, environment: Mapping[str, object]) -> Spread | None:
    """The instruction limit's time over K's, taken within each round; None if it was not measured."""
    operations = machine.butterfly_operations(case.n, machine.LANES[str(environment["capability"])]) * case.batch
    by_peak = measurement.ratio("peak", "K")
    if by_peak is not None:
        return by_peak.scaled(operations / machine.MULTIPLY_ADDS_PER_CALL)
    by_gemm = measurement.ratio("gemm", "K")
    lanes = machine.LANES[str(environment["torch_capability"])]
    return None if by_gemm is None else by_gemm.scaled(operations * lanes / GEMM**3)


def _limit_table(cases: Sequence[Case], results: Results) -> str:
    environment, rows = results.environment, []
    limited = [case for case in cases if _has_limit(case)]
    largest = 4096 if any(case.batch == 4096 for case in limited) else max((case.batch for case in limited), default=0)
    for case in sorted(limited, key=lambda c: c.n):
        found = results.get(case.name)
        share, seconds, peak = limit_share(case, found, environment), found.time("K"), found.time("peak")
        if case.batch != largest or share is None or seconds is None:
            continue
        fastest = "-" if peak is None else report.number(machine.MULTIPLY_ADDS_PER_CALL / peak.median / 1e9)
        gemm = found.time("gemm")
        rate = "-" if gemm is None else report.number(2 * GEMM**3 / gemm.median / 1e9)
        limit = seconds.median * share.median / case.batch * 1e6
        percent = share.scaled(100)
        rows.append([
            str(case.n), fastest, rate, f"{limit:.3g}", _a_vector(seconds, case),
            f"{percent.median:.0f} % ({percent.low:.0f} to {percent.high:.0f})",
        ])  # fmt: skip
    if not rows:
        return ""
    lanes = machine.LANES[environment["capability"]]
    how = (
        "Instruction limit of the forward, batch "
        f"{largest}, one thread: 4 n log2 n / {lanes} vector operations a vector (a multiplication or a fused "
        "multiply-add each). The processor's rate of them is measured in the same rounds; where no C compiler is "
        "found, that of a 1024 x 1024 matrix product stands for it, which is below, so that the share is overstated."
    )
    headers = [
        "n", "vector multiply-adds (G/s)", "MKL sgemm (GFLOP/s)", "limit (us a vector)", "K (us a vector)",
        "of the limit",
    ]  # fmt: skip
    return f"{how}\n\n{report.table(headers, rows)}"


def _targets_section(results: Results) -> str:
    if results.environment["device"] == "cuda":
        lines = ["Targets (float32):", "", report.target_table(CUDA_TARGETS, results)]
        graph = results.get(Case("real", 1024, 1).name).time("K, CUDA graph")
        if graph is not None:
            verdict = "yes" if graph.median * 1e6 <= GRAPH_MICROSECONDS else "no"
            lines += [
                "",
                f"BB*, n=1024, batch 1, in a CUDA graph: {report.microseconds(graph)} us, to reach at most "
                f"{GRAPH_MICROSECONDS:g}: {verdict}.",
            ]
        return "\n".join(lines)
    lines = ["Targets (float32, one thread):", "", report.target_table(TARGETS, results)]
    for note in report.target_notes(results.environment):
        lines += ["", note]
    return "\n".join(lines)


def _readme_table(cases: Sequence[Case], results: Results) -> str:
    rows = []
    for n in sorted({case.n for case in cases if case.kind == "real"}):
        forward, training, single = Case("real", n, 4096), Case("real", n, 4096, training=True), Case("real", n, 1)
        many, both, one = (results.get(case.name) for case in (forward, training, single))
        cells = [
            *(_a_vector(many.time(name), forward) for name in ("K", "dense", "rfft")),
            *(report.short_ratio(found.ratio("dense", "K")) for found in (many, both, one)),
        ]
        if any(cell != "-" for cell in cells):
            rows.append([str(n), *cells])
    if not rows:
        return ""
    headers = [
        "n", "K, us a vector", "F.linear", "rfft",
        "times faster than F.linear: forward", "forward + backward", "batch 1",
    ]  # fmt: skip
    where = report.listed(report.threads_text(results.environment, 1), report.hardware(results.environment))
    title = f"For the README (BB*, float32, batch 4096 unless said otherwise; {where}):"
    return f"{title}\n\n{report.table(headers, rows)}"


# Figure


def figure(results: Results) -> Figure | None:
    """Time a vector over n, and the speed-up over dense by batch, forward and training."""
    cases = [case for case in map(case_of, results.measurements) if case.kind == "real" and case.threads == 1]
    if not cases:
        return None
    drawn = Figure(figsize=(12.0, 9.0), layout="constrained")
    what = report.listed("K-matrix BB*", "float32", report.threads_text(results.environment, 1))
    drawn.suptitle(f"{what}: {report.hardware(results.environment)}", fontsize=12)
    panels = drawn.subplots(2, 2)
    sizes = sorted({case.n for case in cases})
    for column, training in enumerate((False, True)):
        mine = [case for case in cases if case.training == training]
        _draw_times(panels[0, column], mine, results, training)
        _draw_speedups(panels[1, column], mine, results, training, sizes)
    return drawn


def _draw_times(axes: Axes, cases: Sequence[Case], results: Results, training: bool) -> None:
    batches = {case.batch for case in cases}
    batch = 4096 if 4096 in batches else max(batches, default=0)
    mine = sorted((case for case in cases if case.batch == batch), key=lambda case: case.n)
    names = {"K": "K-matrix", "dense": "dense (F.linear)", "rfft": "torch.fft.rfft", "copy": "copy"}
    for name, label in names.items():
        points = [(c.n, t.scaled(1e6 / batch)) for c in mine if (t := results.get(c.name).time(name)) is not None]
        _draw_line(axes, points, report.COLOURS[name], label)
    limits = [
        (c.n, share.median * t.median * 1e6 / batch)
        for c in mine
        if _has_limit(c)
        and (share := limit_share(c, results.get(c.name), results.environment)) is not None
        and (t := results.get(c.name).time("K")) is not None
    ]
    if limits:
        axes.plot(*zip(*limits, strict=True), color=report.COLOURS["limit"], linestyle="--",
                  label="instruction limit of K")  # fmt: skip
    axes.set_title(f"{report.mode_text(training)}, batch {batch}")
    _finish(axes, sorted({case.n for case in mine}), "n", "microseconds a vector")


def _draw_speedups(axes: Axes, cases: Sequence[Case], results: Results, training: bool, sizes: Sequence[int]) -> None:
    ends = []
    for i, n in enumerate(sizes):
        points = [
            (c.batch, ratio)
            for c in sorted((case for case in cases if case.n == n), key=lambda case: case.batch)
            if (ratio := results.get(c.name).ratio("dense", "K")) is not None
        ]
        colour = colormaps["viridis"](0.8 * (1 - i / max(1, len(sizes) - 1)))
        _draw_line(axes, points, colour, "")
        ends += [(batch, ratio.median, n, colour) for batch, ratio in points[-1:]]
    for (batch, _, n, colour), height in zip(ends, _apart([end[:2] for end in ends]), strict=True):
        axes.annotate(
            f"n = {n}", (batch, height), xytext=(7, 0), textcoords="offset points", va="center", color=colour,
            fontsize=9,
        )  # fmt: skip
    axes.axhline(1, color="#444444", linewidth=1)
    axes.set_title(f"{report.mode_text(training)}: how many times faster than F.linear")
    batches = sorted({case.batch for case in cases})
    _finish(axes, batches, "batch", "F.linear's time / K's")
    if batches:
        axes.set_xlim(batches[0] / 2, batches[-1] * 8)  # room for the names of the lines


def _apart(ends: Sequence[tuple[int, float]], factor: float = 1.3) -> list[float]:
    """Heights of the names of lines, on a logarithmic axis: their ends, or higher where another name is in the way.

    >>> _apart([(4096, 25.0), (4096, 24.0), (256, 25.0)], factor=2.0)
    [48.0, 24.0, 25.0]
    """
    heights = [value for _, value in ends]
    lowest: dict[int, float] = {}
    for i in sorted(range(len(ends)), key=lambda i: heights[i]):
        heights[i] = max(heights[i], lowest.get(ends[i][0], 0.0))
        lowest[ends[i][0]] = factor * heights[i]
    return heights


def _draw_line(axes: Axes, points: Sequence[tuple[int, Spread]], colour: Any, label: str) -> None:
    if not points:
        return
    x = [at for at, _ in points]
    axes.plot(x, [value.median for _, value in points], color=colour, marker="o", markersize=4, label=label)
    axes.fill_between(
        x,
        [value.low for _, value in points],
        [value.high for _, value in points],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )


def _finish(axes: Axes, ticks: Sequence[int], xlabel: str, ylabel: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    report.plain_log_axis(axes.yaxis)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.35)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)


if __name__ == "__main__":
    sys.exit(main())
