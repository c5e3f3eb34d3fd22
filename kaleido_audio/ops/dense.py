"""The dense matrix of a product of butterfly matrices, built in O(n^2) operations a factor."""

from __future__ import annotations

import torch
from torch import Tensor


def _blocks(stage: Tensor, outer: int, stride: int) -> Tensor:
    """The 2 x 2 blocks of one stage: ``(2, n)`` coefficients to ``(outer, row, column, stride)`` entries."""
    diagonal, off_diagonal = stage.reshape(2, outer, 2, stride).unbind(0)
    first_row = torch.stack([diagonal[:, 0], off_diagonal[:, 0]], dim=1)
    second_row = torch.stack([off_diagonal[:, 1], diagonal[:, 1]], dim=1)
    return torch.stack([first_row, second_row], dim=1)


def factor_matrix(stages: Tensor, *, increasing: bool) -> Tensor:
    """The dense n x n matrix of one butterfly matrix.

    One path leads from each input to each output, so every entry is a product of log2 n coefficients. The
    partial products of k stages fill blocks of 2^k x 2^k, hence k = 1, ..., log2 n costs 2 n^2 in all rather
    than the n^2 log n of sending n unit vectors through the stages.

    Args:
        stages: ``(log2 n, 2, n)`` coefficients, in the order of application.
        increasing: whether the strides are 1, ..., n/2 (B) rather than n/2, ..., 1 (B*).

    Shape:
        result ``(n, n)``, ``y = matrix @ x``.
    """
    log_n, _, n = stages.shape
    if increasing:
        # partial[q, a, b]: low bits a of the output and b of the input have met; the high bits q have not.
        partial = stages.new_ones(n, 1, 1)
        for s in range(log_n):
            met = 1 << s
            blocks = _blocks(stages[s], n // (2 * met), met).transpose(2, 3).unsqueeze(-1)
            inner = partial.view(n // (2 * met), 1, 2, met, met).transpose(2, 3)
            partial = (blocks * inner).reshape(n // (2 * met), 2 * met, 2 * met)
        return partial.view(n, n)
    # partial[a, b, r]: high bits a of the output and b of the input have met; the low bits r have not.
    partial = stages.new_ones(1, 1, n)
    for s in range(log_n):
        met, stride = 1 << s, n >> (s + 1)
        blocks = _blocks(stages[s], met, stride).unsqueeze(2)
        inner = partial.view(met, 1, met, 2, stride)
        partial = (blocks * inner).reshape(2 * met, 2 * met, stride)
    return partial.view(n, n)


def product_matrix(factors: Tensor, *, in_features: int, rows: Tensor | slice = slice(None)) -> Tensor:
    """The chosen rows and the first ``in_features`` columns of the dense matrix of the whole product.

    Args:
        factors: ``(F, log2 n, 2, n)``.
        in_features: columns kept, at most n.
        rows: int64 indices of the rows kept, in that order, or a slice of them; all n by default.

    Shape:
        result ``(number of rows, in_features)``.
    """
    n_factors, _, _, n = factors.shape
    if n_factors == 0:
        return torch.eye(n, dtype=factors.dtype, device=factors.device)[rows, :in_features]
    matrices = [factor_matrix(stages, increasing=f % 2 == 1) for f, stages in enumerate(factors)]
    matrices[0] = matrices[0][:, :in_features]
    result = matrices[-1][rows]
    # From the last factor to the first, so that the chosen rows are the only ones ever multiplied.
    for matrix in reversed(matrices[:-1]):
        result = result @ matrix
    return result


def multiply_by_matrix(x: Tensor, matrix: Tensor) -> Tensor:
    """``y = matrix @ x`` over the last dimension, for any pair of real and complex operands.

    A real operand stays real in the product: half the arithmetic of promoting it first.

    Shape:
        x ``(..., m)``, matrix ``(rows, m)``, result ``(..., rows)``.
    """
    if x.is_complex() == matrix.is_complex():
        return x @ matrix.mT
    if matrix.is_complex():
        interleaved = torch.view_as_real(matrix).transpose(1, 2).flatten(0, 1)
        return torch.view_as_complex((x @ interleaved.mT).unflatten(-1, (-1, 2)))
    return torch.complex(x.real @ matrix.mT, x.imag @ matrix.mT)
