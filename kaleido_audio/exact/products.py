"""Diagonal matrices and Kronecker products."""

from __future__ import annotations

import torch
from torch import Tensor

from kaleido_audio.exact.algebra import Vector, corner, read_vectors, scale_outputs
from kaleido_audio.exact.arguments import made_on_cpu
from kaleido_audio.exact.permutations import benes
from kaleido_audio.factors import identity_factors, widened
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
def diagonal(d: Vector, *, dtype: torch.dtype | None = None) -> KMatrix:
    """The diagonal matrix of ``y = d * x``, as `torch.diag`.

    In (BB*)^1_1 for every n: the identity with d in the last stage.

    Args:
        d: the diagonal ``(n,)``.
        dtype: real or complex; that of d by default, float32 at least.

    Raises:
        ValueError: d is not a vector, or is complex and dtype real.

    >>> diagonal([1.0, 2.0, 3.0])(torch.ones(3)).tolist()
    [1.0, 2.0, 3.0]
    """
    (entries,), dtype = read_vectors("a diagonal matrix", dtype, False, d=d)
    n = len(entries)
    size = padded_size(n)
    return corner(n, scale_outputs(identity_factors(2, size), torch.cat([entries, entries.new_ones(size - n)])), dtype)


@made_on_cpu
def kronecker(a: KMatrix, b: KMatrix) -> KMatrix:
    """The Kronecker product of two K-matrices, as `torch.kron` of their dense forms.

    a acts on the high bits of an index and b on the low bits. Every factor of the product is the stages of a and
    of b, one after the other, so where b is whole (its sides are its padded size) the product is in
    (BB*)^max(w_a, w_b), with the expansion of a. Where b is a corner, a permutation moves the rows of its inputs
    apart, or those of its outputs together; each adds one to the width, and the size is the product of the two.

    Args:
        a: ``(m, n)``.
        b: ``(p, q)``.

    Shape:
        the result is ``(m * p, n * q)``, on row-major ``(n, q)``, in the more precise of the two types.

    >>> from kaleido_audio.exact import hadamard
    >>> k = kronecker(hadamard(2), hadamard(4))
    >>> torch.equal(k.to_dense(), hadamard(8).to_dense()), k.width
    (True, 1)
    """
    dtype = torch.promote_types(torch.promote_types(a.factors.dtype, b.factors.dtype), torch.float32)
    width = max(a.width, b.width)
    high = widened(a.factors.detach().cpu(), width).to(dtype).repeat_interleave(b.size, dim=-1)
    low = widened(b.factors.detach().cpu(), width).to(dtype).repeat(1, 1, 1, a.size)
    factors = torch.cat([high, low], dim=1)
    factors[1::2] = torch.cat([low[1::2], high[1::2]], dim=1)
    if b.in_features < b.size:
        apart = torch.argsort(_rows_together(a.size, b.size, a.in_features, b.in_features))
        factors = torch.cat([benes(apart).to(dtype), factors])
    if b.out_features < b.size:
        together = _rows_together(a.size, b.size, a.out_features, b.out_features)
        factors = torch.cat([factors, benes(together).to(dtype)])
    return corner(a.in_features * b.in_features, factors, dtype, out_features=a.out_features * b.out_features)


def _rows_together(rows: int, columns: int, kept_rows: int, kept_columns: int) -> Tensor:
    """Indices ``(rows * columns,)`` of a row-major matrix: its upper-left corner in order, then the rest."""
    index = torch.arange(rows * columns)
    outside = (index // columns >= kept_rows) | (index % columns >= kept_columns)
    return torch.cat([index[~outside], index[outside]])
