"""What a training run is made of: one flat dataclass, its presets, and its file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.files import replace_text

OPTIMIZERS = ("adam", "rmsprop")
SCHEDULES = ("steps", "newbob")
NORMALIZATIONS = ("utterance", "speaker", "none")


@dataclass(frozen=True)
class Config:
    """One training run; written to ``config.json`` in its run folder.

    The defaults are those for TIMIT itself: features and recognizer sizes of the LSTM + fbank row of
    pytorch-kaldi's TIMIT baselines (cfg/TIMIT_baselines). `PRESETS` has a small one for stand-in corpora on a CPU.

    Attributes:
        frontend: name in `recipes.timit.frontends.FRONTENDS`.
        seed: of the initial weights, the order of batches and dropout.
        preemphasis: of the waveform, before any front end; 0 for none.
        n_fft, win_length, hop_length: samples at the corpus's rate.
        n_mels: filters of the mel-like front ends.
        f_min, f_max: edges of their filterbank, Hz; f_max None is the corpus's bandwidth.
        sinc_filters, sinc_channels: of SincNet: sinc filters of its first layer, channels of the others.
        frontend_lr_multiplier: learning rate of the front end relative to ``lr``; None takes the front end's own.
        hidden, layers, dropout: bidirectional LSTM; dropout between its layers and before the output.
        normalization: mean of the features removed per ``"utterance"``, per ``"speaker"`` (over the speaker's own
            utterances in the same split), or not at all.
        epochs, batch_size: passes over train; utterances a batch (per process).
        optimizer, lr: ``"adam"`` or ``"rmsprop"``; learning rate.
        schedule: ``"steps"`` (x 0.3 after 60 % of the epochs, x 0.1 after 85 %) or ``"newbob"`` (halved whenever
            the dev frame error improves by less than 0.1 % of itself).
        clip: largest norm of the gradient.
        realign_after: epochs trained on segments cut in thirds before the model realigns its labels once; 0: never.
        monitor_lm_weight: language-model weight of the dev PER shown during training; the reported one is chosen.
    """

    frontend: str = "kaleidoscope"
    seed: int = 0
    preemphasis: float = 0.97
    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 40
    f_min: float = 20.0
    f_max: float | None = None
    sinc_filters: int = 128
    sinc_channels: int = 60
    frontend_lr_multiplier: float | None = None
    hidden: int = 550
    layers: int = 4
    dropout: float = 0.2
    normalization: str = "speaker"
    epochs: int = 24
    batch_size: int = 8
    optimizer: str = "rmsprop"
    lr: float = 1.6e-3
    schedule: str = "newbob"
    clip: float = 1.0
    realign_after: int = 8
    monitor_lm_weight: float = 3.0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("normalization", self.normalization, NORMALIZATIONS),
        ):
            if value not in allowed:
                raise ValueError(f"expected {name} in {allowed}, got {value!r}")
        for name in (
            "n_fft",
            "win_length",
            "hop_length",
            "n_mels",
            "sinc_filters",
            "sinc_channels",
            "hidden",
            "layers",
            "epochs",
            "batch_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if not 0 <= self.preemphasis <= 1:
            raise ValueError(f"expected preemphasis in [0, 1], got {self.preemphasis}")
        if not 0 <= self.realign_after:
            raise ValueError(f"expected realign_after >= 0, got {self.realign_after}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"expected dropout in [0, 1), got {self.dropout}")

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read what `save` wrote; unknown names are an error."""
        return cls(**json.loads(path.read_text()))


PRESETS: dict[str, dict[str, Any]] = {
    "timit": {},
    "small": {
        "sinc_filters": 32,
        "sinc_channels": 32,
        "hidden": 128,
        "layers": 2,
        "normalization": "utterance",
        "epochs": 8,
        "batch_size": 16,
        "optimizer": "adam",
        "lr": 2e-3,
        "schedule": "steps",
        "realign_after": 3,
    },
}


def default_preset(corpus_name: str) -> str:
    """TIMIT gets the large recognizer, a stand-in the small one.

    >>> default_preset("TIMIT"), default_preset("synthetic")
    ('timit', 'small')
    """
    return "timit" if corpus_name == "TIMIT" else "small"
