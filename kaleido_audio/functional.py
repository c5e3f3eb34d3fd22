"""The audio maths of the front ends, stateless: framing, spectra, mel filterbanks, compression.

Time is the last dimension of waveforms and features. A function that takes ``lengths`` treats each item of a
padded batch as if it were alone.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kaleido_audio import ops

PAD_MODES = ("reflect", "constant", "replicate", "circular")
MEL_SCALES = ("htk", "slaney")
NORMALIZATIONS = (False, True, "window", "frame_length")

# Break frequency (Hz), mel of it, and natural logarithm of the frequency ratio of one mel above it, of
# Slaney's scale: linear below 1 kHz, then 27 mels for a factor of 6.4.
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_HZ_PER_MEL = 200.0 / 3
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = math.log(6.4) / 27.0

# Frames that one triangular matrix of `pcen` smooths at once.
_SMOOTHING_BLOCK = 32


# --- mel filterbanks ---


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
        return weights.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return torch.where((weights > 0) | (grad < 0), grad, torch.zeros_like(grad))


def nonnegative(weights: Tensor) -> Tensor:
    """Weights with negative values set to zero, and a gradient that lets them grow again.

    The gradient is that of the identity wherever a step down it keeps the weight or raises it, and zero where
    it would push a weight that is already zero further down (projected gradient). A triangular filterbank is
    mostly exact zeros: the gradient of ``relu`` would hold them there for ever.

    Args:
        weights: any shape.

    >>> weights = torch.tensor([-0.5, 0.0, 0.0, 2.0], requires_grad=True)
    >>> (nonnegative(weights) * torch.tensor([-1.0, -1.0, 1.0, 1.0])).sum().backward()
    >>> weights.grad
    tensor([-1., -1.,  0.,  1.])
    """
    return _NonNegative.apply(weights)


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


# --- framing ---


def frame_counts(lengths: Tensor, n_fft: int, hop_length: int, *, pad: int = 0, center: bool = True) -> Tensor:
    """Number of frames of signals of given lengths.

    Args:
        lengths: samples, integers of any shape.
        n_fft: samples of a frame.
        hop_length: samples between the starts of neighbouring frames.
        pad: zeros put before and after every signal.
        center: whether ``n_fft // 2`` more samples are put at both ends, so that frame t is centred on sample
            ``t * hop_length``.

    >>> frame_counts(torch.tensor([16000, 8000]), 400, 160)
    tensor([101,  51])
    """
    padded = lengths + 2 * pad + (2 * (n_fft // 2) if center else 0)
    return (padded - n_fft).div(hop_length, rounding_mode="floor") + 1


def mask_frames(features: Tensor, counts: Tensor) -> Tensor:
    """Features whose frames after each item's own count are zero.

    Args:
        features: ``(batch, ..., frames)``.
        counts: valid frames of each item, ``(batch,)``.

    >>> mask_frames(torch.ones(2, 3), torch.tensor([3, 1]))
    tensor([[1., 1., 1.],
            [1., 0., 0.]])
    """
    position = torch.arange(features.shape[-1], device=features.device)
    counts = counts.to(features.device).view(-1, *[1] * (features.ndim - 1))
    return torch.where(position < counts, features, torch.zeros((), dtype=features.dtype, device=features.device))


def frame(
    waveform: Tensor,
    frame_length: int,
    hop_length: int,
    *,
    pad: int = 0,
    center: bool = True,
    pad_mode: str = "reflect",
    lengths: Tensor | None = None,
) -> Tensor:
    """Overlapping frames of a signal, as `torch.stft` takes them.

    Args:
        waveform: ``(..., time)``.
        frame_length: samples of a frame (n_fft).
        hop_length: samples between the starts of neighbouring frames.
        pad: zeros put before and after every signal, first of all.
        center: put ``frame_length // 2`` more samples at both ends, so that frame t is centred on sample
            ``t * hop_length``.
        pad_mode: what those samples are: ``"reflect"`` (the signal mirrored), ``"constant"`` (zeros),
            ``"replicate"`` (its end values) or ``"circular"`` (its other end).
        lengths: samples of each item, ``(batch,)`` integers, for a padded waveform ``(batch, time)``: an
            item is then padded at its own end, and what the waveform holds behind it is ignored. Frames
            after `frame_counts` of an item hold nothing of use.

    Shape:
        result ``(..., frames, frame_length)``; a view where nothing was padded.

    Raises:
        ValueError: a signal too short for one frame or for its padding, bad lengths, unknown options.

    >>> frame(torch.arange(6.0), 4, 2, center=False)
    tensor([[0., 1., 2., 3.],
            [2., 3., 4., 5.]])
    """
    padded = _padded(waveform, frame_length, hop_length, pad=pad, center=center, pad_mode=pad_mode, lengths=lengths)
    return padded.unfold(-1, frame_length, hop_length)


def _padded(
    waveform: Tensor,
    frame_length: int,
    hop_length: int,
    *,
    pad: int,
    center: bool,
    pad_mode: str,
    lengths: Tensor | None,
) -> Tensor:
    """The signal of which `frame` takes every hop_length-th stretch."""
    check_at_least("n_fft", frame_length, 1)
    check_at_least("hop_length", hop_length, 1)
    check_at_least("pad", pad, 0)
    check_choice("pad_mode", pad_mode, PAD_MODES)
    if waveform.ndim == 0 or waveform.shape[-1] == 0:
        raise ValueError(f"expected a waveform (..., time) with time >= 1, got shape {tuple(waveform.shape)}")
    margin = frame_length // 2 if center else 0
    _check_long_enough(waveform.shape[-1], frame_length, pad, margin, pad_mode)
    if lengths is None:
        if pad:
            waveform = F.pad(waveform, (pad, pad))
        return _with_margins(waveform, margin, pad_mode)

    shortest = check_lengths(waveform, lengths)
    if shortest is not None:
        item = f" (item {int(lengths.argmin())} of the batch)"
        _check_long_enough(shortest, frame_length, pad, margin, pad_mode, item)
    lengths = lengths.to(waveform.device)
    if pad or not margin:
        waveform = mask_frames(waveform, lengths)
    if pad:
        waveform, lengths = F.pad(waveform, (pad, pad)), lengths + 2 * pad
    if margin:
        waveform = _with_own_margins(waveform, lengths, margin, pad_mode)
    return waveform


def _with_margins(waveform: Tensor, margin: int, pad_mode: str) -> Tensor:
    # Slices instead of F.pad: any leading shape, and a backward that is deterministic on every device.
    if margin == 0:
        return waveform
    if pad_mode == "constant":
        return F.pad(waveform, (margin, margin))
    if pad_mode == "reflect":
        left = waveform[..., 1 : margin + 1].flip(-1)
        right = waveform[..., -margin - 1 : -1].flip(-1)
    elif pad_mode == "replicate":
        shape = (*waveform.shape[:-1], margin)
        left, right = waveform[..., :1].expand(shape), waveform[..., -1:].expand(shape)
    else:
        left, right = waveform[..., -margin:], waveform[..., :margin]
    return torch.cat([left, waveform, right], dim=-1)


def _with_own_margins(waveform: Tensor, lengths: Tensor, margin: int, pad_mode: str) -> Tensor:
    """`_with_margins` for every item ``(batch, time)`` at its own end; zeros after that."""
    time = waveform.shape[-1]
    position = torch.arange(-margin, time + margin, device=waveform.device)
    length = lengths.unsqueeze(1)
    last = length - 1
    used = position < length + margin
    if pad_mode == "reflect":
        source = last - (last - position.abs()).abs()
    elif pad_mode == "circular":
        source = position % length
    else:
        source = torch.minimum(position.clamp(min=0), last)
        if pad_mode == "constant":
            used = (position >= 0) & (position < length)
    gathered = waveform.gather(1, source.clamp(0, time - 1))
    return torch.where(used, gathered, torch.zeros((), dtype=waveform.dtype, device=waveform.device))


def _check_long_enough(time: int, n_fft: int, pad: int, margin: int, pad_mode: str, whose: str = "") -> None:
    padded = time + 2 * pad
    needed = {"reflect": margin + 1, "circular": margin}.get(pad_mode, 1) if margin else n_fft
    if padded < needed:
        why = f"pad_mode={pad_mode!r} with n_fft = {n_fft}" if margin else f"one frame of n_fft = {n_fft}"
        raise ValueError(
            f"waveform too short: {why} needs at least {needed} samples, got time = {time}{whose}"
            f"{f' and pad = {pad}' if pad else ''}; use a smaller n_fft or "
            + ("pad_mode='constant'" if margin else "center=True")
        )


def check_lengths(waveform: Tensor, lengths: Tensor) -> int | None:
    """The shortest of the lengths ``(batch,)`` of a padded waveform ``(batch, time)``, in samples.

    None where there is none, and while a graph is traced, when values are unknown.

    Raises:
        ValueError: shapes, a type or a value that does not fit, with what was expected.

    >>> check_lengths(torch.zeros(2, 100), torch.tensor([100, 60]))
    60
    """
    if waveform.ndim != 2 or lengths.ndim != 1 or len(lengths) != len(waveform):
        raise ValueError(
            f"lengths need a waveform (batch, time) and lengths (batch,), got {tuple(waveform.shape)} and "
            f"{tuple(lengths.shape)}"
        )
    if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        raise ValueError(f"expected lengths as integers (samples), got {lengths.dtype}")
    if torch.compiler.is_compiling() or len(lengths) == 0:
        return None
    shortest, longest = (int(value) for value in lengths.aminmax())
    if shortest < 1 or longest > waveform.shape[-1]:
        raise ValueError(f"expected lengths between 1 and time = {waveform.shape[-1]} samples, got {lengths.tolist()}")
    return shortest


# --- spectrograms ---


def spectrogram(
    waveform: Tensor,
    pad: int,
    window: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int,
    power: float | None,
    normalized: bool | str = False,
    center: bool = True,
    pad_mode: str = "reflect",
    onesided: bool = True,
    *,
    lengths: Tensor | None = None,
) -> Tensor:
    """Fixed spectrogram by FFT, as `torchaudio.functional.spectrogram`.

    Args:
        waveform: ``(..., time)``, floating point. It is widened to the window's type if that is wider.
            Samples are not scanned: one that is not finite makes the frames that hold it not finite.
        pad: zeros put before and after the waveform.
        window: ``(win_length,)``; centred in the frame if shorter than it.
        n_fft: samples of a frame and points of the transform.
        hop_length: samples between neighbouring frames.
        win_length: samples of the window, at most n_fft.
        power: exponent of the magnitude, e.g. 1 or 2; None for the complex spectrum.
        normalized: divide by the window's L2 norm (True or ``"window"``) or by sqrt(n_fft)
            (``"frame_length"``).
        center, pad_mode: as in `frame`.
        onesided: only the first ``n_fft // 2 + 1`` frequencies.
        lengths: samples of each item of a padded batch; frames after an item's `frame_counts` are zero.

    Shape:
        result ``(..., n_freqs, frames)``.

    Raises:
        ValueError: a shape, type or option that does not fit.

    >>> tone = torch.sin(torch.arange(4000.0) * (2 * math.pi * 10 / 64))
    >>> spectrogram(tone, 0, torch.hann_window(64), 64, 32, 64, 2.0, center=False).argmax(0).unique()
    tensor([10])
    """
    padded, window = _padded_and_window(
        waveform, pad, window, n_fft, hop_length, win_length, normalized, center, pad_mode, lengths
    )
    frames = padded.unfold(-1, n_fft, hop_length) * window
    spectrum = torch.fft.rfft(frames) if onesided else torch.fft.fft(frames)
    result = _magnitude_power(spectrum, power).transpose(-1, -2)
    return _masked(result, lengths, n_fft, hop_length, pad, center)


def k_spectrogram(
    waveform: Tensor,
    pad: int,
    window: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int,
    power: float | None,
    normalized: bool | str = False,
    center: bool = True,
    pad_mode: str = "reflect",
    *,
    factors: Tensor,
    rows: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """Spectrogram with a product of butterfly matrices in the place of the Fourier transform.

    Arguments are those of `spectrogram`, and:

    Args:
        waveform, pad, window, n_fft, hop_length, win_length, power, normalized, center, pad_mode, lengths: as
            in `spectrogram`.
        factors: coefficients ``(F, log2 N, 2, N)`` with N >= n_fft, as `kaleido_audio.ops.butterfly_multiply`
            takes them.
        rows: int64 outputs of that product to use as frequencies, in order.

    Shape:
        result ``(..., len(rows), frames)``.

    Raises:
        ValueError: a shape, type or option that does not fit.

    >>> from kaleido_audio import exact
    >>> x, window = torch.randn(1000), torch.hann_window(64)
    >>> factors, rows = exact.dft(64, bit_reversed=True).factors, exact.bit_reversal(64)[:33]
    >>> learnable = k_spectrogram(x, 0, window, 64, 32, 64, 2.0, factors=factors, rows=rows)
    >>> torch.allclose(learnable, spectrogram(x, 0, window, 64, 32, 64, 2.0), atol=1e-4)
    True
    """
    padded, window = _padded_and_window(
        waveform, pad, window, n_fft, hop_length, win_length, normalized, center, pad_mode, lengths
    )
    if power is None:
        spectrum = ops.butterfly_outputs(padded.unfold(-1, n_fft, hop_length) * window, factors, rows)
        result = spectrum if spectrum.is_complex() else torch.complex(spectrum, torch.zeros_like(spectrum))
    else:
        result = _power_of_squared(ops.butterfly_power_spectrum(padded, window, factors, rows, hop_length), power)
    return _masked(result.transpose(-1, -2), lengths, n_fft, hop_length, pad, center)


def k_mel_spectrogram(
    waveform: Tensor,
    pad: int,
    window: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int,
    power: float,
    normalized: bool | str = False,
    center: bool = True,
    pad_mode: str = "reflect",
    *,
    factors: Tensor,
    rows: Tensor,
    fb: Tensor,
    log_scale: float | None = None,
    eps: float = 1e-6,
    lengths: Tensor | None = None,
) -> Tensor:
    """`k_spectrogram` followed by `apply_filterbank`, and by a logarithm if one is asked for.

    On a GPU with native kernels, and where no gradient is needed, this is one kernel: the spectrum is never in memory.

    Args:
        waveform, pad, window, n_fft, hop_length, win_length, power, normalized, center, pad_mode, factors,
            rows, lengths: as in `k_spectrogram`.
        fb: filters as columns, ``(len(rows), n_bands)``, e.g. of `mel_filterbank`.
        log_scale: return ``log_scale * log(bands + eps)``, e.g. 1 for natural logarithms and ``10 / log(10)`` for
            decibels of powers; None for the bands themselves.
        eps: positive.

    Shape:
        result ``(..., n_bands, frames)``.

    Raises:
        ValueError: a shape, type or option that does not fit.
    """
    if fuses_k_mel(waveform, window, factors, fb):
        padded, window = _padded_and_window(
            waveform, pad, window, n_fft, hop_length, win_length, normalized, center, pad_mode, lengths
        )
        bands = ops.butterfly_filterbank(
            padded, window, factors, rows, hop_length, fb, power=power, log_scale=log_scale, eps=eps
        ).transpose(-1, -2)
    else:
        specgram = k_spectrogram(
            waveform,
            pad,
            window,
            n_fft,
            hop_length,
            win_length,
            power,
            normalized,
            center,
            pad_mode,
            factors=factors,
            rows=rows,
            lengths=lengths,
        )
        bands = apply_filterbank(specgram, fb)
        bands = bands if log_scale is None else log_scale * log_compression(bands, eps)
    return _masked(bands, lengths, n_fft, hop_length, pad, center)


def fuses_k_mel(waveform: Tensor, window: Tensor, factors: Tensor, fb: Tensor) -> bool:
    """Whether `k_mel_spectrogram` is one kernel: native on this device, and no gradient is needed."""
    operands = (waveform, window, factors, fb)
    if not waveform.is_floating_point() or (torch.is_grad_enabled() and any(x.requires_grad for x in operands)):
        return False
    return ops.has_filterbank(waveform, factors)


def _padded_and_window(
    waveform: Tensor,
    pad: int,
    window: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int,
    normalized: bool | str,
    center: bool,
    pad_mode: str,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The padded waveform, and the window in the middle of n_fft samples."""
    check_choice("normalized", normalized, NORMALIZATIONS)
    if window.shape != (win_length,) or not 1 <= win_length <= n_fft:
        raise ValueError(
            f"expected a window of win_length = {win_length} samples, with 1 <= win_length <= n_fft = "
            f"{n_fft}, got shape {tuple(window.shape)}"
        )
    padded = _padded(
        _widened(waveform, window.dtype),
        n_fft,
        hop_length,
        pad=pad,
        center=center,
        pad_mode=pad_mode,
        lengths=lengths,
    )
    if normalized:
        window = window * (n_fft**-0.5 if normalized == "frame_length" else window.square().sum().rsqrt())
    left = (n_fft - win_length) // 2
    return padded, F.pad(window, (left, n_fft - win_length - left))


