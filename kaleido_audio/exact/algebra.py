"""What the constructions share: diagonals folded into products, even gains, the final corner, and arguments."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kaleido_audio.exact.arguments import as_tensor, check_dtype, check_finite, integer
from kaleido_audio.kmatrix import KMatrix, padded_size

Vector = Tensor | np.ndarray | Sequence[float] | Sequence[complex]


def scale_inputs(factors: Tensor, d: Tensor) -> Tensor:
    """The product times diag(d), with d ``(size,)`` folded into the first stage."""
    size = factors.shape[-1]
    first = factors[0, 0] * torch.stack([d, d[torch.arange(size) ^ size // 2]])
    result = factors.to(first.dtype, copy=True)
    result[0, 0] = first
    return result


def scale_outputs(factors: Tensor, d: Tensor | float) -> Tensor:
    """diag(d) times the product, with d ``(size,)``, or a number, folded into the last stage."""
    last = factors[-1, -1] * d
    result = factors.to(last.dtype, copy=True)
    result[-1, -1] = last
    return result


def corner(n: int, factors: Tensor, dtype: torch.dtype, *, out_features: int | None = None) -> KMatrix:
    """The K-matrix of the first n columns and ``out_features`` rows, with the least expansion of that size."""
    size = factors.shape[-1]
    longer = n if out_features is None else max(n, out_features)
    expansion = next(e for e in range(1, size + 1) if padded_size(longer, e) == size)
    return KMatrix.from_factors(n, factors.to(dtype), out_features=out_features, expansion=expansion)


def is_power_of_two(n: int) -> bool:
    """Whether n is 1, 2, 4, ...

    >>> [n for n in range(10) if is_power_of_two(n)]
    [1, 2, 4, 8]
    """
    return n > 0 and n & (n - 1) == 0


def check_length(n: int) -> int:
    """n as an int; raise where it is no length of a vector."""
    n = integer("n", n)
    if n < 1:
        raise ValueError(f"expected n >= 1, got {n}")
    return n


def check_complex(dtype: torch.dtype, what: str) -> None:
    """Raise where the factors are complex, whatever the entries of the map, and a real type is asked for."""
    if dtype not in (torch.complex64, torch.complex128):
        raise ValueError(f"the factors of {what} are complex: expected dtype complex64 or complex128, got {dtype!r}")


def read_vectors(
    what: str, dtype: torch.dtype | None, complex_factors: bool, **given: Vector
) -> tuple[list[Tensor], torch.dtype]:
    """Vectors in float64 or complex128, and the type of the K-matrix.

    Args:
        what: the map, for messages.
        dtype: type that the caller asks for; None for that of the vectors.
        complex_factors: whether the factors are complex even where the vectors are real.
        given: the vectors by name.
    """
    vectors, types = [], []
    for name, values in given.items():
        tensor = as_tensor(values)
        if tensor.ndim != 1 or len(tensor) == 0:
            raise ValueError(f"expected {name} of shape (n,) with n >= 1, got {tuple(tensor.shape)}")
        precise = torch.complex128 if tensor.is_complex() else torch.float64
        vectors.append(as_tensor(values, dtype=precise, device="cpu").detach())
        check_finite(vectors[-1], name)
        types.append(tensor.dtype)
    if dtype is None:
        # float32 at least: K-matrices have no half-precision parameters.
        dtype = functools.reduce(torch.promote_types, types, torch.float32)
        dtype = dtype.to_complex() if complex_factors else dtype
    check_dtype(dtype)
    if complex_factors:
        check_complex(dtype, what)
    elif not dtype.is_complex and any(v.is_complex() for v in vectors):
        raise ValueError(f"{what} of complex numbers is complex: expected dtype complex64 or complex128, got {dtype}")
    return vectors, dtype
