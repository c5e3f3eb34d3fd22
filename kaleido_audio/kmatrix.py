"""KMatrix: a learnable product of butterfly matrices as a PyTorch module."""

from __future__ import annotations

import math
import operator
from typing import Union

import torch
from torch import Tensor, nn

from kaleido_audio import ops
from kaleido_audio.factors import embed_factors, invert_factors, transpose_factors, widened
from kaleido_audio.parametrizations import (
    angles_of_blocks,
    block_index,
    blocks_of_factors,
    factors_of_blocks,
    identity_blocks,
    random_normal_blocks,
    random_unitary_blocks,
    split_diagonal,
    unitary_blocks,
    with_diagonal,
)
from kaleido_audio.tables import ModuleWithTables

Init = Union[str, "KMatrix"]
_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_INITS = ("orthogonal", "identity", "normal")
_CONSTRAINTS = (None, "orthogonal", "odo")
_HALF = (torch.float16, torch.bfloat16)


def padded_size(n: int, expansion: int = 1) -> int:
    """Size of the butterfly factors of an n x n K-matrix: the next power of two of ``expansion * n``, at least 2.

    >>> padded_size(512), padded_size(400, expansion=2)
    (512, 1024)
    """
    return max(2, 1 << (operator.index(expansion) * operator.index(n) - 1).bit_length())


