"""Factorisation of a matrix that is, or is close to, one butterfly matrix: rank-one blocks of rank-one blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from kaleido_audio.exact import bit_reversal
from kaleido_audio.factors import balanced


def butterfly_factor(matrix: Tensor, *, increasing: bool) -> Tensor:
    """The stages of a butterfly matrix; of any other matrix, those of a butterfly matrix close to it.

    Split the stages of a B* into the first ones, H with strides >= m, and the last ones, L with strides < m. Write an
    index as (high, low) with ``low < m``. H keeps the low part and L the high part, so that there is one path from
    each input j to each output i::

        matrix[(i_high, i_low), (j_high, j_low)]
            = L[(i_high, i_low), (i_high, j_low)] * H[(i_high, j_low), (j_high, j_low)]

    For each (i_high, j_low) that is a block of rank one over (i_low, j_high). The singular vectors of the blocks give L
    and H, which are butterfly matrices of sizes m and n/m, and are split in turn. If the matrix is a butterfly
    matrix, the result is exact, whichever of its entries are zero: what is not unique, the scale of the two
    vectors of a block, is a diagonal between L and H. If not, every split is the best one of its own matrix.

    Args:
        matrix: ``(n, n)``, n a power of two, at least 2.
        increasing: whether to look for strides 1, ..., n/2 (B) rather than n/2, ..., 1 (B*).

    Shape:
        result ``(log2 n, 2, n)``, in the order of application.

    Raises:
        ValueError: a matrix of another shape.

    Source: Zheng, Riccietti and Gribonval, "Efficient identification of butterfly sparse matrix factorizations", 2022,
    with the balanced tree. Cost: about n singular value decompositions of sqrt(n) x sqrt(n), O(n^2.5).

    >>> hadamard = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    >>> stages = butterfly_factor(torch.kron(hadamard, hadamard), increasing=False)
    >>> stages.shape
    torch.Size([2, 2, 4])
    >>> torch.allclose(stages.abs(), torch.ones(2, 2, 4))
    True
    """
    n = matrix.shape[-1] if matrix.ndim else 0
    if matrix.shape != (n, n) or n < 2 or n & (n - 1):
        raise ValueError(f"expected a matrix of shape (n, n), n = 2, 4, 8, ..., got {tuple(matrix.shape)}")
    if increasing:
        # Bit reversal of the indices turns stride s into n / (2 s).
        order = bit_reversal(n).to(matrix.device)
        return butterfly_factor(matrix[order][:, order], increasing=False)[..., order]
    return balanced(_split(matrix.unsqueeze(0))[0])


def _split(matrices: Tensor) -> Tensor:
    """B* stages ``(batch, log2 n, 2, n)`` of matrices ``(batch, n, n)``."""
    batch, n, _ = matrices.shape
    if n == 2:
        (a, b), (c, d) = matrices.permute(1, 2, 0)
        return torch.stack([a, d, b, c], dim=-1).view(batch, 1, 2, 2)
    log_n = n.bit_length() - 1
    low = 1 << (log_n // 2)
    high = n // low
    left, right = _rank_one(matrices.view(batch, high, low, high, low).permute(0, 1, 4, 2, 3))
    # left (batch, i_high, j_low, i_low): one matrix for each i_high; right (batch, i_high, j_low, j_high).
    last = _split(left.mT.reshape(-1, low, low)).view(batch, high, -1, 2, low).permute(0, 2, 3, 1, 4)
    first = _split(right.transpose(1, 2).reshape(-1, high, high)).view(batch, low, -1, 2, high).permute(0, 2, 3, 4, 1)
    return torch.cat([first.reshape(batch, -1, 2, n), last.reshape(batch, -1, 2, n)], dim=1)


def _rank_one(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors ``(..., rows)`` and ``(..., columns)`` of equal norms, whose outer product is nearest to the block."""
    u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
    scale = s[..., :1].sqrt()
    return u[..., 0] * scale, vh[..., 0, :] * scale
