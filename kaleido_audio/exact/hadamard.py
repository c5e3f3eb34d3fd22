"""The Hadamard transform."""

from __future__ import annotations

import torch

from kaleido_audio.exact.fourier import is_second
from kaleido_audio.kmatrix import KMatrix, identity_factors, padded_size


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
    if n < 1 or n & (n - 1):
        raise ValueError(f"a Hadamard matrix of Sylvester's kind needs n to be a power of two, got {n}")
    size = padded_size(n)
    factors = identity_factors(2, size)
    if n > 1:
        for s in range(size.bit_length() - 1):
            second = is_second(size, size >> (s + 1))
            factors[0, s, 0] = torch.where(second, -1.0, 1.0).double()
            factors[0, s, 1] = 1
    return KMatrix.from_factors(n, factors.to(dtype))
