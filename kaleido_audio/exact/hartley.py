"""The discrete Hartley transform of any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kaleido_audio.exact.algebra import check_complex, check_length, corner, is_power_of_two, scale_inputs
from kaleido_audio.exact.arguments import made_on_cpu
from kaleido_audio.exact.extension import mirrored
from kaleido_audio.exact.fourier import chirped_dft, is_second
from kaleido_audio.factors import balanced, identity_factors
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
def hartley(n: int, *, dtype: torch.dtype = torch.complex64) -> KMatrix:
    """The discrete Hartley transform of any length: ``cos(2 pi j k / n) + sin(2 pi j k / n)``.

    For real x that is Re(F x) - Im(F x), for all x it is F (p + q R) with F the DFT, p and q (1 + i)/2 and (1 - i)/2,
    and R the reversal of indices modulo n.

    * n a power of two: the chirp exp(i pi j^2 / n) has period n, so the DFT is chirp * circulant * chirp, and R
      commutes with the eigenvalues of the circulant matrix. There, in bit-reversed order, it reverses every block
      [2^t, 2^(t+1)), which is a swap of every bit, and diagonal in the Hadamard basis. So p + q R is a Hadamard
      transform of every block, a diagonal, and the transform back: one B and one B* between the B* and the B of the
      DFT, together (BB*)^2_1.
    * any other n: x and its mirror image are one B*, and their DFT is the corner of one BB* of the padded size of
      3n, so (BB*)^2_3.

    The entries are real, to rounding, but the factors are complex: for a real result take the real part.

    Args:
        n: length of the transform.
        dtype: complex64 or complex128.

    Raises:
        ValueError: n < 1 or a real dtype.

    Source: Bracewell, "Discrete Hartley transform", 1983.

    >>> x = torch.randn(16, dtype=torch.float64)
    >>> spectrum = torch.fft.fft(x)
    >>> torch.allclose(hartley(16, dtype=torch.complex128)(x).real, spectrum.real - spectrum.imag)
    True
    """
    check_complex(dtype, "a Hartley transform")
    n = check_length(n)
    if is_power_of_two(n):
        size = padded_size(n)  # one point: a corner of two
        fourier = chirped_dft(size, size, range(size))
        return corner(n, balanced(torch.cat([fourier[:1], _weighted_reversal(size), fourier[1:]])), dtype)
    size = padded_size(n, 3)
    index = torch.arange(size)
    extension = torch.stack([mirrored(size, 0, index[: size // 2] > 0), identity_factors(1, size)[0]])
    weights = torch.where(index < size // 2, 0.5 + 0.5j, 0.5 - 0.5j).to(torch.complex128)
    weights[0] = 1
    fourier = scale_inputs(chirped_dft(n, size, range(1 - n, 2 * n - 1)), weights)
    return corner(n, balanced(torch.cat([extension, fourier])), dtype)


def _weighted_reversal(n: int) -> Tensor:
    """A B and a B* ``(2, log2 n, 2, n)`` of (1 + i)/2 + (1 - i)/2 R, with R the reversal of [2^t, 2^(t+1)), all t."""
    log_n = n.bit_length() - 1
    index = torch.arange(n)
    hadamard = torch.zeros(log_n, 2, n, dtype=torch.complex128)
    odd = torch.zeros(n, dtype=torch.bool)
    for b in range(log_n):
        below_leading = index >= 2 << b
        second = is_second(n, 1 << b)
        sign = 1 - 2 * second.double()
        hadamard[b, 0] = torch.where(below_leading, sign * math.sqrt(0.5), 1.0)
        hadamard[b, 1] = below_leading.double() * math.sqrt(0.5)
        odd ^= below_leading & second
    factors = torch.stack([hadamard, hadamard.flip(0)])
    # R has eigenvalue 1 or -1 for an even or odd number of ones below the leading bit.
    factors[0, -1] *= torch.where(odd, 1j, 1.0)
    return factors
