"""What users pass to the constructions from entries: matrices of any kind, and the type of the result."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_matrix(matrix: Any, name: str) -> tuple[Tensor, torch.dtype]:
    """A dense matrix in float64 or complex128 on the CPU, and the type that it was given in.

    Args:
        matrix: a tensor, an array or nested lists.
        name: of the argument, for the errors.

    Raises:
        ValueError: not 2-D, empty, or with entries that are not finite.
    """
    if isinstance(matrix, np.ndarray):
        matrix = np.array(matrix, order="C")  # tensors have no negative strides
    dtype = torch.as_tensor(matrix).dtype
    check_matrix_shape(tuple(torch.as_tensor(matrix).shape), name)
    values = as_double(torch.as_tensor(matrix, dtype=double(dtype)))
    check_finite(values, name)
    return values, dtype


def double(dtype: torch.dtype) -> torch.dtype:
    """complex128 for a complex type, else float64."""
    return torch.complex128 if dtype.is_complex else torch.float64


def as_double(values: Tensor) -> Tensor:
    """The same numbers in float64 or complex128 on the CPU, without their history."""
    return values.detach().to("cpu", double(values.dtype)).resolve_conj().resolve_neg()


def check_matrix_shape(shape: tuple[int, ...], name: str) -> None:
    """Raise unless the shape is that of a matrix with rows and columns."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"expected {name} of shape (rows, columns) with at least one of each, got {shape}")


def check_finite(values: Tensor, name: str) -> None:
    """Raise where an entry is infinite or not a number."""
    if not values.isfinite().all():
        raise ValueError(f"expected finite entries in {name}, got {int((~values.isfinite()).sum())} that are not")


def result_dtype(dtype: torch.dtype | None, *given: torch.dtype) -> torch.dtype:
    """The type asked for, or that of the entries; raise where a real type is asked for and entries are complex.

    >>> result_dtype(None, torch.int64), result_dtype(None, torch.float64, torch.complex64)
    (torch.float32, torch.complex128)
    """
    # float32 at least: K-matrices have no half-precision parameters.
    common = functools.reduce(torch.promote_types, given, torch.float32)
    if dtype is None:
        return common
    if common.is_complex and not dtype.is_complex:
        raise ValueError(f"the entries are complex: expected dtype complex64 or complex128, got {dtype}")
    return dtype
