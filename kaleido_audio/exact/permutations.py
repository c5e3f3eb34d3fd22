"""Permutations, by routing them through a Benes network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kaleido_audio.exact.arguments import as_tensor, check_dtype, integer, made_on_cpu
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
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
    check_dtype(dtype)
    p = check_permutation(p)
    n = len(p)
    return KMatrix.from_factors(n, benes(torch.cat([p, torch.arange(n, padded_size(n))])).to(dtype))


def check_permutation(p: Sequence[int] | Tensor) -> Tensor:
    """``p`` as an int64 tensor ``(n,)``, or a ValueError where it is not each of 0, ..., n - 1 once."""
    given = as_tensor(p).cpu()
    n = given.numel()
    indices = given.long()
    integers = bool((given == indices).all())
    if given.ndim != 1 or n == 0 or not integers or not torch.equal(indices.sort().values, torch.arange(n)):
        shown = given.flatten()[:10].tolist()
        raise ValueError(f"expected each of 0, ..., n - 1 once, got {shown}{'...' if n > 10 else ''} (n = {n})")
    return indices


@made_on_cpu
def bit_reversal(n: int) -> Tensor:
    """The indices 0, ..., n - 1 with their log2 n bits in reverse order, an int64 tensor ``(n,)``.

    Args:
        n: a power of two.

    >>> bit_reversal(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    n = integer("n", n)
    if n < 1 or n & (n - 1):
        raise ValueError(f"bit reversal needs n to be a power of two, got {n}")
    result = torch.zeros(1, dtype=torch.int64)
    while len(result) < n:
        result = torch.cat([2 * result, 2 * result + 1])
    return result


def benes(p: Tensor) -> Tensor:
    """The BB* ``(2, log2 n, 2, n)`` of ``y[i] = x[p[i]]``, by the looping algorithm, in O(n log^2 n) operations.

    Stage s of B* and its mirror in B swap within pairs n/2^(s+1) apart. Of each pair of inputs, and of each pair
    of outputs, one member goes through the upper half-size network and one through the lower. So outputs that are
    two steps apart, over a pair of outputs and then a pair of inputs, go the same way: they form orbits of a
    permutation, and the orbits of the two members of a pair go different ways. All sub-networks of a size are
    coloured at once; the smallest member of every orbit is found by doubling the length of the step.

    Args:
        p: int64 indices ``(n,)``, each of 0, ..., n - 1 once; n a power of two.
    """
    n = len(p)
    log_n = n.bit_length() - 1
    wire = torch.arange(n)
    factors = torch.empty(2, log_n, 2, n, dtype=torch.float64)
    for s in range(log_n):
        half = n >> (s + 1)
        inverse = torch.empty_like(p)
        inverse[p] = wire
        step = inverse[p[wire ^ half] ^ half]
        smallest = wire
        for _ in range(log_n - 1 - s):  # an orbit has at most half the wires of a sub-network
            smallest = torch.minimum(smallest, smallest[step])
            step = step[step]
        lower = (smallest > smallest[wire ^ half]).long() * half
        for factor, stage, wires in ((0, s, p), (1, log_n - 1 - s, wire)):
            swap = torch.empty(n, dtype=torch.bool)
            swap[wires] = lower != wires & half
            factors[factor, stage] = torch.stack([~swap, swap])
        # Output i and its source move to the half that they go through.
        inner = torch.empty_like(p)
        inner[wire & ~half | lower] = p & ~half | lower
        p = inner
    return factors


def increasing_benes(p: Tensor) -> Tensor:
    """As `benes`, with increasing strides first: a factor of the B form and then one of the B* form.

    Between two factors, B* before and B after it, a permutation so adds only one BB* instead of standing apart.
    Reversing the bits of every index turns either form into the other.
    """
    reverse = bit_reversal(len(p))
    return benes(reverse[p[reverse]])[..., reverse]
