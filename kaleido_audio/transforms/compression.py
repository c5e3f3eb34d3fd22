"""Compressions of a spectrogram, fixed or learnable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kaleido_audio import functional as F
from kaleido_audio.transforms.options import checked_dtype

COMPRESSIONS = ("log", "log10", "db", "pcen")
KALDI_FLOOR = torch.finfo(torch.float32).eps
"""Least power of which Kaldi takes a logarithm, whatever precision it computes in."""


def _log_scale(kind: str, power: float) -> float:
    return {"log": 1.0, "log10": 1.0 / math.log(10.0), "db": 20.0 / power / math.log(10.0)}[kind]


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
            nn.Parameter(torch.full((n_channels,), math.log(eps), dtype=checked_dtype(dtype))) if learnable else None
        )

    @property
    def log_scale(self) -> float:
        """What the natural logarithm is multiplied by: 1 for ``"log"``, ``1 / log(10)`` for ``"log10"``, and so on."""
        return _log_scale(self.kind, self.power)

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


class FlooredLogarithm(nn.Module):
    """Logarithm of the greater of x and a floor.

    Below the floor the gradient is zero, where `Compression`, with its offset, lets every band learn. Many pipelines
    have a floor: put one into the front end that is to equal them, ``front_end.compression = FlooredLogarithm(...)``.

    Args:
        kind: ``"log"``, ``"log10"`` or ``"db"``.
        floor: positive number. By default that of Kaldi, 1.2e-7, in float64 too: `KALDI_FLOOR`.
        power: exponent of the magnitude in x, which scales decibels.

    Shape:
        ``forward(x)``: any shape to the same.

    Source: Kaldi, ``feat/feature-fbank.cc``; torchaudio and librosa have decibels with a floor (amin).

    >>> FlooredLogarithm()(torch.tensor([0.0, 1.0]))
    tensor([-15.9424,   0.0000])
    >>> FlooredLogarithm("db", floor=1e-10)(torch.tensor([0.0, 100.0]))
    tensor([-100.,   20.])
    """

    def __init__(self, kind: str = "log", *, floor: float = KALDI_FLOOR, power: float = 2.0) -> None:
        super().__init__()
        F.check_choice("kind", kind, COMPRESSIONS[:3])
        for name, value in (("floor", floor), ("power", power)):
            if not value > 0:
                raise ValueError(f"expected {name} > 0, got {value}")
        self.kind = kind
        self.floor = floor
        self.power = power

    @property
    def log_scale(self) -> float:
        """As of `Compression`."""
        return _log_scale(self.kind, self.power)

    def forward(self, x: Tensor) -> Tensor:
        """Compress a spectrogram."""
        x = x.clamp(min=self.floor)
        if self.kind == "log":
            return x.log()
        return x.log10() if self.kind == "log10" else (20.0 / self.power) * x.log10()

    def extra_repr(self) -> str:
        """Kind and floor."""
        return f"{self.kind!r}, floor={self.floor:.4g}"


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
            dtype = checked_dtype(dtype)
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
        return F.pcen(x, eps=self.eps, **self._values())

    def stream(self) -> Callable[[Tensor], Tensor]:
        """A function of a spectrogram's frames in pieces, one after another: it remembers their smoothed energy.

        No gradient goes from a piece to those before it.
        """
        level: Tensor | None = None

        def compress(x: Tensor) -> Tensor:
            nonlocal level
            values = self._values()
            levels = F.pcen_level(x, values.pop("smoothing"), initial=level)
            level = levels[..., -1].detach()
            return F.pcen_of_level(x, levels, eps=self.eps, **values)

        return compress

    def _values(self) -> dict[str, Any]:
        if not self.learnable:
            return dict(self.start)
        return {
            "smoothing": self.logit_smoothing.sigmoid(),
            "gain": self.log_gain.exp(),
            "bias": self.log_bias.exp(),
            "power": self.log_power.exp(),
        }

    def extra_repr(self) -> str:
        """Values at the start and whether they are learnable."""
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.start.items())
        return f"{values}, eps={self.eps}, {'learnable' if self.learnable else 'fixed'}"
