"""Mel spectrograms: what fixed and learnable ones share, and the learnable copy of torchaudio's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from kaleido_audio import functional as F
from kaleido_audio.kmatrix import KMatrix
from kaleido_audio.ops import no_autocast
from kaleido_audio.transforms.compression import COMPRESSIONS, PCEN, Compression, FlooredLogarithm
from kaleido_audio.transforms.filterbank import Filterbank
from kaleido_audio.transforms.options import checked_learnable, learnable_repr
from kaleido_audio.transforms.spectrograms import KSpectrogram, Spectrogram, check_forward, settings_of
from kaleido_audio.transforms.streaming import Stream


class MelFrontEnd(nn.Module):
    """Spectrogram, filterbank and compression in a row: what fixed and learnable front ends share.

    Args:
        spectrogram: a real spectrogram ``(..., n_freqs, frames)``.
        mel_scale: the filterbank.
        compression: None, or a module from ``(..., n_features, frames)`` to the same.
        sample_rate: of the audio, in Hz.

    Shape:
        ``forward(waveform)``: ``(..., time)`` to ``(..., n_features, frames)``;
        ``forward(waveform, lengths)``: ``(batch, time)`` and ``(batch,)`` to the features and the frame
        counts ``(batch,)``. An item of a padded batch gives what it gives alone, then zeros.
    """

    def __init__(
        self, spectrogram: Spectrogram, mel_scale: Filterbank, compression: nn.Module | None, sample_rate: float
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.spectrogram = spectrogram
        self.mel_scale = mel_scale
        self.compression = compression

    @property
    def n_features(self) -> int:
        """Channels of the result: n_mels."""
        return self.mel_scale.fb.shape[1]

    @property
    def hop_length(self) -> int:
        """Samples between neighbouring frames."""
        return self.spectrogram.hop_length

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Features of a waveform; with lengths, also the frame counts."""
        with no_autocast(self.mel_scale.fb):
            if lengths is None:
                return self._features(self.spectrogram(waveform), self.compression)
            specgram, counts = self.spectrogram(waveform, lengths)
            # Masked again, because compression turns zeros into something else.
            return F.mask_frames(self._features(specgram, self.compression), counts), counts

    def stream(self) -> Stream:
        """The features of a signal that comes in pieces, see `Stream`.

        Raises:
            ValueError: an option that needs the whole signal, such as pad_mode ``"circular"``.
        """
        features, framing = self._features_of_stretches(), self.spectrogram.framing()
        return Stream(framing, features, self, n_features=self.n_features, dtype=self.spectrogram.window.dtype)

    def _features_of_stretches(self) -> Callable[[Tensor], Tensor]:
        """For a `Stream`: it may remember the stretches before."""
        compress = self._streamed_compression()

        def features(stretch: Tensor) -> Tensor:
            with no_autocast(self.mel_scale.fb):
                return self._features(self.spectrogram.of_padded(stretch), compress)

        return features

    def _streamed_compression(self) -> Callable[[Tensor], Tensor] | None:
        """The compression for stretches in order, of which it may remember something."""
        if self.compression is None or isinstance(self.compression, PCEN):
            return None if self.compression is None else self.compression.stream()
        if any(isinstance(part, PCEN) for part in self.compression.modules()):
            raise ValueError(
                f"the compression, a {type(self.compression).__name__}, has a PCEN in it, which would begin anew with "
                "each chunk: let the PCEN be the compression, and apply the rest to what the stream returns"
            )
        return self.compression

    def _features(self, specgram: Tensor, compress: Callable[[Tensor], Tensor] | None) -> Tensor:
        features = self.mel_scale(specgram)
        return features if compress is None else compress(features)


