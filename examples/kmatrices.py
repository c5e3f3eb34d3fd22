"""What K-matrices look like, which known maps they are exactly, and how one is learned.

``python -m examples.kmatrices`` draws the stages of one BB*, prints a table of the constructions in
`kaleido_audio.exact` (the class (BB*)^w_e of each, its parameters, its error in double precision and the time it takes
to build), and learns the Fourier transform from data, as `examples.recover_dft` does by itself. All is written to
``runs/kmatrices``. Each ``# %%`` starts a cell, for editors that run them one by one.
"""

# %%
from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.fft
import scipy.linalg
import scipy.signal
import scipy.sparse
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.arguments import folder, positive_integer
from benchmarks.report import table
from examples import recover_dft
from kaleido_audio import KMatrix, exact, ops
from kaleido_audio.ops.reference import stage_strides

# %% [markdown]
# A butterfly matrix is a product of log2 n stages with two nonzeros in each row. B* has the strides n/2, ..., 1 and B
# the strides 1, ..., n/2. Each alone is dense already: one path leads from every input to every output.


# %%
def stage_matrix(factors: Tensor, factor: int, stage: int) -> Tensor:
    """The sparse n x n matrix of one stage.

    >>> stage_matrix(KMatrix(4).factors, 0, 0) != 0  # stride 2
    tensor([[ True, False,  True, False],
            [False,  True, False,  True],
            [ True, False,  True, False],
            [False,  True, False,  True]])
    """
    alone = KMatrix(factors.shape[-1], width=len(factors) // 2, dtype=factors.dtype, init="identity").factors.detach()
    alone[factor, stage] = factors[factor, stage].detach()
    return ops.to_dense(alone)


def draw_stages(n: int = 16) -> Figure:
    """The nonzeros of the stages of a BB*, of B*, of B and of their product.

    Args:
        n: size, a power of two.
    """
    factors = KMatrix(n).factors.detach()
    log_n = factors.shape[1]
    figure = Figure(figsize=(1.5 * (log_n + 2), 3.4), layout="constrained")
    grid = figure.add_gridspec(2, log_n + 2)

    def draw(cell: Any, matrix: Tensor, title: str) -> None:
        axes = figure.add_subplot(cell)
        axes.imshow((matrix != 0).numpy(), cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])

    for factor, name in enumerate(("B*", "B")):
        for stage, stride in enumerate(stage_strides(factor, log_n)):
            draw(grid[factor, stage], stage_matrix(factors, factor, stage), f"{name}, stride {stride}")
        alone = KMatrix(n, init="identity").factors.detach()
        alone[factor] = factors[factor]
        draw(grid[factor, log_n], ops.to_dense(alone), f"{name}, all {log_n}")
    draw(grid[:, log_n + 1], ops.to_dense(factors), "BB*")
    return figure


# %% [markdown]
# Many maps with fast algorithms are products of a few butterfly matrices exactly: not approximately, and without any
# training. A K-matrix can start as one of them and learn from there.


# %%
@dataclass(frozen=True)
class Map:
    """A known map and its exact K-matrix.

    Attributes:
        name: what it is.
        arguments: of `build`, for a size n.
        build: from those arguments and a ``dtype``.
        apply: the map itself, on vectors ``(batch, n)`` and the same arguments, by other means.
        is_complex: whether the K-matrix is.
    """

    name: str
    arguments: Callable[[int], tuple[Any, ...]]
    build: Callable[..., KMatrix]
    apply: Callable[..., Tensor]
    is_complex: bool = False


def random_sparse(n: int, per_row: int) -> scipy.sparse.csr_matrix:
    """A sparse n x n matrix with nonzeros at random places, on average so many in a row."""
    return scipy.sparse.random(n, n, density=per_row / n, format="csr", random_state=n)


def prefix_sums(n: int) -> tuple[int, list[dict[int, float]], list[int]]:
    """A circuit of all sums of the first k inputs, of depth log2 n (Sklansky, 1960), as `exact.circuit` takes it.

    >>> prefix_sums(4)
    (4, [{0: 1.0, 1: 1.0}, {2: 1.0, 3: 1.0}, {4: 1.0, 2: 1.0}, {4: 1.0, 5: 1.0}], [0, 4, 6, 7])
    """
    gates: list[dict[int, float]] = []
    wires = list(range(n))
    for k in range((n - 1).bit_length()):
        for i in range(n):
            if i >> k & 1:
                gates.append({wires[(i >> k << k) - 1]: 1.0, wires[i]: 1.0})
                wires[i] = n + len(gates) - 1
    return n, gates, wires


