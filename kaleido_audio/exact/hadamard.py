"""The Hadamard transform."""

from __future__ import annotations

import torch
from torch import Tensor

from kaleido_audio.exact.algebra import corner, is_power_of_two
from kaleido_audio.exact.arguments import check_dtype, integer, made_on_cpu
from kaleido_audio.exact.fourier import is_second
from kaleido_audio.factors import identity_factors
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
def hadamard(n: int, *, dtype: torch.dtype = torch.float32) -> KMatrix:
    """The Hadamard matrix in Sylvester's order, as `scipy.linalg.hadamard`: entries 1 and -1.

    In (BB*)^1_1 with one of the two factors the identity.

    Args:
        n: size, a power of two.
        dtype: real or complex.

    Raises:
        ValueError: n is not a power of two.

    >>> hadamard(2).to_dense().detach()
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    check_dtype(dtype)
    n = integer("n", n)
    if not is_power_of_two(n):
        raise ValueError(f"a Hadamard matrix of Sylvester's kind needs n to be a power of two, got {n}")
    factors = identity_factors(2, padded_size(n))
    if n > 1:
        factors[0] = hadamard_factor(n)
    return corner(n, factors, dtype)


def hadamard_factor(n: int) -> Tensor:
    """The B* ``(log2 n, 2, n)`` of the Hadamard matrix; its stages commute, so in reverse order it is a B."""
    factor = torch.ones(n.bit_length() - 1, 2, n, dtype=torch.float64)
    for s, stage in enumerate(factor):
        stage[0, is_second(n, n >> (s + 1))] = -1
    return factor
