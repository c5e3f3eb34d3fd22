"""What the linear layers with a structured matrix share: sizes, bias, shape checks, the dense matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn


class StructuredLinear(nn.Module):
    """Base of linear layers ``y = W x + b`` whose W is not stored entry by entry.

    A subclass builds its parameters and defines `multiply`; where there is a shorter way to the matrix than
    multiplying the identity, it defines `weight` too. The layers take the arguments of `torch.nn.Linear` and
    then options of their own, so that one can stand for another.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector, drawn as in `torch.nn.Linear`: uniform within ``1 / sqrt(in_features)``.
        device: of the parameters.
        dtype: real type of the parameters, `torch.get_default_dtype()` by default.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: a size or type that does not fit, with what was expected.

    >>> class Reversal(StructuredLinear):
    ...     def multiply(self, x):
    ...         return x.flip(-1)
    >>> layer = Reversal(2, 2)
    >>> layer.weight
    tensor([[0., 1.],
            [1., 0.]])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, out_features=out_features)
        self.in_features = int(in_features)
        self.out_features = int(out_features)
        dtype = real_dtype(dtype)
        values = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", values)
        self._reset_bias()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as the constructor did."""
        self._reset_bias()
        self._reset_matrix()

    @torch.no_grad()
    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            self.bias.uniform_(-bound, bound)

    def _reset_matrix(self) -> None:
        """Draw the parameters of the matrix; a subclass that has some calls it at the end of its constructor."""

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        raise NotImplementedError(f"{type(self).__name__} does not define multiply")

    @property
    def weight(self) -> Tensor:
        """The matrix W ``(out_features, in_features)``; differentiable, computed anew at each access.

        It costs the product with ``in_features`` vectors and is no parameter: writing into it changes nothing.
        """
        parameter = next(self.parameters(), torch.empty(0))
        identity = torch.eye(self.in_features, device=parameter.device, dtype=parameter.dtype)
        return self.multiply(identity).mT

    def forward(self, x: Tensor) -> Tensor:
        """``W x + b`` for vectors ``(..., in_features)``."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected x of shape (..., {self.in_features}), got {tuple(x.shape)}")
        y = self.multiply(x)
        # Under autocast y is in half precision, and a float32 bias would promote it.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Sizes, and whether there is a bias."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def check_positive(**values: Any) -> None:
    """Raise where a size is no whole number, of Python or NumPy, or below 1, naming it."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"expected {name} as an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}")


def real_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The default type for None; raise for types that are not real floating point."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"expected a torch.dtype, e.g. torch.float32, got {dtype!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"expected a real floating-point dtype, got {dtype}; for complex maps use KMatrix")
    return dtype


def along(dim: int, n: int, x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a map of vectors ``(..., n)`` to the dimension ``dim`` of x; raise where that has another size."""
    if not -x.ndim <= dim < x.ndim or x.shape[dim] != n:
        raise ValueError(f"expected x with {n} entries in dimension {dim}, got {tuple(x.shape)}")
    return multiply(x.movedim(dim, -1)).movedim(-1, dim)
