"""Spectrograms: torchaudio's, fixed, and its learnable copy."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from kaleido_audio import exact, ops
from kaleido_audio import functional as F
from kaleido_audio.factors import identity_factors
from kaleido_audio.functional.spectrograms import padded_and_window
from kaleido_audio.kmatrix import KMatrix, padded_size
from kaleido_audio.ops import no_autocast
from kaleido_audio.tables import ModuleWithTables
from kaleido_audio.transforms.dense import DenseTransform
from kaleido_audio.transforms.options import checked_dtype, checked_learnable, learnable_repr
from kaleido_audio.transforms.streaming import Framing, Stream

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


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
        dtype = checked_dtype(dtype)
        self.n_fft = F.check_at_least("n_fft", n_fft, 2)
        self.win_length = F.check_at_least("win_length", self.n_fft if win_length is None else win_length, 1)
        if self.win_length > n_fft:
            raise ValueError(f"expected win_length <= n_fft = {n_fft}, got {win_length}")
        hop_length = self.win_length // 2 if hop_length is None else hop_length
        self.hop_length = F.check_at_least("hop_length", hop_length, 1)
        self.pad = F.check_at_least("pad", pad, 0)
        F.check_choice("normalized", normalized, F.NORMALIZATIONS)
        F.check_choice("pad_mode", pad_mode, F.PAD_MODES)
        if power is not None and not power > 0:
            raise ValueError(f"expected power > 0, or None for the complex spectrum, got {power}")
        if return_complex is not None:
            warnings.warn("return_complex is ignored: power=None gives the complex spectrum", stacklevel=2)
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
        with no_autocast(self.window):
            specgram = self._specgram(waveform, lengths, self.pad, self.center)
        return specgram if lengths is None else (specgram, self.frame_counts(lengths))

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Number of frames of waveforms of given lengths (samples)."""
        return F.frame_counts(lengths, self.n_fft, self.hop_length, pad=self.pad, center=self.center)

    def learn_window(self) -> None:
        """Make the window a parameter."""
        window = self.window
        del self.window
        self.window = nn.Parameter(window)

    def stream(self) -> Stream:
        """The spectrogram of a signal that comes in pieces, see `Stream`.

        Raises:
            ValueError: pad_mode is ``"circular"``, which begins with the end of the signal.
        """
        dtype = self.window.dtype if self.power is not None else self.window.dtype.to_complex()
        return Stream(self.framing(), self.of_padded, self, n_features=self.n_features, dtype=dtype)

    def framing(self) -> Framing:
        """Where the frames of a signal lie, for a `Stream`."""
        margin = self.n_fft // 2 if self.center else 0
        if margin and self.pad_mode == "circular":
            raise ValueError(
                "pad_mode='circular' begins with the end of the signal, which a stream does not know: choose another "
                "pad_mode, or center=False"
            )

        def count(samples: int) -> int:
            return int(self.frame_counts(torch.tensor(samples)))

        return Framing(self.n_fft, self.hop_length, self.pad, margin, self.pad_mode, 0, count)

    def of_padded(self, stretch: Tensor) -> Tensor:
        """Spectrogram of samples that begin and end with a frame: nothing is put at their ends."""
        with no_autocast(self.window):
            return self._specgram(stretch, None, 0, False)

    def _specgram(self, waveform: Tensor, lengths: Tensor | None, pad: int, center: bool) -> Tensor:
        options = self.frame_options(lengths, pad, center)
        return F.spectrogram(waveform, power=self.power, onesided=self.onesided, **options)

    def frame_options(self, lengths: Tensor | None, pad: int, center: bool) -> dict[str, Any]:
        """How `kaleido_audio.functional` is to cut and window frames."""
        return {
            "pad": pad,
            "window": self.window,
            "n_fft": self.n_fft,
            "hop_length": self.hop_length,
            "win_length": self.win_length,
            "normalized": self.normalized,
            "center": center,
            "pad_mode": self.pad_mode,
            "lengths": lengths,
        }

    def _windowed_frames(self, waveform: Tensor, lengths: Tensor | None, pad: int, center: bool) -> Tensor:
        """Frames ``(..., frames, n_fft)`` times the window."""
        padded, window = padded_and_window(waveform, **self.frame_options(lengths, pad, center))
        return padded.unfold(-1, self.n_fft, self.hop_length) * window

    def _of_parts(self, real: Tensor, imaginary: Tensor, lengths: Tensor | None) -> Tensor:
        """The result ``(..., n_freqs, frames)`` for a spectrum ``(..., frames, n_freqs)``."""
        if self.power is None:
            result = torch.complex(real, imaginary)
        else:
            result = F.magnitude_power(real, imaginary, self.power)
        result = result.transpose(-1, -2)
        return result if lengths is None else F.mask_frames(result, self.frame_counts(lengths))

    def extra_repr(self) -> str:
        """Sizes, in samples, and the power."""
        return f"n_fft={self.n_fft}, win_length={self.win_length}, hop_length={self.hop_length}, power={self.power}"