def _widened(waveform: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(waveform, Tensor):
        raise ValueError(f"expected the waveform as a torch.Tensor, got {type(waveform).__name__}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"front ends compute in float32 or float64, and this one's parameters are {dtype}: keep it out "
            "of model.half() and model.bfloat16(), or use torch.autocast, under which it stays in float32"
        )
    if not waveform.is_floating_point():
        raise ValueError(
            f"expected a floating-point waveform in [-1, 1], got {waveform.dtype}: convert it, and divide "
            "integers by their full scale, e.g. waveform.float() / 32768 for int16"
        )
    if waveform.dtype == torch.float64 and dtype == torch.float32:
        raise ValueError(
            "waveform is float64 and the front end float32: convert one, waveform.float() or module.double()"
        )
    return waveform.to(dtype)


def _magnitude_power(spectrum: Tensor, power: float | None) -> Tensor:
    """``|spectrum| ** power`` in real arithmetic."""
    if power is None:
        return spectrum
    real, imaginary = spectrum.real, spectrum.imag
    return _power_of_squared(real * real + imaginary * imaginary, power)


def _power_of_squared(squared: Tensor, power: float) -> Tensor:
    """``squared ** (power / 2)``, with a zero gradient where it is zero."""
    if power == 2:
        return squared
    # The derivative of a power below 1 is infinite at 0, and infinity times 0 would be NaN.
    silent = squared == 0
    positive = squared.masked_fill(silent, 1)
    magnitude = positive.sqrt() if power == 1 else positive.pow(power / 2)
    return magnitude.masked_fill(silent, 0)


def _masked(features: Tensor, lengths: Tensor | None, n_fft: int, hop_length: int, pad: int, center: bool) -> Tensor:
    if lengths is None:
        return features
    return mask_frames(features, frame_counts(lengths, n_fft, hop_length, pad=pad, center=center))


# --- compression ---


def log_compression(x: Tensor, eps: float | Tensor = 1e-6) -> Tensor:
    """Natural logarithm ``log(x + eps)``: finite, and with a finite gradient, on silence.

    Args:
        x: ``(..., n_channels, frames)``, not negative.
        eps: a number or one per channel, ``(n_channels,)``, positive. The default is a little above what the
            rounding of 16-bit audio leaves in a power mel band of [-1, 1] audio.

    >>> log_compression(torch.zeros(1, 1), eps=1.0)
    tensor([[0.]])
    """
    return (x + _per_channel(eps, x)).log()


def log10_compression(x: Tensor, eps: float | Tensor = 1e-6) -> Tensor:
    """Decimal logarithm ``log10(x + eps)``.

    Args:
        x, eps: as in `log_compression`.

    >>> log10_compression(torch.full((1, 1), 99.0), eps=1.0)
    tensor([[2.]])
    """
    return (x + _per_channel(eps, x)).log10()


def db_compression(x: Tensor, power: float = 2.0, eps: float | Tensor = 1e-6) -> Tensor:
    """Decibels ``20 / power * log10(x + eps)``, without a limit of the range below the largest value.

    Args:
        x, eps: as in `log_compression`.
        power: exponent of the magnitude in x: 2 for a power spectrogram, 1 for a magnitude spectrogram.

    >>> db_compression(torch.full((1, 1), 99.0), eps=1.0), db_compression(torch.full((1, 1), 99.0), 1.0, 1.0)
    (tensor([[20.]]), tensor([[40.]]))
    """
    return (20.0 / power) * log10_compression(x, eps)


def pcen_smoothing(time_constant: float, sample_rate: int, hop_length: int) -> float:
    """Smoothing coefficient of `pcen` for a time constant, as in `librosa.pcen`.

    Args:
        time_constant: in seconds.
        sample_rate: of the audio, in Hz.
        hop_length: samples between frames.

    Source: Lostanlen et al., "Per-Channel Energy Normalization: Why and How", 2019.

    >>> round(pcen_smoothing(0.4, 16000, 160), 4)
    0.0247
    """
    if time_constant <= 0:
        raise ValueError(f"expected time_constant > 0 seconds, got {time_constant}")
    frames = time_constant * sample_rate / hop_length
    return (math.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)


def pcen(
    x: Tensor,
    smoothing: float | Tensor,
    *,
    gain: float | Tensor = 0.98,
    bias: float | Tensor = 2.0,
    power: float | Tensor = 0.5,
    eps: float = 1e-6,
    initial: float | Tensor | None = None,
) -> Tensor:
    """Per-channel energy normalisation: automatic gain control by a smoothed energy, then a root.

    ``(x / (eps + m) ** gain + bias) ** power - bias ** power`` with the first-order low-pass
    ``m[t] = (1 - smoothing) * m[t - 1] + smoothing * x[t]``, computed for blocks of frames by a triangular
    matrix.

    Args:
        x: spectrogram ``(..., n_channels, frames)``, not negative.
        smoothing: in (0, 1], e.g. of `pcen_smoothing`. This and the three next ones are a number or one per
            channel, ``(n_channels,)``, and may need a gradient.
        gain: exponent of the gain control, positive.
        bias: offset, positive.
        power: exponent of the compression, positive.
        eps: positive number below any level of interest.
        initial: m before the first frame, a number or ``(..., n_channels)``. By default the first frame,
            which does not depend on the scale of the audio; `librosa.pcen` starts at 1.

    Shape:
        result ``(..., n_channels, frames)``.

    Raises:
        ValueError: shapes that do not fit or numbers out of range.

    Source: Wang et al., "Trainable frontend for robust and far-field keyword spotting", ICASSP 2017,
    equation 1.

    >>> steady = torch.full((1, 50), 3.0)
    >>> pcen(steady, 0.1, gain=1.0, bias=1.0, power=0.5, eps=1e-9)[0, -1]  # sqrt(3 / 3 + 1) - 1
    tensor(0.4142)
    """
    if x.ndim < 2:
        raise ValueError(f"expected x of shape (..., n_channels, frames), got {tuple(x.shape)}")
    if not isinstance(smoothing, Tensor) and not 0 < smoothing <= 1:
        raise ValueError(f"expected smoothing in (0, 1], got {smoothing}")
    for name, value in (("gain", gain), ("bias", bias), ("power", power), ("eps", eps)):
        if not isinstance(value, Tensor) and not value > 0:
            raise ValueError(f"expected {name} > 0, got {value}")
    smoothing, gain, bias, power = (_per_channel(value, x) for value in (smoothing, gain, bias, power))
    start = x[..., :1] if initial is None else torch.as_tensor(initial, dtype=x.dtype, device=x.device)
    if initial is not None and start.ndim:
        start = start.unsqueeze(-1)
    level = _first_order(smoothing * x, 1 - smoothing, start)
    # In logarithms: (eps + m) ** -gain is exact for m far below and far above eps.
    normalised = x * torch.exp(-gain * (math.log(eps) + torch.log1p(level / eps)))
    return bias**power * torch.expm1(power * torch.log1p(normalised / bias))


def _first_order(u: Tensor, decay: Tensor, initial: Tensor) -> Tensor:
    """``y[t] = decay * y[t - 1] + u[t]`` over the last dimension, with ``y[-1] = initial``.

    Within a block of frames the recursion is a triangular matrix; from block to block it is a recursion
    again, shorter by the size of a block.

    Shape:
        u ``(..., channels, frames)``, decay ``()`` or ``(channels, 1)``, initial broadcastable to
        ``(..., channels, 1)``.
    """
    frames, size = u.shape[-1], _SMOOTHING_BLOCK
    n_blocks = -(-frames // size)
    blocks = F.pad(u, (0, n_blocks * size - frames)).unflatten(-1, (n_blocks, size))
    step = torch.arange(size, device=u.device)
    lag = (step.unsqueeze(1) - step).clamp(min=0)
    decay = decay.unsqueeze(-1) if decay.ndim else decay
    alone = blocks @ torch.tril(decay**lag).mT
    before = initial.expand(*u.shape[:-1], 1)
    if n_blocks > 1:
        block_decay = decay.squeeze(-1) ** size if decay.ndim else decay**size
        ends = _first_order(alone[..., :-1, -1], block_decay, initial)
        before = torch.cat([before, ends], dim=-1)
    result = alone + decay ** (step + 1) * before.unsqueeze(-1)
    return result.flatten(-2)[..., :frames]


def _per_channel(value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one per channel of x ``(..., channels, frames)``, ready to be broadcast with x."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if value.ndim > 1 or (value.ndim == 1 and (x.ndim < 2 or value.shape[0] not in (1, x.shape[-2]))):
        raise ValueError(
            f"expected a number or one value per channel of features {tuple(x.shape)}, got shape {tuple(value.shape)}"
        )
    return value.unsqueeze(-1) if value.ndim else value


# --- checks ---


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise the ValueError of an option that is none of its choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"expected {name} in {choices}, got {value!r}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise the ValueError of a whole number that is too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected {name} to be an integer >= {least}, got {value!r}")
