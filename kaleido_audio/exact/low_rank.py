"""Matrices of low rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kaleido_audio.exact.arguments import as_matrix, made_on_cpu, result_dtype
from kaleido_audio.exact.fourier import is_second
from kaleido_audio.exact.layers import transposed
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
def low_rank(u: Any, v: Any, *, dtype: torch.dtype | None = None) -> KMatrix:
    """The m x n matrix ``u @ v.T`` of rank r.

    In (BB*)^1_e with e the next power of two of r. The B* copies x to e blocks and sums block j with the weights
    in column j of v: these are the r inner products. The B is the transpose of the same map for u. So a matrix of
    rank 1 is one BB* without expansion.

    Args:
        u: ``(m, r)``, a tensor or array, real or complex.
        v: ``(n, r)``, likewise; it is not conjugated.
        dtype: of the result; by default that of u and v, and float32 at least.

    Raises:
        ValueError: shapes or a type that do not fit, or entries that are not finite.

    >>> k = low_rank([[1.0], [2.0]], [[3.0], [4.0]])
    >>> k.to_dense().tolist(), k.width, k.expansion
    ([[3.0, 4.0], [6.0, 8.0]], 1, 1)
    """
    (u, u_dtype), (v, v_dtype) = as_matrix(u, "u"), as_matrix(v, "v")
    dtype = result_dtype(dtype, u_dtype, v_dtype)
    if u.shape[1] != v.shape[1]:
        raise ValueError(f"expected u (m, r) and v (n, r) of one rank r, got {tuple(u.shape)} and {tuple(v.shape)}")
    common = torch.promote_types(u.dtype, v.dtype)
    u, v = u.to(common), v.to(common)
    (m, rank), n = u.shape, len(v)
    # No matrix has a rank above its shorter side: there, one of the two becomes the identity.
    if rank > min(m, n):
        product = u @ v.T
        u, v = (product, torch.eye(n, dtype=common)) if n <= m else (torch.eye(m, dtype=common), product.T)
    expansion = 1 << (u.shape[1] - 1).bit_length()
    size = padded_size(max(m, n), expansion)
    factors = torch.stack([_inner_products(v, size, expansion), transposed(_inner_products(u, size, expansion))])
    return KMatrix.from_factors(n, factors.to(dtype), out_features=m, expansion=expansion)


def _inner_products(v: Tensor, size: int, blocks: int) -> Tensor:
    """The B* ``(log2 size, 2, size)`` that puts the inner product of ``v[:, j]`` and x at the start of block j."""
    factor = torch.zeros(size.bit_length() - 1, 2, size, dtype=v.dtype)
    block = size // blocks
    weights = F.pad(v, (0, blocks - v.shape[1], 0, block - len(v))).T.flatten()
    for s in range(len(factor)):
        stride = size >> (s + 1)
        second = is_second(size, stride)
        if stride >= block:  # both halves become the first one
            factor[s, 0] = (~second).to(v.dtype)
            factor[s, 1] = second.to(v.dtype)
        else:  # the first half becomes the sum, the second one zero
            factor[s] = (~second).to(v.dtype)
        if stride == block // 2:
            factor[s] *= torch.stack([weights, weights[torch.arange(size) ^ stride]])
    return factor
