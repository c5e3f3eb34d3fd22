"""KMatrix: a learnable product of butterfly matrices as a PyTorch module."""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor, nn

from kaleido_audio import ops

Init = Union[str, "KMatrix"]
_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_INITS = ("orthogonal", "identity", "normal")


def padded_size(n: int, expansion: int = 1) -> int:
    """Size of the butterfly factors of an n x n K-matrix: the next power of two of ``expansion * n``, at least 2.

    >>> padded_size(512), padded_size(400, expansion=2)
    (512, 1024)
    """
    return max(2, 1 << (expansion * n - 1).bit_length())


class KMatrix(nn.Module):
    """A K-matrix: an n x n linear map in (BB*)^w_e, applied in O(w e n log(e n)) operations.

    The map is the upper-left n x n corner of a product of ``2 * width`` butterfly matrices of the next power of
    two of ``expansion * n``: inputs are padded with zeros to that size, outputs truncated to n. With
    ``out_features`` it is the corner of that many rows and n columns, of factors whose size is that of the longer
    side.

    The parameter is ``weight``, always real: complex coefficients are stored with a trailing dimension of 2, so
    that ``module.double()``, optimizers, DDP and safetensors treat it like any other. `factors` is its view as
    ``(2 * width, log2 size, 2, size)`` coefficients, laid out as `kaleido_audio.ops.butterfly_multiply` takes
    them.

    Args:
        n: columns of the map, and its rows.
        out_features: rows of the map, where they are not n.
        width: number w of BB* products.
        expansion: e of (BB*)^w_e; the corner of a larger matrix can represent more maps.
        dtype: float32 or float64 for a real map, complex64 or complex128 for a complex one.
        init: ``"orthogonal"`` (every 2 x 2 block a random rotation or reflection; unitary if complex),
            ``"identity"``, ``"normal"`` (independent entries that keep the variance), or a `KMatrix` of the same
            n and padded size and of no greater width, e.g. from `kaleido_audio.exact`; the factors it lacks
            start as the identity.

    Shape:
        ``forward(x)``: ``(..., n)`` to ``(..., out_features)``. Real input of a complex K-matrix gives complex output.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Dao et al., ICLR 2020, definition 2.3 (width) and 2.4 (expansion).

    >>> k = KMatrix(6, init="identity")
    >>> k(torch.arange(6.0)).detach()
    tensor([0., 1., 2., 3., 4., 5.])
    >>> k.factors.shape  # one BB* of size 8
    torch.Size([2, 3, 2, 8])
    """

    def __init__(
        self,
        n: int,
        *,
        out_features: int | None = None,
        width: int = 1,
        expansion: int = 1,
        dtype: torch.dtype = torch.float32,
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        out_features = n if out_features is None else out_features
        for name, value in (("n", n), ("out_features", out_features), ("width", width), ("expansion", expansion)):
            if value < 1:
                raise ValueError(f"expected {name} >= 1, got {value}")
        if dtype not in _DTYPES:
            raise ValueError(f"expected dtype in {_DTYPES}, got {dtype}")
        self.in_features = n
        self.out_features = out_features
        self.width = width
        self.expansion = expansion
        self.size = padded_size(max(n, out_features), expansion)
        self.is_complex = dtype.is_complex
        shape = (2 * width, self.size.bit_length() - 1, 2, self.size)
        factors = _initial_factors(shape, dtype, init, (n, out_features))
        self.weight = nn.Parameter(torch.view_as_real(factors).clone() if self.is_complex else factors)

    @classmethod
    def from_factors(cls, n: int, factors: Tensor, *, out_features: int | None = None, expansion: int = 1) -> KMatrix:
        """A K-matrix with given coefficients.

        Args:
            n: columns of the map, and its rows.
            factors: ``(2 * width, log2 size, 2, size)``, size the padded size of ``expansion`` times the longer side.
            out_features: rows of the map, where they are not n.
            expansion: as in the constructor.
        """
        longer = n if out_features is None else max(n, out_features)
        if factors.ndim != 4 or factors.shape[0] % 2 or factors.shape[-1] != padded_size(longer, expansion):
            raise ValueError(
                f"expected factors (2 * width, log2 N, 2, N) with N = {padded_size(longer, expansion)} for "
                f"n = {longer} and expansion = {expansion}, got {tuple(factors.shape)}"
            )
        k = cls(
            n,
            out_features=out_features,
            width=factors.shape[0] // 2,
            expansion=expansion,
            dtype=factors.dtype,
            init="identity",
        )
        with torch.no_grad():
            k.factors.copy_(factors)
        return k

    @property
    def n(self) -> int:
        """Size of the input vectors: `in_features`."""
        return self.in_features

    @property
    def factors(self) -> Tensor:
        """The coefficients ``(2 * width, log2 size, 2, size)``, a view of the parameter."""
        return torch.view_as_complex(self.weight) if self.is_complex else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the vectors ``(..., n)`` by this matrix."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected x of shape (..., {self.in_features}), got {tuple(x.shape)}")
        return ops.butterfly_multiply(x, self.factors, out_features=self.out_features)

    def to_dense(self) -> Tensor:
        """The matrix W ``(out_features, n)`` with ``forward(x) = W @ x``; differentiable."""
        return ops.to_dense(self.factors, out_features=self.out_features, in_features=self.in_features)

    def extra_repr(self) -> str:
        """Size, class (BB*)^w_e, type and number of real parameters."""
        kind = "complex" if self.is_complex else "real"
        rows = "" if self.out_features == self.in_features else f", out_features={self.out_features}"
        return (
            f"{self.in_features}{rows}, width={self.width}, expansion={self.expansion}, size={self.size}, {kind} "
            f"{self.weight.dtype}, parameters={self.weight.numel()}"
        )


