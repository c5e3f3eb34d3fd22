"""Kaldi's filterbank features, batched and learnable."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from kaleido_audio import functional as F
from kaleido_audio import ops
from kaleido_audio.kmatrix import KMatrix
from kaleido_audio.ops import no_autocast
from kaleido_audio.transforms.compression import KALDI_FLOOR, FlooredLogarithm
from kaleido_audio.transforms.dense import DenseTransform
from kaleido_audio.transforms.filterbank import Filterbank
from kaleido_audio.transforms.mel import MelFrontEnd
from kaleido_audio.transforms.options import checked_learnable, learnable_repr
from kaleido_audio.transforms.spectrograms import KSpectrogram
from kaleido_audio.transforms.streaming import Framing


class KaldiSpectrogram(KSpectrogram):
    """Learnable power spectrum of Kaldi's frames: the first part of `KFbank`.

    A frame loses its mean and is pre-emphasised by itself before the window, and zeros follow it up to n_fft.

    Args:
        n_fft: points of the transform.
        frame_length: samples of a frame, at most n_fft.
        hop_length: samples between neighbouring frames.
        window_type, blackman_coeff: as in `kaleido_audio.functional.kaldi_window`.
        snip_edges: as in `kaleido_audio.functional.kaldi_frames`.
        dither: standard deviation of the Gaussian noise that is added to frames.
        remove_dc_offset: whether frames lose their mean.
        preemphasis_coefficient: in [0, 1].
        power, learnable, init, width, expansion, dtype: as in `KSpectrogram`.

    Shape:
        as in `KSpectrogram`: ``(..., time)`` to ``(..., n_fft // 2 + 1, frames)``.

    >>> KaldiSpectrogram(512, 400, 160)(torch.randn(2, 16000)).shape
    torch.Size([2, 257, 98])
    """

    def __init__(
        self,
        n_fft: int,
        frame_length: int,
        hop_length: int,
        *,
        window_type: str = "povey",
        blackman_coeff: float = 0.42,
        snip_edges: bool = True,
        dither: float = 0.0,
        remove_dc_offset: bool = True,
        preemphasis_coefficient: float = 0.97,
        power: float = 2.0,
        learnable: Collection[str] = ("transform",),
        init: str | KMatrix = "fourier",
        width: int = 1,
        expansion: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        def window_fn(length: int, dtype: torch.dtype) -> Tensor:
            return F.kaldi_window(window_type, length, blackman_coeff=blackman_coeff, dtype=dtype)

        if not dither >= 0:
            raise ValueError(f"expected dither >= 0, got {dither}")
        if not 0 <= preemphasis_coefficient <= 1:
            raise ValueError(f"expected preemphasis_coefficient in [0, 1], got {preemphasis_coefficient}")
        super().__init__(
            n_fft,
            frame_length,
            hop_length,
            window_fn=window_fn,
            power=power,
            center=False,
            learnable=learnable,
            init=init,
            width=width,
            expansion=expansion,
            dtype=dtype,
        )
        self.snip_edges = snip_edges
        self.dither = dither
        self.remove_dc_offset = remove_dc_offset
        self.preemphasis_coefficient = preemphasis_coefficient

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Number of frames of waveforms of given lengths (samples)."""
        return F.kaldi_frame_counts(lengths, self.win_length, self.hop_length, snip_edges=self.snip_edges)

    def framing(self) -> Framing:
        """Where the frames of a signal lie, for a `Stream`."""

        def count(samples: int) -> int:
            return int(self.frame_counts(torch.tensor(samples)))

        length, hop = self.win_length, self.hop_length
        if self.snip_edges:
            return Framing(length, hop, 0, 0, "symmetric", 0, count)
        margin = length - length // 2  # the last frame begins in the signal's last hop, half a frame before its centre
        return Framing(length, hop, 0, margin, "symmetric", margin + hop // 2 - length // 2, count)

    def of_padded(self, stretch: Tensor) -> Tensor:
        """Spectrogram of samples that begin and end with a frame: nothing is put at their ends."""
        with no_autocast(self.window):
            return self.of_frames(self.emphasized(self.frames(stretch, snip_edges=True)))

    def frames(self, waveform: Tensor, lengths: Tensor | None = None, *, snip_edges: bool | None = None) -> Tensor:
        """Frames ``(..., frames, frame_length)`` with dither and without their means."""
        snip_edges = self.snip_edges if snip_edges is None else snip_edges
        waveform = F.widened(waveform, self.window.dtype)
        frames = F.kaldi_frames(waveform, self.win_length, self.hop_length, snip_edges=snip_edges, lengths=lengths)
        if self.dither:
            frames = frames + self.dither * torch.randn_like(frames)
        return frames - frames.mean(-1, keepdim=True) if self.remove_dc_offset else frames

    def emphasized(self, frames: Tensor) -> Tensor:
        """Frames of `frames` as the window takes them."""
        if not self.preemphasis_coefficient:
            return frames
        return F.pre_emphasize_frames(frames, self.preemphasis_coefficient)

    def of_frames(self, frames: Tensor) -> Tensor:
        """Spectrogram ``(..., n_freqs, frames)`` of pre-emphasised frames."""
        if isinstance(self.transform, DenseTransform):
            real, imaginary = self.transform(frames * self.window)
            return self._of_parts(real, imaginary, None)
        signal, length = frames.flatten(-2), frames.shape[-1]
        factors, rows = self.transform.factors, self.indices("rows")
        squared = ops.butterfly_power_spectrum(signal, self.window, factors, rows, length)
        return F.power_of_squared(squared, float(self.power or 2.0)).transpose(-1, -2)

    @property
    def _transform_inputs(self) -> int:
        return self.win_length

    def _specgram(self, waveform: Tensor, lengths: Tensor | None, pad: int, center: bool) -> Tensor:
        specgram = self.of_frames(self.emphasized(self.frames(waveform, lengths)))
        return specgram if lengths is None else F.mask_frames(specgram, self.frame_counts(lengths))


class KFbank(MelFrontEnd):
    """Learnable Kaldi filterbank features, for batches and with lengths.

    Arguments have the names and defaults of `torchaudio.compliance.kaldi.fbank`, to whose result for each waveform
    the transpose of this one's is equal at the start (``KFbank(...)(waveform).mT``), gradients included. Kaldi itself
    works on samples of 16 bits: multiply waveforms in [-1, 1] by 32768 for its values. Left out are ``channel`` and
    ``min_duration`` (every leading dimension is kept, and a waveform too short for one frame is an error) and
    ``vtln_*``. What is learnable, and how, is as in `KMelSpectrogram`. Hooks of the spectrogram do not run, because
    its frames serve the energy too.

    Args:
        num_mel_bins: number of filters.
        sample_frequency: of the audio, in Hz.
        frame_length: in milliseconds.
        frame_shift: between the starts of neighbouring frames, in milliseconds.
        window_type, blackman_coeff: as in `kaleido_audio.functional.kaldi_window`.
        low_freq, high_freq: as in `kaleido_audio.functional.kaldi_mel_filterbank`.
        snip_edges: as in `kaleido_audio.functional.kaldi_frames`.
        dither: standard deviation of the Gaussian noise that is added to frames, in training and otherwise.
        remove_dc_offset: whether each frame loses its mean.
        preemphasis_coefficient: of ``y[t] = x[t] - coefficient * x[t - 1]`` in each frame, in [0, 1].
        round_to_power_of_two: put zeros behind frames up to a power of two.
        use_power: filters of squared magnitudes; otherwise of magnitudes.
        use_log_fbank: take logarithms, see `FlooredLogarithm`.
        use_energy: put the logarithm of each frame's energy before the filters.
        raw_energy: of the frame before pre-emphasis and window.
        energy_floor: least energy; none if 0.
        htk_compat: put the energy behind the filters.
        subtract_mean: subtract each feature's mean over the waveform.
        learnable: any of ``"transform"``, ``"filterbank"`` and ``"window"``; ``()`` for none.
        init, width, expansion, dtype: as in `KSpectrogram`.

    Shape:
        as in `MelFrontEnd`: ``(..., time)`` to ``(..., n_features, frames)``, where n_features counts the energy.

    Raises:
        ValueError: an option, shape or type that does not fit, with what was expected.

    Source: Kaldi, ``feat/feature-fbank.cc``.

    >>> front_end = KFbank(num_mel_bins=40)
    >>> features, counts = front_end(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> features.shape, counts
    (torch.Size([2, 40, 98]), tensor([98, 48]))
    """

    spectrogram: KaldiSpectrogram

    def __init__(
        self,
        *,
        num_mel_bins: int = 23,
        sample_frequency: float = 16000.0,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        window_type: str = "povey",
        blackman_coeff: float = 0.42,
        low_freq: float = 20.0,
        high_freq: float = 0.0,
        snip_edges: bool = True,
        dither: float = 0.0,
        remove_dc_offset: bool = True,
        preemphasis_coefficient: float = 0.97,
        round_to_power_of_two: bool = True,
        use_power: bool = True,
        use_log_fbank: bool = True,
        use_energy: bool = False,
        raw_energy: bool = True,
        energy_floor: float = 1.0,
        htk_compat: bool = False,
        subtract_mean: bool = False,
        learnable: Collection[str] = ("transform", "filterbank"),
        init: str | KMatrix = "fourier",
        width: int = 1,
        expansion: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        learned = checked_learnable(learnable, ("transform", "filterbank", "window"))
        length = _samples("frame_length", frame_length, sample_frequency, least=2)
        if not energy_floor >= 0:
            raise ValueError(f"expected energy_floor >= 0, got {energy_floor}")
        n_fft = 1 << (length - 1).bit_length() if round_to_power_of_two else length
        spectrogram = KaldiSpectrogram(
            n_fft,
            length,
            _samples("frame_shift", frame_shift, sample_frequency, least=1),
            window_type=window_type,
            blackman_coeff=blackman_coeff,
            snip_edges=snip_edges,
            dither=dither,
            remove_dc_offset=remove_dc_offset,
            preemphasis_coefficient=preemphasis_coefficient,
            power=2.0 if use_power else 1.0,
            learnable=[name for name in learned if name in ("transform", "window")],
            init=init,
            width=width,
            expansion=expansion,
            dtype=dtype,
        )
        kind = spectrogram.window.dtype
        with torch.device("cpu"):  # what it checks, the meta device does not have
            fb = F.kaldi_mel_filterbank(n_fft, num_mel_bins, sample_frequency, low_freq, high_freq, dtype=kind)
        filterbank = Filterbank(fb, learnable="filterbank" in learned).to(spectrogram.window.device)
        super().__init__(spectrogram, filterbank, FlooredLogarithm() if use_log_fbank else None, sample_frequency)
        self.learnable = learned
        self.use_energy = use_energy
        self.raw_energy = raw_energy
        self.energy_floor = energy_floor
        self.htk_compat = htk_compat
        self.subtract_mean = subtract_mean

    @property
    def n_features(self) -> int:
        """Channels of the result: num_mel_bins, and one for the energy."""
        return super().n_features + self.use_energy

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Features of a waveform; with lengths, also the frame counts."""
        with no_autocast(self.mel_scale.fb):
            features = self._of_frames(self.spectrogram.frames(waveform, lengths), self.compression)
            if lengths is None:
                return features - features.mean(-1, keepdim=True) if self.subtract_mean else features
            counts = self.spectrogram.frame_counts(lengths)
            features = F.mask_frames(features, counts)
            if self.subtract_mean:
                means = features.sum(-1, keepdim=True) / counts.to(features.device).view(-1, 1, 1)
                features = F.mask_frames(features - means, counts)
            return features, counts

    def _features_of_stretches(self) -> Callable[[Tensor], Tensor]:
        if self.subtract_mean:
            raise ValueError("subtract_mean needs the whole signal, which a stream does not know: leave it out")

        compress = self._streamed_compression()

        def features(stretch: Tensor) -> Tensor:
            with no_autocast(self.mel_scale.fb):
                return self._of_frames(self.spectrogram.frames(stretch, snip_edges=True), compress)

        return features

    def _of_frames(self, frames: Tensor, compress: Callable[[Tensor], Tensor] | None) -> Tensor:
        emphasized = self.spectrogram.emphasized(frames)
        features = self._features(self.spectrogram.of_frames(emphasized), compress)
        if not self.use_energy:
            return features
        energy = self._log_energy(frames if self.raw_energy else emphasized * self.spectrogram.window)
        parts = (features, energy) if self.htk_compat else (energy, features)
        return torch.cat(parts, dim=-2)

    def _log_energy(self, frames: Tensor) -> Tensor:
        energy = frames.square().sum(-1).clamp(min=max(self.energy_floor, KALDI_FLOOR))
        return energy.log().unsqueeze(-2)

    def extra_repr(self) -> str:
        """Sample rate, what is learnable, and the number of learnable parameters."""
        return f"sample_rate={self.sample_rate}, {learnable_repr(self, self.learnable)}"


def _samples(name: str, milliseconds: float, sample_frequency: float, least: int) -> int:
    """Whole samples in a time, rounded down as Kaldi does."""
    if not (math.isfinite(sample_frequency) and sample_frequency > 0 and math.isfinite(milliseconds)):
        raise ValueError(
            f"expected sample_frequency in Hz and {name} in milliseconds, got {sample_frequency} and {milliseconds}"
        )
    samples = int(sample_frequency * milliseconds * 0.001)
    if samples < least:
        raise ValueError(
            f"expected {name} of at least {least} samples, got {milliseconds} ms at {sample_frequency} Hz: {samples}"
        )
    return samples
