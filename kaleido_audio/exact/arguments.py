"""What users pass to the constructions: matrices of any kind, whole numbers, and the type of the result."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from kaleido_audio.kmatrix import KMatrix

P = ParamSpec("P")
Made = TypeVar("Made", KMatrix, Tensor)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def made_on_cpu(construction: Callable[P, Made]) -> Callable[P, Made]:
    """The same construction, which computes on the CPU and puts what it made on torch's default device.

    What a construction is given is brought to the CPU: what it makes itself must not follow another default device.

    >>> with torch.device("meta"):
    ...     made_on_cpu(lambda: torch.arange(3) + torch.zeros(3, device="cpu"))().device
    device(type='meta')
    """

    @functools.wraps(construction)
    def made(*args: P.args, **kwargs: P.kwargs) -> Made:
        device = torch.get_default_device()
        if device.type == "cpu":  # the context below makes every call of torch slower
            return construction(*args, **kwargs)
        with torch.device("cpu"):
            return construction(*args, **kwargs).to(device)

    return made


def integer(name: str, value: Any) -> int:
    """A whole number of any kind as an int.

    >>> integer("n", np.int64(8)).bit_length()
    4
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"expected {name} to be an integer, got {value!r}") from None


def check_dtype(dtype: Any) -> None:
    """Raise where dtype is none that a K-matrix can have."""
    if dtype not in DTYPES:
        raise ValueError(f"expected dtype in {DTYPES}, got {dtype!r}")


def as_tensor(values: Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """A tensor, an array or nested lists as a tensor; by default a tensor stays as it is."""
    if isinstance(values, Tensor):
        # torch.as_tensor would bring it to the default device.
        return values.to(device=values.device if device is None else device, dtype=dtype or values.dtype)
    if isinstance(values, np.ndarray):
        values = np.array(values, order="C")  # tensors have no negative strides
    return torch.as_tensor(values, dtype=dtype, device=device)


def as_matrix(matrix: Any, name: str) -> tuple[Tensor, torch.dtype]:
    """A dense matrix in float64 or complex128 on the CPU, and the type that it was given in.

    Args:
        matrix: a tensor, an array or nested lists.
        name: of the argument, for the errors.

    Raises:
        ValueError: not 2-D, empty, or with entries that are not finite.
    """
    given = as_tensor(matrix)
    check_matrix_shape(tuple(given.shape), name)
    values = as_double(as_tensor(matrix, dtype=double(given.dtype)))
    check_finite(values, name)
    return values, given.dtype


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
    check_dtype(dtype)
    if common.is_complex and not dtype.is_complex:
        raise ValueError(f"the entries are complex: expected dtype complex64 or complex128, got {dtype}")
    return dtype