def multiply(matrix: Any, x: Tensor) -> Tensor:
    """The numpy or scipy matrix times the vectors ``(batch, n)``."""
    return torch.from_numpy((matrix @ x.numpy().T).T)


def random_vectors(count: int, n: int) -> Tensor:
    """Random vectors ``(count, n)`` in float64."""
    return torch.randn(count, n, dtype=torch.float64)


def transform(function: Callable[..., Any], *options: Any) -> Callable[..., Tensor]:
    """A transform of scipy's or numpy's, with these options, as `Map.apply`."""
    return lambda x, *arguments: torch.from_numpy(function(x.numpy(), *options))


def fastfood(x: Tensor, s: Tensor, g: Tensor, p: Tensor, b: Tensor) -> Tensor:
    """The map of `exact.fastfood`, S H G P H B x."""
    hadamard = scipy.linalg.hadamard(len(s))
    return s * multiply(hadamard, g * multiply(hadamard, b * x)[:, p])


def acdc(x: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """The map of `exact.acdc`: scaled by a, and its cosine transform by d."""
    return torch.from_numpy(scipy.fft.idct(d.numpy() * scipy.fft.dct((a * x).numpy())))


def haar(x: Tensor, n: int) -> Tensor:
    """The orthonormal Haar wavelet transform, coarse to fine: sums and differences of neighbours, then of the sums."""
    details = []
    while x.shape[-1] > 1:
        even, odd = x[:, 0::2], x[:, 1::2]
        x, detail = (even + odd) / 2**0.5, (even - odd) / 2**0.5
        details.append(detail)
    return torch.cat([x, *details[::-1]], dim=-1)


def by_matrix(matrix: Callable[..., Any]) -> Callable[..., Tensor]:
    """Multiplication by the matrix that a function of the arguments gives, as `Map.apply`."""
    return lambda x, *arguments: multiply(matrix(*arguments), x)


def size(n: int) -> tuple[int]:
    """The arguments of a transform: its length alone."""
    return (n,)


def of_type(kind: int) -> Callable[[int], tuple[int, int]]:
    """The arguments of a cosine or sine transform of that type."""
    return lambda n: (n, kind)


def vectors(count: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Arguments that are so many random vectors."""
    return lambda n: tuple(random_vectors(count, n))


def short_filter(n: int) -> tuple[Tensor, int]:
    """A filter of n / 4 + 1 taps, and the length of its input."""
    return random_vectors(1, n // 4 + 1)[0], n


MAPS = [
    Map("DFT", size, exact.dft, lambda x, n: torch.fft.fft(x), is_complex=True),
    Map("DFT of length n - 1", lambda n: (n - 1,), exact.dft, lambda x, n: torch.fft.fft(x), is_complex=True),
    Map("inverse DFT", size, exact.idft, lambda x, n: torch.fft.ifft(x), is_complex=True),
    Map(
        "two-dimensional DFT",
        lambda n: (2, n // 2),
        exact.dft2,
        lambda x, rows, columns: torch.fft.fft2(x.view(-1, rows, columns)).flatten(1),
        is_complex=True,
    ),
    *(
        Map(f"DCT, type {kind}", of_type(kind), exact.dct, transform(scipy.fft.dct, kind), True)
        for kind in (1, 2, 3, 4)
    ),
    *(
        Map(f"DST, type {kind}", of_type(kind), exact.dst, transform(scipy.fft.dst, kind), True)
        for kind in (1, 2, 3, 4)
    ),
    Map("Hartley", size, exact.hartley, lambda x, n: torch.fft.fft(x).real - torch.fft.fft(x).imag, is_complex=True),
    Map("circulant", vectors(1), exact.circulant, by_matrix(scipy.linalg.circulant), is_complex=True),
    Map("Toeplitz", vectors(2), exact.toeplitz, by_matrix(scipy.linalg.toeplitz), is_complex=True),
    Map("Hankel", vectors(2), exact.hankel, by_matrix(scipy.linalg.hankel), is_complex=True),
    Map(
        "convolution",
        short_filter,
        exact.convolution,
        lambda x, h, n: torch.from_numpy(scipy.signal.fftconvolve(x.numpy(), h[None].numpy(), axes=1)),
        is_complex=True,
    ),
    Map("Hadamard", size, exact.hadamard, by_matrix(scipy.linalg.hadamard)),
    Map("Haar wavelets", size, exact.haar, haar),
    Map("permutation", lambda n: (torch.randperm(n),), exact.permutation, lambda x, p: x[:, p]),
    Map("diagonal", vectors(1), exact.diagonal, lambda x, d: d * x),
    Map(
        "Fastfood",
        lambda n: (*random_vectors(2, n), torch.randperm(n), *random_vectors(1, n)),
        exact.fastfood,
        fastfood,
    ),
    Map("ACDC", vectors(2), exact.acdc, acdc, is_complex=True),
    Map("sparse, 1 a row", lambda n: (random_sparse(n, 1),), exact.sparse, lambda x, a: multiply(a, x)),
    Map("sparse, 4 a row", lambda n: (random_sparse(n, 4),), exact.sparse, lambda x, a: multiply(a, x)),
    Map("rank 1", lambda n: tuple(torch.randn(2, n, 1).double()), exact.low_rank, lambda x, u, v: x @ v @ u.T),
    Map("rank 4", lambda n: tuple(torch.randn(2, n, 4).double()), exact.low_rank, lambda x, u, v: x @ v @ u.T),
    Map("prefix sums, a circuit", prefix_sums, exact.circuit, lambda x, *circuit: x.cumsum(-1)),
]
"""One line for each construction; sizes are powers of two."""


@dataclass(frozen=True)
class Result:
    """What the table says of one map at one size.

    Attributes:
        name: of the map.
        kmatrix: that equals it.
        error: largest error on random vectors, relative to the largest output.
        seconds: taken to build it.
    """

    name: str
    kmatrix: KMatrix
    error: float
    seconds: float


def check(known: Map, n: int) -> Result:
    """Build the K-matrix of a map and compare it with the map.

    >>> result = check(MAPS[0], 8)
    >>> result.kmatrix.width, result.error < 1e-14
    (1, True)
    """
    torch.manual_seed(n)
    arguments = known.arguments(n)
    begin = time.perf_counter()
    k = known.build(*arguments, dtype=torch.complex128 if known.is_complex else torch.float64)
    seconds = time.perf_counter() - begin
    x = torch.randn(4, k.in_features, dtype=torch.float64)
    expected = known.apply(x, *arguments)
    with torch.no_grad():
        error = ((k(x) - expected).abs().max() / expected.abs().max()).item()
    return Result(known.name, k, error, seconds)


def describe(results: Sequence[Result]) -> str:
    """The results as a Markdown table; parameters are real numbers, two for each complex coefficient."""
    rows = []
    for r in results:
        k = r.kmatrix
        dense = k.in_features * k.out_features * (2 if k.is_complex else 1)
        rows.append(
            [
                r.name,
                "complex" if k.is_complex else "real",
                f"(BB*)^{k.width}_{k.expansion}",
                str(k.n),
                f"{k.weight.numel():,}",
                f"{100 * k.weight.numel() / dense:.3g} %",
                f"{r.error:.1e}",
                f"{1000 * r.seconds:.0f} ms",
            ]
        )
    headers = ["map", "kind", "class", "n", "parameters", "of a dense matrix", "relative error", "built in"]
    return table(headers, rows, left=3)


# %% [markdown]
# The Fourier transform can also be learned, from pairs of vectors: see `examples.recover_dft`.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the stages, print and write the table, and learn the Fourier transform."""
    parser = argparse.ArgumentParser(prog="python -m examples.kmatrices", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 4096], help="of the table, powers of two (default: 256 4096)"
    )
    parser.add_argument(
        "--learned",
        type=int,
        nargs="*",
        default=recover_dft.SIZES,
        help=f"sizes of learned transforms (default: {' '.join(map(str, recover_dft.SIZES))})",
    )
    parser.add_argument("--steps", type=positive_integer, default=1000, help="of their training (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=folder,
        default=Path("runs/kmatrices"),
        help="folder for tables and figures (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    if any(n < 4 or n & (n - 1) for n in (*options.sizes, *options.learned)):
        parser.error(f"expected sizes that are powers of two, at least 4, got {options.sizes}, {options.learned}")
    options.out.mkdir(parents=True, exist_ok=True)
    draw_stages().savefig(options.out / "stages.png", dpi=150)
    text = describe([check(known, n) for n in options.sizes for known in MAPS])
    (options.out / "exact.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if options.learned:
        recover_dft.main(
            ["--sizes", *map(str, options.learned), "--steps", str(options.steps), "--out", str(options.out)]
        )


# %%
if __name__ == "__main__":
    main()
