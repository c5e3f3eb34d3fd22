"""What a training run is made of: one flat dataclass, presets, and its file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.files import naming, replace_text
from recipes.common.options import check_choices, check_not_negative, check_positive, check_seed, choice
from recipes.shufflenet.model import CHANNELS, K_INITS, MIXINGS, POSITIONS, STAGE2

SCHEDULES = ("authors", "zhang")


@dataclass(frozen=True)
class Config:
    """One training run; written to ``config.json`` in its folder.

    The defaults are those of Dao et al.'s public code for ImageNet.

    Attributes:
        width: factor of the network's channels.
        mixing: of the channels between groups, see `recipes.shufflenet.model.ShuffleNet`.
        position: where in a unit the mixing stands; "default" is the mixing's own in the paper.
        k_init: what K-matrices start as.
        stage2: which first pointwise convolutions of stage 2 are dense: "authors" all, "zhang" the first unit's.
        image_size: height and width in pixels.
        min_area: least share of an image's area that a training crop shows.
        schedule: of the learning rate, see `recipes.shufflenet.training.scheduler`: "authors", steps, or "zhang",
            linear to 0.
        lr: peak learning rate of SGD with momentum 0.9, at a batch of 256 images; a batch of B has B / 256 of it.
        warmup_epochs: in which the rate grows from 0, linearly.
        epochs: passes over train.
        batch_size: of all processes together.
        k_lr_multiplier: learning rate of K-matrices as a multiple of lr.
        weight_decay: of weights, but not of K-matrices, batch normalisation, biases and depthwise convolutions.
        label_smoothing: share of the target that is spread evenly over the classes.
        ema_decay: of the moving average of weights, whose accuracy is reported too; nearer to 0 at the start.
        seed: of the initial weights, of fixed permutations, of the order of images and of their augmentation.
    """

    width: float = choice(0.25, CHANNELS)
    mixing: str = choice("shuffle", MIXINGS)
    position: str = choice("default", ("default", *POSITIONS))
    k_init: str = choice("orthogonal", K_INITS)
    stage2: str = choice("authors", STAGE2)
    image_size: int = 224
    min_area: float = 0.08
    schedule: str = choice("authors", SCHEDULES)
    lr: float = 0.1
    warmup_epochs: int = 5
    epochs: int = 90
    batch_size: int = 256
    k_lr_multiplier: float = 1.0
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    ema_decay: float = 0.9999
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        check_seed(self.seed)
        for name in ("image_size", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        check_positive(self, "lr", "k_lr_multiplier")
        check_not_negative(self, "weight_decay")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"expected 0 <= warmup_epochs < epochs = {self.epochs}, got {self.warmup_epochs}")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"expected {name} in [0, 1), got {getattr(self, name)}")
        if not 0 < self.min_area <= 1:
            raise ValueError(f"expected min_area in (0, 1], got {self.min_area}")

    @property
    def peak_lr(self) -> float:
        """Of batches of ``batch_size`` images.

        >>> Config(batch_size=1024).peak_lr
        0.4
        """
        return self.lr * self.batch_size / 256

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read what `save` wrote; unknown names are an error."""
        with naming(path, f"give another folder, or remove the folder {path.parent}"):
            return cls(**json.loads(path.read_text(encoding="utf-8")))


PRESETS: dict[str, dict[str, Any]] = {
    "authors": {},
    "zhang": {
        "schedule": "zhang",
        "lr": 0.125,  # 0.5 at their 1024 images a batch
        "warmup_epochs": 0,
        "epochs": 240,
        "batch_size": 1024,
        "weight_decay": 4e-5,
    },
    "small": {
        "schedule": "zhang",
        "lr": 0.05,
        "warmup_epochs": 1,
        "epochs": 12,
        "batch_size": 64,
        "image_size": 64,
        "min_area": 0.35,
        "ema_decay": 0.99,
    },
}
"""Dao et al.'s training for ImageNet, Zhang et al.'s, and one for a stand-in of some thousand small images."""


def default_preset(name: str) -> str:
    """ImageNet gets a published training, a stand-in the small one.

    >>> default_preset("ImageNet"), default_preset("openclipart")
    ('authors', 'small')
    """
    return "authors" if name == "ImageNet" else "small"
