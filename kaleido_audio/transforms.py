"""Learnable spectrograms that start as exact copies of torchaudio's: thin modules over `functional`."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from kaleido_audio import exact
from kaleido_audio import functional as F
from kaleido_audio.factors import identity_factors
from kaleido_audio.kmatrix import KMatrix, padded_size

COMPRESSIONS = ("log", "log10", "db", "pcen")

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_FLOAT = (torch.float32, torch.float64)


class Spectrogram(nn.Module):
    """Fixed spectrogram by FFT: `torchaudio.transforms.Spectrogram`, with lengths.

    Args:
        n_fft: samples of a frame and points of the transform.
        win_length: samples of the window, at most n_fft, which is the default.
        hop_length: samples between neighbouring frames; ``win_length // 2`` by default.
        pad: zeros put before and after the waveform.
        window_fn: makes the window from its length.
        power: exponent of the magnitude, e.g. 1 or 2; None for the complex spectrum.
        normalized: divide by the window's L2 norm (True or ``"window"``) or by sqrt(n_fft)
            (``"frame_length"``).
        wkwargs: more arguments of window_fn.
        center: put ``n_fft // 2`` samples at both ends, so that frame t is centred on sample
            ``t * hop_length``.
        pad_mode: ``"reflect"``, ``"constant"``, ``"replicate"`` or ``"circular"``.
        onesided: only the first ``n_fft // 2 + 1`` frequencies.
        return_complex: ignored, as in torchaudio.
        dtype: float32 or float64; torch's default type if None.

    Shape:
        ``forward(waveform)``: ``(..., time)`` to ``(..., n_freqs, frames)``;
        ``forward(waveform, lengths)``: ``(batch, time)`` and ``(batch,)`` to the features and the frame
        counts ``(batch,)``. An item of a padded batch gives what it gives alone, then zeros.

    Raises:
        ValueError: an option, shape or type that does not fit, with what was expected.

    >>> Spectrogram(n_fft=400, hop_length=160)(torch.randn(2, 16000)).shape
    torch.Size([2, 201, 101])
    """

    window: Tensor

    def __init__(
        self,
        n_fft: int = 400,
        win_length: int | None = None,
        hop_length: int | None = None,
        pad: int = 0,
        window_fn: Callable[..., Tensor] = torch.hann_window,
        power: float | None = 2.0,
        normalized: bool | str = False,
        wkwargs: dict[str, Any] | None = None,
        center: bool = True,
        pad_mode: str = "reflect",
        onesided: bool = True,
        return_complex: bool | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = _checked_dtype(dtype)
        F.check_at_least("n_fft", n_fft, 2)
        self.n_fft = n_fft
        self.win_length = n_fft if win_length is None else win_length
        F.check_at_least("win_length", self.win_length, 1)
        if self.win_length > n_fft:
            raise ValueError(f"expected win_length <= n_fft = {n_fft}, got {win_length}")
        self.hop_length = self.win_length // 2 if hop_length is None else hop_length
        F.check_at_least("hop_length", self.hop_length, 1)
        F.check_at_least("pad", pad, 0)
        F.check_choice("normalized", normalized, F.NORMALIZATIONS)
        F.check_choice("pad_mode", pad_mode, F.PAD_MODES)
        if power is not None and not power > 0:
            raise ValueError(f"expected power > 0, or None for the complex spectrum, got {power}")
        if return_complex is not None:
            warnings.warn("return_complex is ignored: power=None gives the complex spectrum", stacklevel=2)
        self.pad = pad
        self.power = power
        self.normalized = normalized
        self.center = center
        self.pad_mode = pad_mode
        self.onesided = onesided
        self.register_buffer("window", _make_window(window_fn, self.win_length, wkwargs or {}, dtype))

    @property
    def n_features(self) -> int:
        """Frequencies of the result: ``n_fft // 2 + 1``, or n_fft where not one-sided."""
        return self.n_fft // 2 + 1 if self.onesided else self.n_fft

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Spectrogram of a waveform; with lengths, also the frame counts."""
        # Neither torch.fft nor complex factors exist in the half-precision types of autocast.
        with torch.autocast(self.window.device.type, enabled=False):
            specgram = self._specgram(waveform, lengths)
        return specgram if lengths is None else (specgram, self.frame_counts(lengths))

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Number of frames of waveforms of given lengths (samples)."""
        return F.frame_counts(lengths, self.n_fft, self.hop_length, pad=self.pad, center=self.center)

    def _specgram(self, waveform: Tensor, lengths: Tensor | None) -> Tensor:
        return F.spectrogram(
            waveform,
            self.pad,
            self.window,
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.power,
            self.normalized,
            self.center,
            self.pad_mode,
            self.onesided,
            lengths=lengths,
        )

    def extra_repr(self) -> str:
        """Sizes, in samples, and the power."""
        return f"n_fft={self.n_fft}, win_length={self.win_length}, hop_length={self.hop_length}, power={self.power}"


