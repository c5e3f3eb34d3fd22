"""Alternating least squares: one stage at a time, each the best for what the others are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kaleido_audio.factors import balanced
from kaleido_audio.ops.reference import stage_strides

_RIDGE = 1e-10
"""Of the mean diagonal entry of the normal equations, which are singular: the scales of stages can be traded."""


def alternating_least_squares(target: Tensor, factors: Tensor) -> Iterator[tuple[Tensor, float]]:
    """Improve a product of butterfly matrices sweep by sweep until it is no longer asked for another.

    With the other stages fixed, the product A S C is linear in the 2 N coefficients of a stage S: entry (i, j) of S
    adds ``A[:, i] C[j, :]``. The least-squares problem has the normal equations G s = b with
    ``G[(i, j), (k, l)] = (A^H A)[i, k] (C C^H)[l, j]`` and ``b[(i, j)] = (A^H target C^H)[i, j]``. A sweep solves
    them for every stage in the order of application. There is no learning rate, and but for rounding the error never
    grows.

    Args:
        target: ``(out_features, n)``, float64 or complex128.
        factors: ``(F, log2 N, 2, N)`` to start from, of the same type.

    Yields:
        after every sweep, the factors and the norm of their difference from the target.

    Cost of a sweep: O(F N^3 log N) operations, and memory for F log2 N matrices of out_features x N.

    >>> from kaleido_audio.factors import identity_factors
    >>> target = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    >>> factors, error = next(alternating_least_squares(target, identity_factors(2, 2)))
    >>> error < 1e-8
    True
    """
    n_factors, log_n, _, size = factors.shape
    strides = [stride for f in range(n_factors) for stride in stage_strides(f, log_n)]
    stages = list(factors.flatten(0, 1))
    index = torch.arange(size, device=target.device)
    identity = torch.eye(size, dtype=target.dtype, device=target.device)
    while True:
        # Last in, first out: the products A of the stages after each one, for the last stage first.
        left = [identity[: target.shape[0]]]
        for stage, stride in zip(stages[:0:-1], strides[:0:-1], strict=True):
            left.append(left[-1] * stage[0] + (left[-1] * stage[1])[:, index ^ stride])
        right = identity[:, : target.shape[1]]
        for k, stride in enumerate(strides):
            stages[k] = _best_stage(target, left.pop(), stages[k], right, stride)
            right = stages[k][0, :, None] * right + stages[k][1, :, None] * right[index ^ stride]
        stages = list(balanced(torch.stack(stages)))
        yield torch.stack(stages).view_as(factors), (right[: target.shape[0]] - target).norm().item()


def _best_stage(target: Tensor, left: Tensor, stage: Tensor, right: Tensor, stride: int) -> Tensor:
    """The stage S nearest to the given one among those for which ``left S right`` is nearest to the target."""
    index = torch.arange(stage.shape[-1], device=stage.device)
    rows, columns = torch.cat([index, index]), torch.cat([index, index ^ stride])
    outer, inner = left.mH @ left, right @ right.mH
    gram = outer[rows[:, None], rows] * inner.mT[columns[:, None], columns]
    projected = left.mH @ target
    wanted = (projected[rows] * right[columns].conj()).sum(dim=1)
    residual = wanted - gram @ stage.flatten()
    # Where no coefficient has any effect, the least ridge there is leaves the stage as it was.
    gram.diagonal().add_((_RIDGE * gram.diagonal().real.mean()).clamp(min=torch.finfo(gram.dtype).tiny))
    step = torch.cholesky_solve(residual.unsqueeze(1), torch.linalg.cholesky(gram))
    return stage + step.view_as(stage)