class KSpectrogram(ModuleWithTables, Spectrogram):
    """Learnable spectrogram: a K-matrix in the place of the Fourier transform.

    Positional arguments, defaults, shapes and the state_dict key ``window`` are those of
    `torchaudio.transforms.Spectrogram`, to which it is equal at the start (``init="fourier"``), gradients
    included. The K-matrix is the submodule ``transform``, complex, with its parameter in
    ``transform.weight``. After training it is no longer conjugate-symmetric; its first ``n_fft // 2 + 1``
    frequencies are used all the same.

    The waveform may be narrower than the module (float16 and bfloat16 are widened); it is never narrowed.
    The result has the module's type, also under autocast. Samples are not scanned: one that is not finite
    makes the frames that hold it not finite.

    The transform's coefficients are read, and it is not called: hooks of it, such as those of
    `torch.nn.utils.prune`, do not run. `torch.nn.utils.parametrize` works.

    Args:
        n_fft, win_length, hop_length, pad, window_fn, power, normalized, wkwargs, center, pad_mode, onesided,
            return_complex, dtype: as in `Spectrogram`.
        learnable: any of ``"transform"`` and ``"window"``. What is not learnable is a buffer (window) or a
            parameter that needs no gradient (transform).
        init: ``"fourier"`` (exact); ``"orthogonal"`` (a random unitary matrix times the DFT's gain,
            sqrt(n_fft) for a power of two, so that features start on the same scale); or a `KMatrix` of
            n_fft points with the frequencies in natural order, real or complex, which is copied; one with a
            constraint, or tied, keeps it in training.
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

    transform: KMatrix | DenseTransform
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
        self.learnable = checked_learnable(learnable, ("transform", "window"))
        width, expansion = F.check_at_least("width", width, 1), F.check_at_least("expansion", expansion, 1)
        transform, order = _make_transform(self.n_fft, init, width, expansion, _COMPLEX[self.window.dtype])
        self.transform = transform.requires_grad_("transform" in self.learnable)
        # With the weights, because a state_dict may come from a module that began otherwise.
        self.register_indices("rows", order[: self.n_features], self.transform.size)
        if "window" in self.learnable:
            self.learn_window()

    @classmethod
    def from_torchaudio(cls, module: Any, **options: Any) -> KSpectrogram:
        """A `KSpectrogram` with the settings and the very window of a `torchaudio.transforms.Spectrogram`.

        Args:
            module: the torchaudio module; its type and device are kept.
            options: the keyword-only arguments of the constructor, except dtype.

        Raises:
            ValueError: another kind of module.
        """
        return cls(**settings_of(module), **options).to(module.window.device)

    def dense_form(self) -> KSpectrogram:
        """A copy with the K-matrix as a real dense matrix, see `kaleido_audio.nn.to_dense`."""
        result = copy.deepcopy(self)
        if isinstance(self.transform, KMatrix):
            matrix = ops.to_dense(self.transform.factors, in_features=self._transform_inputs)[self.indices("rows")]
            learned = any(parameter.requires_grad for parameter in self.transform.parameters())
            result.transform = DenseTransform(matrix).requires_grad_(learned).train(self.training)
            del result.rows
            result._index_names = ()
        return result

    @property
    def _transform_inputs(self) -> int:
        """Samples of a windowed frame."""
        return self.n_fft

    def _specgram(self, waveform: Tensor, lengths: Tensor | None, pad: int, center: bool) -> Tensor:
        if isinstance(self.transform, DenseTransform):
            real, imaginary = self.transform(self._windowed_frames(waveform, lengths, pad, center))
            return self._of_parts(real, imaginary, lengths)
        options = self.frame_options(lengths, pad, center)
        factors = self.transform.factors
        rows = self.indices("rows")
        return F.k_spectrogram(waveform, power=self.power, factors=factors, rows=rows, **options)

    def extra_repr(self) -> str:
        """Sizes, in samples, the power, and what is learnable."""
        return f"{super().extra_repr()}, {learnable_repr(self, self.learnable)}"


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
    return window.detach().to(dtype, copy=True)


def _make_transform(
    n_fft: int, init: str | KMatrix, width: int, expansion: int, dtype: torch.dtype
) -> tuple[KMatrix, Tensor]:
    """The K-matrix, and the outputs in which it has the frequencies 0, 1, ...."""
    natural = torch.arange(n_fft)
    if isinstance(init, KMatrix):
        if (init.in_features, init.out_features) != (n_fft, n_fft):
            raise ValueError(
                f"expected init of n_fft = {n_fft} points, got a KMatrix from {init.in_features} to {init.out_features}"
            )
        kind = dtype if init.is_complex else dtype.to_real()
        if init.constraint is not None or init.tied:
            if width > init.width or expansion > init.expansion or init.factors.dtype != kind:
                raise ValueError(
                    f"a K-matrix with constraint={init.constraint!r} and tied={init.tied} is taken as it is (width "
                    f"{init.width}, expansion {init.expansion}, {init.factors.dtype}): width = {width}, expansion = "
                    f"{expansion} and {kind} do not fit"
                )
            return copy.deepcopy(init), natural
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


def check_forward(module: Any) -> None:
    """Raise the ValueError of a subclass of a torchaudio module that does something else."""
    if not type(module).forward.__module__.startswith("torchaudio."):
        raise ValueError(
            f"{type(module).__name__} has a forward() of its own, which would be left out: give the torchaudio module "
            "that it is made of"
        )


def settings_of(module: Any) -> dict[str, Any]:
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
    check_forward(module)

    def window_fn(win_length: int) -> Tensor:
        return window.detach().cpu().clone()

    settings = {name: getattr(module, name) for name in names}
    return {**settings, "window_fn": window_fn, "dtype": window.dtype}
