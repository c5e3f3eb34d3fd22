"""Kaldi's framing, windows and mel filterbank, for any number of waveforms at once."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from kaleido_audio.functional.checks import check_at_least, check_choice
from kaleido_audio.functional.framing import check_lengths, mask_frames
from kaleido_audio.functional.mel import hz_to_mel

KALDI_WINDOWS = ("povey", "hamming", "hanning", "rectangular", "blackman")


def kaldi_window(
    window_type: str, length: int, *, blackman_coeff: float = 0.42, dtype: torch.dtype | None = None
) -> Tensor:
    """A window that is zero or smallest at both ends, as Kaldi makes it.

    Args:
        window_type: ``"povey"`` (a Hann window to the power of 0.85), ``"hamming"``, ``"hanning"``,
            ``"rectangular"`` or ``"blackman"``.
        length: samples.
        blackman_coeff: of the Blackman window.
        dtype: of the result, torch's default type if None; float64 is computed in.

    Shape:
        result ``(length,)``.

    Raises:
        ValueError: an option that does not fit.

    Source: Kaldi, ``feat/feature-window.cc``.

    >>> kaldi_window("povey", 5)
    tensor([0.0000, 0.5548, 1.0000, 0.5548, 0.0000])
    """
    check_choice("window_type", window_type, KALDI_WINDOWS)
    check_at_least("length", length, 2)
    turn = torch.arange(length, dtype=torch.float64) * (2 * math.pi / (length - 1))
    if window_type == "rectangular":
        window = torch.ones(length, dtype=torch.float64)
    elif window_type == "hamming":
        window = 0.54 - 0.46 * turn.cos()
    elif window_type == "blackman":
        window = blackman_coeff - 0.5 * turn.cos() + (0.5 - blackman_coeff) * (2 * turn).cos()
    else:
        window = 0.5 - 0.5 * turn.cos()
        window = window.clamp(min=0) ** 0.85 if window_type == "povey" else window
    return window.to(torch.get_default_dtype() if dtype is None else dtype)


def kaldi_mel_filterbank(
    n_fft: int,
    num_mel_bins: int,
    sample_frequency: float,
    low_freq: float = 20.0,
    high_freq: float = 0.0,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Kaldi's mel filters as columns: triangles over the mel scale, where torchaudio's and librosa's are over Hz.

    The bin of the Nyquist frequency has no weight.

    Args:
        n_fft: points of the Fourier transform, even.
        num_mel_bins: number of filters.
        sample_frequency: of the audio, in Hz.
        low_freq: lower edge of the first filter, in Hz.
        high_freq: upper edge of the last filter, in Hz; if not positive, its distance from the Nyquist frequency.
        dtype: of the result, torch's default type if None; float64 is computed in.

    Shape:
        result ``(n_fft // 2 + 1, num_mel_bins)``.

    Raises:
        ValueError: an option that does not fit. A filter too narrow to hold any bin is a `UserWarning`.

    Source: Kaldi, ``feat/mel-computations.cc``.

    >>> kaldi_mel_filterbank(8, 2, 8000.0).argmax(0)
    tensor([1, 2])
    """
    check_at_least("n_fft", n_fft, 2)
    check_at_least("num_mel_bins", num_mel_bins, 1)
    nyquist = sample_frequency / 2
    highest = high_freq if high_freq > 0 else nyquist + high_freq
    if not 0 <= low_freq < highest <= nyquist:
        raise ValueError(
            f"expected 0 <= low_freq < high_freq <= {nyquist} Hz (half the sample_frequency; a high_freq that is not "
            f"positive counts from there), got low_freq = {low_freq} and high_freq = {high_freq}"
        )
    if n_fft % 2:
        raise ValueError(f"expected an even n_fft, got {n_fft}: round_to_power_of_two, or another frame_length")
    frequencies = torch.arange(n_fft // 2, dtype=torch.float64) * (sample_frequency / n_fft)
    bins = hz_to_mel(frequencies).unsqueeze(1)
    first, last = hz_to_mel(torch.tensor([low_freq, highest], dtype=torch.float64)).tolist()
    corners = torch.linspace(first, last, num_mel_bins + 2, dtype=torch.float64)
    width = (last - first) / (num_mel_bins + 1)
    rising, falling = (bins - corners[:-2]) / width, (corners[2:] - bins) / width
    fb = F.pad(torch.minimum(rising, falling).clamp(min=0), (0, 0, 0, 1))
    empty = int((fb.amax(0) == 0).sum())
    if empty:
        warnings.warn(
            f"{empty} of {num_mel_bins} mel filters hold no frequency bin: lower num_mel_bins ({num_mel_bins}) or "
            f"take longer frames (n_fft = {n_fft})",
            stacklevel=2,
        )
    return fb.to(torch.get_default_dtype() if dtype is None else dtype)


def kaldi_frame_counts(lengths: Tensor, frame_length: int, hop_length: int, *, snip_edges: bool = True) -> Tensor:
    """Number of frames that Kaldi takes of signals of given lengths.

    Args:
        lengths: samples, integers of any shape.
        frame_length: samples of a frame.
        hop_length: samples between the starts of neighbouring frames.
        snip_edges: count only frames that lie within the signal; otherwise one for each hop_length, to the nearest.

    >>> kaldi_frame_counts(torch.tensor([16000, 399]), 400, 160)
    tensor([98,  0])
    >>> kaldi_frame_counts(torch.tensor([16000, 399]), 400, 160, snip_edges=False)
    tensor([100,   2])
    """
    lengths = lengths.long()
    if not snip_edges:
        return (lengths + hop_length // 2).div(hop_length, rounding_mode="floor")
    return ((lengths - frame_length).div(hop_length, rounding_mode="floor") + 1).clamp(min=0)


def kaldi_frames(
    waveform: Tensor, frame_length: int, hop_length: int, *, snip_edges: bool = True, lengths: Tensor | None = None
) -> Tensor:
    """Overlapping frames as Kaldi takes them.

    Args:
        waveform: ``(..., time)``.
        frame_length: samples of a frame.
        hop_length: samples between the starts of neighbouring frames.
        snip_edges: take only frames that lie within the signal. Otherwise the signal is mirrored at both ends, its
            end samples included, and frame t is centred on sample ``(t + 0.5) * hop_length``.
        lengths: samples of each item, ``(batch,)`` integers, for a padded waveform ``(batch, time)``: an item is
            then mirrored at its own end, and what the waveform holds behind it is ignored. Frames after
            `kaldi_frame_counts` of an item hold nothing of use.

    Shape:
        result ``(..., frames, frame_length)``; a view where nothing was mirrored and there are no lengths.

    Raises:
        ValueError: a signal too short for one frame, bad lengths.

    >>> kaldi_frames(torch.arange(6.0), 4, 2)
    tensor([[0., 1., 2., 3.],
            [2., 3., 4., 5.]])
    >>> kaldi_frames(torch.arange(6.0), 4, 2, snip_edges=False)
    tensor([[0., 0., 1., 2.],
            [1., 2., 3., 4.],
            [3., 4., 5., 5.]])
    """
    check_at_least("frame_length", frame_length, 1)
    check_at_least("hop_length", hop_length, 1)
    if waveform.ndim == 0:
        raise ValueError(f"expected a waveform (..., time), got shape {tuple(waveform.shape)}")
    time = waveform.shape[-1]
    needed = frame_length if snip_edges else hop_length - hop_length // 2
    shortest = None if lengths is None else check_lengths(waveform, lengths)
    for samples, whose in ((time, ""), (shortest, " in an item of the batch")):
        if samples is not None and samples < needed:
            raise ValueError(
                f"waveform too short: one frame needs {needed} samples (frame_length = {frame_length}, hop_length = "
                f"{hop_length}, snip_edges = {snip_edges}), got {samples}{whose}"
            )
    if snip_edges:
        if lengths is not None:
            waveform = mask_frames(waveform, lengths)
        return waveform.unfold(-1, frame_length, hop_length)
    frames = (time + hop_length // 2) // hop_length
    first = hop_length // 2 - frame_length // 2
    position = torch.arange(first, first + (frames - 1) * hop_length + frame_length, device=waveform.device)
    if lengths is None:
        source = _mirrored(position, position.new_full((), time))  # ONNX has remainders of tensors alone
        return waveform[..., source].unfold(-1, frame_length, hop_length)
    source = _mirrored(position, lengths.to(waveform.device, torch.int64).unsqueeze(1))
    return waveform.gather(1, source).unfold(-1, frame_length, hop_length)


def _mirrored(position: Tensor, time: Tensor) -> Tensor:
    """Samples of a signal of which copies stand in turn backwards and forwards beside it."""
    position = position % (2 * time)
    return torch.minimum(position, 2 * time - 1 - position)


def pre_emphasize_frames(frames: Tensor, coefficient: float) -> Tensor:
    """``y[t] = x[t] - coefficient * x[t - 1]`` within each frame, whose first sample counts as its own predecessor.

    Args:
        frames: ``(..., frame_length)``.
        coefficient: in [0, 1].

    >>> pre_emphasize_frames(torch.tensor([1.0, 1.0, 0.0]), 0.5)
    tensor([ 0.5000,  0.5000, -0.5000])
    """
    if not 0 <= coefficient <= 1:
        raise ValueError(f"expected a pre-emphasis coefficient in [0, 1], got {coefficient}")
    return frames - coefficient * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
