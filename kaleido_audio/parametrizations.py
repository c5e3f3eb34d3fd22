"""What a K-matrix learns: the 2 x 2 blocks of its stages, free or given by angles, apart or tied.

A stage of stride s joins the positions i and i + s in a block [[d0, o0], [o1, d1]]; `pairs` counts the blocks that
have coefficients of their own. Blocks are tensors ``(F, log2 n, 2, 2, pairs)``: at [0] the diagonal coefficients
d0 and d1, at [1] the off-diagonal ones o0 and o1.

* untied: pairs = n / 2, in the order of i.
* tied: the blocks of a stage of stride s share s patterns, i mod s. The dimension of stages is left out, and
  pairs = 1 + 2 + ... + n/2 = n - 1 holds the patterns of the strides 1, 2, ..., n/2 one after the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kaleido_audio.ops.reference import swap_partners


def block_index(size: int, *, tied: bool) -> Tensor:
    """Where the coefficients of all positions stand among the ``2 * pairs`` of a stage's blocks.

    Shape:
        int64 ``(2, log2 size, size)``: for the stages of even factors (B*) and of odd ones (B).

    >>> block_index(4, tied=False)[1].tolist()  # strides 1 and 2: the second of each pair is pairs = 2 further
    [[0, 2, 1, 3], [0, 1, 2, 3]]
    >>> block_index(4, tied=True)[1].tolist()  # pairs = 3
    [[0, 3, 0, 3], [1, 2, 4, 5]]
    """
    position = torch.arange(size)
    stride = 1 << torch.arange(size.bit_length() - 1).unsqueeze(1)
    start = stride - 1 if tied else position // (2 * stride) * stride
    second = position // stride % 2
    index = start + position % stride + second * (size - 1 if tied else size // 2)
    return torch.stack([index.flip(0), index])


def factors_of_blocks(blocks: Tensor, index: Tensor) -> Tensor:
    """The coefficients ``(F, log2 n, 2, n)`` of blocks, by `block_index`."""
    _, log_n, size = index.shape
    n_products = blocks.shape[0] // 2
    # Tied blocks have one row of patterns for all stages, which finds each its own.
    rows = blocks.reshape(n_products, 2, -1, 2, 2 * blocks.shape[-1]).expand(-1, -1, log_n, -1, -1)
    return rows.gather(-1, index.unsqueeze(2).expand(n_products, 2, log_n, 2, size)).flatten(0, 1)


def blocks_of_factors(factors: Tensor, index: Tensor, *, tied: bool) -> Tensor:
    """The inverse of `factors_of_blocks`; of factors that are not tied, one block of each stage serves as pattern."""
    _, log_n, size = index.shape
    n_products = factors.shape[0] // 2
    pairs = size - 1 if tied else size // 2
    rows = factors.new_zeros(n_products, 2, log_n, 2, 2 * pairs)
    rows.scatter_(-1, index.unsqueeze(2).expand(n_products, 2, log_n, 2, size), factors.unflatten(0, (-1, 2)))
    blocks = rows.unflatten(-1, (2, pairs)).flatten(0, 1)
    return blocks.sum(1) if tied else blocks


def unitary_blocks(angles: Tensor, reflection: Tensor | None) -> Tensor:
    """Orthogonal or unitary blocks from angles: all of O(2) and U(2).

    Args:
        angles: real, ``(..., pairs)``: theta of [[cos, -sin], [sin, cos]]; complex, ``(..., 4, pairs)``: theta,
            alpha, beta, delta of [[e^{i alpha} cos, -e^{i (delta - beta)} sin], [e^{i beta} sin,
            e^{i (delta - alpha)} cos]], whose determinant is e^{i delta}.
        reflection: ``(..., pairs)``: 1 where the second column is negated, else 0. None for complex blocks.

    Shape:
        result ``(..., 2, 2, pairs)``.

    >>> unitary_blocks(torch.zeros(1), torch.ones(1))[0].tolist()  # diagonal coefficients of a reflection
    [[1.0], [-1.0]]
    """
    if reflection is not None:
        cos, sin, sign = angles.cos(), angles.sin(), 1 - 2 * reflection
        entries = torch.stack([cos, sign * cos, -sign * sin, sin], -2)
    else:
        theta, alpha, beta, delta = angles.unbind(-2)
        cos, sin = theta.cos(), theta.sin()
        length = torch.stack([cos, cos, -sin, sin], -2)
        phase = torch.stack([alpha, delta - alpha, delta - beta, beta], -2)
        # Not torch.polar, whose gradient takes the length to be positive.
        entries = torch.complex(length * phase.cos(), length * phase.sin())
    return entries.unflatten(-2, (2, 2))


def angles_of_blocks(blocks: Tensor) -> tuple[Tensor, Tensor | None]:
    """The inverse of `unitary_blocks`: angles, and reflections if real."""
    (d0, d1), (o0, o1) = (row.unbind(-2) for row in blocks.unbind(-3))
    determinant = d0 * d1 - o0 * o1
    if not blocks.is_complex():
        return torch.atan2(o1, d0), determinant < 0
    return torch.stack([torch.atan2(o1.abs(), d0.abs()), d0.angle(), o1.angle(), determinant.angle()], -2), None


def random_unitary_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Independent blocks ``(..., 2, 2, pairs)``: rotations or reflections with equal odds; Haar-distributed if complex.

    Args:
        shape: ``(..., pairs)``.
        dtype: real or complex.
    """
    if not dtype.is_complex:
        angles = torch.rand(shape, dtype=dtype) * (2 * math.pi)
        # In one type: numbers of another default type would be others.
        return unitary_blocks(angles, torch.rand(shape, dtype=torch.float32) < 0.5)
    angles = torch.rand(*shape[:-1], 4, shape[-1], dtype=dtype.to_real()) * (2 * math.pi)
    angles[..., 0, :] = torch.rand(shape, dtype=angles.dtype).sqrt().asin()
    return unitary_blocks(angles, None)


