"""Spectrograms by other learnable linear maps than K-matrices, and by none: what K-matrices are compared with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from kaleido_audio import functional as F
from kaleido_audio.kmatrix import KMatrix
from kaleido_audio.nn import (
    CirculantLinear,
    DenseLinear,
    KroneckerLinear,
    LowRankLinear,
    MonarchLinear,
    SparseLinear,
    ToeplitzLinear,
    match_parameters,
)
from kaleido_audio.transforms import Filterbank, MelFrontEnd, Spectrogram, mel_parts
from kaleido_audio.transforms.options import checked_learnable, learnable_repr

_LAYERS: dict[str, type[nn.Module]] = {
    "dense": DenseLinear,
    "low_rank": LowRankLinear,
    "sparse": SparseLinear,
    "circulant": CirculantLinear,
    "toeplitz": ToeplitzLinear,
    "monarch": MonarchLinear,
    "kronecker": KroneckerLinear,
}
TRANSFORMS = (*_LAYERS, "identity")
INITS = ("random", "fourier")


class LinearSpectrogram(Spectrogram):
    """Learnable spectrogram: any linear map in the place of the Fourier transform, or none.

    The map is complex and its input real: two real layers without bias, the submodules ``real`` and ``imaginary``,
    both square, ``n_fft`` by ``n_fft``. The first ``n_fft // 2 + 1`` outputs are used, as of a
    `kaleido_audio.transforms.KSpectrogram`. Parameters are those of the whole maps, which is how the Kaleidoscope
    paper and `KSpectrogram` count them; those that reach only the other outputs, about half of a dense or a sparse
    map, have a gradient of zero.

    ``"identity"`` has no map and no layers: its outputs are the windowed samples, and all ``n_fft`` of them are used,
    since half of them would be half a frame.

    Every random start, and the identity, has the gain of the DFT, sqrt(n_fft), so that white noise gives the power
    that it has in a `Spectrogram`. As in `KSpectrogram`, the gain is in the parameters, in equal shares where a layer
    is a product.

    Types are treated as in `KSpectrogram`: the waveform may be narrower than the module, and is never narrowed; the
    result has the module's type, also under autocast.

    Args:
        n_fft, win_length, hop_length, pad, window_fn, power, normalized, wkwargs, center, pad_mode, onesided,
            return_complex, dtype: as in `kaleido_audio.transforms.Spectrogram`.
        transform: ``"dense"``, ``"low_rank"``, ``"sparse"``, ``"circulant"``, ``"toeplitz"``, ``"monarch"``,
            ``"kronecker"`` (the layers of `kaleido_audio.nn`) or ``"identity"``.
        learnable: any of ``"transform"`` and ``"window"``. What is not learnable is a buffer (window) or a parameter
            that needs no gradient (transform). An identity has nothing to learn in its transform.
        init: ``"random"``; or, for ``"dense"``, ``"fourier"``: exactly the DFT, equal to `Spectrogram` at the start.
        parameters: real numbers that both layers together come closest to; by default as many as those of the complex
            K-matrix (BB*)^1_1 of n_fft points, 36,864 at 512. Only low rank, sparse, Monarch and Kronecker have a
            choice; the others ignore it.

    Shape:
        as in `Spectrogram`; ``n_freqs`` is ``n_fft`` for the identity.

    Raises:
        ValueError: an option, shape or type that does not fit, with what was expected.

    Source: Dao et al., ICLR 2020, section 4.1: the table of maps in the place of the Fourier transform.

    >>> fixed, dense = Spectrogram(n_fft=512), LinearSpectrogram(n_fft=512, init="fourier")
    >>> waveform = torch.randn(16000)
    >>> torch.allclose(dense(waveform), fixed(waveform), rtol=1e-3, atol=1e-2)
    True
    >>> LinearSpectrogram(n_fft=512, transform="low_rank").real
    LowRankLinear(in_features=512, out_features=512, bias=False, rank=18)
    """

    real: nn.Module | None
    imaginary: nn.Module | None

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
        transform: str = "dense",
        learnable: Collection[str] = ("transform",),
        init: str = "random",
        parameters: int | None = None,
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
        F.check_choice("transform", transform, TRANSFORMS)
        F.check_choice("init", init, INITS)
        if init == "fourier" and transform != "dense":
            raise ValueError(f"expected transform='dense' with init='fourier', got {transform!r}: use init='random'")
        if parameters is not None:
            F.check_at_least("parameters", parameters, 1)
        self.transform = transform
        self.learnable = _checked_learnable(learnable, ("transform", "window"), transform)
        layers = _make_layers(transform, n_fft, init, parameters, self.window.dtype)
        self.real, self.imaginary = layers or (None, None)
        for layer in layers:
            layer.requires_grad_("transform" in self.learnable)
        if "window" in self.learnable:
            self.learn_window()

    @property
    def n_features(self) -> int:
        """Outputs in use: ``n_fft // 2 + 1``, or n_fft where not one-sided and for the identity."""
        return self.n_fft // 2 + 1 if self.onesided and self.transform != "identity" else self.n_fft

    def _specgram(self, waveform: Tensor, lengths: Tensor | None, pad: int, center: bool) -> Tensor:
        frames = self._windowed_frames(waveform, lengths, pad, center)
        if self.real is None or self.imaginary is None:
            real = math.sqrt(self.n_fft) * frames
            return self._of_parts(real, torch.zeros_like(real), lengths)
        real, imaginary = (_outputs(layer, frames, self.n_features) for layer in (self.real, self.imaginary))
        return self._of_parts(real, imaginary, lengths)

    def extra_repr(self) -> str:
        """Sizes, in samples, the power, the kind of map, and what is learnable."""
        return f"{super().extra_repr()}, transform={self.transform!r}, {learnable_repr(self, self.learnable)}"


