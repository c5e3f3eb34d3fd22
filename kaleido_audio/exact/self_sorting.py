"""A butterfly matrix with its outputs in bit-reversed order is one BB*."""

from __future__ import annotations

import torch
from torch import Tensor

from kaleido_audio.exact.permutations import bit_reversal
from kaleido_audio.factors import identity_factors
from kaleido_audio.ops.reference import swap_partners


def self_sorting(stages: Tensor) -> Tensor:
    """The BB* of a B* followed by a bit reversal of its outputs.

    An FFT that is one B* leaves its outputs in bit-reversed order. Sorting them takes no second BB*: the first stage of
    B*, with stride n/2, and the last one, with stride 1, become the outer stages of a BB*, with stride n/2 both. In
    between there are four such problems of size n/4, for the two halves and the even and odd positions.

    * The first stage gives the halves a and b. Even positions keep a in the upper half and b in the lower one, odd
      positions have them exchanged. The stages with strides n/4, ..., 2 never mix even and odd positions.
    * In the middle, a swap with stride 1 in the lower half brings what belongs to a to the even positions of both
      halves, and what belongs to b to the odd ones.
    * There the last stage of B* combines the two halves: its results for a are the even outputs, those for b the
      odd ones, as the bit reversal has it.

    Args:
        stages: ``(log2 n, 2, n)`` coefficients of a B*, strides n/2, ..., 1.

    Shape:
        result ``(2, log2 n, 2, n)``, with ``y[i] = (B* x)[bit_reversal(n)[i]]``.

    Source: the self-sorting in-place FFTs of Johnson and Burrus, 1984, and Temperton, 1991, whose steps these are.

    >>> from kaleido_audio import exact, ops
    >>> stages = exact.dft(8, bit_reversed=True).factors[0].detach()
    >>> torch.allclose(ops.to_dense(self_sorting(stages)), torch.fft.fft(torch.eye(8)), atol=1e-6)
    True
    """
    return _self_sorting(stages.unsqueeze(0))[0]


def _self_sorting(stages: Tensor) -> Tensor:
    """The BB* ``(batch, 2, log2 n, 2, n)`` of B* ``(batch, log2 n, 2, n)``."""
    batch, log_n, _, n = stages.shape
    factors = identity_factors(2, n, stages.dtype).to(stages.device).repeat(batch, 1, 1, 1, 1)
    if log_n <= 1:
        factors[:, 0] = stages
        return factors
    half = n // 2
    position = torch.arange(n, device=stages.device)
    odd, lower = position % 2 == 1, position >= half
    crossed = swap_partners(stages[:, 0].flip(1), half)
    factors[:, 0, 0] = torch.where(odd, crossed, stages[:, 0])
    last = stages[:, -1][..., bit_reversal(n).to(stages.device)]
    factors[:, 1, -1] = torch.where(odd, last.flip(1), last)
    if log_n > 2:
        # (half, even or odd) of every position, then the four problems, which have positions n/4 apart no more.
        inner = stages[:, 1:-1][..., position ^ (half * odd)].unflatten(-1, (2, half // 2, 2))
        problems = inner.permute(0, 3, 5, 1, 2, 4)  # (batch, half, parity, stage, coefficient, position)
        solved = _self_sorting(problems.flatten(0, 2)).unflatten(0, (batch, 2, 2))
        sub = solved.permute(0, 3, 4, 5, 1, 6, 2).flatten(-3)
        factors[:, 0, 1:-1] = sub[:, 0]
        factors[:, 1, 1:-1] = sub[:, 1][..., position ^ lower.long()]
    factors[:, 0, -1] = torch.stack([~lower, lower]).to(stages.dtype)
    return factors
