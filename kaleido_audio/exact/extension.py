"""Symmetric extension: what turns cosine and sine transforms into Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from kaleido_audio.factors import identity_factors


def mirrored(size: int, offset: int, copied: Tensor) -> Tensor:
    """The B* ``(log2 size, 2, size)`` that keeps a vector and adds its mirror image.

    Input i < size/2 stays at i and, where it is copied, also goes to (-offset - i) mod size. The first stage copies
    the first half to the second. There l goes to -offset - l: bit b of the result depends on bits 0 to b alone, so
    a stage for each bit, from the highest to the lowest, swaps where that bit changes.

    Args:
        size: a power of two.
        offset: 0 mirrors about index 0 (which must not be copied), 1 about -1/2, 2 about -1.
        copied: whether each input is copied, bool ``(size / 2,)``.
    """
    factor = identity_factors(1, size)[0]
    half = size // 2
    factor[0, 0, half:] = (~copied).double()
    factor[0, 1, half:] = copied.double()
    index = torch.arange(size)
    for s in range(1, len(factor)):
        bit = size.bit_length() - 2 - s
        swap = ((-offset - index) ^ index) >> bit & 1 & (index >= half)
        factor[s, 0] = (1 - swap).double()
        factor[s, 1] = swap.double()
    return factor