class LinearMel(MelFrontEnd):
    """Log-mel pipeline with any learnable linear map in the place of the Fourier transform, or none.

    Call convention, arguments, defaults and the state_dict keys ``spectrogram.window`` and ``mel_scale.fb`` are those
    of `kaleido_audio.frontends.MFSC`, to which ``LinearMel(transform="dense", init="fourier")`` is equal at the start,
    gradients included. See `LinearSpectrogram` for the map and the types and `kaleido_audio.transforms.Filterbank`
    for the filterbank.

    The filterbank starts as the mel filterbank over the outputs in order, although only those of a Fourier transform
    are frequencies. The outputs of the identity are points in time: there it starts as ``n_mels`` triangles equally
    spaced over the window, which see every sample of it, and is ``(n_fft, n_mels)``; f_min, f_max, norm and mel_scale
    have no meaning then and are ignored.

    Args:
        sample_rate, n_fft, win_length, hop_length, f_min, f_max, pad, n_mels, window_fn, power, normalized, wkwargs,
            center, pad_mode, norm, mel_scale: as in `kaleido_audio.frontends.MFSC`.
        transform: as in `LinearSpectrogram`.
        learnable: any of ``"transform"``, ``"filterbank"``, ``"window"`` and ``"compression"``; ``()`` for none.
        compression, eps: as in `kaleido_audio.transforms.KMelSpectrogram`.
        init, parameters, dtype: as in `LinearSpectrogram`.

    Shape:
        ``forward(waveform)``: ``(..., time)`` to ``(..., n_mels, frames)``;
        ``forward(waveform, lengths)``: ``(batch, time)`` and ``(batch,)`` to the features and the frame
        counts ``(batch,)``. An item of a padded batch gives what it gives alone, then zeros.

    Raises:
        ValueError: an option, shape or type that does not fit, with what was expected.

    Source: Dao et al., ICLR 2020, section 4.1: the table of maps in the place of the Fourier transform.

    >>> front_end = LinearMel(transform="circulant")
    >>> features, counts = front_end(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> features.shape, counts
    (torch.Size([2, 40, 101]), tensor([101,  51]))
    >>> {name: tuple(p.shape) for name, p in front_end.named_parameters()}
    {'spectrogram.real.column': (512,), 'spectrogram.imaginary.column': (512,), 'mel_scale.fb': (257, 40)}
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int | None = None,
        win_length: int | None = None,
        hop_length: int | None = None,
        f_min: float = 20.0,
        f_max: float | None = None,
        pad: int = 0,
        n_mels: int = 40,
        window_fn: Callable[..., Tensor] = torch.hamming_window,
        power: float = 2.0,
        normalized: bool | str = False,
        wkwargs: dict[str, Any] | None = None,
        center: bool = True,
        pad_mode: str = "reflect",
        *,
        transform: str = "dense",
        norm: str | None = None,
        mel_scale: str = "htk",
        learnable: Collection[str] = ("transform", "filterbank"),
        compression: str | None = "log",
        eps: float = 1e-6,
        init: str = "random",
        parameters: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        learned = _checked_learnable(learnable, ("transform", "filterbank", "window", "compression"), transform)
        win_length = round(0.025 * sample_rate) if win_length is None else win_length
        spectrogram = LinearSpectrogram(
            1 << (win_length - 1).bit_length() if n_fft is None else n_fft,
            win_length,
            round(0.010 * sample_rate) if hop_length is None else hop_length,
            pad,
            window_fn,
            power,
            normalized,
            wkwargs,
            center,
            pad_mode,
            transform=transform,
            learnable=[name for name in learned if name in ("transform", "window")],
            init=init,
            parameters=parameters,
            dtype=dtype,
        )
        with warnings.catch_warnings():
            if transform == "identity":  # whose mel filterbank, empty filters or not, is replaced
                warnings.simplefilter("ignore")
            filterbank, compressor = mel_parts(
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
        if transform == "identity":
            fb = _triangles_in_time(spectrogram.n_fft, win_length, n_mels, spectrogram.window.dtype)
            filterbank = Filterbank(fb, learnable="filterbank" in learned)
        super().__init__(spectrogram, filterbank, compressor, sample_rate)
        self.learnable = learned

    def extra_repr(self) -> str:
        """Sample rate, what is learnable, and the number of learnable parameters."""
        return f"sample_rate={self.sample_rate}, {learnable_repr(self, self.learnable)}"


def _make_layers(
    transform: str, n_fft: int, init: str, parameters: int | None, dtype: torch.dtype
) -> tuple[nn.Module, ...]:
    """Real and imaginary part of the map, with the DFT's gain; nothing for the identity."""
    if transform == "identity":
        return ()
    kind = _LAYERS[transform]
    if parameters is None:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in KMatrix(n_fft, dtype=torch.complex64).parameters())
    options = match_parameters(kind, n_fft, n_fft, max(1, parameters // 2))
    layers = tuple(kind(n_fft, n_fft, bias=False, dtype=dtype, **options) for _ in range(2))
    with torch.no_grad():
        if init == "fourier":
            matrix = torch.fft.fft(torch.eye(n_fft, dtype=torch.complex128))
            for layer, part in zip(layers, (matrix.real, matrix.imag), strict=True):
                layer.get_parameter("weight").copy_(part)
            return layers
        # The powers of the two parts add up to that of the DFT.
        gain = math.sqrt(n_fft / 2)
        for layer in layers:
            factors = list(layer.parameters())
            for factor in factors:
                factor.mul_(gain ** (1 / len(factors)))
    return layers


def _outputs(layer: nn.Module, frames: Tensor, count: int) -> Tensor:
    """The first outputs of a layer."""
    if isinstance(layer, nn.Linear | DenseLinear | SparseLinear):  # which need not compute the others
        return nn.functional.linear(frames, layer.weight[:count])
    return layer(frames)[..., :count]


def _triangles_in_time(n_fft: int, win_length: int, count: int, dtype: torch.dtype) -> Tensor:
    """Triangles equally spaced over a window in the middle of n_fft samples, as columns; none without a sample."""
    centres = torch.linspace(-1, win_length, count + 2, dtype=dtype)[1:-1]
    half_width = max(1.0, (win_length + 1) / (count + 1))
    distances = (torch.arange(win_length, dtype=dtype).unsqueeze(1) - centres).abs()
    left = (n_fft - win_length) // 2
    return nn.functional.pad((1 - distances / half_width).clamp(min=0), (0, 0, left, n_fft - win_length - left))


def _checked_learnable(learnable: Collection[str], choices: tuple[str, ...], transform: str) -> tuple[str, ...]:
    """The names in order, without the transform of an identity."""
    names = checked_learnable(learnable, choices)
    return tuple(name for name in names if (name, transform) != ("transform", "identity"))
