"""Spectrograms by FFT and by K-matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kaleido_audio import ops
from kaleido_audio.functional.checks import check_choice
from kaleido_audio.functional.compression import log_compression
from kaleido_audio.functional.framing import frame_counts, mask_frames, pad_signal
from kaleido_audio.functional.mel import apply_filterbank

NORMALIZATIONS = (False, True, "window", "frame_length")


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

    >>> tone = torch.sin(torch.arange(4000.0) * (2 * torch.pi * 10 / 64))
    >>> spectrogram(tone, 0, torch.hann_window(64), 64, 32, 64, 2.0, center=False).argmax(0).unique()
    tensor([10])
    """
    padded, window = padded_and_window(
        waveform, pad, window, n_fft, hop_length, win_length, normalized, center, pad_mode, lengths
    )
    frames = padded.unfold(-1, n_fft, hop_length) * window
    if frames.numel():
        spectrum = torch.fft.rfft(frames) if onesided else torch.fft.fft(frames)
    else:  # which MKL does not take
        n_freqs = n_fft // 2 + 1 if onesided else n_fft
        spectrum = frames.new_zeros((*frames.shape[:-1], n_freqs), dtype=frames.dtype.to_complex())
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
    padded, window = padded_and_window(
        waveform, pad, window, n_fft, hop_length, win_length, normalized, center, pad_mode, lengths
    )
    if power is None:
        spectrum = ops.butterfly_outputs(padded.unfold(-1, n_fft, hop_length) * window, factors, rows)
        result = spectrum if spectrum.is_complex() else torch.complex(spectrum, torch.zeros_like(spectrum))
    else:
        result = power_of_squared(ops.butterfly_power_spectrum(padded, window, factors, rows, hop_length), power)
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
    floor: float | None = None,
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
        floor: positive; the logarithm is then ``log_scale * log(max(bands, floor))``, without eps.

    Shape:
        result ``(..., n_bands, frames)``.

    Raises:
        ValueError: a shape, type or option that does not fit.
    """
    if fuses_k_mel(waveform, window, factors, fb):
        padded, window = padded_and_window(
            waveform, pad, window, n_fft, hop_length, win_length, normalized, center, pad_mode, lengths
        )
        bands = ops.butterfly_filterbank(
            padded, window, factors, rows, hop_length, fb, power=power, log_scale=log_scale, eps=eps, floor=floor
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
        if log_scale is not None:
            bands = log_scale * (log_compression(bands, eps) if floor is None else bands.clamp(min=floor).log())
    return _masked(bands, lengths, n_fft, hop_length, pad, center)


def fuses_k_mel(waveform: Tensor, window: Tensor, factors: Tensor, fb: Tensor) -> bool:
    """Whether `k_mel_spectrogram` is one kernel: native on this device, and no gradient is needed."""
    operands = (waveform, window, factors, fb)
    if not waveform.is_floating_point() or (torch.is_grad_enabled() and any(x.requires_grad for x in operands)):
        return False
    return ops.has_filterbank(waveform, factors)


def padded_and_window(
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
    padded = pad_signal(
        widened(waveform, window.dtype),
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


def widened(waveform: Tensor, dtype: torch.dtype) -> Tensor:
    """A waveform in the type of a front end, if it may be given in its own.

    Raises:
        ValueError: types that do not fit, with how to convert them.

    >>> widened(torch.zeros(2, dtype=torch.float16), torch.float32).dtype
    torch.float32
    """
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
    return magnitude_power(spectrum.real, spectrum.imag, power)


def magnitude_power(real: Tensor, imaginary: Tensor, power: float) -> Tensor:
    """``abs(real + i imaginary) ** power`` in real arithmetic, see `power_of_squared`."""
    return power_of_squared(real * real + imaginary * imaginary, power)


def power_of_squared(squared: Tensor, power: float) -> Tensor:
    """``squared ** (power / 2)``, zero and with a zero gradient where the square has lost its precision."""
    if power == 2:
        return squared
    # The derivative of a power below 1 is infinite at 0, and infinity times 0 would be NaN.
    silent = squared < torch.finfo(squared.dtype).tiny
    positive = squared.masked_fill(silent, 1)
    magnitude = positive.sqrt() if power == 1 else positive.pow(power / 2)
    return magnitude.masked_fill(silent, 0)


def _masked(features: Tensor, lengths: Tensor | None, n_fft: int, hop_length: int, pad: int, center: bool) -> Tensor:
    if lengths is None:
        return features
    return mask_frames(features, frame_counts(lengths, n_fft, hop_length, pad=pad, center=center))