class KMatrix(ModuleWithTables):
    """A K-matrix: an n x n linear map in (BB*)^w_e, applied in O(w e n log(e n)) operations.

    The map is the upper-left n x n corner of a product of ``2 * width`` butterfly matrices of size N, the next power
    of two of ``expansion * n``: inputs are padded with zeros to N, outputs truncated to n. With ``out_features`` it
    is the corner of that many rows and n columns, of factors whose size is that of the longer side.

    What is learned depends on ``constraint`` and ``tied``. Parameters are always real: complex coefficients are
    stored with a trailing dimension of 2, so that ``module.double()``, optimizers, DDP and safetensors treat them
    like any other. `factors` gives the coefficients ``(2 * width, log2 N, 2, N)`` in every case, laid out as
    `kaleido_audio.ops.butterfly_multiply` takes them.

    ================ ================================ ======================= =======================
    constraint       parameters                       numbers per BB*         numbers per BB*, tied
    ================ ================================ ======================= =======================
    None             ``weight``                       4 N log2 N              8 (N - 1)
    ``"orthogonal"`` ``angles``                       N log2 N                2 (N - 1)
    ``"odo"``        ``angles``, ``diagonal``         N log2 N + N            2 (N - 1) + N
    ================ ================================ ======================= =======================

    A complex K-matrix has twice the numbers of ``weight`` and ``diagonal``, and four times those of ``angles``.

    Args:
        n: columns of the map, and its rows.
        out_features: rows of the map, where they are not n.
        width: number w of BB* products.
        expansion: e of (BB*)^w_e; the corner of a larger matrix can represent more maps.
        dtype: float32 or float64 for a real map, complex64 or complex128 for a complex one.
        init: ``"orthogonal"`` (every 2 x 2 block a random rotation or reflection; unitary if complex),
            ``"identity"``, ``"normal"`` (independent entries; for no constraint), or a `KMatrix` of the same sides
            and padded size and of no greater width, e.g. from `kaleido_audio.exact`; the factors it lacks start as
            the identity. It must satisfy the constraint and be tied, to rounding, where these are asked for.
            Random starts keep the variance of white inputs. Where N > n the corner of an orthogonal matrix would
            lose a part of it: a gain of sqrt(N / n) is spread evenly over all stages, or is the diagonal of "odo".
            With the constraint "orthogonal" there is no place for it, and the variance is n / N of the input's.
        constraint: ``"orthogonal"``: every 2 x 2 block is a rotation or a reflection, or unitary if complex, by its
            angles, and so exactly orthogonal throughout training. The buffer ``reflection`` is 1 for those blocks of a
            real K-matrix that are reflections. ``"odo"``: orthogonal, diagonal, orthogonal: between the B* and the B of
            each BB*, both orthogonal, stands a free diagonal, which costs nothing in `forward`.
        tied: the blocks of one stage share their coefficients where an FFT's do: a stage of stride s repeats one
            pattern of 2 s positions. The diagonal of "odo" is not tied.

    Shape:
        ``forward(x)``: ``(..., n)`` to ``(..., out_features)``. Real input of a complex K-matrix gives complex output.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Dao et al., ICLR 2020, definition 2.3 (width) and 2.4 (expansion); tied weights: Dao et al., "Learning
    Fast Algorithms for Linear Transforms Using Butterfly Factorizations", ICML 2019.

    >>> k = KMatrix(6, init="identity")
    >>> k(torch.arange(6.0)).detach()
    tensor([0., 1., 2., 3., 4., 5.])
    >>> k.factors.shape  # one BB* of size 8
    torch.Size([2, 3, 2, 8])
    >>> KMatrix(512, constraint="odo", tied=True)
    KMatrix(512, width=1, expansion=1, size=512, real torch.float32, constraint='odo', tied=True, parameters=1534)
    """

    block_index: Tensor
    reflection: Tensor | None

    def __init__(
        self,
        n: int,
        *,
        out_features: int | None = None,
        width: int = 1,
        expansion: int = 1,
        dtype: torch.dtype = torch.float32,
        init: Init = "orthogonal",
        constraint: str | None = None,
        tied: bool = False,
    ) -> None:
        super().__init__()
        n, out_features = operator.index(n), operator.index(n if out_features is None else out_features)
        width, expansion = operator.index(width), operator.index(expansion)
        for name, value in (("n", n), ("out_features", out_features), ("width", width), ("expansion", expansion)):
            if value < 1:
                raise ValueError(f"expected {name} >= 1, got {value}")
        if dtype not in _DTYPES:
            raise ValueError(f"expected dtype in {_DTYPES}, got {dtype}")
        if constraint not in _CONSTRAINTS:
            raise ValueError(f"expected constraint in {_CONSTRAINTS}, got {constraint!r}")
        inits = _INITS if constraint is None else ("orthogonal", "identity")
        if not isinstance(init, KMatrix) and init not in inits:
            raise ValueError(f"expected init in {inits} or a KMatrix for constraint={constraint!r}, got {init!r}")
        self.in_features = n
        self.out_features = out_features
        self.width = width
        self.expansion = expansion
        self.size = padded_size(max(n, out_features), expansion)
        self.is_complex = dtype.is_complex
        self.constraint = constraint
        self.tied = tied
        self._has_weight_as_factors = constraint is None and not tied

        pairs = (self.size - 1,) if tied else (self.size.bit_length() - 1, self.size // 2)
        self._blocks_shape = (2 * width, *pairs)
        real, parts = dtype.to_real(), (2,) if self.is_complex else ()
        if constraint is None:
            shape = (2 * width, 2, 2, *pairs) if tied else (2 * width, pairs[0], 2, self.size)
            self.weight = nn.Parameter(torch.empty(*shape, *parts, dtype=real))
        else:
            shape = (2 * width, *pairs[:-1], 4, pairs[-1]) if self.is_complex else self._blocks_shape
            self.angles = nn.Parameter(torch.empty(shape, dtype=real))
            # A number, because averages of buffers refuse a bool or round it.
            self.register_buffer("reflection", None if self.is_complex else torch.zeros(shape, dtype=real))
        if constraint == "odo":
            self.diagonal = nn.Parameter(torch.empty(width, self.size, *parts, dtype=real))
        if not self._has_weight_as_factors:
            self.register_tables()

        self.init: str | None = None
        if isinstance(init, KMatrix):
            self._set_factors(self._widened(init))
        else:
            self.init = init
            self.reset_parameters()

    @classmethod
    def from_factors(cls, n: int, factors: Tensor, *, out_features: int | None = None, expansion: int = 1) -> KMatrix:
        """A K-matrix, without constraint, of given coefficients and on their device.

        Args:
            n: columns of the map, and its rows.
            factors: ``(2 * width, log2 size, 2, size)``, size the padded size of ``expansion`` times the longer side.
            out_features: rows of the map, where they are not n.
            expansion: as in the constructor.

        Raises:
            ValueError: factors of another shape or type.

        >>> swap = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        >>> KMatrix.from_factors(2, torch.stack(swap).unsqueeze(1))(torch.tensor([3.0, 4.0])).tolist()
        [4.0, 3.0]
        """
        longer = n if out_features is None else max(n, out_features)
        size = padded_size(longer, expansion)
        if factors.shape[1:] != (size.bit_length() - 1, 2, size) or factors.shape[0] % 2:
            raise ValueError(
                f"expected factors (2 * width, log2 N, 2, N) with N = {size} for n = {longer} and expansion = "
                f"{expansion}, got {tuple(factors.shape)}"
            )
        k = cls(
            n,
            out_features=out_features,
            width=factors.shape[0] // 2,
            expansion=expansion,
            dtype=factors.dtype,
            init="identity",
        )
        k = moved(k, factors.device, factors.dtype.to_real())
        k.init = None
        k._set_factors(factors)
        return k

    def tables(self) -> dict[str, Tensor]:
        """Where the coefficients of the factors stand among those of the blocks."""
        return {} if self._has_weight_as_factors else {"block_index": block_index(self.size, tied=self.tied)}

    @property
    def n(self) -> int:
        """Size of the input vectors: `in_features`."""
        return self.in_features

    @property
    def factors(self) -> Tensor:
        """The coefficients ``(2 * width, log2 size, 2, size)``, differentiable with respect to the parameters.

        Without constraint and ties they are a view of ``weight``. Else each call makes them from the parameters, in
        a few operations of their size; where they no longer change, ``KMatrix(n, ..., init=k)`` has them ready.
        There is no complex arithmetic in half precision: the coefficients of a complex K-matrix are complex64 then.
        """
        if self._has_weight_as_factors:
            return _coefficients(self.weight, self.is_complex)
        blocks = self._blocks()
        factors = factors_of_blocks(blocks, self.block_index.to(blocks.device))
        if self.constraint == "odo":
            return with_diagonal(factors, _coefficients(self.diagonal, self.is_complex))
        return factors

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the vectors ``(..., n)`` by this matrix."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected x of shape (..., {self.in_features}), got {tuple(x.shape)}")
        return ops.butterfly_multiply(x, self.factors, out_features=self.out_features)

    def to_dense(self) -> Tensor:
        """The matrix W ``(out_features, n)`` with ``forward(x) = W @ x``; differentiable."""
        return ops.to_dense(self.factors, out_features=self.out_features, in_features=self.in_features)

    def transpose(self) -> KMatrix:
        """The transposed map, a K-matrix of the same width and size with its own parameters, without constraint.

        Every stage is transposed and their order reversed, which makes B* of B and B of B*.

        >>> k = KMatrix(3, out_features=5, dtype=torch.float64)
        >>> torch.allclose(k.transpose().to_dense(), k.to_dense().T)
        True
        """
        return self._reversed(transpose_factors(self.factors.detach()))

    def adjoint(self) -> KMatrix:
        """The conjugate transpose, a K-matrix of the same width and size with its own parameters, without constraint.

        >>> k = KMatrix(4, dtype=torch.complex128)  # unitary
        >>> x = torch.randn(4, dtype=torch.complex128)
        >>> torch.allclose(k.adjoint()(k(x)), x)
        True
        """
        return self._reversed(transpose_factors(self.factors.detach()).conj_physical())

    def inverse(self) -> KMatrix:
        """The inverse map, a K-matrix of the same width and size with its own parameters, without constraint.

        Every 2 x 2 block is inverted, in float64, and the order of the stages reversed. With the constraint
        "orthogonal" this is the adjoint.

        Raises:
            ValueError: the map is not square; a block is singular; or the map is a corner of a larger matrix which
                mixes it with the rest, so that the corner of the inverse is not the inverse of the corner.

        >>> k = KMatrix(8, init="normal", dtype=torch.float64)
        >>> torch.allclose(k.inverse().to_dense(), torch.linalg.inv(k.to_dense()))
        True
        """
        n = self.in_features
        if self.out_features != n:
            raise ValueError(f"only a square K-matrix has an inverse, this one is {self.out_features} x {n}")
        if self.constraint == "orthogonal":
            result = self.adjoint()
        else:
            factors = self.factors.detach()
            double = factors.to(torch.complex128 if self.is_complex else torch.float64)
            result = self._reversed(invert_factors(double), factors.dtype)
        if n < self.size and not self._is_undone_by(result):
            raise ValueError(
                f"no inverse of this kind: the map of size {n} is the corner of a matrix of size {self.size} that "
                f"mixes it with the rest; use torch.linalg.inv(k.to_dense())"
            )
        return result

    def compose(self, other: KMatrix) -> KMatrix:
        """The map ``x -> self(other(x))``, a K-matrix with its own parameters, without constraint.

        ``self @ other`` is the same. The widths add up, and the size is the larger of the two. The corner that is
        cut between the two costs nothing: the rows of the last stage of ``other`` that it drops are set to zero. The
        result has the more precise type, and is complex if either is; its expansion is the larger of the two, or
        what gives its sides that size.

        Args:
            other: a K-matrix with as many rows as this one has columns, on the same device.

        Raises:
            ValueError: rows and columns that do not fit.

        >>> a, b = KMatrix(3, out_features=5), KMatrix(4, out_features=3, width=2)
        >>> c = a @ b
        >>> c.width, torch.allclose(c.to_dense(), a.to_dense() @ b.to_dense(), atol=1e-6)
        (3, True)
        """
        if self.in_features != other.out_features:
            raise ValueError(
                f"expected a K-matrix of {self.in_features} rows to compose with one of {self.in_features} columns, "
                f"got one of {other.out_features} rows"
            )
        size = max(self.size, other.size)
        given = [k.factors.detach() for k in (other, self)]
        dtype = torch.promote_types(torch.promote_types(given[0].dtype, given[1].dtype), torch.float32)
        first, second = (embed_factors(factors.to(dtype), size) for factors in given)
        first[-1, -1, :, other.out_features :] = 0
        longer = max(other.in_features, self.out_features)
        expansion = max(self.expansion, other.expansion)
        if padded_size(longer, expansion) != size:
            expansion = size >> (longer - 1).bit_length()
        return KMatrix.from_factors(
            other.in_features, torch.cat([first, second]), out_features=self.out_features, expansion=expansion
        )

    def __matmul__(self, other: KMatrix) -> KMatrix:
        return self.compose(other) if isinstance(other, KMatrix) else NotImplemented

    def reset_parameters(self) -> None:
        """Set the parameters as the constructor did, random ones drawn anew.

        Raises:
            ValueError: this K-matrix was made from given coefficients.

        >>> k = KMatrix(4, init="identity")
        >>> _ = torch.nn.init.zeros_(k.weight)
        >>> k.reset_parameters()
        >>> torch.equal(k.to_dense(), torch.eye(4))
        True
        """
        if self.init is None:
            raise ValueError("this K-matrix was made from given coefficients, which it does not keep: make it anew")
        parameter = next(self.parameters())
        dtype = torch.promote_types(parameter.dtype, torch.complex64 if self.is_complex else torch.float32)
        gain = math.sqrt(self.size / self.in_features)
        if self.init == "orthogonal":
            blocks = random_unitary_blocks(self._blocks_shape, dtype)
        elif self.init == "identity":
            blocks, gain = identity_blocks(self._blocks_shape, dtype), 1.0
        else:
            blocks = random_normal_blocks(self._blocks_shape, dtype)
        if self.constraint is None:
            blocks = blocks * gain ** (1 / (2 * self.width * (self.size.bit_length() - 1)))
        self._set_blocks(blocks)
        if self.constraint == "odo":
            with torch.no_grad():
                self.diagonal.zero_()
                (self.diagonal[..., 0] if self.is_complex else self.diagonal).fill_(gain ** (1 / self.width))

    def extra_repr(self) -> str:
        """Size, class (BB*)^w_e, type, constraint and number of real parameters."""
        kind = "complex" if self.is_complex else "real"
        rows = "" if self.out_features == self.in_features else f", out_features={self.out_features}"
        constraint = "" if self.constraint is None else f", constraint={self.constraint!r}"
        tied = ", tied=True" if self.tied else ""
        return (
            f"{self.in_features}{rows}, width={self.width}, expansion={self.expansion}, size={self.size}, {kind} "
            f"{next(self.parameters()).dtype}{constraint}{tied}, parameters={sum(p.numel() for p in self.parameters())}"
        )

    def _blocks(self) -> Tensor:
        if self.constraint is None:
            return _coefficients(self.weight, self.is_complex)
        angles = self.angles.float() if self.is_complex and self.angles.dtype in _HALF else self.angles
        # Rounded, because an average may be off by a rounding.
        return unitary_blocks(angles, None if self.reflection is None else self.reflection.to(angles.dtype).round())

    @torch.no_grad()
    def _set_blocks(self, blocks: Tensor) -> None:
        if self.constraint is not None:
            angles, reflection = angles_of_blocks(blocks)
            self.angles.copy_(angles)
            if self.reflection is not None and reflection is not None:
                self.reflection.copy_(reflection)
        else:
            weight = blocks if self.tied else factors_of_blocks(blocks, block_index(self.size, tied=False))
            self.weight.copy_(_as_real(weight))

    @torch.no_grad()
    def _set_factors(self, factors: Tensor) -> None:
        if self._has_weight_as_factors:
            self.weight.copy_(_as_real(factors))
            return
        if self.constraint == "odo":
            factors, diagonal = split_diagonal(factors)
            self.diagonal.copy_(_as_real(diagonal))
        index = self.block_index.to(factors.device)
        self._set_blocks(blocks_of_factors(factors, index, tied=self.tied))
        blocks = self._blocks()
        if blocks.is_meta:
            return
        kept = factors_of_blocks(blocks, index)
        error = (kept - factors).abs().max()
        if not error <= 64 * torch.finfo(factors.dtype).eps * factors.abs().max():
            wanted = [f"orthogonal blocks (constraint={self.constraint!r})"] if self.constraint else []
            wanted += ["stages that repeat their pattern (tied=True)"] if self.tied else []
            raise ValueError(f"init is a KMatrix without {' or '.join(wanted)}: expected factors that have them")

    def _widened(self, source: KMatrix) -> Tensor:
        if (source.in_features, source.out_features, source.size) != (
            self.in_features,
            self.out_features,
            self.size,
        ) or source.width > self.width:
            raise ValueError(
                f"init is a KMatrix of {source.out_features} x {source.in_features}, size {source.size} and width "
                f"{source.width}; expected {self.out_features} x {self.in_features}, size {self.size} and width <= "
                f"{self.width}"
            )
        if source.is_complex and not self.is_complex:
            raise ValueError("init is a complex KMatrix: expected a complex dtype, got a real one")
        parameter = next(self.parameters())
        dtype = parameter.dtype.to_complex() if self.is_complex else parameter.dtype
        return widened(source.factors.detach().to(parameter.device, dtype), self.width)

    def _reversed(self, factors: Tensor, dtype: torch.dtype | None = None) -> KMatrix:
        # float32 at least, as every K-matrix is made.
        factors = factors.to(torch.promote_types(factors.dtype if dtype is None else dtype, torch.float32))
        return KMatrix.from_factors(self.out_features, factors, out_features=self.in_features, expansion=self.expansion)

    def _is_undone_by(self, other: KMatrix) -> bool:
        """Whether ``other(self(x))`` is x, by random vectors: a matrix that keeps them is the identity."""
        factors = self.factors.detach()
        dtype = torch.complex128 if self.is_complex else torch.float64
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, self.in_features, dtype=dtype, generator=generator).to(factors.device)
        y = ops.butterfly_multiply(x, factors.to(dtype), out_features=self.out_features)
        undone = ops.butterfly_multiply(y, other.factors.detach().to(dtype), out_features=self.in_features)
        return bool((undone - x).norm() <= torch.finfo(factors.dtype).eps ** 0.5 * x.norm())


def moved(k: KMatrix, device: torch.device | str | None, dtype: torch.dtype) -> KMatrix:
    """``k.to(device, dtype)``, but for one that is there: fake parameters cannot take each other's place."""
    parameter = next(k.parameters())
    if parameter.dtype == dtype and (device is None or parameter.device == torch.device(device)):
        return k
    return k.to(device=device, dtype=dtype)


def _coefficients(parameter: Tensor, is_complex: bool) -> Tensor:
    if not is_complex:
        return parameter
    return torch.view_as_complex(parameter.float() if parameter.dtype in _HALF else parameter)


def _as_real(coefficients: Tensor) -> Tensor:
    return torch.view_as_real(coefficients.resolve_conj()) if coefficients.is_complex() else coefficients
