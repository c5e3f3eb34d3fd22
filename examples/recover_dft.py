"""Learn the fast Fourier transform from examples: pairs of random vectors and their transforms.

``python -m examples.recover_dft`` compares three ways, for n = 64 to 1024:

* **factorisation**: the matrix by least squares from 2 n pairs, then `kaleido_audio.fit.to_kmatrix`;
* **gradient, order known**: Adam on one B* whose outputs are compared with the transforms in bit-reversed order, from
  random unitary stages; the bit reversal is then merged into a BB*;
* **gradient, order unknown**: the same on a whole BB* and the natural order. The transform is one such matrix, but
  Adam does not find it.

Prints a table and writes it with a figure to ``runs/recover_dft``. The error is that of the unitary matrix F: relative,
norm(K - F) / norm(F), and as root mean square of the entries, norm(K - F) / n, as in Dao et al., "Learning Fast
Algorithms for Linear Transforms", 2019, who reached 1e-4 up to n = 1024.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.arguments import folder, positive_integer
from benchmarks.report import table
from kaleido_audio import KMatrix, exact, fit, ops
from kaleido_audio.exact.self_sorting import self_sorting

SIZES = (64, 128, 256, 512, 1024)


@dataclass
class Recovery:
    """One learned transform.

    Attributes:
        method: "factorisation", "gradient, order known" or "gradient, order unknown".
        kmatrix: n x n, complex, width 1, natural order.
        samples: pairs that were seen.
        steps: of the optimizer.
        seconds: that it took.
        curve: relative error of a batch before each step.
    """

    method: str
    kmatrix: KMatrix
    samples: int
    steps: int
    seconds: float
    curve: list[float] = field(default_factory=list)

    @property
    def relative_error(self) -> float:
        """Of the whole matrix, which training never sees."""
        n = self.kmatrix.n
        return fit.relative_error(self.kmatrix, torch.fft.fft(torch.eye(n, dtype=torch.complex128), norm="ortho"))

    @property
    def rmse(self) -> float:
        """Root mean square error of an entry."""
        return self.relative_error / math.sqrt(self.kmatrix.n)


def pairs(count: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random complex vectors ``(count, n)`` and their unitary Fourier transforms."""
    x = torch.randn(count, n, dtype=torch.complex64, generator=generator)
    return x, torch.fft.fft(x, norm="ortho")


def by_factorisation(n: int, *, seed: int = 0) -> Recovery:
    """Least squares for the matrix, then its K-matrix.

    >>> by_factorisation(16).relative_error < 1e-5
    True
    """
    begin = time.perf_counter()
    x, y = pairs(2 * n, n, torch.Generator().manual_seed(seed))
    matrix = torch.linalg.lstsq(x, y).solution.mT
    kmatrix = fit.to_kmatrix(matrix, tolerance=1e-4, progress=False).kmatrix
    return Recovery("factorisation", kmatrix, len(x), 0, time.perf_counter() - begin)


def by_gradient(
    n: int, *, order_known: bool, steps: int = 1000, batch: int = 64, lr: float = 0.02, seed: int = 0
) -> Recovery:
    """Adam on the squared error of fresh batches of pairs; the learning rate falls to zero along a cosine.

    Args:
        n: size, a power of two.
        order_known: learn one B* with outputs in bit-reversed order, rather than a BB* in natural order.
        steps: of Adam, each on a batch of its own.
        batch: pairs a step.
        lr: learning rate at the start.
        seed: of the start and the pairs.

    >>> by_gradient(16, order_known=True, steps=300).relative_error < 1e-4
    True
    """
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = KMatrix(n, dtype=torch.complex64).factors.detach()
    weight = nn.Parameter(torch.view_as_real(start[:1] if order_known else start).clone())
    rows = exact.bit_reversal(n) if order_known else torch.arange(n)
    optimizer = torch.optim.Adam([weight], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve = []
    for _ in range(steps):
        x, y = pairs(batch, n, generator)
        error = (ops.butterfly_multiply(x, torch.view_as_complex(weight)) - y[:, rows]).abs().square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
        curve.append(math.sqrt(error.item() / y.abs().square().mean().item()))
    factors = torch.view_as_complex(weight.detach())
    kmatrix = KMatrix.from_factors(n, self_sorting(factors[0]) if order_known else factors)
    method = f"gradient, order {'known' if order_known else 'unknown'}"
    return Recovery(method, kmatrix, steps * batch, steps, time.perf_counter() - begin, curve)


def markdown(recoveries: Sequence[Recovery]) -> str:
    """A table with a row for each recovery."""
    rows = [
        [
            r.method,
            str(r.kmatrix.n),
            f"{r.relative_error:.1e}",
            f"{r.rmse:.1e}",
            str(r.samples),
            str(r.steps) if r.steps else "-",
            f"{r.seconds:.1f}",
        ]
        for r in recoveries
    ]
    return table(["method", "n", "relative error", "RMSE", "pairs", "steps", "seconds"], rows)


def figure(recoveries: Sequence[Recovery]) -> Figure:
    """Error against n, and the training curves."""
    plot = Figure(figsize=(9, 3.6), layout="constrained")
    errors, curves = plot.subplots(1, 2)
    styles = {"factorisation": "#009E73", "gradient, order known": "#0072B2", "gradient, order unknown": "#D55E00"}
    for method, colour in styles.items():
        mine = [r for r in recoveries if r.method == method]
        errors.loglog([r.kmatrix.n for r in mine], [r.relative_error for r in mine], "o-", color=colour, label=method)
        for i, r in enumerate(r for r in mine if r.curve):
            alpha = (i + 1) / len(mine)
            curves.semilogy(r.curve, color=colour, alpha=alpha, linewidth=1, label=f"{method}, n = {r.kmatrix.n}")
    errors.axhline(1e-4, color="#8C8C8C", linestyle="--", linewidth=1)
    errors.set(xlabel="n", ylabel="relative error", title="Error of the learned transform")
    errors.set_xticks(
        sorted({r.kmatrix.n for r in recoveries}), [str(n) for n in sorted({r.kmatrix.n for r in recoveries})]
    )
    errors.minorticks_off()
    errors.legend(fontsize=8)
    curves.set(xlabel="step", ylabel="relative error of a batch", title="Training, darker for larger n")
    return plot


def main(argv: Sequence[str] | None = None) -> None:
    """Run all three ways at every size, print the table, write it and the figure."""
    parser = argparse.ArgumentParser(prog="python -m examples.recover_dft", description="Learn the FFT from examples.")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=SIZES,
        metavar="N",
        help=f"powers of two (default: {' '.join(map(str, SIZES))})",
    )
    parser.add_argument("--steps", type=positive_integer, default=1000, help="of Adam (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of starts and pairs (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=folder,
        default=Path("runs/recover_dft"),
        help="folder for the table and the figure (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    if any(n < 1 or n & (n - 1) for n in options.sizes):
        parser.error(f"expected --sizes that are powers of two, got {options.sizes}")
    recoveries = []
    for order_known in (None, True, False):
        for n in options.sizes:
            if order_known is None:
                recoveries.append(by_factorisation(n, seed=options.seed))
            else:
                recoveries.append(by_gradient(n, order_known=order_known, steps=options.steps, seed=options.seed))
    text = markdown(recoveries)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "recover_dft.md").write_text(text + "\n", encoding="utf-8")
    figure(recoveries).savefig(options.out / "recover_dft.png", dpi=150)


if __name__ == "__main__":
    main()