class KMelSpectrogram(MelFrontEnd):
    """Learnable mel spectrogram: K-matrix, power, learnable filterbank and compression.

    Positional arguments, defaults, shapes and the state_dict keys ``spectrogram.window`` and
    ``mel_scale.fb`` are those of `torchaudio.transforms.MelSpectrogram`, to which it is equal at the start,
    gradients included. State dicts go both ways with ``strict=False``: only ``spectrogram.transform.weight``,
    ``spectrogram.rows`` (the order of its frequencies) and the parameters of a learnable compression have no
    counterpart. (A filterbank in training may hold negative values, which count as zero here and not in torchaudio:
    give it ``mel_scale.weights``.) See `KSpectrogram` for the transform and the types, `Filterbank` for how weights
    stay non-negative and zeros still learn, and `Compression` and `PCEN`.

    Args:
        sample_rate: of the audio, in Hz.
        n_fft, win_length, hop_length, pad, window_fn, power, normalized, wkwargs, center, pad_mode: as in
            `Spectrogram`; power is a number.
        f_min, f_max: edges of the filterbank, in Hz; f_max is ``sample_rate // 2`` by default.
        n_mels: number of filters.
        onesided: ignored, as in torchaudio.
        norm, mel_scale: as in `kaleido_audio.functional.mel_filterbank`.
        learnable: any of ``"transform"``, ``"filterbank"``, ``"window"`` and ``"compression"``; ``()`` for
            none.
        compression: None, or ``"log"``, ``"log10"``, ``"db"`` of ``x + eps``, or ``"pcen"``.
        eps: of the compression.
        init, width, expansion, dtype: as in `KSpectrogram`.

    Shape:
        as in `MelFrontEnd`: ``(..., time)`` to ``(..., n_mels, frames)``.

    Raises:
        ValueError: an option, shape or type that does not fit, with what was expected.

    Source: Dao et al., ICLR 2020, section 4.1, for the pipeline.

    >>> front_end = KMelSpectrogram(16000, 512, 400, 160, n_mels=40, compression="log")
    >>> features, counts = front_end(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> features.shape, counts
    (torch.Size([2, 40, 101]), tensor([101,  51]))
    """

    spectrogram: KSpectrogram

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 400,
        win_length: int | None = None,
        hop_length: int | None = None,
        f_min: float = 0.0,
        f_max: float | None = None,
        pad: int = 0,
        n_mels: int = 128,
        window_fn: Callable[..., Tensor] = torch.hann_window,
        power: float = 2.0,
        normalized: bool | str = False,
        wkwargs: dict[str, Any] | None = None,
        center: bool = True,
        pad_mode: str = "reflect",
        onesided: bool | None = None,
        norm: str | None = None,
        mel_scale: str = "htk",
        *,
        learnable: Collection[str] = ("transform", "filterbank"),
        compression: str | None = None,
        eps: float = 1e-6,
        init: str | KMatrix = "fourier",
        width: int = 1,
        expansion: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        learned = checked_learnable(learnable, ("transform", "filterbank", "window", "compression"))
        if onesided is not None:
            warnings.warn("onesided is ignored: a mel spectrogram is always one-sided", stacklevel=2)
        spectrogram = KSpectrogram(
            n_fft,
            win_length,
            hop_length,
            pad,
            window_fn,
            power,
            normalized,
            wkwargs,
            center,
            pad_mode,
            learnable=[name for name in learned if name in ("transform", "window")],
            init=init,
            width=width,
            expansion=expansion,
            dtype=dtype,
        )
        parts = mel_parts(
            spectrogram,
            sample_rate,
            f_min,
            f_max,
            n_mels,
            norm,
            mel_scale,
            compression=compression,
            eps=eps,
            learnable=learned,
        )
        super().__init__(spectrogram, *parts, sample_rate)
        self.learnable = learned
        # As torchaudio's module has them, for code that reads them.
        self.n_fft, self.win_length = spectrogram.n_fft, spectrogram.win_length
        self.pad, self.power, self.normalized = spectrogram.pad, spectrogram.power, spectrogram.normalized
        self.n_mels, self.f_min, self.f_max = self.n_features, f_min, f_max

    @classmethod
    def from_torchaudio(cls, module: Any, **options: Any) -> KMelSpectrogram:
        """A `KMelSpectrogram` with the settings and weights of a `torchaudio.transforms.MelSpectrogram`.

        The window and the filterbank are copied as they are, whatever they have become since they were made.

        Args:
            module: the torchaudio module; its type and device are kept.
            options: the keyword-only arguments of the constructor, except dtype.

        Raises:
            ValueError: another kind of module, or a filterbank with negative weights that is to be learnable.
        """
        parts = ("sample_rate", "spectrogram", "mel_scale")
        if not all(hasattr(module, name) for name in parts) or not hasattr(module.mel_scale, "n_mels"):
            raise ValueError(f"expected a torchaudio.transforms.MelSpectrogram, got {type(module).__name__}")
        check_forward(module)
        scale = module.mel_scale
        settings = settings_of(module.spectrogram)
        onesided = settings.pop("onesided")
        if not onesided or scale.fb.shape != (module.spectrogram.n_fft // 2 + 1, scale.n_mels):
            raise ValueError(
                f"expected a one-sided spectrogram and fb of shape (n_fft // 2 + 1, n_mels), got onesided = "
                f"{onesided} and {tuple(scale.fb.shape)}"
            )
        result = cls(
            module.sample_rate,
            f_min=scale.f_min,
            f_max=scale.f_max,
            n_mels=scale.n_mels,
            norm=scale.norm,
            mel_scale=scale.mel_scale,
            **settings,
            **options,
        )
        fb = scale.fb.detach().to(result.mel_scale.fb.dtype)
        result.mel_scale = Filterbank(fb.clone(), learnable="filterbank" in result.learnable)
        return result.to(fb.device)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Features of a waveform; with lengths, also the frame counts."""
        fused = self._fused(waveform, lengths)
        if fused is None:
            return super().forward(waveform, lengths)
        return fused if lengths is None else (fused, self.spectrogram.frame_counts(lengths))

    def _fused(self, waveform: Tensor, lengths: Tensor | None) -> Tensor | None:
        """The features by one kernel, where there is one and nobody looks at what lies between."""
        parts = [part for part in (self.spectrogram, self.mel_scale, self.compression) if part is not None]
        if not isinstance(waveform, Tensor) or not waveform.is_cuda:
            return None
        if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
            return None
        spectrogram, compression = self.spectrogram, self.compression
        # A subclass may compute something else.
        if type(spectrogram) is not KSpectrogram or spectrogram.power is None or type(self.mel_scale) is not Filterbank:
            return None
        if not isinstance(spectrogram.transform, KMatrix):
            return None
        logarithm: dict[str, Any] = {}
        if type(compression) is Compression and compression.log_eps is None:
            logarithm = {"log_scale": compression.log_scale, "eps": compression.eps}
        elif type(compression) is FlooredLogarithm:
            logarithm = {"log_scale": compression.log_scale, "floor": compression.floor}
        elif compression is not None:
            return None
        factors, fb = spectrogram.transform.factors, self.mel_scale.weights
        if not F.fuses_k_mel(waveform, spectrogram.window, factors, fb):
            return None
        with no_autocast(waveform):
            return F.k_mel_spectrogram(
                waveform,
                power=spectrogram.power,
                factors=factors,
                rows=spectrogram.indices("rows"),
                fb=fb,
                **logarithm,
                **spectrogram.frame_options(lengths, spectrogram.pad, spectrogram.center),
            )

    def extra_repr(self) -> str:
        """Sample rate, what is learnable, and the number of learnable parameters."""
        return f"sample_rate={self.sample_rate}, {learnable_repr(self, self.learnable)}"


def mel_parts(
    spectrogram: Spectrogram,
    sample_rate: float,
    f_min: float,
    f_max: float | None,
    n_mels: int,
    norm: str | None,
    mel_scale: str,
    *,
    compression: str | None,
    eps: float,
    learnable: Collection[str] = (),
) -> tuple[Filterbank, nn.Module | None]:
    """Filterbank and compression of a `MelFrontEnd` with the given spectrogram.

    Args:
        spectrogram: what they are applied to; they take its type.
        sample_rate, f_min, f_max, n_mels, norm, mel_scale, compression, eps, learnable: as in
            `KMelSpectrogram`.
    """
    if spectrogram.power is None:
        raise ValueError("a mel spectrogram needs a power, e.g. 2.0; got None")
    F.check_choice("compression", compression, (None, *COMPRESSIONS))
    if compression is None and "compression" in learnable:
        raise ValueError(f"learnable has 'compression', which is None: choose one of {COMPRESSIONS}")
    if isinstance(sample_rate, float) and sample_rate.is_integer():  # torchaudio takes 16000.0 too
        sample_rate = int(sample_rate)
    rate = F.check_at_least("sample_rate", sample_rate, 1)
    dtype = spectrogram.window.dtype
    with torch.device("cpu"):  # what it checks, the meta device does not have
        fb = F.mel_filterbank(
            spectrogram.n_features,
            f_min,
            float(rate // 2) if f_max is None else f_max,
            n_mels,
            rate,
            norm,
            mel_scale,
            dtype=dtype,
        )
    filterbank = Filterbank(fb, learnable="filterbank" in learnable).to(spectrogram.window.device)
    learned = "compression" in learnable
    if compression is None:
        return filterbank, None
    if compression == "pcen":
        pcen = PCEN(n_mels, rate, spectrogram.hop_length, eps=eps, learnable=learned, dtype=dtype)
        return filterbank, pcen
    power = spectrogram.power
    return filterbank, Compression(compression, n_mels, power=power, eps=eps, learnable=learned, dtype=dtype)