class KSpectrogram(Spectrogram):
    """Learnable spectrogram: a K-matrix in the place of the Fourier transform.

    Positional arguments, defaults, shapes and the state_dict key ``window`` are those of
    `torchaudio.transforms.Spectrogram`, to which it is equal at the start (``init="fourier"``), gradients
    included. The K-matrix is the submodule ``transform``, complex, with its parameter in
    ``transform.weight``. After training it is no longer conjugate-symmetric; its first ``n_fft // 2 + 1``
    frequencies are used all the same.

    The waveform may be narrower than the module (float16 and bfloat16 are widened); it is never narrowed.
    The result has the module's type, also under autocast. Samples are not scanned: one that is not finite
    makes the frames that hold it not finite.

    Args:
        n_fft, win_length, hop_length, pad, window_fn, power, normalized, wkwargs, center, pad_mode, onesided,
            return_complex, dtype: as in `Spectrogram`.
        learnable: any of ``"transform"`` and ``"window"``. What is not learnable is a buffer (window) or a
            parameter that needs no gradient (transform).
        init: ``"fourier"`` (exact); ``"orthogonal"`` (a random unitary matrix times the DFT's gain,
            sqrt(n_fft) for a power of two, so that features start on the same scale); or a `KMatrix` of
            n_fft points with the frequencies in natural order, real or complex, which is copied.
        width: number of BB* products; those that the DFT does not need start as the identity.
        expansion: the K-matrix is a corner of one ``expansion`` times larger. A DFT whose n_fft is not a
            power of two needs 2 and gets it. The rest starts as copies of the transform that do not reach
            the outputs yet.

    Shape:
        as in `Spectrogram`.

    Raises:
        ValueError: an option, shape or type that does not fit, with what was expected.

    >>> fixed, learnable = Spectrogram(n_fft=512), KSpectrogram(n_fft=512)
    >>> waveform = torch.randn(16000)
    >>> torch.allclose(learnable(waveform), fixed(waveform), rtol=1e-3, atol=1e-2)
    True
    >>> [name for name, _ in learnable.named_parameters()]
    ['transform.weight']
    """

    rows: Tensor

    def __init__(
        self,
        n_fft: int = 400,
        win_length: int | None = None,
        hop_length: int | None = None,
        pad: int = 0,
        window_fn: Callable[..., Tensor] = torch.hann_window,
        power: float | None = 2.0,
        normalized: bool | str = False,
        wkwargs: dict[str, Any] | None = None,
        center: bool = True,
        pad_mode: str = "reflect",
        onesided: bool = True,
        return_complex: bool | None = None,
        *,
        learnable: Collection[str] = ("transform",),
        init: str | KMatrix = "fourier",
        width: int = 1,
        expansion: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
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
            onesided,
            return_complex,
            dtype=dtype,
        )
        self.learnable = _checked_learnable(learnable, ("transform", "window"))
        F.check_at_least("width", width, 1)
        F.check_at_least("expansion", expansion, 1)
        transform, order = _make_transform(n_fft, init, width, expansion, _COMPLEX[self.window.dtype])
        self.transform = transform
        self.transform.requires_grad_("transform" in self.learnable)
        self.register_buffer("rows", order[: self.n_features].clone(), persistent=False)
        if "window" in self.learnable:
            window = self.window
            del self.window
            self.window = nn.Parameter(window)

    @classmethod
    def from_torchaudio(cls, module: Any, **options: Any) -> KSpectrogram:
        """A `KSpectrogram` with the settings and the very window of a `torchaudio.transforms.Spectrogram`.

        Args:
            module: the torchaudio module; its type and device are kept.
            options: the keyword-only arguments of the constructor, except dtype.

        Raises:
            ValueError: another kind of module.
        """
        return cls(**_settings_of(module), **options).to(module.window.device)

    def _specgram(self, waveform: Tensor, lengths: Tensor | None) -> Tensor:
        return F.k_spectrogram(
            waveform,
            self.pad,
            self.window,
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.power,
            self.normalized,
            self.center,
            self.pad_mode,
            factors=self.transform.factors,
            rows=self.rows,
            lengths=lengths,
        )

    def extra_repr(self) -> str:
        """Sizes, in samples, the power, and what is learnable."""
        return f"{super().extra_repr()}, {_learnable_repr(self, self.learnable)}"


