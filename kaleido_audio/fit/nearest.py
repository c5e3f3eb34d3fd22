"""Recognise the structure of a matrix, or search for the K-matrix nearest to it."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kaleido_audio import ops
from kaleido_audio.exact.arguments import DTYPES, as_tensor, integer
from kaleido_audio.factors import widened
from kaleido_audio.fit.alternating import alternating_least_squares
from kaleido_audio.fit.structure import structured_candidates
from kaleido_audio.kmatrix import KMatrix, padded_size

_AddBar = Callable[[str, int], Callable[[float], None]]
_STALLED = 1e-6
"""A search ends with a sweep that lowers its error by no more than this part of it."""


@dataclass(frozen=True)
class Fit:
    """What `to_kmatrix` found.

    Attributes:
        kmatrix: the K-matrix.
        relative_error: Frobenius norm of its difference from the matrix, over that of the matrix.
        exact: whether it was recognised rather than searched for: its structure gave it to within the tolerance.
        start: the structure that was recognised or that the search began with: "B*", "B", "B* then bit reversal",
            "bit reversal then B*", "circulant", "permutation", "low rank", "random", or "width w", the result of a
            smaller width.
        history: relative error of that start, then after each sweep.
    """

    kmatrix: KMatrix
    relative_error: float
    exact: bool
    start: str
    history: tuple[float, ...]


def to_kmatrix(
    matrix: Tensor,
    *,
    width: int = 1,
    expansion: int = 1,
    dtype: torch.dtype | None = None,
    sweeps: int | None = None,
    restarts: int = 4,
    tolerance: float = 1e-6,
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """The K-matrix nearest to a matrix, in (BB*)^w_e.

    These are recognised and recovered to rounding, within seconds up to n = 1024: a butterfly matrix of either kind,
    or a B* and then a bit reversal, as the Fourier transform (with width >= 2 also the other way round), and any
    corner of one; a permutation, whose entries may be any numbers; a matrix of rank 1, and with factors r times as
    large as its padded size one of rank r; in a complex dtype, a circulant matrix of a power of two and, where the
    factors are twice as large (expansion 2), any Toeplitz matrix.

    Any other matrix is approximated by alternating least squares. Of the starts, the structures above and random
    orthogonal factors, each gets a tenth of the sweeps (rounded down) and the best one the rest. With width w > 1, the
    result of width w - 1 is another start, so that more width is never worse. The search finds a local minimum: that a
    matrix is in (BB*)^w_e does not mean that the search reaches it.

    Computed in float64 on the matrix's device. A sweep takes O(w N^3 log N) operations for factors of size N: with
    w = 1, on one core, about 0.01 s for N = 64, 0.3 s for N = 256 and 1.6 s for N = 512.

    Args:
        matrix: ``(out_features, n)``, real or complex.
        width: number w of BB* products.
        expansion: e of (BB*)^w_e.
        dtype: of the K-matrix; that of the matrix by default. Real matrices may get complex K-matrices.
        sweeps: passes of the search over all stages; 0 for recognition alone. By default as many as take some seconds
            for w = 1: 100 for N up to 128, then fewer, and none for N above 1024.
        restarts: random starts of the search.
        tolerance: relative error below which a structure counts as recognised and a search ends.
        seed: of the random starts. The same seed gives the same result; the global random state is neither used
            nor changed.
        progress: show a progress bar, where rich is installed and stderr is a terminal.

    Raises:
        ValueError: a matrix that is not two-dimensional, dense, floating-point and finite, a real dtype for a complex
            matrix, an option out of range, or entries too large for dtype.

    Source: hierarchical factorisation of Zheng, Riccietti and Gribonval, 2022 (see `butterfly_factor`); circulant
    matrices as in Dao et al., ICLR 2020; `alternating_least_squares` for the rest.

    >>> fit = to_kmatrix(torch.fft.fft(torch.eye(64)))
    >>> fit.exact, fit.start, fit.relative_error < 1e-6
    (True, 'B* then bit reversal', True)
    >>> x = torch.randn(64)
    >>> torch.allclose(fit.kmatrix(x), torch.fft.fft(x), atol=1e-4)
    True
    """
    matrix = as_tensor(matrix)
    dtype = _checked_dtype(matrix, dtype)
    if not tolerance >= 0:
        raise ValueError(f"expected tolerance >= 0, got {tolerance}")
    width = _at_least("width", width, 1)
    expansion = _at_least("expansion", expansion, 1)
    restarts = _at_least("restarts", restarts, 0)
    seed = integer("seed", seed)
    size = padded_size(max(matrix.shape), expansion)
    sweeps = _default_sweeps(size) if sweeps is None else _at_least("sweeps", sweeps, 0)
    out_features, n = matrix.shape
    target = matrix.detach().to(torch.complex128 if dtype.is_complex else torch.float64)
    scale = _scale(target) or 1.0
    if scale > torch.finfo(dtype).max:
        raise _too_large(scale, dtype)
    # What is made on the way goes to the matrix's device, whatever the default device is.
    with torch.device("cpu"), _progress_bars(progress) as add_bar:
        best, exact = _nearest(target / scale, size, width, sweeps, restarts, tolerance, seed, add_bar)
        stages = best.factors.shape[0] * best.factors.shape[1]
        factors = (best.factors * scale ** (1 / stages)).cpu().to(dtype)
        kmatrix = KMatrix.from_factors(n, factors, out_features=out_features, expansion=expansion)
    kmatrix.to(matrix.device)
    error = relative_error(kmatrix, matrix)
    if not math.isfinite(error):
        raise _too_large(scale, dtype)
    return Fit(kmatrix, error, exact, best.start, tuple(best.history))


def relative_error(kmatrix: KMatrix, matrix: Tensor) -> float:
    """Frobenius norm of the difference between a K-matrix and a matrix, over the norm of the matrix.

    The K-matrix is multiplied out in its own precision; the norms are taken in float64.

    Args:
        kmatrix: of any kind.
        matrix: ``(out_features, n)``, as the K-matrix.

    Returns:
        the error; infinity for a matrix of zeros, unless the K-matrix is zero as well.

    Raises:
        ValueError: shapes that differ.

    >>> relative_error(KMatrix(4, init="identity"), 2 * torch.eye(4))
    0.5
    """
    with ops.no_autocast(next(kmatrix.parameters())):
        dense = kmatrix.to_dense().detach()
    matrix = as_tensor(matrix, device=dense.device)
    if matrix.shape != dense.shape:
        raise ValueError(f"expected a matrix of shape {tuple(dense.shape)}, got {tuple(matrix.shape)}")
    return _relative_norm(dense.to(torch.complex128) - matrix.detach(), matrix.detach().to(torch.complex128))


def _relative_norm(difference: Tensor, matrix: Tensor) -> float:
    scale = _scale(matrix)
    if scale == 0:
        return math.inf if difference.any() else 0.0
    return (difference / scale).norm().item() / (matrix / scale).norm().item()


def _scale(matrix: Tensor) -> float:
    """What to divide a matrix by so that squares of its entries neither overflow nor vanish; 0 for one of zeros."""
    largest: float = matrix.abs().max().item()
    return max(largest, sys.float_info.min) if largest else 0.0  # the reciprocal of a smaller number overflows


def _nearest(
    target: Tensor, size: int, width: int, sweeps: int, restarts: int, tolerance: float, seed: int, add_bar: _AddBar
) -> tuple[_Search, bool]:
    """The best search at that width, and whether it only had to recognise the target."""
    searches = []
    for name, factors in structured_candidates(target, size, width):
        searches.append(_Search(target, widened(factors, width), name))
        if searches[-1].error() <= tolerance:
            return searches[-1], True
    if not sweeps:
        return min(searches, key=_Search.error), False
    if width > 1:
        narrow, _ = _nearest(target, size, width - 1, sweeps, restarts, tolerance, seed, add_bar)
        searches.append(_Search(target, widened(narrow.factors, width), f"width {width - 1}"))
    random = _random_starts(restarts, seed, width, size, target)
    searches += [_Search(target, factors, "random") for factors in random]
    # Matrices of low rank leave most coefficients at zero: a bad place to start, however near.
    starts = [search for search in searches if search.start != "low rank"]
    trial = sweeps // 10
    advance = add_bar(f"width {width}", trial * (len(starts) - 1) + sweeps)
    for search in starts:
        search.run(trial, tolerance, advance)
    best = min(starts, key=_Search.error)
    best.run(sweeps - trial, tolerance, advance)
    return min((best, *searches), key=_Search.error), False


class _Search:
    """One start and how far alternating least squares got from it.

    Args:
        target: the matrix, float64 or complex128.
        factors: to start from.
        start: their name.
    """

    def __init__(self, target: Tensor, factors: Tensor, start: str) -> None:
        self.target = target
        self.factors = factors
        self.start = start
        out_features, n = target.shape
        dense = ops.to_dense(factors, out_features=out_features, in_features=n)
        self.history = [_relative_norm(dense - target, target)]
        self._sweeps = alternating_least_squares(target, factors)

    def error(self) -> float:
        """Relative error after the last sweep."""
        return self.history[-1]

    def run(self, sweeps: int, tolerance: float, advance: Callable[[float], None]) -> None:
        """Sweep until the error is at most the tolerance or has stalled, telling ``advance`` every error."""
        for _ in range(sweeps):
            if self.error() <= tolerance or self._stalled():
                return
            self.factors, distance = next(self._sweeps)
            self.history.append(distance / self.target.norm().item())
            advance(self.error())

    def _stalled(self) -> bool:
        return len(self.history) > 2 and self.history[-1] > (1 - _STALLED) * self.history[-2]


def _default_sweeps(size: int) -> int:
    """Sweeps that take some seconds, as one takes O(N^3) operations."""
    return 0 if size > 1024 else max(1, min(100, round(100 * (128 / size) ** 3)))


def _checked_dtype(matrix: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the K-matrix, once the matrix is known to have one."""
    if matrix.layout != torch.strided:
        raise ValueError(f"expected a dense matrix, got one of layout {matrix.layout}: use matrix.to_dense()")
    if matrix.is_meta:
        raise ValueError("expected a matrix with entries, got one on the meta device: make it on another")
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"expected a matrix of shape (out_features, n), got {tuple(matrix.shape)}")
    if matrix.dtype not in DTYPES:
        raise ValueError(
            f"expected a matrix with dtype in {DTYPES}, got {matrix.dtype}: convert it, e.g. matrix.float()"
        )
    if not matrix.isfinite().all():
        raise ValueError("expected a finite matrix, got one with NaN or infinity")
    dtype = matrix.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"expected dtype in {DTYPES}, got {dtype!r}")
    if matrix.is_complex() and not dtype.is_complex:
        raise ValueError(f"a complex matrix needs a complex dtype, got {dtype}")
    return dtype


def _at_least(name: str, value: int, least: int) -> int:
    value = integer(name, value)
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
    return value


def _too_large(largest: float, dtype: torch.dtype) -> ValueError:
    return ValueError(
        f"entries up to {largest:.3g}, or sums on the way to them, do not fit {dtype}: scale the matrix or take a "
        "wider dtype"
    )


def _random_starts(restarts: int, seed: int, width: int, size: int, target: Tensor) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the GPUs' generators are left alone
        kmatrices = [KMatrix(size, width=width, dtype=target.dtype) for _ in range(restarts)]
    return [k.factors.detach().to(target.device) for k in kmatrices]


@contextlib.contextmanager
def _progress_bars(show: bool) -> Iterator[_AddBar]:
    """A function that adds a bar of so many sweeps, with the error beside it, where rich is there to draw it."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        show = False
    if not show or not sys.stderr.isatty():
        yield lambda description, total: lambda error: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("relative error {task.fields[error]:.2e}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def add_bar(description: str, total: int) -> Callable[[float], None]:
            task = bars.add_task(description, total=total, error=math.inf)
            return lambda error: bars.update(task, advance=1, error=error)

        yield add_bar
