"""How near K-matrices come to given matrices: `kaleido_audio.fit.to_kmatrix` beside low rank of as many parameters.

Prints the relative errors and writes them, with JSON and a figure, to ``runs/benchmarks``. A fit that is recognised
rather than searched for is marked "exact"; any other is a local minimum, even where the class holds the matrix, as it
does "random BB*". The best matrix of rank r is that of the singular value decomposition, with
r as large as the parameters of the K-matrix allow; where they are no fewer than those of the matrix, there is a dash.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn

from benchmarks import machine, report
from benchmarks.arguments import folder
from kaleido_audio import KMatrix, fit

CLASSES = {64: ((1, 1), (2, 1), (1, 2), (2, 2)), 256: ((1, 1), (2, 1))}
SWEEPS = {64: 50, 256: 15}
"""Of the search, by size: a sweep takes 0.01 s at 64 and 0.3 s at 256, with width and expansion 1."""
QUICK_SWEEPS = 5


@dataclass(frozen=True)
class Row:
    """One matrix and one class of K-matrices.

    Attributes:
        n: size of the matrix.
        width, expansion: of (BB*)^w_e.
        matrix: its name.
        error: relative, of the K-matrix.
        exact: recognised rather than searched for.
        start: the structure it was or began with.
        rank: of the low-rank matrix with as many parameters.
        low_rank_error: its relative error, or None where a dense matrix has no more parameters.
        seconds: of the fit.
    """

    n: int
    width: int
    expansion: int
    matrix: str
    error: float
    exact: bool
    start: str
    rank: int
    low_rank_error: float | None
    seconds: float


def matrices(n: int) -> dict[str, tuple[Tensor, torch.dtype]]:
    """Matrices by name, each with the type of the K-matrix that is fitted."""
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(n, n, generator=generator)
    diagonals = torch.randn(2 * n - 1, generator=generator)
    toeplitz = diagonals[torch.arange(n)[:, None] - torch.arange(n) + n - 1]
    cosine = _cosine_transform(n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        planted = KMatrix(n).to_dense().detach()
        trained = _trained_layer(n)
    return {
        "Fourier transform": (torch.fft.fft(torch.eye(n)), torch.complex64),
        "DCT-II": (cosine, torch.float32),
        "DCT-II, complex K": (cosine, torch.complex64),
        "Toeplitz, random": (toeplitz, torch.float32),
        "Toeplitz, complex K": (toeplitz, torch.complex64),
        "random BB*": (planted, torch.float32),
        "rank 4, random": (gaussian[:, :4] @ gaussian[:4], torch.float32),
        "orthogonal, random": (torch.linalg.qr(gaussian).Q, torch.float32),
        "Gaussian, random": (gaussian, torch.float32),
        "trained layer": (trained, torch.float32),
    }


def _cosine_transform(n: int) -> Tensor:
    """The orthogonal DCT-II."""
    index = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * torch.outer(index, index + 0.5)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def _trained_layer(n: int) -> Tensor:
    """The middle layer of a small network that tells ten pitches in noise apart."""
    middle = nn.Linear(n, n)
    net = nn.Sequential(nn.Linear(n, n), nn.ReLU(), middle, nn.ReLU(), nn.Linear(n, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(500):
        pitch = torch.randint(0, 10, (128,))
        phase = 2 * math.pi * torch.rand(128, 1)
        tone = torch.sin(2 * math.pi * (pitch[:, None] + 1) * torch.arange(n) / n + phase)
        loss = nn.functional.cross_entropy(net(tone + torch.randn(128, n)), pitch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return middle.weight.detach()


def measure(n: int, width: int, expansion: int, name: str, matrix: Tensor, dtype: torch.dtype, sweeps: int) -> Row:
    """Fit one matrix."""
    begin = time.perf_counter()
    found = fit.to_kmatrix(
        matrix, width=width, expansion=expansion, dtype=dtype, sweeps=sweeps, restarts=2, progress=False
    )
    seconds = time.perf_counter() - begin
    rank = found.kmatrix.weight.numel() // (2 * n * (2 if matrix.is_complex() else 1))
    tail = torch.linalg.svdvals(matrix.to(torch.complex128))[rank:]
    error = None if 2 * rank >= n else (tail.norm() / matrix.norm()).item()
    return Row(n, width, expansion, name, found.relative_error, found.exact, found.start, rank, error, seconds)


def tables(rows: Sequence[Row]) -> str:
    """A table for each size: a row for each matrix, two columns for each class."""
    parts = []
    for n in sorted({row.n for row in rows}):
        mine = [row for row in rows if row.n == n]
        classes = list(dict.fromkeys((row.width, row.expansion) for row in mine))
        headers = [f"n = {n}"]
        for w, e in classes:
            headers += [f"(BB*)^{w}_{e}", "low rank"]
        lines = []
        for name in dict.fromkeys(row.matrix for row in mine):
            cells = [name]
            for row in (row for row in mine if row.matrix == name):
                cells += ["exact" if row.exact else report.number(row.error), _low_rank_text(row)]
            lines.append(cells)
        parts.append(report.table(headers, lines))
    return "\n\n".join(parts)


def _low_rank_text(row: Row) -> str:
    return "-" if row.low_rank_error is None else report.number(row.low_rank_error)


def figure(rows: Sequence[Row]) -> Figure:
    """Errors of every matrix and class as dots, one panel a size."""
    sizes = sorted({row.n for row in rows})
    drawing = Figure(figsize=(5.5 * len(sizes), 4.2), layout="constrained")
    panels = drawing.subplots(1, len(sizes), squeeze=False)[0]
    colours = {(1, 1): "#0072B2", (2, 1): "#D55E00", (1, 2): "#009E73", (2, 2): "#CC79A7"}
    for axes, n in zip(panels, sizes, strict=True):
        mine = [row for row in rows if row.n == n]
        names = list(dict.fromkeys(row.matrix for row in mine))[::-1]
        for (w, e), colour in colours.items():
            chosen = [row for row in mine if (row.width, row.expansion) == (w, e)]
            if chosen:
                errors = [max(row.error, 1e-8) for row in chosen]
                axes.semilogx(
                    errors, [names.index(r.matrix) for r in chosen], "o", color=colour, label=f"(BB*)^{w}_{e}"
                )
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="relative error", title=f"n = {n}")
        axes.grid(alpha=0.35)
        axes.legend(fontsize=8)
    return drawing


def main(argv: Sequence[str] | None = None) -> None:
    """Fit every matrix, print the tables and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__)
    parser.add_argument(
        "--out",
        type=folder,
        default=Path("runs/benchmarks"),
        help="folder for JSON, tables and figure (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="n = 16 and few sweeps: does everything work?")
    options = parser.parse_args(argv)
    classes = {16: ((1, 1), (2, 1), (1, 2))} if options.quick else CLASSES
    jobs = [
        (n, w, e, name, matrix, dtype)
        for n, members in classes.items()
        for name, (matrix, dtype) in matrices(n).items()
        for w, e in members
    ]
    rows = [measure(*job, sweeps=SWEEPS.get(job[0], QUICK_SWEEPS)) for job in track(jobs, "Fits", transient=True)]
    sweeps = ", ".join(f"{SWEEPS.get(n, QUICK_SWEEPS)} for n = {n}" for n in classes)
    text = f"Relative errors found in so many sweeps: {sweeps}. torch {torch.__version__}.\n\n{tables(rows)}"
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": machine.environment(torch.device("cpu")),
        "fits": [dataclasses.asdict(row) for row in rows],
    }
    (options.out / "fit.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (options.out / "fit.md").write_text(text + "\n", encoding="utf-8")
    figure(rows).savefig(options.out / "fit.png", dpi=130)


if __name__ == "__main__":
    main()
