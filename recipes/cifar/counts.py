"""Parameters of the models of the paper's table, beside the paper's accuracies."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recipes.cifar.config import ROWS, TITLES, Config
from recipes.cifar.data import PIXELS
from recipes.cifar.model import Classifier

PAPER = {"fc": 61.2, "rnn": 57.8, "cnn": 73.7, "dense-cnn": 84.4, "k-cnn": 92.5, "unpermuted": 94.9}
"""Accuracy on permuted CIFAR-10 in percent: Dao et al., ICLR 2020. Whether its K-matrix was trained with the network
or before it is not known."""


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_row(row: str, **options: Any) -> int:
    """Parameters of a row, at the published sizes but for ``options`` of `Config`.

    >>> count_row("cnn"), count_row("dense-cnn") - count_row("cnn")
    (11173962, 1048576)
    """
    config = Config(**{**ROWS[row], **options})
    order = None if config.recovery == "none" else torch.arange(PIXELS)
    return count_parameters(Classifier(config, order))


def markdown(**options: Any) -> str:
    """A table of counts beside the paper's accuracies."""
    lines = ["| model | parameters | paper: accuracy on permuted CIFAR-10, % |", "|---|---|---|"]
    for row, title in TITLES.items():
        lines.append(f"| {title} | {count_row(row, **options):,} | {PAPER.get(row, '-')} |")
    note = "Paper: Dao et al., ICLR 2020, which prints no parameter counts. No model was trained for this table."
    return "\n".join([*lines, "", note])
