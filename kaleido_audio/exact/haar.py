"""The discrete Haar wavelet transform."""

from __future__ import annotations

import math

import torch

from kaleido_audio.exact.algebra import corner, is_power_of_two
from kaleido_audio.exact.arguments import check_dtype, integer, made_on_cpu
from kaleido_audio.exact.permutations import benes
from kaleido_audio.factors import identity_factors
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
def haar(n: int, *, dtype: torch.dtype = torch.float32) -> KMatrix:
    """The orthonormal discrete Haar wavelet transform, all log2 n levels, coarse to fine.

    Output 0 is sum(x) / sqrt(n); outputs 2^j to 2^(j+1) - 1 are the 2^j differences of the sums of neighbouring
    blocks of n / 2^(j+1) inputs, the earlier block minus the later, divided by sqrt(n / 2^j): what
    ``numpy.concatenate(pywt.wavedec(x, "haar"))`` gives.

    In place, level 1 combines neighbours, level 2 the sums at distance 2, and so on with increasing strides: one real
    B. The permutation to coarse-to-fine order is one BB*, so the transform is in (BB*)^2_1.

    Args:
        n: length of the transform, a power of two.
        dtype: real or complex.

    Raises:
        ValueError: n is not a power of two.

    Source: Haar, 1910; Mallat, "A Wavelet Tour of Signal Processing", section 7.3.

    >>> (haar(4).to_dense() * 2).square().round().detach()
    tensor([[1., 1., 1., 1.],
            [1., 1., 1., 1.],
            [2., 2., 0., 0.],
            [0., 0., 2., 2.]])
    """
    check_dtype(dtype)
    n = integer("n", n)
    if not is_power_of_two(n):
        raise ValueError(f"a Haar transform of all levels needs n to be a power of two, got {n}")
    factors = identity_factors(2, padded_size(n))
    if n == 1:
        return corner(n, factors, dtype)
    place = torch.zeros(n, dtype=torch.int64)  # of each output, before the permutation
    for s in range(n.bit_length() - 1):
        stride = 1 << s
        sums = torch.arange(0, n, stride)
        factors[1, s, :, sums] = math.sqrt(0.5)
        factors[1, s, 0, sums[1::2]] *= -1
        place[n // (2 * stride) : n // stride] = sums[1::2]
    return corner(n, torch.cat([factors, benes(place)]), dtype)
