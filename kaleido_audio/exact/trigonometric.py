"""Discrete cosine and sine transforms, types 1 to 4, of any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kaleido_audio.exact.algebra import (
    check_complex,
    check_length,
    corner,
    is_power_of_two,
    scale_inputs,
    scale_outputs,
)
from kaleido_audio.exact.arguments import made_on_cpu
from kaleido_audio.exact.extension import mirrored
from kaleido_audio.exact.fourier import chirped_dft, unit
from kaleido_audio.factors import balanced, identity_factors
from kaleido_audio.kmatrix import KMatrix, padded_size

_NORMS = ("backward", "ortho", "forward")
_INVERSE_TYPE = {1: 1, 2: 3, 3: 2, 4: 4}
_INVERSE_NORM = {"backward": "forward", "ortho": "ortho", "forward": "backward"}


@made_on_cpu
def dct(
    n: int,
    type: int = 2,
    norm: str | None = None,
    *,
    orthogonalize: bool | None = None,
    dtype: torch.dtype = torch.complex64,
) -> KMatrix:
    """The discrete cosine transform of any length, as `scipy.fft.dct`.

    A DCT is a DFT of twice the length of the symmetric extension of its input, between two diagonals. The extension
    is one B*, and the DFT of length L is one BB* of size L where L is a power of two (see `dft`), else the corner
    of a larger one. So, in natural order:

    * types 2, 3 and 4 of a power of two: (BB*)^2_2, with L = 2n.
    * type 1 of a power of two plus one: (BB*)^2_1, with L = 2(n - 1), the padded size of n.
    * any other n: (BB*)^2_3, as the DFT needs the size 3n.

    The entries are real, to rounding, but the factors are complex: for a real result take the real part.

    Args:
        n: length of the transform; at least 2 for type 1.
        type: 1, 2, 3 or 4.
        norm: ``"backward"`` (the same as None), ``"ortho"`` or ``"forward"``, as in scipy.
        orthogonalize: use the orthogonal variant of the matrix; by default where ``norm="ortho"``.
        dtype: complex64 or complex128.

    Raises:
        ValueError: n too small, another type or norm, or a real dtype.

    Source: Makhoul, "A fast cosine transform in one and two dimensions", 1980; Dao et al., ICLR 2020, appendix J.

    >>> dct(2, dtype=torch.complex128)(torch.tensor([1.0, 3.0]).double()).real  # doctest: +NORMALIZE_WHITESPACE
    tensor([ 8.0000, -2.8284], dtype=torch.float64, grad_fn=<SelectBackward0>)
    """
    return _transform("cosine", n, type, norm, orthogonalize, dtype)


@made_on_cpu
def idct(
    n: int,
    type: int = 2,
    norm: str | None = None,
    *,
    orthogonalize: bool | None = None,
    dtype: torch.dtype = torch.complex64,
) -> KMatrix:
    """The inverse of `dct` with the same arguments, as `scipy.fft.idct`; in the same class.

    Types 1 and 4 are their own inverses and types 2 and 3 each other's, up to a factor.

    Args:
        n: length of the transform; at least 2 for type 1.
        type: 1, 2, 3 or 4: the transform that this inverts.
        norm: ``"backward"`` (the same as None), ``"ortho"`` or ``"forward"``, as in scipy.
        orthogonalize: as in `dct`.
        dtype: complex64 or complex128.

    Raises:
        ValueError: n too small, another type or norm, or a real dtype.

    >>> x = torch.randn(12, dtype=torch.complex128)
    >>> torch.allclose(idct(12, dtype=torch.complex128)(dct(12, dtype=torch.complex128)(x)), x)
    True
    """
    return _transform("cosine", n, *_inverse(type, norm), _is_orthogonal(norm, orthogonalize), dtype)


@made_on_cpu
def dst(
    n: int,
    type: int = 2,
    norm: str | None = None,
    *,
    orthogonalize: bool | None = None,
    dtype: torch.dtype = torch.complex64,
) -> KMatrix:
    """The discrete sine transform of any length, as `scipy.fft.dst`.

    As `dct`, by antisymmetric extension: types 2, 3 and 4 of a power of two and type 1 of a power of two less one
    are in (BB*)^2_2, any other in (BB*)^2_3. The entries are real, to rounding, but the factors are complex.

    Args:
        n: length of the transform.
        type: 1, 2, 3 or 4.
        norm: ``"backward"`` (the same as None), ``"ortho"`` or ``"forward"``, as in scipy.
        orthogonalize: use the orthogonal variant of the matrix; by default where ``norm="ortho"``.
        dtype: complex64 or complex128.

    Raises:
        ValueError: n < 1, another type or norm, or a real dtype.

    Source: Dao et al., ICLR 2020, appendix J.

    >>> orthogonal = dst(8, 4, "ortho", dtype=torch.complex128).to_dense()
    >>> torch.allclose(orthogonal @ orthogonal.T, torch.eye(8, dtype=torch.complex128))
    True
    """
    return _transform("sine", n, type, norm, orthogonalize, dtype)


@made_on_cpu
def idst(
    n: int,
    type: int = 2,
    norm: str | None = None,
    *,
    orthogonalize: bool | None = None,
    dtype: torch.dtype = torch.complex64,
) -> KMatrix:
    """The inverse of `dst` with the same arguments, as `scipy.fft.idst`; in the same class.

    Args:
        n: length of the transform.
        type: 1, 2, 3 or 4: the transform that this inverts.
        norm: ``"backward"`` (the same as None), ``"ortho"`` or ``"forward"``, as in scipy.
        orthogonalize: as in `dst`.
        dtype: complex64 or complex128.

    Raises:
        ValueError: n < 1, another type or norm, or a real dtype.

    >>> x = torch.randn(12, dtype=torch.complex128)
    >>> torch.allclose(idst(12, dtype=torch.complex128)(dst(12, dtype=torch.complex128)(x)), x)
    True
    """
    return _transform("sine", n, *_inverse(type, norm), _is_orthogonal(norm, orthogonalize), dtype)


def _inverse(type: int, norm: str | None) -> tuple[int, str]:
    _check_options(type, norm)
    return _INVERSE_TYPE[type], _INVERSE_NORM[norm or "backward"]


def _is_orthogonal(norm: str | None, orthogonalize: bool | None) -> bool:
    return norm == "ortho" if orthogonalize is None else orthogonalize


def _check_options(type: int, norm: str | None) -> None:
    if type not in _INVERSE_TYPE:
        raise ValueError(f"expected type 1, 2, 3 or 4, got {type!r}")
    if norm is not None and norm not in _NORMS:
        raise ValueError(f"expected norm None or one of {_NORMS}, got {norm!r}")


def _transform(
    kind: str, n: int, type: int, norm: str | None, orthogonalize: bool | None, dtype: torch.dtype
) -> KMatrix:
    """Entry (k, i) is 2 cos(pi a b / m) or 2 sin(pi a b / m), a = i + offset_in / 2 and b = k + offset_out / 2.

    2 cos is a sum over the positions a and -a of exp(-i pi a b / m), and 2 sin is i times their difference. The
    positions 0 and m are their own mirror images modulo 2m: they count once, as in scipy.
    """
    check_complex(dtype, "a cosine or sine transform")
    n = check_length(n)
    _check_options(type, norm)
    sine = kind == "sine"
    if type == 1 and n == 1 and not sine:
        raise ValueError("a cosine transform of type 1 needs n >= 2, got 1")
    half_period = n if type > 1 else n + 1 if sine else n - 1
    offset_in = 1 if type in (2, 4) else 2 * sine
    offset_out = 1 if type in (3, 4) else 2 * sine

    period = 2 * half_period
    size = period if is_power_of_two(period) else padded_size(n, 3)
    index = torch.arange(size)
    position = 2 * index[: size // 2] + offset_in  # 2 a
    extension = mirrored(size, offset_in, (position > 0) & (position < period))
    image = index >= max(n, size // 2)
    place = index - size * image  # of position a, as the integer a - offset_in / 2

    # a b = (place + offset_in / 2) (k + offset_out / 2): the DFT of the places and two diagonals.
    before = unit(-place * offset_out, 2 * period)
    if sine:
        before = torch.where(image, -1j * before, 1j * before)
    after = unit(-offset_in * (2 * index + offset_out), 4 * period)
    fourier = chirped_dft(period, size, range(1 - n, 2 * n + offset_in - 1))
    factors = torch.cat(
        [torch.stack([extension, identity_factors(1, size)[0]]), scale_outputs(scale_inputs(fourier, before), after)]
    )

    gain = {"backward": 1.0, "ortho": 1 / math.sqrt(period), "forward": 1 / period}[norm or "backward"]
    if _is_orthogonal(norm, orthogonalize):
        rows, columns = _orthogonal_weights(n, size, type, sine)
        factors = scale_outputs(scale_inputs(factors, columns), rows)
    return corner(n, balanced(scale_outputs(factors, gain)), dtype)


def _orthogonal_weights(n: int, size: int, type: int, sine: bool) -> tuple[Tensor, Tensor]:
    """Weights of the rows and columns that make the matrix orthogonal, up to a factor, as in scipy."""
    rows, columns = (torch.ones(size, dtype=torch.float64) for _ in range(2))
    end = n - 1 if sine else 0
    if type == 1 and not sine:
        columns[[0, n - 1]] = math.sqrt(2)
        rows[[0, n - 1]] = math.sqrt(0.5)
    elif type == 2:
        rows[end] = math.sqrt(0.5)
    elif type == 3:
        columns[end] = math.sqrt(2)
    return rows, columns
