"""What users pass to the constructions: matrices of any kind, and the type of the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_matrix(matrix: Any, name: str) -> Tensor:
    """A dense matrix as a float64 or complex128 tensor on the CPU.

    Args:
        matrix: a tensor, an array or nested lists.
        name: of the argument, for the errors.

    Raises:
        ValueError: not 2-D, empty, or with entries that are not finite.
    """
    tensor = matrix if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix, order="C"))
    tensor = as_double(tensor.detach())
    check_matrix_shape(tuple(tensor.shape), name)
    check_finite(tensor, name)
    return tensor


def as_double(values: Tensor) -> Tensor:
    """The same numbers in float64 or complex128 on the CPU."""
    return values.to("cpu", torch.complex128 if values.is_complex() else torch.float64).resolve_conj().resolve_neg()


def check_matrix_shape(shape: tuple[int, ...], name: str) -> None:
    """Raise unless the shape is that of a matrix with rows and columns."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"expected {name} of shape (rows, columns) with at least one of each, got {shape}")


def check_finite(values: Tensor, name: str) -> None:
    """Raise where an entry is infinite or not a number."""
    if not values.isfinite().all():
        raise ValueError(f"expected finite entries in {name}, got {int((~values.isfinite()).sum())} that are not")


def result_dtype(dtype: torch.dtype | None, values: Tensor) -> torch.dtype:
    """The type asked for, or float32 or complex64; raise where a real type is asked for and the values are complex."""
    if dtype is None:
        return torch.complex64 if values.is_complex() else torch.float32
    if values.is_complex() and not dtype.is_complex:
        raise ValueError(f"the entries are complex: expected dtype complex64 or complex128, got {dtype}")
    return dtype
