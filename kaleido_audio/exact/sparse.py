"""Sparse matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kaleido_audio.exact.arguments import (
    as_double,
    as_matrix,
    check_finite,
    check_matrix_shape,
    integer,
    made_on_cpu,
    result_dtype,
)
from kaleido_audio.exact.layers import Layer
from kaleido_audio.kmatrix import KMatrix, padded_size

_EXPANSIONS = (1, 2, 4)


@made_on_cpu
def sparse(matrix: Any, *, expansion: int | None = None, dtype: torch.dtype | None = None) -> KMatrix:
    """A sparse matrix of any shape, at a cost that grows with its number s of nonzeros.

    With n the longer side:

    * At most one nonzero in each row and column, as in a permutation: (BB*)^1_1.
    * Nonzeros on a staircase that goes down the rows and never back over the columns, as in bidiagonal matrices,
      repetition and sums of neighbours: (BB*)^1_e for s <= e n.
    * s <= e n in general: (BB*)^2_e.
    * Any s: (BB*)^w_4 with w = 2 ceil(s / 2n). The nonzeros go column by column in chunks; the columns not yet
      finished and the sums so far are carried along.

    In the second and third case, empty rows and columns between others take places too. Where there is no room
    for them, one more BB* gathers the columns first, and one more spreads the rows last.

    Theorem 3 of the paper has w = 4 ceil(s / n) with e = 4.

    Args:
        matrix: a dense tensor or array ``(m, n)``, a sparse tensor of any layout, or a `scipy.sparse` matrix or
            array. Entries given twice are summed.
        expansion: e; by default the one of 1, 2 and 4 that takes the fewest multiplications. With more than 4 n
            nonzeros a larger one can take fewer.
        dtype: of the result; by default that of the matrix, and float32 at least.

    Raises:
        ValueError: a shape or type that does not fit, entries that are not finite, or an expansion of 1 where
            the nonzeros need 2.

    Source: Dao et al., ICLR 2020, theorem 3.

    >>> second_difference = torch.tensor([[-2.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -2.0]])
    >>> k = sparse(second_difference)
    >>> k(torch.tensor([1.0, 4.0, 9.0])).tolist()
    [2.0, 2.0, -14.0]
    >>> k.width, k.expansion
    (2, 2)
    """
    nonzeros, matrix_dtype = _nonzeros(matrix)
    dtype = result_dtype(dtype, matrix_dtype)
    if expansion is not None:
        expansion = integer("expansion", expansion)
        if expansion < 1:
            raise ValueError(f"expected expansion >= 1, got {expansion}")
    m, n = nonzeros.shape
    cheapest = None
    for e in _EXPANSIONS if expansion is None else (expansion,):
        size = padded_size(max(m, n), e)
        plan = _narrowest(nonzeros, size)
        if plan is None:
            continue
        width, bounds = plan
        cost = width * size * (size.bit_length() - 1)
        if cheapest is None or cost < cheapest[0]:
            cheapest = cost, e, size, bounds
    if cheapest is None:
        raise ValueError(
            f"the {len(nonzeros.values)} nonzeros of this {m} x {n} matrix do not fit in expansion {expansion}: "
            f"expected expansion >= 2"
        )
    _, e, size, bounds = cheapest
    factors = torch.cat([layer.factors(size) for layer in _layers(nonzeros, bounds)])
    return KMatrix.from_factors(n, factors.to(dtype), out_features=m, expansion=e)


@dataclass(frozen=True)
class _Nonzeros:
    """Nonzeros column by column, and what is alive between the j-th and those before it, for j = 0, ..., s.

    Attributes:
        rows, columns: int64 ``(s,)``, sorted by column, then by row.
        values: float64 or complex128 ``(s,)``.
        shape: of the matrix.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    shape: tuple[int, int]

    @cached_property
    def used_columns(self) -> Tensor:
        """Columns that are not empty, ascending."""
        return self.columns.unique()

    @cached_property
    def rank(self) -> Tensor:
        """``(s + 1,)``: how many columns are finished before nonzero j."""
        return F.pad(torch.searchsorted(self.used_columns, self.columns), (0, 1), value=len(self.used_columns))

    @cached_property
    def first_in_row(self) -> Tensor:
        """``(m,)``: index of the first nonzero of each row, s for an empty row."""
        index = torch.arange(len(self.rows))
        return torch.full((self.shape[0],), len(self.rows)).scatter_reduce(0, self.rows, index, "amin")

    @cached_property
    def columns_after(self) -> Tensor:
        """``(s + 1,)``: how many columns the nonzeros from j on read."""
        return len(self.used_columns) - self.rank

    @cached_property
    def rows_before(self) -> Tensor:
        """``(s + 1,)``: how many rows the nonzeros before j write."""
        starts = torch.bincount(self.first_in_row, minlength=len(self.rows) + 1)[:-1].clamp(max=1)
        return F.pad(starts.cumsum(0), (1, 0))


