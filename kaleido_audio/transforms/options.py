"""Options that the front ends share: types, and what is learnable."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

_FLOAT = (torch.float32, torch.float64)


def checked_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The type, or torch's default type; a ValueError if it is neither float32 nor float64."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _FLOAT:
        raise ValueError(f"expected dtype torch.float32 or torch.float64, got {dtype}")
    return dtype


def checked_learnable(learnable: Collection[str], choices: tuple[str, ...]) -> tuple[str, ...]:
    """What is to be learnable, in the order of the choices; a ValueError names what is none of them."""
    if isinstance(learnable, str):
        raise ValueError(f"expected learnable as a collection, ({learnable!r},), got the string {learnable!r}")
    unknown = [name for name in learnable if name not in choices]
    if unknown:
        raise ValueError(f"expected learnable to hold any of {choices}, got {unknown}")
    return tuple(name for name in choices if name in learnable)


def learnable_repr(module: nn.Module, learnable: tuple[str, ...]) -> str:
    """What a module learns, and how many numbers."""
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return f"learnable={learnable}, learnable parameters={count}"
