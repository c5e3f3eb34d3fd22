"""The discrete Fourier transform of any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kaleido_audio.exact.permutations import benes, bit_reversal
from kaleido_audio.kmatrix import KMatrix, identity_factors, padded_size


def dft(n: int, *, bit_reversed: bool = False, dtype: torch.dtype = torch.complex64) -> KMatrix:
    """The discrete Fourier transform of any length, as `torch.fft.fft`.

    * n a power of two: the decimation-in-frequency FFT is one B* with bit-reversed output. The permutation back
      to natural order is one BB*, so the DFT is in (BB*)^2_1. With ``bit_reversed=True`` that permutation is left
      out and the map is in (BB*)^1_1: output i holds the frequency ``bit_reversal(n)[i]``.
    * any other n: Bluestein's algorithm, chirp * Toeplitz(chirp) * chirp. The Toeplitz matrix is the corner of a
      circulant matrix of size N, the next power of two of 2n, whose bit reversals cancel around its diagonal; the
      chirps merge into the outer stages. So the DFT is in (BB*)^1_2, in natural order.

    Args:
        n: length of the transform.
        bit_reversed: leave the outputs in bit-reversed order; n must then be a power of two.
        dtype: complex64 or complex128.

    Raises:
        ValueError: ``bit_reversed`` with an n that is not a power of two.

    Source: Dao et al., ICLR 2020, lemma J.1; Bluestein, 1970.

    >>> x = torch.randn(400, dtype=torch.float64)
    >>> torch.allclose(dft(400, dtype=torch.complex128)(x), torch.fft.fft(x))
    True
    """
    check_complex(dtype)
    power_of_two = n & (n - 1) == 0
    if bit_reversed and not power_of_two:
        raise ValueError(f"bit_reversed needs n to be a power of two, got {n}")
    if n == 1:
        return KMatrix(1, dtype=dtype, init="identity")
    if not power_of_two:
        return KMatrix.from_factors(n, _bluestein(n).to(dtype), expansion=2)
    fourier = frequency_decimated(n).unsqueeze(0)
    factors = torch.cat([fourier, identity_factors(1, n, fourier.dtype)])
    if not bit_reversed:
        factors = torch.cat([factors, benes(bit_reversal(n)).to(fourier.dtype)])
    return KMatrix.from_factors(n, factors.to(dtype))


def idft(n: int, *, dtype: torch.dtype = torch.complex64) -> KMatrix:
    """The inverse discrete Fourier transform of any length, as `torch.fft.ifft` (scaled by 1/n).

    In the same class as `dft`: its factors are the conjugates of those of `dft`, with 1/n spread over the stages.

    Args:
        n: length of the transform.
        dtype: complex64 or complex128.

    >>> x = torch.randn(12, dtype=torch.complex128)
    >>> torch.allclose(idft(12, dtype=torch.complex128)(dft(12, dtype=torch.complex128)(x)), x)
    True
    """
    check_complex(dtype)
    forward = dft(n, dtype=torch.complex128)
    factors = forward.factors.detach().conj().resolve_conj().clone()
    if n & (n - 1) == 0:
        factors[0] *= (1 / n) ** (1 / max(1, factors.shape[1]))
    else:
        factors *= (1 / n) ** (1 / (factors.shape[0] * factors.shape[1]))
    return KMatrix.from_factors(n, factors.to(dtype), expansion=forward.expansion)


def check_complex(dtype: torch.dtype) -> None:
    """Raise where a Fourier transform is asked for in a real type."""
    if dtype not in (torch.complex64, torch.complex128):
        raise ValueError(f"a Fourier transform is complex: expected complex64 or complex128, got {dtype}")


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


def _bluestein(n: int) -> Tensor:
    """The BB* ``(2, log2 N, 2, N)`` whose upper-left n x n corner is the DFT of length n."""
    size = padded_size(n, 2)
    log_size = size.bit_length() - 1
    index = torch.arange(size)
    # exp(-i pi j^2 / n), with j^2 reduced in integers so that large j keep their precision.
    chirp = unit(-(index * index % (2 * n)), 2 * n)
    kernel = torch.zeros(size, dtype=torch.complex128)
    kernel[:n] = chirp[:n].conj()
    kernel[size - n + 1 :] = chirp[1:n].flip(0).conj()
    spectrum = torch.fft.fft(kernel)[bit_reversal(size)]

    factors = torch.stack([frequency_decimated(size), inverse_time_decimated(size)])
    # Every stage gets the same gain, so that one learning rate suits them all.
    level = spectrum.abs().mean() / size
    factors *= level ** (1 / (2 * log_size))
    first_stride = size // 2
    factors[0, 0, 0] *= chirp
    factors[0, 0, 1] *= chirp[index ^ first_stride]
    factors[0, -1] *= spectrum / (level * size)
    factors[1, -1] *= chirp
    return factors


def unit(numerator: Tensor, denominator: int) -> Tensor:
    """exp(2 pi i numerator / denominator) in complex128."""
    angle = numerator.double() * (2 * math.pi / denominator)
    return torch.polar(torch.ones_like(angle), angle)