def _nonzeros(matrix: Any) -> tuple[_Nonzeros, torch.dtype]:
    """The nonzeros of a matrix of any kind, and the type that it was given in."""
    if isinstance(matrix, Tensor) and matrix.layout != torch.strided:
        check_matrix_shape(tuple(matrix.shape), "matrix")
        coo = matrix.detach().to_sparse_coo().coalesce()
        (rows, columns), values, (m, n) = coo.indices().cpu(), coo.values(), coo.shape
        dtype = values.dtype
    elif hasattr(matrix, "tocoo"):
        check_matrix_shape(matrix.shape, "matrix")
        coo = matrix.tocoo()
        rows, columns = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
        values, (m, n) = torch.from_numpy(coo.data.copy()), coo.shape
        dtype = values.dtype
    else:
        dense, dtype = as_matrix(matrix, "matrix")
        rows, columns = dense.nonzero().T
        values, (m, n) = dense[rows, columns], dense.shape
    # Column by column, with what is given twice summed.
    places, inverse = torch.unique(columns * m + rows, return_inverse=True)
    values = as_double(values)
    values = values.new_zeros(len(places)).index_add(0, inverse, values)
    check_finite(values, "matrix")
    kept = values != 0
    return _Nonzeros(places[kept] % m, places[kept] // m, values[kept], (m, n)), dtype


def _narrowest(nonzeros: _Nonzeros, size: int) -> tuple[int, list[int]] | None:
    """The least width at a size, and the bounds of the chunks of nonzeros that each layer takes; None if too small."""
    whole = Layer(nonzeros.columns, nonzeros.rows, nonzeros.values).width(size)
    if whole is not None:
        return whole, [0, len(nonzeros.values)]
    plans = [_chunk_bounds(nonzeros, size, gathered=gathered) for gathered in (False, True)]
    # A layer without nonzeros of its own only moves what it carries: a permutation.
    return min(((sum(1 if a == b else 2 for a, b in pairwise(plan)), plan) for plan in plans if plan), default=None)


def _chunk_bounds(nonzeros: _Nonzeros, size: int, *, gathered: bool) -> list[int] | None:
    """Bounds ``0, ..., s`` of chunks, each as long as the size allows; None where it allows no progress.

    A layer from a to b needs a place for each of its nonzeros, each column read from b on, and each row written
    before a; in the first layer also for the empty columns between others, in the last one for such rows.

    Args:
        nonzeros: of the whole matrix.
        size: of the layers.
        gathered: start with a layer that only gathers the columns.
    """
    s = len(nonzeros.values)
    needed = torch.arange(s + 1) + nonzeros.columns_after
    column_gaps, row_gaps = _gaps(nonzeros.used_columns), _gaps(nonzeros.rows.unique())
    bounds = [0, 0] if gathered else [0]
    while True:
        a = bounds[-1]
        first = len(bounds) == 1
        carried = int(nonzeros.rows_before[a])
        room = size + a - carried - (column_gaps if first else 0)
        b = int(torch.searchsorted(needed, room, right=True)) - 1
        if b <= a < s and not first:
            return None
        bounds.append(b)
        if b == s and s - a + carried + row_gaps <= size:
            return bounds


def _gaps(used: Tensor) -> int:
    """How many indices between the first and the last are not used."""
    return int(used[-1] - used[0]) + 1 - len(used)


def _layers(nonzeros: _Nonzeros, bounds: list[int]) -> list[Layer]:
    """One layer a chunk. In between, the columns still read come first, then the rows written so far."""
    layers = []
    column_places = nonzeros.used_columns
    row_places = torch.empty(nonzeros.shape[0], dtype=torch.int64)  # no row is written yet
    for step, (a, b) in enumerate(pairwise(bounds)):
        columns = torch.arange(int(nonzeros.rank[b]), len(nonzeros.used_columns))
        rows = (nonzeros.first_in_row < a).nonzero().flatten()
        if step == len(bounds) - 2:
            next_row_places = torch.arange(nonzeros.shape[0])
        else:
            next_row_places = nonzeros.columns_after[b] + (nonzeros.first_in_row < b).cumsum(0) - 1
        next_column_places = torch.arange(len(nonzeros.used_columns)) - nonzeros.rank[b]
        read, written = column_places[nonzeros.rank[a:b]], next_row_places[nonzeros.rows[a:b]]
        carried = nonzeros.values.new_ones(len(columns) + len(rows))
        layers.append(
            Layer(
                torch.cat([read, column_places[columns], row_places[rows]]),
                torch.cat([written, next_column_places[columns], next_row_places[rows]]),
                torch.cat([nonzeros.values[a:b], carried]),
            )
        )
        column_places, row_places = next_column_places, next_row_places
    return layers
