"""The discrete Fourier transform of any length, in one and two dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kaleido_audio.exact.algebra import (
    check_complex,
    check_length,
    corner,
    is_power_of_two,
    scale_inputs,
    scale_outputs,
)
from kaleido_audio.exact.arguments import made_on_cpu
from kaleido_audio.exact.permutations import bit_reversal
from kaleido_audio.exact.products import kronecker
from kaleido_audio.exact.self_sorting import self_sorting
from kaleido_audio.factors import balanced, identity_factors
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
def dft(n: int, *, bit_reversed: bool = False, dtype: torch.dtype = torch.complex64) -> KMatrix:
    """The discrete Fourier transform of any length, as `torch.fft.fft`.

    * n a power of two: the decimation-in-frequency FFT is one B* with bit-reversed outputs, and one BB* sorts them
      on the way (`kaleido_audio.exact.self_sorting`), so the DFT is in (BB*)^1_1, in natural order.
    * any other n: with jk = (j^2 + k^2 - (k - j)^2) / 2, the DFT is chirp * Toeplitz(chirp) * chirp (Bluestein). The
      Toeplitz matrix is the corner of a circulant matrix of size N, the next power of two of 2n. That is one BB*,
      whose bit reversals cancel around the diagonal of its eigenvalues, and the chirps merge into the outer stages.
      So the DFT is in (BB*)^1_2.
    * with ``bit_reversed=True``: the decimation-in-frequency FFT, one B* (the second factor is the identity), so
      in (BB*)^1_1. Output i holds the frequency ``bit_reversal(n)[i]``.

    Args:
        n: length of the transform.
        bit_reversed: leave the outputs in bit-reversed order; n must then be a power of two.
        dtype: complex64 or complex128.

    Raises:
        ValueError: n < 1, a real dtype, or ``bit_reversed`` with an n that is not a power of two.

    Source: Johnson and Burrus, 1984 (self-sorting); Bluestein, "A linear filtering approach to the computation of
    discrete Fourier transform", 1970; Dao et al., ICLR 2020, lemma J.1, where the DFT is in (BB*)^2.

    >>> x = torch.randn(400, dtype=torch.float64)
    >>> torch.allclose(dft(400, dtype=torch.complex128)(x), torch.fft.fft(x))
    True
    """
    check_complex(dtype, "a Fourier transform")
    n = check_length(n)
    if not bit_reversed:
        return corner(n, balanced(_dft_factors(n)), dtype)
    if not is_power_of_two(n):
        raise ValueError(f"bit_reversed needs n to be a power of two, got {n}")
    fourier = frequency_decimated(padded_size(n)).unsqueeze(0)
    return corner(n, torch.cat([fourier, identity_factors(1, padded_size(n), fourier.dtype)]), dtype)


@made_on_cpu
def idft(n: int, *, dtype: torch.dtype = torch.complex64) -> KMatrix:
    """The inverse discrete Fourier transform of any length, as `torch.fft.ifft` (scaled by 1/n).

    In the same class as `dft`: its factors are the conjugates of those of `dft`, with 1/n spread over the stages.

    Args:
        n: length of the transform.
        dtype: complex64 or complex128.

    Raises:
        ValueError: n < 1 or a real dtype.

    >>> x = torch.randn(12, dtype=torch.complex128)
    >>> torch.allclose(idft(12, dtype=torch.complex128)(dft(12, dtype=torch.complex128)(x)), x)
    True
    """
    check_complex(dtype, "a Fourier transform")
    n = check_length(n)
    return corner(n, balanced(scale_outputs(_dft_factors(n).conj().resolve_conj(), 1 / n)), dtype)


@made_on_cpu
def dft2(rows: int, columns: int, *, dtype: torch.dtype = torch.complex64) -> KMatrix:
    """The two-dimensional DFT on flattened matrices, ``torch.fft.fft2(x).flatten()`` of x ``(rows, columns)``.

    The Kronecker product of two DFTs, in the class that `kronecker` states: (BB*)^1_1 for powers of two > 1,
    (BB*)^1_2 where only ``rows`` is not one of them, else (BB*)^3_e with e at most 8.

    Args:
        rows: first size of the matrices.
        columns: second size of the matrices.
        dtype: complex64 or complex128.

    Shape:
        n and out_features are ``rows * columns``, in row-major order.

    Raises:
        ValueError: a size < 1 or a real dtype.

    >>> x = torch.randn(3, 8, dtype=torch.float64)
    >>> torch.allclose(dft2(3, 8, dtype=torch.complex128)(x.flatten()), torch.fft.fft2(x).flatten())
    True
    """
    return kronecker(dft(rows, dtype=dtype), dft(columns, dtype=dtype))


@made_on_cpu
def idft2(rows: int, columns: int, *, dtype: torch.dtype = torch.complex64) -> KMatrix:
    """The inverse of `dft2`, as `torch.fft.ifft2` on flattened matrices, in the same class.

    Args:
        rows: first size of the matrices.
        columns: second size of the matrices.
        dtype: complex64 or complex128.

    Raises:
        ValueError: a size < 1 or a real dtype.

    >>> torch.allclose(idft2(2, 4)(dft2(2, 4)(torch.ones(8))), torch.ones(8, dtype=torch.complex64))
    True
    """
    return kronecker(idft(rows, dtype=dtype), idft(columns, dtype=dtype))


def _dft_factors(n: int) -> Tensor:
    """A BB* whose upper-left n x n corner is the DFT of length n."""
    if is_power_of_two(n):
        return self_sorting(frequency_decimated(padded_size(n)))  # one point: a corner of two
    return chirped_dft(n, padded_size(n, 2), range(1 - n, n))


def chirped_dft(length: int, size: int, differences: range) -> Tensor:
    """A BB* ``(2, log2 size, 2, size)`` with the entries of a DFT, at indices taken modulo its size.

    Entry (k, q modulo size), for k and q between -size/2 and size/2, is exp(-2 pi i k q / length) where k - q is
    one of ``differences``. Where size = length, it is for all k and q.

    Args:
        length: length of the DFT.
        size: a power of two, at least the number of differences unless it is a multiple of an even length.
        differences: the values that k - q takes.
    """
    index = torch.arange(size)
    signed = index - size * (index >= size // 2)
    chirp = _chirp(signed, length)
    steps = torch.arange(differences.start, differences.stop)
    kernel = torch.zeros(size, dtype=torch.complex128)
    kernel[steps % size] = _chirp(steps, length).conj()
    return scale_outputs(scale_inputs(circular_convolution(kernel), chirp), chirp)


def _chirp(t: Tensor, length: int) -> Tensor:
    """exp(-i pi t^2 / length), with t^2 reduced in integers so that large t keep their precision."""
    return unit(-(t * t % (2 * length)), 2 * length)


def circular_convolution(kernel: Tensor) -> Tensor:
    """The BB* ``(2, log2 N, 2, N)`` of the circulant matrix with this first column ``(N,)``.

    F^-1 diag(F kernel) F, with the middle in bit-reversed order.
    """
    size = len(kernel)
    spectrum = torch.fft.fft(kernel)[bit_reversal(size)]
    factors = torch.stack([frequency_decimated(size), inverse_time_decimated(size)])
    factors[0, -1] *= spectrum / size
    return factors


def circular_correlation(kernel: Tensor) -> Tensor:
    """The BB* ``(2, log2 N, 2, N)`` of ``y[k] = sum_j kernel[(k + j) mod N] x[j]``: the forward DFT is conjugated."""
    size = len(kernel)
    spectrum = torch.fft.fft(kernel)[bit_reversal(size)]
    factors = torch.stack([frequency_decimated(size).conj(), inverse_time_decimated(size)])
    factors[0, -1] *= spectrum / size
    return factors


def is_second(n: int, stride: int) -> Tensor:
    """Which indices are the second of their pair ``(i, i + stride)``."""
    return (torch.arange(n) // stride) % 2 == 1


def frequency_decimated(n: int) -> Tensor:
    """The B* ``(log2 n, 2, n)`` of the DFT with natural input and bit-reversed output."""
    log_n = n.bit_length() - 1
    factor = torch.empty(log_n, 2, n, dtype=torch.complex128)
    index = torch.arange(n)
    for s in range(log_n):
        stride = n >> (s + 1)
        twiddle = unit(-(index % stride), 2 * stride)
        second = is_second(n, stride)
        factor[s, 0] = torch.where(second, -twiddle, 1.0)
        factor[s, 1] = torch.where(second, twiddle, 1.0)
    return factor


def inverse_time_decimated(n: int) -> Tensor:
    """The B ``(log2 n, 2, n)`` of n times the inverse DFT, with bit-reversed input and natural output."""
    log_n = n.bit_length() - 1
    factor = torch.empty(log_n, 2, n, dtype=torch.complex128)
    index = torch.arange(n)
    for s in range(log_n):
        stride = 1 << s
        twiddle = unit(index % stride, 2 * stride)
        second = is_second(n, stride)
        factor[s, 0] = torch.where(second, -twiddle, 1.0)
        factor[s, 1] = torch.where(second, 1.0, twiddle)
    return factor


def unit(numerator: Tensor, denominator: int) -> Tensor:
    """exp(2 pi i numerator / denominator) in complex128."""
    angle = numerator.double() * (2 * math.pi / denominator)
    return torch.polar(torch.ones_like(angle), angle)
