"""The rows of the comparison: every front end by name, at a given configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kaleido_audio.frontends import MFSC, LinearMel, SincNet
from kaleido_audio.transforms import KMelSpectrogram
from recipes.timit.config import Config


@dataclass(frozen=True)
class FrontendSpec:
    """One row.

    Attributes:
        title: name in tables and figures.
        build: from a configuration, the sample rate and the corpus's bandwidth (both Hz) to the module.
        lr_multiplier: learning rate of its parameters relative to the recognizer's.
    """

    title: str
    build: Callable[[Config, int, float], nn.Module]
    lr_multiplier: float = 1.0


def _mel_arguments(config: Config, sample_rate: int, bandwidth: float) -> dict[str, Any]:
    return {
        "sample_rate": sample_rate,
        "n_fft": config.n_fft,
        "win_length": config.win_length,
        "hop_length": config.hop_length,
        "f_min": config.f_min,
        "f_max": bandwidth if config.f_max is None else config.f_max,
        "n_mels": config.n_mels,
        "window_fn": torch.hamming_window,
        "compression": "log",
    }


def _mfsc(config: Config, sample_rate: int, bandwidth: float) -> nn.Module:
    return MFSC(**_mel_arguments(config, sample_rate, bandwidth))


def _kaleidoscope(**options: Any) -> Callable[[Config, int, float], nn.Module]:
    def build(config: Config, sample_rate: int, bandwidth: float) -> nn.Module:
        return KMelSpectrogram(**_mel_arguments(config, sample_rate, bandwidth), **options)

    return build


def _linear(transform: str, **options: Any) -> Callable[[Config, int, float], nn.Module]:
    def build(config: Config, sample_rate: int, bandwidth: float) -> nn.Module:
        return LinearMel(**_mel_arguments(config, sample_rate, bandwidth), transform=transform, **options)

    return build


def _sincnet(context: str) -> Callable[[Config, int, float], nn.Module]:
    def build(config: Config, sample_rate: int, bandwidth: float) -> nn.Module:
        # 7900 Hz at TIMIT's bandwidth, as published: the last filter's edge lies 100 Hz above the last point.
        return SincNet(
            sample_rate=sample_rate,
            hop_length=config.hop_length,
            context=context,
            n_filters=(config.sinc_filters, *[config.sinc_channels] * 3),
            f_max=bandwidth - 100.0,
        )

    return build


FRONTENDS: dict[str, FrontendSpec] = {
    "mfsc": FrontendSpec("MFSC", _mfsc),
    "sincnet": FrontendSpec("SincNet (shared convolutions)", _sincnet("utterance")),
    "sincnet-window": FrontendSpec("SincNet (200 ms windows)", _sincnet("window")),
    "kaleidoscope": FrontendSpec("Kaleidoscope", _kaleidoscope(), lr_multiplier=0.1),
    "kaleidoscope-filterbank": FrontendSpec(
        # With the Fourier transform held fixed this is the paper's row "FFT".
        "FFT: Kaleidoscope, only the filterbank learned",
        _kaleidoscope(learnable=("filterbank",)),
        lr_multiplier=0.1,
    ),
    "kaleidoscope-transform": FrontendSpec(
        "Kaleidoscope, only the transform learned", _kaleidoscope(learnable=("transform",)), lr_multiplier=0.1
    ),
    "kaleidoscope-random": FrontendSpec("Kaleidoscope, random start", _kaleidoscope(init="orthogonal")),
    # The paper's other maps in the place of the Fourier transform. Budgets are those of Kaleidoscope where there is
    # a choice.
    "identity": FrontendSpec("Identity: no transform, squared samples", _linear("identity")),
    "circulant": FrontendSpec("Circulant, random start", _linear("circulant")),
    "low-rank": FrontendSpec("Low rank, as large as Kaleidoscope, random start", _linear("low_rank")),
    "sparse": FrontendSpec("Sparse, as large as Kaleidoscope, random start", _linear("sparse")),
    "dense": FrontendSpec("Dense, random start", _linear("dense")),
    "dense-fourier": FrontendSpec(
        "Dense, starts as the Fourier transform", _linear("dense", init="fourier"), lr_multiplier=0.1
    ),
}


def build_frontend(config: Config, *, sample_rate: int, bandwidth: float) -> nn.Module:
    """The front end that ``config.frontend`` names.

    Raises:
        ValueError: an unknown name, with the known ones.
    """
    return spec_of(config.frontend).build(config, sample_rate, bandwidth)


def spec_of(name: str) -> FrontendSpec:
    """The row called ``name``; a ValueError lists the known ones."""
    if name not in FRONTENDS:
        raise ValueError(f"unknown front end {name!r}: choose from {', '.join(FRONTENDS)}")
    return FRONTENDS[name]
