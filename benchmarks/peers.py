"""Front ends to compare with, all from a waveform ``(batch, time)`` to log-mel features or their like."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kaleido_audio import functional as F
from kaleido_audio.transforms import Filterbank, KFbank, KMelSpectrogram

EPS = 1e-6


@dataclass(frozen=True)
class Features:
    """Settings that all front ends share.

    Attributes:
        n_fft: points of the transform.
        sample_rate: Hz.
        win_length: samples of the window.
        hop_length: samples between frames.
        n_mels: filters.
    """

    n_fft: int
    sample_rate: int = 16000
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 40


class PeerUnavailable(Exception):
    """A peer that cannot be imported here; the message says what to install."""


class Log(nn.Module):
    """Features of another module, then ``log(x + 1e-6)``."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, waveform: Tensor) -> Tensor:
        """Log features of a waveform."""
        return (self.features(waveform) + EPS).log()


class DenseMelSpectrogram(nn.Module):
    """The Kaleidoscope pipeline with a dense learnable matrix in the place of the K-matrix.

    It starts as the same log-mel spectrogram: the rows of the matrix are the real and the imaginary parts of the
    discrete Fourier transform, ``2 * (n_fft // 2 + 1)`` of them.

    Args:
        settings: of the features.
        learnable: whether the matrix and the filterbank are parameters.

    Shape:
        ``(batch, time)`` to ``(batch, n_mels, frames)``.
    """

    window: Tensor

    def __init__(self, settings: Features, *, learnable: bool = True) -> None:
        super().__init__()
        n_fft, n_freqs = settings.n_fft, settings.n_fft // 2 + 1
        rows = torch.fft.fft(torch.eye(n_fft, dtype=torch.float64))[:n_freqs]
        self.weight = nn.Parameter(torch.cat([rows.real, rows.imag]).float(), requires_grad=learnable)
        left = (n_fft - settings.win_length) // 2
        window = torch.hann_window(settings.win_length)
        padded = nn.functional.pad(window, (left, n_fft - settings.win_length - left))
        self.register_buffer("window", padded)
        fb = F.mel_filterbank(n_freqs, 0.0, float(settings.sample_rate // 2), settings.n_mels, settings.sample_rate)
        self.mel_scale = Filterbank(fb, learnable=learnable)
        self.n_fft = n_fft
        self.hop_length = settings.hop_length

    def forward(self, waveform: Tensor) -> Tensor:
        """Log-mel features of a waveform."""
        frames = F.frame(waveform, self.n_fft, self.hop_length) * self.window
        real, imaginary = nn.functional.linear(frames, self.weight).chunk(2, dim=-1)
        power = (real * real + imaginary * imaginary).transpose(-1, -2)
        return F.log_compression(self.mel_scale(power), EPS)


def kaleidoscope(settings: Features) -> nn.Module:
    """Ours: learnable transform and filterbank."""
    return KMelSpectrogram(
        settings.sample_rate,
        settings.n_fft,
        settings.win_length,
        settings.hop_length,
        n_mels=settings.n_mels,
        compression="log",
        eps=EPS,
    )


def dense(settings: Features) -> nn.Module:
    """A dense learnable DFT and a learnable filterbank."""
    return DenseMelSpectrogram(settings)


def torchaudio(settings: Features) -> nn.Module:
    """``torchaudio.transforms.MelSpectrogram``, fixed, and a log."""
    transforms = _import("torchaudio.transforms", "torchaudio of the version of torch")
    return Log(
        transforms.MelSpectrogram(
            settings.sample_rate,
            settings.n_fft,
            settings.win_length,
            settings.hop_length,
            n_mels=settings.n_mels,
        )
    )


def kaldi(settings: Features) -> nn.Module:
    """Ours: Kaldi's filterbank features with learnable transform and filterbank."""
    return KFbank(num_mel_bins=settings.n_mels, round_to_power_of_two=settings.n_fft != settings.win_length)


class TorchaudioFbank(nn.Module):
    """``torchaudio.compliance.kaldi.fbank``, which takes one waveform at a time.

    Shape:
        ``(batch, time)`` to ``(batch, n_mels, frames)``.
    """

    def __init__(self, fbank: Callable[..., Tensor], settings: Features) -> None:
        super().__init__()
        self.fbank = fbank
        self.options = {
            "num_mel_bins": settings.n_mels,
            "round_to_power_of_two": settings.n_fft != settings.win_length,
        }

    def forward(self, waveform: Tensor) -> Tensor:
        """Features of a waveform."""
        return torch.stack([self.fbank(item.unsqueeze(0), **self.options).mT for item in waveform])


def torchaudio_kaldi(settings: Features) -> nn.Module:
    """``torchaudio.compliance.kaldi.fbank``."""
    return TorchaudioFbank(_import("torchaudio.compliance.kaldi", "torchaudio of the version of torch").fbank, settings)


def nnaudio(settings: Features) -> nn.Module:
    """``nnAudio.features.MelSpectrogram`` with its learnable STFT and filterbank, and a log."""
    features = _import("nnAudio.features", "nnAudio")
    return Log(
        features.MelSpectrogram(
            sr=settings.sample_rate,
            n_fft=settings.n_fft,
            win_length=settings.win_length,
            hop_length=settings.hop_length,
            n_mels=settings.n_mels,
            htk=True,
            norm=None,
            fmin=0.0,
            fmax=settings.sample_rate / 2,
            trainable_mel=True,
            trainable_STFT=True,
            verbose=False,
        )
    )


def leaf(settings: Features) -> nn.Module:
    """SpeechBrain's LEAF: 401-tap Gabor filters at every sample, Gaussian pooling, PCEN; all learnable.

    It has no n_fft, and other features come out than log-mel.
    """
    features = _import("speechbrain.lobes.features", "speechbrain, hyperpyyaml and ruamel.yaml")
    return features.Leaf(
        out_channels=settings.n_mels,
        in_channels=1,
        window_len=1000 * settings.win_length / settings.sample_rate,
        window_stride=1000 * settings.hop_length / settings.sample_rate,
        sample_rate=settings.sample_rate,
    )


PEERS: dict[str, Callable[[Features], nn.Module]] = {
    "K": kaleidoscope,
    "dense DFT": dense,
    "torchaudio": torchaudio,
    "nnAudio": nnaudio,
    "LEAF": leaf,
    "KFbank": kaldi,
    "Kaldi (torchaudio)": torchaudio_kaldi,
}
FIXED = frozenset({"torchaudio", "Kaldi (torchaudio)"})
"""Peers without parameters: nothing to train."""
OTHER_FEATURES = frozenset({"LEAF", "KFbank", "Kaldi (torchaudio)"})
"""Peers whose features differ from log-mel by design."""


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchaudio raises what it likes beside another torch
        raise PeerUnavailable(f"needs {package} ({type(error).__name__}: {error})") from error
