"""What a training run is made of: one flat dataclass, its presets, and its file."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.files import replace_text
from recipes.common.options import check_choices, check_not_negative, check_positive, check_seed, choice

OPTIMIZERS = ("adam", "rmsprop")
SCHEDULES = ("steps", "newbob")
NORMALIZATIONS = ("utterance", "speaker", "none")


@dataclass(frozen=True)
class Config:
    """One training run; written to ``config.json`` in its run folder.

    The defaults are those for TIMIT itself: features and recognizer sizes of the LSTM + fbank row of
    pytorch-kaldi's TIMIT baselines (cfg/TIMIT_baselines). `PRESETS` has a small one for stand-in corpora on a CPU.

    Attributes:
        frontend: what computes the features, one of `recipes.timit.frontends.FRONTENDS`.
        seed: of the initial weights, the order of batches and dropout.
        preemphasis: of the waveform, before any front end; 0 for none.
        n_fft: samples of a Fourier transform, at the corpus's rate.
        win_length, hop_length: samples of a window, and from one to the next.
        n_mels: filters of the mel-like front ends.
        f_min, f_max: edges of their filterbank, Hz; no f_max is the corpus's bandwidth.
        sinc_filters, sinc_channels: of SincNet: sinc filters of its first layer, channels of the others.
        frontend_lr_multiplier: learning rate of the front end relative to ``lr``; none takes the front end's own.
        hidden, layers: size of the bidirectional LSTM, a direction, and number of its layers.
        dropout: between these layers and before the output.
        normalization: mean of the features removed per ``"utterance"``, per ``"speaker"`` (over the speaker's own
            utterances in the same split), or not at all.
        epochs: passes over train.
        batch_size: utterances a batch, per process.
        optimizer: ``"adam"`` or ``"rmsprop"``.
        lr: learning rate.
        schedule: ``"steps"`` (x 0.3 after 60 % of the epochs, x 0.1 after 85 %) or ``"newbob"`` (halved whenever
            the dev frame error improves by less than 0.1 % of itself).
        clip: largest norm of the gradient; 0 for any.
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
    normalization: str = choice("speaker", NORMALIZATIONS)
    epochs: int = 24
    batch_size: int = 8
    optimizer: str = choice("rmsprop", OPTIMIZERS)
    lr: float = 1.6e-3
    schedule: str = choice("newbob", SCHEDULES)
    clip: float = 1.0
    realign_after: int = 8
    monitor_lm_weight: float = 3.0

    def __post_init__(self) -> None:
        # Here, since that module imports this one.
        from recipes.timit.frontends import spec_of

        for name, kind in typing.get_type_hints(Config).items():
            kinds = typing.get_args(kind) or (kind,)
            value = getattr(self, name)
            if not isinstance(value, kinds) and not (float in kinds and isinstance(value, int)):
                raise ValueError(f"expected {name} of type {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"expected a finite {name}, got {value}")
        spec_of(self.frontend)
        check_choices(self)
        check_seed(self.seed)
        check_positive(
            self,
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
            "lr",
        )
        check_not_negative(self, "clip", "realign_after", "monitor_lm_weight")
        if self.frontend_lr_multiplier is not None:
            check_not_negative(self, "frontend_lr_multiplier")
        if not 0 <= self.preemphasis <= 1:
            raise ValueError(f"expected preemphasis in [0, 1], got {self.preemphasis}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"expected dropout in [0, 1), got {self.dropout}")

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, remedy: str | None = None) -> Config:
        """Read what `save` wrote.

        Args:
            path: of the file.
            remedy: what to do where it holds anything else; default: what to do about a run's.

        Raises:
            ValueError: anything else, such as an unknown name.
        """
        try:
            values = json.loads(path.read_text())
            if not isinstance(values, dict):
                raise ValueError(f"expected names and values, got {values!r:.40}")
            unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(cls)})
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}")
            return cls(**values)
        except ValueError as error:
            remedy = remedy or f"mend it, or remove the folder {path.parent}"
            raise ValueError(f"{path} is not the configuration of a run ({error}): {remedy}") from error


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
