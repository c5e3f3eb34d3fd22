"""What a training run is made of: one flat dataclass, the rows of the comparison, presets, and its file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.cifar.data import PERMUTATIONS
from recipes.common.files import naming, replace_text
from recipes.common.options import check_choices, check_not_negative, check_positive, check_seed, choice

NETS = ("fc", "rnn", "resnet18")
FRONTS = ("none", "dense", "k", "k-identity")
METHODS = ("k", "gumbel-sinkhorn", "spectral", "spectral+faq", "oracle")
"""Ways to recover a permutation; "oracle" is told it."""


@dataclass(frozen=True)
class Config:
    """One training run; written to ``config.json`` in its folder.

    The defaults are those of the authors' code for CIFAR-10.

    Attributes:
        net: the classifier.
        front: the map of the 1024 pixels before it, learned with it: none, a dense matrix, or a K-matrix BB*, which
            starts at random ("k") or as the identity.
        recovery: "none", or how the permutation is recovered without labels before training (two-stage mode).
        permutation: of the pixels, "random" or "bitreversal" of rows and columns; "none" leaves them in place.
        permutation_seed: of the random one.
        width: channels of ResNet18's first stage.
        hidden: units of fc and rnn.
        seed: of the recovery, the initial weights, the order of images and the augmentation.
        epochs: passes over train.
        batch_size: of all processes together.
        lr: peak learning rate of Adam; times 0.2 after every quarter of the epochs.
        k_lr_multiplier: learning rate of K-matrices as a multiple of lr.
        weight_decay: added to the gradient, not of K-matrices.
        augment: crop and flip at random before permuting.
    """

    net: str = choice("resnet18", NETS)
    front: str = choice("none", FRONTS)
    recovery: str = choice("none", ("none", *METHODS))
    permutation: str = choice("random", PERMUTATIONS)
    permutation_seed: int = 0
    width: int = 64
    hidden: int = 1024
    seed: int = 0
    epochs: int = 200
    batch_size: int = 128
    lr: float = 2e-4
    k_lr_multiplier: float = 1.0
    weight_decay: float = 5e-4
    augment: bool = True

    def __post_init__(self) -> None:
        check_choices(self)
        check_seed(self.seed)
        check_seed(self.permutation_seed, "permutation_seed")
        for name in ("width", "hidden", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        check_positive(self, "lr", "k_lr_multiplier")
        check_not_negative(self, "weight_decay")

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read what `save` wrote; unknown names are an error."""
        with naming(path, f"give another folder, or remove the folder {path.parent}"):
            return cls(**json.loads(path.read_text(encoding="utf-8")))


ROWS: dict[str, dict[str, Any]] = {
    "fc": {"net": "fc"},
    "rnn": {"net": "rnn"},
    "cnn": {},
    "dense-cnn": {"front": "dense"},
    "k-cnn": {"front": "k"},
    "k-identity-cnn": {"front": "k-identity"},
    "recovered-k-cnn": {"recovery": "k"},
    "recovered-gumbel-cnn": {"recovery": "gumbel-sinkhorn"},
    "recovered-spectral-cnn": {"recovery": "spectral"},
    "recovered-faq-cnn": {"recovery": "spectral+faq"},
    "unpermuted": {"permutation": "none"},
}
"""Rows of the comparison by name. "unpermuted" is also what two-stage mode with an oracle would reach."""

TITLES = {
    "fc": "FC",
    "rnn": "RNN",
    "cnn": "CNN",
    "dense-cnn": "Dense + CNN",
    "k-cnn": "K + CNN",
    "k-identity-cnn": "K, from the identity, + CNN",
    "recovered-k-cnn": "two-stage: K-permutation, then CNN",
    "recovered-gumbel-cnn": "two-stage: Gumbel-Sinkhorn, then CNN",
    "recovered-spectral-cnn": "two-stage: spectral, then CNN",
    "recovered-faq-cnn": "two-stage: spectral and FAQ, then CNN",
    "unpermuted": "CNN, unpermuted",
}

PRESETS: dict[str, dict[str, Any]] = {
    "cifar": {},
    "small": {"width": 8, "hidden": 512, "epochs": 8, "lr": 1e-3},
}


def default_preset(name: str) -> str:
    """CIFAR-10 gets the published sizes, a stand-in the small ones.

    >>> default_preset("CIFAR-10"), default_preset("photo-patches")
    ('cifar', 'small')
    """
    return "cifar" if name == "CIFAR-10" else "small"
