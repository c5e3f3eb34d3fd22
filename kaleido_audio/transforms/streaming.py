"""Features of a signal that comes in pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kaleido_audio.functional.framing import with_margins


@dataclass(frozen=True)
class Framing:
    """Where the frames of a signal lie, and what is put at its ends.

    Attributes:
        length: samples of a frame.
        hop: samples between the starts of neighbouring frames.
        pad: zeros before and after the signal.
        margin: samples that `with_margins` puts around that.
        pad_mode: and what they are.
        first: start of the first frame in the result.
        count: frames of a whole signal, from its samples.
    """

    length: int
    hop: int
    pad: int
    margin: int
    pad_mode: str
    first: int
    count: Callable[[int], int]


class Stream:
    """Features of a signal that comes in pieces: put together, they are those of the whole signal.

    A frame is returned by the call that brings its last sample, and those at the end by `finish`. Made by the
    ``stream()`` of a front end, whose parameters it uses as they are at each call.

    Args:
        framing: where frames lie.
        features: from a stretch of the padded signal ``(..., time)`` that begins and ends with a frame to its
            features ``(..., n_features, frames)``. It may remember: stretches come in order.
        whole: from a whole signal to its features, for one that ends before its margin can be made.
        n_features: channels of the features.
        dtype: their type.

    Shape:
        ``push(chunk)``: ``(..., time)``, of any time, to ``(..., n_features, new frames)``;
        ``finish()``: ``(..., n_features, last frames)``.

    Raises:
        ValueError: a chunk that does not fit those before it, or a signal too short for one frame.

    >>> from kaleido_audio.transforms import KMelSpectrogram
    >>> front_end, waveform = KMelSpectrogram(16000, 512, n_mels=40, compression="log"), torch.randn(4000)
    >>> stream = front_end.stream()
    >>> parts = [stream.push(chunk) for chunk in waveform.split(1600)] + [stream.finish()]
    >>> [part.shape[-1] for part in parts]
    [6, 6, 3, 1]
    >>> torch.allclose(torch.cat(parts, dim=-1), front_end(waveform), atol=1e-4)
    True
    """

    def __init__(
        self,
        framing: Framing,
        features: Callable[[Tensor], Tensor],
        whole: Callable[[Tensor], Tensor],
        *,
        n_features: int,
        dtype: torch.dtype,
    ) -> None:
        self._framing = framing
        self._features = features
        self._whole = whole
        self._n_features = n_features
        self._dtype = dtype
        self._held: Tensor | None = None  # of the padded signal, what is still needed
        self._samples = 0  # of the signal itself, so far
        self._returned = 0  # frames
        self._begun = False
        self._ended = False
        self._next = 0  # start of the next frame in what is held, or beyond it

    def push(self, chunk: Tensor) -> Tensor:
        """The next samples; the features of all frames that end in them."""
        self._check(chunk)
        self._samples += chunk.shape[-1]
        # A copy, because whoever records sound may use one buffer for all chunks.
        self._held = chunk.clone() if self._held is None else torch.cat([self._held, chunk], dim=-1)
        if not self._begun and self._held.shape[-1] > self._framing.margin:
            self._begin(self._held)
        return self._take(self._complete() if self._begun else 0)

    def finish(self) -> Tensor:
        """The end of the signal; the features of the frames that are left."""
        self._check_open()
        if self._held is None:
            raise ValueError("the stream has no samples: push some before finish()")
        self._ended = True
        framing, held = self._framing, self._held
        if not self._begun:
            return self._whole(held)
        count = framing.count(self._samples)
        if count < 1:
            raise ValueError(
                f"waveform too short: {self._samples} samples hold no frame (of {framing.length} samples, every "
                f"{framing.hop})"
            )
        held = F.pad(held, (0, framing.pad))
        if framing.margin:
            # Only the end of it counts, and there are margin + 1 samples at least.
            end = with_margins(held[..., -framing.margin - 1 :], framing.margin, framing.pad_mode)
            held = torch.cat([held, end[..., -framing.margin :]], dim=-1)
        self._held = held
        return self._take(count - self._returned)

    def _check_open(self) -> None:
        if self._ended:
            raise ValueError("the stream has ended: begin another one with stream()")

    def _check(self, chunk: Tensor) -> None:
        self._check_open()
        if not isinstance(chunk, Tensor) or chunk.ndim == 0:
            raise ValueError(f"expected a chunk (..., time) as a torch.Tensor, got {chunk!r}")
        held = self._held
        if held is not None and (held.shape[:-1] != chunk.shape[:-1] or held.dtype != chunk.dtype):
            raise ValueError(
                f"expected a chunk like those before, {(*held.shape[:-1], 'time')} in {held.dtype}, got "
                f"{tuple(chunk.shape)} in {chunk.dtype}"
            )

    def _begin(self, held: Tensor) -> None:
        framing = self._framing
        padded = F.pad(held, (framing.pad, 0))
        begin = with_margins(padded[..., : framing.margin + 1], framing.margin, framing.pad_mode)
        self._held = torch.cat([begin[..., : framing.margin], padded], dim=-1)
        self._next = framing.first
        self._begun = True

    def _complete(self) -> int:
        """Frames that lie within what is held."""
        framing, held = self._framing, self._held
        return 0 if held is None else max(0, (held.shape[-1] - self._next - framing.length) // framing.hop + 1)

    def _take(self, count: int) -> Tensor:
        """Features of the next frames; what they alone needed is forgotten."""
        framing, held = self._framing, self._held
        assert held is not None
        if count == 0:
            return held.new_empty((*held.shape[:-1], self._n_features, 0), dtype=self._dtype)
        end = self._next + (count - 1) * framing.hop + framing.length
        features = self._features(held[..., self._next : end])
        self._returned += count
        self._next += count * framing.hop
        forgotten = max(0, min(self._next, held.shape[-1] - framing.margin - 1))
        self._held = held[..., forgotten:]
        self._next -= forgotten
        return features
