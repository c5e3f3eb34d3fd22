"""Algebra on the coefficients of products of butterfly matrices: identity, transpose, inverse, embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kaleido_audio.ops.reference import stage_strides, swap_partners


def identity_factors(n_factors: int, size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Coefficients ``(n_factors, log2 size, 2, size)`` of the identity.

    >>> identity_factors(2, 2, torch.float32)[0, 0]
    tensor([[1., 1.],
            [0., 0.]])
    """
    factors = torch.zeros(n_factors, size.bit_length() - 1, 2, size, dtype=dtype)
    factors[:, :, 0] = 1
    return factors


def widened(factors: Tensor, width: int) -> Tensor:
    """The same product with ``2 * width`` factors: the ones that it lacks are the identity.

    >>> widened(identity_factors(2, 4), 3).shape
    torch.Size([6, 2, 2, 4])
    """
    rest = identity_factors(2 * width - len(factors), factors.shape[-1], factors.dtype)
    return torch.cat([factors, rest.to(factors.device)])


def balanced(stages: Tensor) -> Tensor:
    """The same product with one mean square of the coefficients in every stage, so that one learning rate suits all.

    Shape:
        stages ``(..., 2, n)``, all stages of the product in any arrangement, as the result.
    """
    level = stages.abs().square().mean(dim=(-2, -1), keepdim=True).sqrt()
    if not (level > 0).all():
        return stages
    return stages * (level.log().mean().exp() / level)


def transpose_factors(factors: Tensor) -> Tensor:
    """Coefficients of the transposed product: all stages in reverse order, and in each ``o[i]`` becomes ``o[i ^ s]``.

    Args:
        factors: ``(F, log2 n, 2, n)`` with F even, so that the reversed strides are those of a product again.

    >>> hadamard = torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]], [[[1.0, 1.0], [0.0, 0.0]]]])
    >>> torch.equal(transpose_factors(hadamard), hadamard.flip(0))
    True
    """
    result = factors.clone()
    for parity, s, stride in _stages(factors):
        result[parity::2, s, 1] = swap_partners(factors[parity::2, s, 1], stride)
    return result.flip(0, 1)


def invert_factors(factors: Tensor) -> Tensor:
    """Coefficients of the inverse product: all stages in reverse order, every 2 x 2 block inverted.

    Args:
        factors: ``(F, log2 n, 2, n)`` with F even.

    Raises:
        ValueError: a block is singular to rounding, or its inverse overflows; the message names its factor, stage and
            positions.

    >>> factors = identity_factors(2, 2)
    >>> factors[0, 0] *= 4
    >>> invert_factors(factors)[1, 0, 0].tolist()
    [0.25, 0.25]
    """
    result = torch.empty_like(factors)
    for parity, s, stride in _stages(factors):
        magnitude = factors[parity::2, s].abs().amax(1)
        scale = torch.maximum(magnitude, swap_partners(magnitude, stride)).unsqueeze(1)
        # So scaled, the products neither overflow nor vanish, however small all of a block is.
        diagonal, off_diagonal = (factors[parity::2, s] / scale).unbind(1)
        opposite, off_opposite = swap_partners(diagonal, stride), swap_partners(off_diagonal, stride)
        products = diagonal * opposite, off_diagonal * off_opposite
        determinant = products[0] - products[1]
        # Entries of a matrix of rank 1, rounded and complex, make a determinant of up to 3.4 of these units.
        rounding = torch.finfo(factors.dtype).eps * (products[0].abs() + products[1].abs())
        inverse = torch.stack([opposite, -off_diagonal], 1) / determinant.unsqueeze(1) / scale
        singular = ~(determinant.abs() > 4 * rounding) | ~inverse.isfinite().all(1)  # NaN too
        if singular.any():
            product, i = singular.nonzero()[0].tolist()
            raise ValueError(
                f"no inverse: the block of positions {i} and {i + stride} in stage {s} of factor "
                f"{2 * product + parity} is singular"
            )
        result[parity::2, s] = inverse
    return result.flip(0, 1)


def embed_factors(factors: Tensor, size: int) -> Tensor:
    """Coefficients of the larger product with the given one in its upper-left corner and the identity elsewhere.

    Args:
        factors: ``(F, log2 n, 2, n)``.
        size: a power of two, at least n.

    Shape:
        result ``(F, log2 size, 2, size)``.

    >>> embed_factors(identity_factors(2, 4), 8).equal(identity_factors(2, 8))
    True
    """
    n_factors, log_n, _, n = factors.shape
    result = identity_factors(n_factors, size, factors.dtype).to(factors.device)
    # The new strides are the largest: first in B*, last in B.
    result[0::2, result.shape[1] - log_n :, :, :n] = factors[0::2]
    result[1::2, :log_n, :, :n] = factors[1::2]
    return result


def _stages(factors: Tensor) -> Iterator[tuple[int, int, int]]:
    """Parity of the factor, stage and stride of all stages of a BB*."""
    log_n = factors.shape[1]
    for parity in (0, 1):
        for s, stride in enumerate(stage_strides(parity, log_n)):
            yield parity, s, stride
