"""Sparse layers, the parts of sparse matrices and circuits: copy the inputs, scale, permute, sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kaleido_audio.exact.permutations import benes, increasing_benes
from kaleido_audio.factors import identity_factors, transpose_factors


@dataclass(frozen=True)
class Layer:
    """A sparse linear map between vectors of one size: ``y[targets[j]] += values[j] * x[sources[j]]``.

    It lies in (BB*)^2: every input is copied to as many neighbouring places as it has entries (a B*), the copies
    are scaled and permuted from the order of their sources to that of their targets (a B, then a B*), and the
    neighbours that share a target are summed (a B). Two kinds of layers lie in BB*:

    * no source and no target repeats: a permutation and a scaling;
    * in the order of the targets the sources never decrease, as in a bidiagonal matrix: there is nothing to permute.

    Args:
        sources, targets: int64 indices ``(s,)``.
        values: float64 or complex128 ``(s,)``.

    >>> layer = Layer(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([2.0, 3.0, 4.0]).double())
    >>> layer.width(2), layer.width(4)  # three entries need four places
    (None, 1)
    """

    sources: Tensor
    targets: Tensor
    values: Tensor

    def width(self, size: int) -> int | None:
        """The w of the (BB*)^w of that size that holds this layer, 1 or 2; None where the size is too small."""
        if self._is_one_to_one():
            return 1
        first, last = self._slots(size)
        if first.amax() >= size or last.amax() >= size:
            return None
        return 1 if torch.equal(first, last) else 2

    def factors(self, size: int) -> Tensor:
        """The coefficients ``(2 * width, log2 size, 2, size)``, in float64 or complex128."""
        if self._is_one_to_one():
            scale = self.values.new_zeros(size)
            scale[self.targets] = self.values
            factors = benes(_completed(self.sources, self.targets, size)).to(scale.dtype)
            factors[1, -1] *= scale
            return factors
        first, last = self._slots(size)
        scaled = copies(first, self.sources, size).to(self.values.dtype)
        scaled[-1][:, first] *= self.values
        sums = transposed(copies(last, self.targets, size))
        if torch.equal(first, last):
            return torch.stack([scaled, sums.to(scaled.dtype)])
        permuted = increasing_benes(_completed(first, last, size))
        return torch.cat([scaled.unsqueeze(0), torch.cat([permuted, sums.unsqueeze(0)]).to(scaled.dtype)])

    def _is_one_to_one(self) -> bool:
        return len(self.sources.unique()) == len(self.targets.unique()) == len(self.sources)

    def _slots(self, size: int) -> tuple[Tensor, Tensor]:
        """Places of the entries after the copies and before the sums; the same where nothing need be permuted."""
        by_target = torch.argsort(self.sources, stable=True)
        by_target = by_target[torch.argsort(self.targets[by_target], stable=True)]
        if (self.sources[by_target].diff() >= 0).all():
            both = _spaced(by_target, self.sources, self.targets)
            if both.amax() < size:
                return both, both
        by_source = torch.argsort(self.sources, stable=True)
        return _spaced(by_source, self.sources), _spaced(by_target, self.targets)


def copies(slots: Tensor, sources: Tensor, size: int) -> Tensor:
    """The B* ``(log2 size, 2, size)`` of ``y[slots[j]] = x[sources[j]]``, with zeros in the other places.

    The stage of stride 2^k brings bit k of the place of a copy from that of its source to that of its slot. Two
    copies then share a place only if their slots have the same bits from k on and their sources the same bits
    below k. So sources no farther apart than their slots are one source: copies of different inputs never meet.

    Args:
        slots, sources: int64 indices ``(s,)``, with ``|sources[i] - sources[j]| <= |slots[i] - slots[j]|``.
        size: a power of two.

    >>> from kaleido_audio.ops import butterfly_multiply
    >>> factor = copies(torch.tensor([0, 1, 2]), torch.tensor([1, 1, 2]), 4)
    >>> butterfly_multiply(torch.tensor([5.0, 6.0, 7.0, 8.0]).double(), factor.unsqueeze(0)).tolist()
    [6.0, 6.0, 7.0, 0.0]
    """
    log_size = size.bit_length() - 1
    factor = torch.zeros(log_size, 2, size, dtype=torch.float64)
    for s in range(log_size):
        k = log_size - 1 - s
        below = (1 << k) - 1
        place = (slots & ~below) | (sources & below)
        crosses = ((slots ^ sources) >> k) & 1
        factor[s, crosses, place] = 1
    return factor


def transposed(factor: Tensor) -> Tensor:
    """The B that is the transpose of a B*, both ``(log2 n, 2, n)``: the stages in opposite order, each transposed.

    Args:
        factor: coefficients for the strides n/2, ..., 1; the result is for 1, ..., n/2.
    """
    identity = identity_factors(1, factor.shape[-1], factor.dtype)
    return transpose_factors(torch.cat([factor.unsqueeze(0), identity]))[1]


def _spaced(order: Tensor, *indices: Tensor) -> Tensor:
    """Slots in that order: neighbours as far apart as the farthest of their indices, and at least 1."""
    steps = torch.stack([index[order].diff() for index in indices]).amax(0).clamp(min=1)
    slots = torch.zeros_like(order)
    slots[order[1:]] = steps.cumsum(0)
    return slots


def _completed(sources: Tensor, targets: Tensor, size: int) -> Tensor:
    """A permutation p with ``p[targets] = sources``; the unused places go to each other."""
    p = torch.empty(size, dtype=torch.int64)
    p[targets] = sources
    free_source, free_target = torch.ones(2, size, dtype=torch.bool)
    free_source[sources] = False
    free_target[targets] = False
    p[free_target] = free_source.nonzero().flatten()
    return p
