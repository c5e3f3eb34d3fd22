"""Permutations, by routing them through a Benes network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kaleido_audio.kmatrix import KMatrix, identity_factors, padded_size


def permutation(p: Sequence[int] | Tensor, *, dtype: torch.dtype = torch.float32) -> KMatrix:
    """The permutation matrix of ``y[i] = x[p[i]]``.

    In (BB*)^1_1 for every n: a Benes network is a B B* with every 2 x 2 block the identity or a swap, and a
    permutation of n elements extends to the next power of two by fixed points.

    Args:
        p: each of 0, ..., n - 1 once.
        dtype: real or complex.

    Raises:
        ValueError: p is not a permutation.

    Source: Benes, 1965; Dao et al., ICLR 2020, theorem 2.

    >>> permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0])).tolist()
    [12.0, 10.0, 11.0]
    """
    p = [int(i) for i in p]
    n = len(p)
    if n == 0 or sorted(p) != list(range(n)):
        raise ValueError(f"expected each of 0, ..., n - 1 once, got {p[:10]}{'...' if n > 10 else ''} (n = {n})")
    return KMatrix.from_factors(n, benes([*p, *range(n, padded_size(n))]).to(dtype))


def bit_reversal(n: int) -> Tensor:
    """The indices 0, ..., n - 1 with their log2 n bits in reverse order, an int64 tensor ``(n,)``.

    Args:
        n: a power of two.

    >>> bit_reversal(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    if n < 1 or n & (n - 1):
        raise ValueError(f"bit reversal needs n to be a power of two, got {n}")
    result = torch.zeros(1, dtype=torch.int64)
    while len(result) < n:
        result = torch.cat([2 * result, 2 * result + 1])
    return result


def benes(p: list[int]) -> Tensor:
    """The BB* ``(2, log2 n, 2, n)`` of ``y[i] = x[p[i]]``, by the looping algorithm.

    Stage s of B* and its mirror in B swap within pairs n/2^(s+1) apart. Of each pair of inputs, and of each pair
    of outputs, one member goes through the upper half-size network and one through the lower; fixing one member
    fixes its partner, and following the loop of partners colours all of them.
    """
    n = len(p)
    log_n = n.bit_length() - 1
    swap_in = torch.zeros(log_n, n, dtype=torch.bool)
    swap_out = torch.zeros(log_n, n, dtype=torch.bool)
    networks = [(0, p)]  # position of the first wire, permutation of the wires of that sub-network
    for s in range(log_n):
        inner_networks = []
        for offset, q in networks:
            half = len(q) // 2
            inverse = [0] * len(q)
            for i, source in enumerate(q):
                inverse[source] = i
            lower = [-1] * len(q)  # per output: whether it comes through the lower sub-network
            for start in range(half):
                output = start
                while lower[output] < 0:
                    lower[output] = 0
                    lower[output ^ half] = 1
                    output = inverse[q[output ^ half] ^ half]
            upper_q, lower_q = [0] * half, [0] * half
            for output, source in enumerate(q):
                (lower_q if lower[output] else upper_q)[output % half] = source % half
                swap_out[s, offset + output] = lower[output] != output // half
                swap_in[s, offset + source] = lower[output] != source // half
            inner_networks += [(offset, upper_q), (offset + half, lower_q)]
        networks = inner_networks
    factors = identity_factors(2, n)
    for s in range(log_n):
        for factor, stage, swap in ((0, s, swap_in[s]), (1, log_n - 1 - s, swap_out[s])):
            factors[factor, stage, 0] = (~swap).double()
            factors[factor, stage, 1] = swap.double()
    return factors
