"""The operator: argument checks, types, and the choice of the path that computes it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kaleido_audio.ops import materialised, native
from kaleido_audio.ops.dense import multiply_by_matrix, product_matrix
from kaleido_audio.ops.reference import multiply_by_stages, squared_magnitude

_HALF = (torch.float16, torch.bfloat16)
_NATIVE = frozenset((torch.float32, torch.float64, torch.complex64, torch.complex128))
_PRECISION = {
    torch.float16: "half",
    torch.bfloat16: "half",
    torch.float32: "single",
    torch.complex64: "single",
    torch.float64: "double",
    torch.complex128: "double",
}


def backend(x: Tensor) -> str:
    """The implementation that `butterfly_multiply` uses for a tensor like ``x``.

    Returns:
        ``"cpu"``: the native kernels for the processor, see `cpu_capability`.
        ``"cuda"``: the native kernels for NVIDIA GPUs.
        ``"reference"``: plain PyTorch, which runs on every device and needs no compiler. It multiplies by the
        materialised matrix where that is cheaper, as precisely as `torch.set_float32_matmul_precision` says, and goes
        stage by stage elsewhere. The environment variable ``KALEIDO_BACKEND=reference`` chooses it when the package
        is imported.

    >>> backend(torch.zeros(3)) in ("cpu", "reference")
    True
    """
    if x.dtype not in _PRECISION:
        raise ValueError(f"expected a real or complex floating-point tensor, got {x.dtype}")
    return x.device.type if native.is_native(x) else "reference"


def butterfly_multiply(
    x: Tensor, factors: Tensor, *, out_features: int | None = None, materialise: bool | None = None
) -> Tensor:
    """Multiply vectors by a product of butterfly matrices, in O(n log n) operations a vector and factor.

    One stage is ``y[i] = factors[f, s, 0, i] * x[i] + factors[f, s, 1, i] * x[i XOR stride]``; even factors f
    have strides n/2, ..., 1 (the B* form) and odd ones 1, ..., n/2 (the B form), so two factors are one BB* and
    2w factors are (BB*)^w.

    Args:
        x: vectors ``(..., m)`` with m <= n; the missing n - m entries count as zeros.
        factors: coefficients ``(F, log2 n, 2, n)``, n a power of two.
        out_features: how many of the n outputs to return, from the first; all by default.
        materialise: whether the vectors are multiplied by one dense matrix, which is made from the factors in their
            precision, rounded once where autocast asks for it, and multiplied as precisely as
            `torch.set_float32_matmul_precision` says. By default it is where that may be done on tensor cores and was
            measured to be faster (`kaleido_audio.ops.materialised`): many real vectors on a GPU, under autocast, or
            in float32 where tf32 is allowed. The precision is then that of a dense layer.

    Shape:
        result ``(..., out_features)``.

    Types: x and factors have one precision (float32 and complex64, or float64 and complex128), each real or
    complex; the result is complex if either is. Half-precision operands accumulate in float32 and give the type
    that ``x * factors`` has. Under autocast, real operands are first rounded to autocast's type, as in
    `torch.nn.functional.linear`.

    Raises:
        ValueError: a shape or type that does not fit, with what was expected.

    Source: Dao et al., "Kaleidoscope: An Efficient, Learnable Representation For All Structured Linear Maps",
    ICLR 2020, section 2.

    >>> factors = torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]]])  # one factor, one stage: a 2-point Hadamard
    >>> butterfly_multiply(torch.tensor([3.0, 4.0]), factors)
    tensor([ 7., -1.])
    """
    # The operator checks its arguments too: for a single vector, these checks would cost more than the product.
    dtype = x.dtype
    if (
        x.is_cpu
        and factors.is_cpu
        and dtype is factors.dtype
        and dtype in _NATIVE
        and native.is_ready()
        and not materialise
    ):
        try:
            return native.butterfly(x, factors, factors.shape[-1] if out_features is None else out_features)
        except RuntimeError:
            pass  # what follows says better what is wrong, or does what the operator does not
    n = _check(x, factors)
    out_features = n if out_features is None else out_features
    if not 1 <= out_features <= n:
        raise ValueError(f"expected out_features between 1 and {n} (the size of the factors), got {out_features}")
    if materialise or (materialise is None and materialised.is_faster(x, factors)):
        return _multiply_by_own_matrix(x, factors, out_features)
    return _multiply(x, factors, slice(out_features))


def _multiply_by_own_matrix(x: Tensor, factors: Tensor, out_features: int) -> Tensor:
    with no_autocast(factors):
        wide = factors.float() if factors.dtype in _HALF else factors
        unit_vectors = torch.eye(x.shape[-1], dtype=wide.dtype.to_real(), device=x.device)
        matrix = _multiply(unit_vectors, wide, slice(out_features)).mT
    x, _, dtype = _common_types(x, factors)
    x, matrix = (a.to(dtype if a.is_complex() else dtype.to_real()) for a in (x, matrix))
    with no_autocast(x):
        return multiply_by_matrix(x, matrix)


def butterfly_outputs(x: Tensor, factors: Tensor, rows: Tensor) -> Tensor:
    """Chosen outputs of `butterfly_multiply`, in any order: ``butterfly_multiply(x, factors)[..., rows]``.

    Where the matrix is materialised, the cost is that of the chosen rows only.

    Args:
        x: vectors ``(..., m)`` with m <= n.
        factors: coefficients ``(F, log2 n, 2, n)``.
        rows: int64 indices ``(r,)`` in ``[0, n)``; repeats are allowed.

    Shape:
        result ``(..., r)``.

    Raises:
        ValueError: a shape or type that does not fit, with what was expected.

    >>> factors = torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]]])
    >>> butterfly_outputs(torch.tensor([3.0, 4.0]), factors, torch.tensor([1, 0]))
    tensor([-1.,  7.])
    """
    _check(x, factors)
    _check_rows(rows)
    return _multiply(x, factors, rows)


def to_dense(factors: Tensor, *, out_features: int | None = None, in_features: int | None = None) -> Tensor:
    """The matrix W of a product of butterfly matrices, with ``y = W @ x``; differentiable.

    Args:
        factors: coefficients ``(F, log2 n, 2, n)``.
        out_features: rows kept, from the first; all n by default.
        in_features: columns kept, from the first; all n by default.

    Shape:
        result ``(out_features, in_features)``.

    Raises:
        ValueError: a shape or type that does not fit, with what was expected.

    >>> to_dense(torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]]]))
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    n = _check_factors(factors)
    in_features = n if in_features is None else in_features
    out_features = n if out_features is None else out_features
    for name, value in (("in_features", in_features), ("out_features", out_features)):
        if not 1 <= value <= n:
            raise ValueError(f"expected {name} between 1 and {n} (the size of the factors), got {value}")
    if factors.dtype in _HALF:  # rounded once, at the end
        return product_matrix(factors.float(), in_features=in_features, rows=slice(out_features)).to(factors.dtype)
    return product_matrix(factors, in_features=in_features, rows=slice(out_features))


