"""Frames of signals, and of padded batches of signals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kaleido_audio.functional.checks import check_at_least, check_choice

PAD_MODES = ("reflect", "constant", "replicate", "circular")


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
    padded = lengths.long() + 2 * pad + (2 * (n_fft // 2) if center else 0)
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
    counts = counts.to(features.device, torch.int64).view(-1, *[1] * (features.ndim - 1))
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
    padded = pad_signal(waveform, frame_length, hop_length, pad=pad, center=center, pad_mode=pad_mode, lengths=lengths)
    return padded.unfold(-1, frame_length, hop_length)


def pad_signal(
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
        return with_margins(waveform, margin, pad_mode)

    shortest = check_lengths(waveform, lengths)
    if shortest is not None:
        item = f" (item {int(lengths.long().argmin())} of the batch)"
        _check_long_enough(shortest, frame_length, pad, margin, pad_mode, item)
    lengths = lengths.to(waveform.device, torch.int64)
    if pad or not margin:
        waveform = mask_frames(waveform, lengths)
    if pad:
        waveform, lengths = F.pad(waveform, (pad, pad)), lengths + 2 * pad
    if margin:
        waveform = _with_own_margins(waveform, lengths, margin, pad_mode)
    return waveform


def with_margins(waveform: Tensor, margin: int, pad_mode: str) -> Tensor:
    """A signal of at least margin + 1 samples with margin more at both ends.

    Args:
        waveform: ``(..., time)``.
        margin: samples.
        pad_mode: as in `frame`, or ``"symmetric"``: the signal mirrored with its end samples.

    >>> with_margins(torch.arange(3.0), 2, "reflect")
    tensor([2., 1., 0., 1., 2., 1., 0.])
    """
    # Slices instead of F.pad: any leading shape, and a backward that is deterministic on every device.
    if margin == 0:
        return waveform
    if pad_mode == "constant":
        return F.pad(waveform, (margin, margin))
    if pad_mode == "reflect":
        left = waveform[..., 1 : margin + 1].flip(-1)
        right = waveform[..., -margin - 1 : -1].flip(-1)
    elif pad_mode == "symmetric":
        left, right = waveform[..., :margin].flip(-1), waveform[..., -margin:].flip(-1)
    elif pad_mode == "replicate":
        shape = (*waveform.shape[:-1], margin)
        left, right = waveform[..., :1].expand(shape), waveform[..., -1:].expand(shape)
    else:
        left, right = waveform[..., -margin:], waveform[..., :margin]
    return torch.cat([left, waveform, right], dim=-1)


def _with_own_margins(waveform: Tensor, lengths: Tensor, margin: int, pad_mode: str) -> Tensor:
    """`with_margins` for every item ``(batch, time)`` at its own end; zeros after that."""
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
    if not isinstance(lengths, Tensor):
        raise ValueError(f"expected lengths as a torch.Tensor of integers (samples), got {type(lengths).__name__}")
    if waveform.ndim != 2 or lengths.ndim != 1 or len(lengths) != len(waveform):
        raise ValueError(
            f"lengths need a waveform (batch, time) and lengths (batch,), got {tuple(waveform.shape)} and "
            f"{tuple(lengths.shape)}"
        )
    if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        raise ValueError(f"expected lengths as integers (samples), got {lengths.dtype}")
    if torch.compiler.is_compiling() or len(lengths) == 0:
        return None
    shortest, longest = (int(value) for value in lengths.long().aminmax())
    if shortest < 1 or longest > waveform.shape[-1]:
        raise ValueError(f"expected lengths between 1 and time = {waveform.shape[-1]} samples, got {lengths.tolist()}")
    return shortest