def identity_factors(n_factors: int, size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Coefficients ``(n_factors, log2 size, 2, size)`` of the identity."""
    factors = torch.zeros(n_factors, size.bit_length() - 1, 2, size, dtype=dtype)
    factors[:, :, 0] = 1
    return factors


def _initial_factors(
    shape: tuple[int, int, int, int], dtype: torch.dtype, init: Init, sides: tuple[int, int]
) -> Tensor:
    n_factors, _, _, size = shape
    if isinstance(init, KMatrix):
        return _widened(init, n_factors, size, dtype, sides)
    if init == "orthogonal":
        return _random_orthogonal(shape, dtype)
    if init == "identity":
        return identity_factors(n_factors, size, dtype)
    if init == "normal":
        # Two products are summed in each output of a stage: half the variance each keeps it.
        return torch.randn(shape, dtype=dtype) * math.sqrt(0.5)
    raise ValueError(f"expected init in {_INITS} or a KMatrix, got {init!r}")


def _widened(source: KMatrix, n_factors: int, size: int, dtype: torch.dtype, sides: tuple[int, int]) -> Tensor:
    given = source.factors.detach()
    if (source.in_features, source.out_features) != sides or source.size != size or given.shape[0] > n_factors:
        raise ValueError(
            f"init is a KMatrix of {source.out_features} x {source.in_features}, size {source.size} and width "
            f"{source.width}; expected {sides[1]} x {sides[0]}, size {size} and width <= {n_factors // 2}"
        )
    if source.is_complex and not dtype.is_complex:
        raise ValueError(f"init is a complex KMatrix: expected a complex dtype, got {dtype}")
    rest = identity_factors(n_factors - given.shape[0], size, dtype)
    return torch.cat([given.to("cpu", dtype), rest])


def _random_orthogonal(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Independent 2 x 2 blocks: rotations or reflections with equal odds; Haar-distributed unitary if complex."""
    n_factors, log_n, _, size = shape
    real = torch.zeros((), dtype=dtype).real.dtype
    factors = torch.empty(shape, dtype=dtype)
    for s in range(log_n):
        for parity in (0, 1):
            stride = 1 << (s if parity else log_n - 1 - s)
            pairs = (n_factors // 2, size // (2 * stride), stride)
            # blocks[..., 0/1 (diagonal, off-diagonal), pair, 0/1 (first, second row), position]
            if dtype.is_complex:
                first, second, phase = (torch.rand(pairs, dtype=real) * (2 * math.pi) for _ in range(3))
                sine = torch.rand(pairs, dtype=real).sqrt()
                cosine = (1 - sine * sine).sqrt()
                rows = [
                    [torch.polar(cosine, first), torch.polar(cosine, phase - first)],
                    [torch.polar(sine, second), -torch.polar(sine, phase - second)],
                ]
            else:
                angle = torch.rand(pairs, dtype=real) * (2 * math.pi)
                sign = torch.randint(0, 2, pairs).to(real) * 2 - 1
                rows = [[angle.cos(), sign * angle.cos()], [-angle.sin(), sign * angle.sin()]]
            blocks = torch.stack([torch.stack(row, dim=2) for row in rows], dim=1)
            factors[parity::2, s] = blocks.flatten(2)
    return factors