class Filterbank(nn.Module):
    """A learnable filterbank whose weights in use are never negative.

    `fb` is the parameter; what is used is `kaleido_audio.functional.nonnegative` of it: negative values
    count as zero, and the gradient lets a zero grow (a triangular filterbank is mostly zeros, which the
    gradient of relu would hold there). A step of an optimizer may leave values a little below zero in the
    parameter and so in ``state_dict()``, which a resumed training needs as they are; `weights` has zeros there,
    and is what to copy into a torchaudio module.

    Args:
        fb: filters as columns, ``(n_freqs, n_bands)``; not negative where learnable.
        learnable: parameter if True, else a buffer, used as it is.

    Shape:
        ``forward(specgram)``: ``(..., n_freqs, frames)`` to ``(..., n_bands, frames)``.

    Raises:
        ValueError: negative weights, or shapes that do not fit.

    >>> Filterbank(torch.ones(3, 2))(torch.ones(3, 5))[:, 0]
    tensor([3., 3.], grad_fn=<SelectBackward0>)
    """

    fb: Tensor

    def __init__(self, fb: Tensor, *, learnable: bool = True) -> None:
        super().__init__()
        if fb.ndim != 2:
            raise ValueError(f"expected fb of shape (n_freqs, n_bands), got {tuple(fb.shape)}")
        if learnable and bool((fb < 0).any()):
            raise ValueError(
                "a learnable filterbank has no negative weights, and this fb has some: use fb.clamp(min=0), "
                "or leave 'filterbank' out of learnable"
            )
        if learnable:
            self.fb = nn.Parameter(fb)
        else:
            self.register_buffer("fb", fb)

    @property
    def weights(self) -> Tensor:
        """The weights in use, ``(n_freqs, n_bands)``."""
        return F.nonnegative(self.fb) if isinstance(self.fb, nn.Parameter) else self.fb

    def forward(self, specgram: Tensor) -> Tensor:
        """Weighted sums of the frequencies."""
        return F.apply_filterbank(specgram, self.weights)

    def extra_repr(self) -> str:
        """Shape and whether it is learnable."""
        kind = "learnable" if isinstance(self.fb, nn.Parameter) else "fixed"
        return f"n_freqs={self.fb.shape[0]}, n_bands={self.fb.shape[1]}, {kind}"


