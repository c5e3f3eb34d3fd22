"""The definition of a product of butterfly matrices, in plain PyTorch, one stage after the other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def stage_strides(factor: int, log_n: int) -> list[int]:
    """Strides of the stages of one butterfly matrix, in the order in which they are applied.

    Even factors are the B* form, with decreasing strides n/2, ..., 1; odd factors are the B form, with
    increasing strides 1, ..., n/2 (Dao et al., ICLR 2020, definition 2.1 and 2.2).

    >>> stage_strides(0, 3), stage_strides(1, 3)
    ([4, 2, 1], [1, 2, 4])
    """
    increasing = [1 << s for s in range(log_n)]
    return increasing if factor % 2 else increasing[::-1]


def swap_partners(x: Tensor, stride: int) -> Tensor:
    """``y[..., i] = x[..., i XOR stride]``.

    Shape:
        x: ``(..., n)`` with n a multiple of ``2 * stride``; the result has the same shape.
    """
    return x.unflatten(-1, (-1, 2, stride)).flip(-2).flatten(-3)


def multiply_by_stages(x: Tensor, factors: Tensor) -> Tensor:
    """Apply every stage of every factor in turn: ``y[i] = d[i] * x[i] + o[i] * x[i XOR stride]``.

    Args:
        x: vectors ``(..., m)`` with m <= n; the missing entries count as zeros.
        factors: ``(F, log2 n, 2, n)``, diagonal coefficients d at index 0 and off-diagonal ones o at index 1.

    Shape:
        result ``(..., n)``.
    """
    n_factors, log_n, _, n = factors.shape
    x = F.pad(x, (0, n - x.shape[-1])) if x.shape[-1] < n else x
    for f in range(n_factors):
        for s, stride in enumerate(stage_strides(f, log_n)):
            diagonal, off_diagonal = factors[f, s]
            x = diagonal * x + off_diagonal * swap_partners(x, stride)
    return x


def power_spectrum_by_stages(waveform: Tensor, window: Tensor, factors: Tensor, rows: Tensor, hop: int) -> Tensor:
    """Windowed frames, every stage in turn, squared magnitudes: see `kaleido_audio.ops.butterfly_power_spectrum`."""
    frames = waveform.unfold(-1, window.shape[0], hop) * window
    return squared_magnitude(multiply_by_stages(frames, factors).index_select(-1, rows))


def squared_magnitude(x: Tensor) -> Tensor:
    """``|x| ** 2`` in real arithmetic."""
    return x.real * x.real + x.imag * x.imag if x.is_complex() else x * x