def butterfly_power_spectrum(
    waveform: Tensor, window: Tensor, factors: Tensor, rows: Tensor, hop_length: int
) -> Tensor:
    """Squared magnitudes of a product of butterfly matrices applied to windowed frames of a waveform.

    ``butterfly_outputs(waveform.unfold(-1, n_fft, hop_length) * window, factors, rows)``, squared. The native
    kernel does it in one pass, a few frames at a time, without the frames or the spectrum in memory, and so its
    gradients.

    Args:
        waveform: ``(..., time)``, float32 or float64, with time >= n_fft. Nothing is padded.
        window: ``(n_fft,)``, of the same type.
        factors: coefficients ``(F, log2 n, 2, n)`` with n >= n_fft, of the same precision, real or complex.
        rows: int64 indices ``(r,)`` of the outputs that are used, in ``[0, n)``; repeats are allowed.
        hop_length: samples between the starts of neighbouring frames.

    Shape:
        result ``(..., frames, r)``.

    Raises:
        ValueError: a shape or type that does not fit, with what was expected.

    >>> factors = torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]]])  # sums and differences of two samples
    >>> rows = torch.tensor([0, 1])
    >>> butterfly_power_spectrum(torch.tensor([3.0, 4.0, 4.0]), torch.ones(2), factors, rows, 1)
    tensor([[49.,  1.],
            [64.,  0.]])
    """
    _check_frames(waveform, window, factors, rows, hop_length)
    if native.has_power_spectrum(waveform, factors):
        items = waveform.reshape(-1, waveform.shape[-1])
        result = native.power_spectrum(items, window, factors, rows, hop_length)
        return result.view(*waveform.shape[:-1], *result.shape[1:])
    with no_autocast(waveform):
        frames = waveform.unfold(-1, window.shape[0], hop_length) * window
        return squared_magnitude(_multiply(frames, factors, rows))