class Compression(nn.Module):
    """Logarithm of ``x + eps``, with an eps that may be learnable, one per channel.

    Args:
        kind: ``"log"``, ``"log10"`` or ``"db"``.
        n_channels: channels of x.
        power: exponent of the magnitude in x, which scales decibels.
        eps: positive number below any level of interest.
        learnable: make ``log_eps``, ``(n_channels,)``, a parameter.
        dtype: of the parameter.

    Shape:
        ``forward(x)``: ``(..., n_channels, frames)`` to the same.

    Source: EfficientLEAF (Schlüter and Gutenbrunner, 2022) learns the same offset, as a in log(1 + a x).

    >>> Compression("log10", 1, eps=1.0)(torch.full((1, 1), 99.0))
    tensor([[2.]])
    """

    def __init__(
        self,
        kind: str,
        n_channels: int,
        *,
        power: float = 2.0,
        eps: float = 1e-6,
        learnable: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        F.check_choice("compression", kind, COMPRESSIONS[:3])
        if not eps > 0:
            raise ValueError(f"expected eps > 0, got {eps}")
        self.kind = kind
        self.power = power
        self.eps = eps
        self.log_eps = (
            nn.Parameter(torch.full((n_channels,), math.log(eps), dtype=_checked_dtype(dtype))) if learnable else None
        )

    @property
    def log_scale(self) -> float:
        """What the natural logarithm is multiplied by: 1 for ``"log"``, ``1 / log(10)`` for ``"log10"``, and so on."""
        decades = {"log": 1.0, "log10": 1.0 / math.log(10.0), "db": 20.0 / self.power / math.log(10.0)}
        return decades[self.kind]

    def forward(self, x: Tensor) -> Tensor:
        """Compress a spectrogram."""
        eps = self.eps if self.log_eps is None else self.log_eps.exp()
        if self.kind == "log":
            return F.log_compression(x, eps)
        if self.kind == "log10":
            return F.log10_compression(x, eps)
        return F.db_compression(x, self.power, eps)

    def extra_repr(self) -> str:
        """Kind, eps and whether it is learnable."""
        return f"{self.kind!r}, eps={self.eps}, {'fixed' if self.log_eps is None else 'learnable'}"


class PCEN(nn.Module):
    """Per-channel energy normalisation, see `kaleido_audio.functional.pcen`.

    Where learnable, every channel has its own gain, bias, power (stored as logarithms) and smoothing (stored
    as a logit), so that they stay in range.

    Args:
        n_channels: channels of x.
        sample_rate: of the audio, in Hz.
        hop_length: samples between frames.
        time_constant: of the smoothing, in seconds.
        gain, bias, power, eps: as in `kaleido_audio.functional.pcen`, as numbers.
        learnable: make the four of every channel parameters.
        dtype: of the parameters.

    Shape:
        ``forward(x)``: ``(..., n_channels, frames)`` to the same.

    Source: Wang et al., "Trainable frontend for robust and far-field keyword spotting", ICASSP 2017.

    >>> PCEN(40, 16000, 160)(torch.rand(2, 40, 100)).shape
    torch.Size([2, 40, 100])
    """

    log_gain: Tensor
    log_bias: Tensor
    log_power: Tensor
    logit_smoothing: Tensor

    def __init__(
        self,
        n_channels: int,
        sample_rate: int,
        hop_length: int,
        *,
        time_constant: float = 0.4,
        gain: float = 0.98,
        bias: float = 2.0,
        power: float = 0.5,
        eps: float = 1e-6,
        learnable: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("gain", gain), ("bias", bias), ("power", power), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"expected {name} > 0, got {value}")
        self.eps = eps
        self.learnable = learnable
        smoothing = F.pcen_smoothing(time_constant, sample_rate, hop_length)
        self.start = {"smoothing": smoothing, "gain": gain, "bias": bias, "power": power}
        if learnable:
            dtype = _checked_dtype(dtype)
            raw = {
                "logit_smoothing": math.log(smoothing / (1 - smoothing)),
                "log_gain": math.log(gain),
                "log_bias": math.log(bias),
                "log_power": math.log(power),
            }
            for name, value in raw.items():
                self.register_parameter(name, nn.Parameter(torch.full((n_channels,), value, dtype=dtype)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and compress a spectrogram."""
        if not self.learnable:
            return F.pcen(x, eps=self.eps, **self.start)
        return F.pcen(
            x,
            self.logit_smoothing.sigmoid(),
            gain=self.log_gain.exp(),
            bias=self.log_bias.exp(),
            power=self.log_power.exp(),
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Values at the start and whether they are learnable."""
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.start.items())
        return f"{values}, eps={self.eps}, {'learnable' if self.learnable else 'fixed'}"


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
        self, spectrogram: Spectrogram, mel_scale: Filterbank, compression: nn.Module | None, sample_rate: int
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
        with torch.autocast(self.mel_scale.fb.device.type, enabled=False):
            if lengths is None:
                return self._features(self.spectrogram(waveform))
            specgram, counts = self.spectrogram(waveform, lengths)
            # Masked again, because compression turns zeros into something else.
            return F.mask_frames(self._features(specgram), counts), counts

    def _features(self, specgram: Tensor) -> Tensor:
        features = self.mel_scale(specgram)
        return features if self.compression is None else self.compression(features)


class KMelSpectrogram(MelFrontEnd):
    """Learnable mel spectrogram: K-matrix, power, learnable filterbank and compression.

    Positional arguments, defaults, shapes and the state_dict keys ``spectrogram.window`` and
    ``mel_scale.fb`` are those of `torchaudio.transforms.MelSpectrogram`, to which it is equal at the start,
    gradients included. State dicts go both ways with ``strict=False``: only ``spectrogram.transform.weight``
    and the parameters of a learnable compression have no counterpart. (A filterbank in training may hold
    negative values, which count as zero here and not in torchaudio: give it ``mel_scale.weights``.) See
    `KSpectrogram` for the transform and the types, `Filterbank` for how weights stay non-negative and zeros
    still learn, and `Compression` and `PCEN`.

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
        learned = _checked_learnable(learnable, ("transform", "filterbank", "window", "compression"))
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
        if not all(hasattr(module, name) for name in parts) or not hasattr(module.mel_scale, "fb"):
            raise ValueError(f"expected a torchaudio.transforms.MelSpectrogram, got {type(module).__name__}")
        scale = module.mel_scale
        settings = _settings_of(module.spectrogram)
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
        if not isinstance(spectrogram, KSpectrogram) or spectrogram.power is None:
            return None
        log_scale, eps = None, 1e-6
        if compression is not None:
            if not isinstance(compression, Compression) or compression.log_eps is not None:
                return None
            log_scale, eps = compression.log_scale, compression.eps
        factors, fb = spectrogram.transform.factors, self.mel_scale.weights
        if not F.fuses_k_mel(waveform, spectrogram.window, factors, fb):
            return None
        with torch.autocast(waveform.device.type, enabled=False):
            return F.k_mel_spectrogram(
                waveform,
                spectrogram.pad,
                spectrogram.window,
                spectrogram.n_fft,
                spectrogram.hop_length,
                spectrogram.win_length,
                spectrogram.power,
                spectrogram.normalized,
                spectrogram.center,
                spectrogram.pad_mode,
                factors=factors,
                rows=spectrogram.rows,
                fb=fb,
                log_scale=log_scale,
                eps=eps,
                lengths=lengths,
            )

    def extra_repr(self) -> str:
        """Sample rate, what is learnable, and the number of learnable parameters."""
        return f"sample_rate={self.sample_rate}, {_learnable_repr(self, self.learnable)}"


def mel_parts(
    spectrogram: Spectrogram,
    sample_rate: int,
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
    F.check_at_least("sample_rate", sample_rate, 1)
    dtype = spectrogram.window.dtype
    fb = F.mel_filterbank(
        spectrogram.n_features,
        f_min,
        float(sample_rate // 2) if f_max is None else f_max,
        n_mels,
        sample_rate,
        norm,
        mel_scale,
        dtype=dtype,
    )
    filterbank = Filterbank(fb, learnable="filterbank" in learnable)
    learned = "compression" in learnable
    if compression is None:
        return filterbank, None
    if compression == "pcen":
        pcen = PCEN(n_mels, sample_rate, spectrogram.hop_length, eps=eps, learnable=learned, dtype=dtype)
        return filterbank, pcen
    power = spectrogram.power
    return filterbank, Compression(compression, n_mels, power=power, eps=eps, learnable=learned, dtype=dtype)


def _make_window(
    window_fn: Callable[..., Tensor], win_length: int, wkwargs: dict[str, Any], dtype: torch.dtype
) -> Tensor:
    # Made in its final type where the function can: a float32 window is exact to 1e-8 only.
    try:
        takes_dtype = "dtype" in inspect.signature(window_fn).parameters
    except ValueError:  # torch's own window functions are builtins without a signature
        takes_dtype = True
    options = {"dtype": dtype, **wkwargs} if takes_dtype else wkwargs
    window = window_fn(win_length, **options)
    if window.shape != (win_length,):
        raise ValueError(f"expected window_fn to return ({win_length},) samples, got {tuple(window.shape)}")
    return window.detach().to(dtype)


def _make_transform(
    n_fft: int, init: str | KMatrix, width: int, expansion: int, dtype: torch.dtype
) -> tuple[KMatrix, Tensor]:
    """The K-matrix, and the outputs in which it has the frequencies 0, 1, ...."""
    natural = torch.arange(n_fft)
    if isinstance(init, KMatrix):
        if init.in_features != n_fft:
            raise ValueError(f"expected init of n_fft = {n_fft} points, got a KMatrix of {init.in_features}")
        kind = dtype if init.is_complex else dtype.to_real()
        return _expanded(init, max(width, init.width), max(expansion, init.expansion), kind), natural
    if init == "orthogonal":
        transform = KMatrix(n_fft, width=width, expansion=expansion, dtype=dtype, init="orthogonal")
        stages = 2 * width * (transform.size.bit_length() - 1)
        with torch.no_grad():
            transform.weight.mul_(n_fft ** (0.5 / stages))
        return transform, natural
    if init == "fourier":
        power_of_two = n_fft & (n_fft - 1) == 0
        fourier = exact.dft(n_fft, bit_reversed=power_of_two, dtype=dtype)
        order = exact.bit_reversal(n_fft) if power_of_two else natural
        return _expanded(fourier, width, max(expansion, fourier.expansion), dtype), order
    raise ValueError(f"expected init to be 'fourier', 'orthogonal' or a KMatrix, got {init!r}")


def _expanded(source: KMatrix, width: int, expansion: int, dtype: torch.dtype) -> KMatrix:
    """The same map as a K-matrix of greater width and expansion.

    The first product sends copies of the input to the new places, and each copy then goes through the same
    map. Were the new places left at zero, the coefficients that join them to the outputs would have no
    gradient.
    """
    n, size = source.in_features, padded_size(source.in_features, expansion)
    given = source.factors.detach().to(dtype)
    new_stages = size.bit_length() - source.size.bit_length()
    if new_stages:
        factors = identity_factors(given.shape[0], size, dtype).to(given.device)
        tiled = given.repeat(1, 1, 1, size // source.size)
        factors[0::2, new_stages:] = tiled[0::2]  # B*: the new strides come first
        factors[1::2, : tiled.shape[1]] = tiled[1::2]  # B: and here last
        for stage in range(new_stages):
            copies = factors[0, stage, 1].view(-1, 2, size >> (stage + 1))
            copies[:, 1] = 1
        source = KMatrix.from_factors(n, factors, expansion=expansion)
    return KMatrix(n, width=width, expansion=expansion, dtype=dtype, init=source)


def _settings_of(module: Any) -> dict[str, Any]:
    """Constructor arguments of `KSpectrogram` that a torchaudio Spectrogram has."""
    names = (
        "n_fft",
        "win_length",
        "hop_length",
        "pad",
        "power",
        "normalized",
        "center",
        "pad_mode",
        "onesided",
    )
    window = getattr(module, "window", None)
    if not isinstance(window, Tensor) or not all(hasattr(module, name) for name in names):
        raise ValueError(f"expected a torchaudio.transforms.Spectrogram, got {type(module).__name__}")

    def window_fn(win_length: int) -> Tensor:
        return window.detach().cpu().clone()

    settings = {name: getattr(module, name) for name in names}
    return {**settings, "window_fn": window_fn, "dtype": window.dtype}


def _checked_dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _FLOAT:
        raise ValueError(f"expected dtype torch.float32 or torch.float64, got {dtype}")
    return dtype


def _checked_learnable(learnable: Collection[str], choices: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(learnable, str):
        raise ValueError(f"expected learnable as a collection, ({learnable!r},), got the string {learnable!r}")
    unknown = [name for name in learnable if name not in choices]
    if unknown:
        raise ValueError(f"expected learnable to hold any of {choices}, got {unknown}")
    return tuple(name for name in choices if name in learnable)


def _learnable_repr(module: nn.Module, learnable: tuple[str, ...]) -> str:
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return f"learnable={learnable}, learnable parameters={count}"
