"""Mel scales and filterbanks."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from kaleido_audio.functional.checks import check_at_least, check_choice

MEL_SCALES = ("htk", "slaney")

# Break frequency (Hz), mel of it, and natural logarithm of the frequency ratio of one mel above it, of
# Slaney's scale: linear below 1 kHz, then 27 mels for a factor of 6.4.
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_HZ_PER_MEL = 200.0 / 3
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = math.log(6.4) / 27.0


def hz_to_mel(frequency: Tensor, mel_scale: str = "htk") -> Tensor:
    """Mel values of frequencies in Hz.

    Args:
        frequency: frequencies in Hz, any shape.
        mel_scale: ``"htk"`` (2595 log10(1 + f / 700)) or ``"slaney"`` (linear below 1 kHz, logarithmic
            above).

    Raises:
        ValueError: unknown scale.

    >>> hz_to_mel(torch.tensor([0.0, 1000.0]), "slaney")
    tensor([ 0., 15.])
    """
    check_choice("mel_scale", mel_scale, MEL_SCALES)
    if mel_scale == "htk":
        return 2595.0 * torch.log10(1.0 + frequency / 700.0)
    above = _SLANEY_BREAK_MEL + torch.log(frequency / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    return torch.where(frequency >= _SLANEY_BREAK_HZ, above, frequency / _SLANEY_HZ_PER_MEL)


def mel_to_hz(mel: Tensor, mel_scale: str = "htk") -> Tensor:
    """Frequencies in Hz of mel values: the inverse of `hz_to_mel`.

    Args:
        mel: mel values, any shape.
        mel_scale: ``"htk"`` or ``"slaney"``.

    Raises:
        ValueError: unknown scale.

    >>> mel_to_hz(torch.tensor([0.0, 15.0]), "slaney")
    tensor([   0., 1000.])
    """
    check_choice("mel_scale", mel_scale, MEL_SCALES)
    if mel_scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    above = _SLANEY_BREAK_HZ * torch.exp(_SLANEY_LOG_STEP * (mel - _SLANEY_BREAK_MEL))
    return torch.where(mel >= _SLANEY_BREAK_MEL, above, _SLANEY_HZ_PER_MEL * mel)


def mel_filterbank(
    n_freqs: int,
    f_min: float,
    f_max: float,
    n_mels: int,
    sample_rate: int,
    norm: str | None = None,
    mel_scale: str = "htk",
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Triangular filters, equally spaced in mel, as columns.

    Equals `torchaudio.functional.melscale_fbanks`, and `librosa.filters.mel` transposed where n_fft is even.
    As in torchaudio, the last of the n_freqs bins counts as ``sample_rate // 2``, which for an odd n_fft is
    a little above its true frequency.

    Args:
        n_freqs: bins of the one-sided spectrum, ``n_fft // 2 + 1``.
        f_min: lower edge of the first filter, in Hz.
        f_max: upper edge of the last filter, in Hz.
        n_mels: number of filters.
        sample_rate: of the audio, in Hz.
        norm: None (every triangle has height 1) or ``"slaney"`` (every triangle has area 1 Hz).
        mel_scale: ``"htk"`` or ``"slaney"``.
        dtype: type that is computed in and returned; torch's default type if None.

    Shape:
        result ``(n_freqs, n_mels)``.

    Raises:
        ValueError: an option that does not fit. A filter too narrow to hold any bin is a `UserWarning`, as in
            torchaudio.

    >>> mel_filterbank(5, 0.0, 4000.0, 2, 8000).argmax(0)
    tensor([1, 2])
    """
    check_at_least("n_freqs", n_freqs, 2)
    check_at_least("n_mels", n_mels, 1)
    check_at_least("sample_rate", sample_rate, 1)
    check_choice("norm", norm, (None, "slaney"))
    check_choice("mel_scale", mel_scale, MEL_SCALES)
    if not 0 <= f_min < f_max:
        raise ValueError(f"expected 0 <= f_min < f_max in Hz, got f_min = {f_min} and f_max = {f_max}")
    dtype = torch.get_default_dtype() if dtype is None else dtype

    bins = torch.linspace(0, sample_rate // 2, n_freqs, dtype=dtype)
    lowest, highest = hz_to_mel(torch.tensor([f_min, f_max], dtype=torch.float64), mel_scale).tolist()
    corners = mel_to_hz(torch.linspace(lowest, highest, n_mels + 2, dtype=dtype), mel_scale)
    widths = corners.diff()
    distances = corners - bins.unsqueeze(1)
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    fb = torch.minimum(rising, falling).clamp(min=0)
    if norm == "slaney":
        fb = fb * (2.0 / (corners[2:] - corners[:-2]))
    empty = int((fb.amax(0) == 0).sum())
    if empty:
        warnings.warn(
            f"{empty} of {n_mels} mel filters hold no frequency bin: lower n_mels ({n_mels}), raise n_fft "
            f"(n_freqs = {n_freqs}), or keep f_max ({f_max} Hz) within {sample_rate // 2} Hz",
            stacklevel=2,
        )
    return fb


class _NonNegative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor) -> Tensor:
        return weights.relu()  # clamp is one of the few operators that torch.onnx does not export of a parameter

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return torch.where((weights > 0) | (grad < 0), grad, torch.zeros_like(grad))


class _NonNegativeForwardToo(_NonNegative):
    """With forward-mode derivatives, which torch.compile does not take (torch 2.11)."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return torch.where(weights > 0, tangent, torch.zeros_like(tangent))


def nonnegative(weights: Tensor) -> Tensor:
    """Weights with negative values set to zero, and a gradient that lets them grow again.

    The gradient is that of the identity wherever a step down it keeps the weight or raises it, and zero where
    it would push a weight that is already zero further down (projected gradient). A triangular filterbank is
    mostly exact zeros: the gradient of ``relu`` would hold them there for ever. Forward-mode derivatives are those of
    ``relu``.

    Args:
        weights: any shape.

    >>> weights = torch.tensor([-0.5, 0.0, 0.0, 2.0], requires_grad=True)
    >>> (nonnegative(weights) * torch.tensor([-1.0, -1.0, 1.0, 1.0])).sum().backward()
    >>> weights.grad
    tensor([-1., -1.,  0.,  1.])
    """
    if torch.compiler.is_compiling():
        return _NonNegative.apply(weights)
    traced = torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    if traced or (weights.requires_grad and torch.is_grad_enabled()):
        return _NonNegativeForwardToo.apply(weights)
    return weights.relu()  # which costs a tenth of the call above


def apply_filterbank(specgram: Tensor, fb: Tensor) -> Tensor:
    """Weighted sums of frequency bins.

    Args:
        specgram: ``(..., n_freqs, frames)``.
        fb: filters as columns, ``(n_freqs, n_bands)``.

    Shape:
        result ``(..., n_bands, frames)``.

    Raises:
        ValueError: shapes that do not fit.

    >>> apply_filterbank(torch.ones(3, 7), torch.ones(3, 2)).shape
    torch.Size([2, 7])
    """
    if fb.ndim != 2 or specgram.ndim < 2 or specgram.shape[-2] != fb.shape[0]:
        raise ValueError(
            f"expected specgram (..., n_freqs, frames) and fb (n_freqs, n_bands), got "
            f"{tuple(specgram.shape)} and {tuple(fb.shape)}"
        )
    return (specgram.transpose(-1, -2) @ fb).transpose(-1, -2)