def has_filterbank(waveform: Tensor, factors: Tensor) -> bool:
    """Whether `butterfly_filterbank` takes such tensors: on a GPU with native kernels, outside `torch.func`."""
    return native.has_filterbank(waveform, factors)


def butterfly_filterbank(
    waveform: Tensor,
    window: Tensor,
    factors: Tensor,
    rows: Tensor,
    hop_length: int,
    fb: Tensor,
    *,
    power: float = 2.0,
    log_scale: float | None = None,
    eps: float = 1e-6,
    floor: float | None = None,
) -> Tensor:
    """Weighted sums of `butterfly_power_spectrum`, and their logarithm, in one kernel and without gradients.

    With z the spectrum and ``bands = abs(z) ** power @ fb``, these are the bands, ``log_scale * log(bands + eps)``, or
    ``log_scale * log(max(bands, floor))``.

    Args:
        waveform, window, factors, rows, hop_length: as in `butterfly_power_spectrum`, and such that
            `has_filterbank` holds.
        fb: ``(r, n_bands)``, of the waveform's type.
        power: positive exponent of the magnitude.
        log_scale: a factor of the logarithm; None for the sums themselves.
        eps: added before the logarithm, where there is no floor.
        floor: least number of which a logarithm is taken; None for none.

    Shape:
        result ``(..., frames, n_bands)``.

    Raises:
        ValueError: a shape or type that does not fit, with what was expected.
    """
    _check_frames(waveform, window, factors, rows, hop_length)
    if fb.ndim != 2 or fb.shape[0] != rows.shape[0] or fb.dtype != waveform.dtype or not power > 0:
        raise ValueError(
            f"expected fb ({rows.shape[0]}, n_bands) in {waveform.dtype} and power > 0, got {tuple(fb.shape)} in "
            f"{fb.dtype} and {power}"
        )
    if not native.has_filterbank(waveform, factors):
        raise ValueError(
            f"expected tensors on a GPU with native kernels and at most {native.LARGEST_SPECTRUM} points, got "
            f"{factors.shape[-1]} on {waveform.device}: use butterfly_power_spectrum, which has no such limits"
        )
    items = waveform.reshape(-1, waveform.shape[-1])
    result = native.log_filterbank(items, window, factors, rows, hop_length, fb, power, log_scale, eps, floor)
    return result.view(*waveform.shape[:-1], *result.shape[1:])


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off for the device of x; the meta device has none."""
    if x.is_meta:
        return nullcontext()
    # A graph may be run under an autocast that is not there yet.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _multiply(x: Tensor, factors: Tensor, rows: Tensor | slice) -> Tensor:
    """The chosen outputs, once the arguments are known to fit."""
    x, factors, dtype = _common_types(x, factors)
    if (x.is_complex() or factors.is_complex()) and native.goes_to_onnx():
        raise ValueError(
            "ONNX has no complex numbers: export kaleido_audio.nn.to_dense(copy.deepcopy(model)), whose spectrograms "
            "are real matrices"
        )
    if native.is_native(x) and len(factors) and factors.shape[-1] > 1:
        return _multiply_natively(x, factors, rows, dtype)
    with no_autocast(x):
        return _multiply_plainly(x.float() if x.dtype in _HALF else x, factors, rows).to(dtype)


def _multiply_natively(x: Tensor, factors: Tensor, rows: Tensor | slice, dtype: torch.dtype) -> Tensor:
    if x.dtype in _HALF and x.dtype != dtype:
        x = x.float()
    if isinstance(rows, Tensor):
        return _multiply_natively(x, factors, slice(factors.shape[-1]), dtype).index_select(-1, rows)
    if x.is_complex() and not factors.is_complex():
        parts = native.butterfly(torch.stack([x.real, x.imag]), factors, rows.stop)
        return torch.complex(parts[0], parts[1])
    return native.butterfly(x, factors, rows.stop)


def _multiply_plainly(x: Tensor, factors: Tensor, rows: Tensor | slice) -> Tensor:
    """By the materialised matrix or stage by stage, whichever is cheaper."""
    if _matrix_is_cheaper(x, factors.shape[-1]):
        return multiply_by_matrix(x, product_matrix(factors, in_features=x.shape[-1], rows=rows))
    return multiply_by_stages(x, factors)[..., rows]


def _matrix_is_cheaper(x: Tensor, n: int) -> bool:
    """Whether more than n vectors share the factors: then one dense product beats 2 log2 n passes over them."""
    vectors = 1
    for size in x.shape[:-1]:
        vectors *= size
    return vectors > n


def _check_factors(factors: Tensor) -> int:
    n = int(factors.shape[-1]) if factors.ndim else 0  # of a tensor while torch.jit traces
    if factors.ndim != 4 or factors.shape[2] != 2 or n < 1 or n & (n - 1) or factors.shape[1] != n.bit_length() - 1:
        raise ValueError(
            f"expected factors of shape (F, log2 n, 2, n) with n a power of two, got {tuple(factors.shape)}"
        )
    if factors.dtype not in _PRECISION:
        raise ValueError(f"expected floating-point or complex factors, got {factors.dtype}")
    return n


def _check_rows(rows: Tensor) -> None:
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise ValueError(f"expected rows as a 1-D int64 tensor, got {rows.dtype} of shape {tuple(rows.shape)}")


def _check_frames(waveform: Tensor, window: Tensor, factors: Tensor, rows: Tensor, hop_length: int) -> None:
    if window.ndim != 1 or waveform.ndim == 0 or waveform.shape[-1] < window.shape[0] or hop_length < 1:
        raise ValueError(
            f"expected waveform (..., time), window (n_fft,) with n_fft <= time, and hop_length >= 1, got "
            f"{tuple(waveform.shape)}, {tuple(window.shape)} and {hop_length}"
        )
    _check(window, factors)
    _check_rows(rows)
    if waveform.device != window.device or rows.device != window.device:
        raise ValueError(
            f"waveform is on {waveform.device}, window on {window.device} and rows on {rows.device}: move them to one "
            "device"
        )
    if waveform.dtype != window.dtype or waveform.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"expected waveform and window both in float32 or both in float64, got {waveform.dtype} and {window.dtype}"
        )


def _check(x: Tensor, factors: Tensor) -> int:
    n = _check_factors(factors)
    if x.ndim == 0 or not 1 <= x.shape[-1] <= n:
        raise ValueError(f"expected x of shape (..., m) with m between 1 and {n}, got {tuple(x.shape)}")
    if x.layout != torch.strided or x.is_nested:
        kind = "a nested tensor: give its values()" if x.is_nested else f"{x.layout}: use x.to_dense()"
        raise ValueError(f"expected x as a dense tensor, got {kind}")
    if x.device != factors.device:
        raise ValueError(f"x is on {x.device} and factors on {factors.device}: move them to one device")
    if x.dtype not in _PRECISION:
        raise ValueError(f"expected a floating-point or complex x, got {x.dtype}: convert it, e.g. x.float()")
    precisions = {_PRECISION[x.dtype], _PRECISION[factors.dtype]}
    if "double" in precisions and len(precisions) > 1:
        raise ValueError(
            f"x is {x.dtype} and factors are {factors.dtype}: convert one, e.g. x.double() or module.double()"
        )
    return n


def _common_types(x: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """Operands, factors in the type that is computed in, and the type of the result."""
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        low = torch.get_autocast_dtype(x.device.type)
        x = x.to(low) if x.dtype == torch.float32 else x
        factors = factors.to(low) if factors.dtype == torch.float32 else factors
    dtype = x.dtype if x.dtype == factors.dtype else torch.promote_types(x.dtype, factors.dtype)
    if dtype == torch.complex32:  # a half-precision x with complex64 factors and the like
        dtype = torch.complex64
    factors = factors.float() if factors.dtype in _HALF else factors
    return x, factors, dtype
