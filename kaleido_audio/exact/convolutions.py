"""Circulant, Toeplitz and Hankel matrices, and convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from kaleido_audio.exact.algebra import Vector, check_length, corner, is_power_of_two, read_vectors
from kaleido_audio.exact.arguments import made_on_cpu
from kaleido_audio.exact.fourier import circular_convolution, circular_correlation
from kaleido_audio.factors import balanced
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
def circulant(c: Vector, *, dtype: torch.dtype | None = None) -> KMatrix:
    """The circulant matrix with first column c, as `scipy.linalg.circulant`: circular convolution with c.

    F^-1 diag(F c) F with F the DFT: an FFT is one B* with bit-reversed output, an inverse FFT from that order one B.
    So it is in (BB*)^1_1 for n a power of two, and in (BB*)^1_2 as a Toeplitz matrix for any other n. The factors are
    complex, also where c is real.

    Args:
        c: first column ``(n,)``.
        dtype: complex64 or complex128; by default the complex type of c's precision.

    Raises:
        ValueError: c is not a vector or dtype is real.

    Source: Dao et al., ICLR 2020, appendix J.

    >>> circulant([1.0, 2.0, 3.0, 4.0])(torch.tensor([0.0, 1.0, 0.0, 0.0])).real.detach().round()
    tensor([4., 1., 2., 3.])
    """
    (column,), dtype = read_vectors("a circulant matrix", dtype, True, c=c)
    n = len(column)
    if is_power_of_two(n) and n > 1:
        return corner(n, balanced(circular_convolution(column)), dtype)
    return _toeplitz(torch.cat([column[1:], column]), n, n, dtype)


@made_on_cpu
def toeplitz(c: Vector, r: Vector | None = None, *, dtype: torch.dtype | None = None) -> KMatrix:
    """The Toeplitz matrix with first column c and first row r, as `scipy.linalg.toeplitz`.

    In (BB*)^1_2: the corner of a circulant matrix of the next power of two of rows + columns - 1. The factors are
    complex, also where c and r are real.

    Args:
        c: first column ``(rows,)``.
        r: first row ``(columns,)``, of which r[0] is ignored; by default the conjugate of c.
        dtype: complex64 or complex128; by default the complex type of the vectors' precision.

    Raises:
        ValueError: c or r is not a vector, or dtype is real.

    Source: Dao et al., ICLR 2020, appendix J.

    >>> toeplitz([1.0, 2.0], [1.0, 3.0, 4.0]).to_dense().real.detach().round()
    tensor([[1., 3., 4.],
            [2., 1., 3.]])
    """
    (column, row), dtype = read_vectors("a Toeplitz matrix", dtype, True, c=c, r=c if r is None else r)
    row = row.conj() if r is None else row
    return _toeplitz(torch.cat([row[1:].flip(0), column]), len(column), len(row), dtype)


@made_on_cpu
def hankel(c: Vector, r: Vector | None = None, *, dtype: torch.dtype | None = None) -> KMatrix:
    """The Hankel matrix with first column c and last row r, as `scipy.linalg.hankel`.

    In (BB*)^1_2, like a Toeplitz matrix: with the first FFT conjugated, a circular convolution becomes a circular
    correlation. The factors are complex, also where c and r are real.

    Args:
        c: first column ``(rows,)``.
        r: last row ``(columns,)``, of which r[0] is ignored; by default zeros, as many as rows.
        dtype: complex64 or complex128; by default the complex type of the vectors' precision.

    Raises:
        ValueError: c or r is not a vector, or dtype is real.

    >>> hankel([1.0, 2.0], [2.0, 3.0, 4.0]).to_dense().real.detach().round()
    tensor([[1., 2., 3.],
            [2., 3., 4.]])
    """
    (column, row), dtype = read_vectors("a Hankel matrix", dtype, True, c=c, r=c if r is None else r)
    row = torch.zeros_like(row) if r is None else row
    values = torch.cat([column, row[1:]])
    kernel = torch.cat([values, values.new_zeros(padded_size(len(values)) - len(values))])
    return corner(len(row), balanced(circular_correlation(kernel)), dtype, out_features=len(column))


@made_on_cpu
def convolution(h: Vector, n: int, mode: str = "full", *, dtype: torch.dtype | None = None) -> KMatrix:
    """Convolution of vectors ``(n,)`` with h, as ``scipy.signal.convolve(x, h, mode)`` and, for n >= m, numpy's.

    A Toeplitz matrix with a band, so in (BB*)^1_2 at most; in (BB*)^1_1 with mode ``"full"``, and with ``"valid"``
    for m <= n, where a circular convolution of the padded size of the longer side wraps only zeros round. The factors
    are complex, also where h is real. Cross-correlation with h is convolution with its conjugate reversed.

    Args:
        h: impulse response ``(m,)``.
        n: length of the vectors.
        mode: ``"full"``: all n + m - 1 outputs; ``"same"``: the n in the middle; ``"valid"``: the |n - m| + 1 in
            which the shorter of the two lies within the longer.
        dtype: complex64 or complex128; by default the complex type of h's precision.

    Raises:
        ValueError: h is not a vector, n < 1, another mode, or dtype is real.

    Source: Dao et al., ICLR 2020, appendix J.

    >>> convolution([1.0, 1.0], 3)(torch.tensor([1.0, 2.0, 3.0])).real.detach().round()
    tensor([1., 3., 5., 3.])
    """
    (response,), dtype = read_vectors("a convolution", dtype, True, h=h)
    n = check_length(n)
    m = len(response)
    ranges = {
        "full": (0, n + m - 1),
        "same": ((m - 1) // 2, n),
        "valid": (min(n, m) - 1, abs(n - m) + 1),
    }
    if mode not in ranges:
        raise ValueError(f"expected mode in {tuple(ranges)}, got {mode!r}")
    start, rows = ranges[mode]
    first = start - n + 1  # the index of h at output 0 and input n - 1
    band = torch.zeros(rows + n - 1, dtype=response.dtype)
    start, stop = max(0, first), min(m, first + len(band))  # the part of h that is used
    band[start - first : stop - first] = response[start:stop]
    return _toeplitz(band, rows, n, dtype, support=(start - first, stop - first - 1))


def _toeplitz(
    diagonals: Tensor, rows: int, columns: int, dtype: torch.dtype, support: tuple[int, int] | None = None
) -> KMatrix:
    """The Toeplitz matrix with these diagonals ``(rows + columns - 1,)``, from upper right to lower left.

    Args:
        support: first and last diagonal that may be nonzero; all of them by default. In the circulant matrix the
            others may wrap round onto one another.
    """
    first, last = support or (0, len(diagonals) - 1)
    size = padded_size(max(rows, columns, len(diagonals) - first, last + 1))
    kernel = torch.zeros(size, dtype=diagonals.dtype)
    offset = torch.arange(first, last + 1) - (columns - 1)
    kernel[offset % size] = diagonals[first : last + 1]
    return corner(columns, balanced(circular_convolution(kernel)), dtype, out_features=rows)