def random_normal_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Blocks of independent normal entries, of the variance that a stage keeps: each output sums two products.

    Shapes are those of `random_unitary_blocks`.
    """
    return torch.randn(*shape[:-1], 2, 2, shape[-1], dtype=dtype) * math.sqrt(0.5)


def identity_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Blocks [[1, 0], [0, 1]]; shapes are those of `random_unitary_blocks`."""
    blocks = torch.zeros(*shape[:-1], 2, 2, shape[-1], dtype=dtype)
    blocks[..., 0, :, :] = 1
    return blocks


def with_diagonal(factors: Tensor, diagonal: Tensor) -> Tensor:
    """Factors of the product with a diagonal ``(w, n)`` between the B* and the B of each BB*.

    It scales the rows of the last stage of B*.
    """
    log_n = factors.shape[1]
    stages = factors.unflatten(0, (-1, 2)).flatten(1, 2)
    before, last, after = stages.split([log_n - 1, 1, log_n], dim=1)
    return torch.cat([before, last * diagonal[:, None, None], after], dim=1).view(factors.shape)


def split_diagonal(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product whose stages, where they can, have orthogonal blocks; and one diagonal a BB*.

    The diagonal stands between B* and B. It takes the gain of every other stage, and the length and phase of the
    rows of the last stage of B*.

    Args:
        factors: ``(2 w, log2 n, 2, n)``.

    Shape:
        the new factors, and the diagonal ``(w, n)``.
    """
    energy = factors.abs().square().sum(2)  # of each row, (2 w, log2 n, n)
    gain = energy.mean(-1).sqrt()
    gain[0::2, -1] = 1
    result = factors / gain[..., None, None]

    length = energy[0::2, -1].sqrt()
    diagonal, off_diagonal = factors[0::2, -1].unbind(1)
    # A row of zeros may be any: the one orthogonal to its partner, or to the other's if both are zero.
    opposite, off_opposite = swap_partners(diagonal, 1).conj(), swap_partners(off_diagonal, 1).conj()
    zero = length == 0
    diagonal = torch.where(zero, opposite, diagonal)
    off_diagonal = torch.where(zero, -off_opposite, off_diagonal)
    diagonal = torch.where(zero & (swap_partners(length, 1) == 0), 1, diagonal)
    # The first column is made positive, so that rows that differ by a phase only become equal and can be tied.
    second = torch.arange(diagonal.shape[-1], device=diagonal.device) % 2 == 1
    first_column = torch.where(second, off_diagonal, diagonal)
    second_column = torch.where(second, diagonal, off_diagonal)
    phase = torch.where(first_column.abs() > 0.1 * second_column.abs(), first_column, second_column).sgn()
    rows = torch.stack([diagonal, off_diagonal], dim=1)
    result[0::2, -1] = rows / (torch.linalg.vector_norm(rows, dim=1) * phase).unsqueeze(1)
    return result, length * phase * gain.unflatten(0, (-1, 2)).flatten(1).prod(1, keepdim=True)
