"""Parameters and multiply-adds of ShuffleNets beside the paper's figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from kaleido_audio import KMatrix
from kaleido_audio.nn import Hadamard
from recipes.shufflenet.model import CHANNELS, STAGE2, ShuffleNet

PAPER_MIXINGS = ("shuffle", "hadamard", "k-odo")
"""Rows of the paper's table, by the names of `recipes.shufflenet.model.MIXINGS`."""


@dataclass(frozen=True)
class Published:
    """What Dao et al., ICLR 2020, print for one network in their table of ShuffleNets on ImageNet.

    Attributes:
        parameters: in millions, with the digits of the paper.
        top1: ImageNet accuracy in percent.
    """

    parameters: str
    top1: float


PAPER = {
    ("shuffle", 0.25): Published("0.46", 44.1),
    ("shuffle", 0.5): Published("1.0", 57.1),
    ("shuffle", 1.0): Published("2.5", 65.3),
    ("hadamard", 0.25): Published("0.46", 43.9),
    ("hadamard", 0.5): Published("1.0", 56.2),
    ("hadamard", 1.0): Published("2.5", 65.0),
    ("k-odo", 0.25): Published("0.51", 49.2),
    ("k-odo", 0.5): Published("1.1", 59.5),
    ("k-odo", 1.0): Published("2.8", 66.5),
}


@dataclass(frozen=True)
class Count:
    """Size and cost of one network.

    Attributes:
        width, mixing, stage2: as `ShuffleNet` takes them.
        parameters: learned numbers.
        multiply_adds: of one image, see `count_multiply_adds`.
    """

    width: float
    mixing: str
    stage2: str
    parameters: int
    multiply_adds: int

    @property
    def published(self) -> Published | None:
        """The paper's figures, whose networks have the stage 2 of the authors' code."""
        return PAPER.get((self.mixing, self.width)) if self.stage2 == "authors" else None


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learned.

    >>> count_parameters(ShuffleNet(0.25))
    460552
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, image_size: int = 224) -> int:
    """Multiplications, each with its addition, of one image; seen by hooks while a black one passes through.

    Counted are convolutions, linear layers, K-matrices and Hadamard transforms, as arithmetic on paper and not as
    what a machine executes. A product of butterfly matrices has ``2 * N`` in each of its stages, padding included:
    ``4 N log2 N`` for a BB*, and so for "k-odo", whose diagonal scales the rows of a stage. (Multiplied by itself the
    diagonal would add N.) A Hadamard transform has ``2 N log2 N``, although each of these multiplications is by the
    same number, up to its sign. Not counted, as is usual: normalisation, ReLU, pooling, permutations.

    Args:
        model: with convolutions that have no bias, like `ShuffleNet`; left in the mode it was in.
        image_size: height and width of the image.

    >>> f"{count_multiply_adds(ShuffleNet(0.25, stage2='zhang')) / 1e6:.1f} M"
    '12.4 M'
    """
    total = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, KMatrix):
            total += output.numel() // layer.out_features * layer.factors.numel()
        elif isinstance(layer, Hadamard):
            total += output.numel() // layer.n * layer.factors.numel()

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    was_training = model.training
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            image = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
            model.eval()(image)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return total


def count_all(
    widths: Iterable[float] = tuple(CHANNELS),
    mixings: Iterable[str] = PAPER_MIXINGS,
    stage2: Iterable[str] = STAGE2,
    *,
    image_size: int = 224,
) -> list[Count]:
    """Build every combination and count it.

    Args:
        widths, mixings, stage2: as `ShuffleNet` takes them.
        image_size: height and width of the image whose multiply-adds are counted.
    """
    counts = []
    for variant, width, mixing in product(stage2, widths, mixings):
        model = ShuffleNet(width, mixing=mixing, stage2=variant)
        counts.append(
            Count(width, mixing, variant, count_parameters(model), count_multiply_adds(model, image_size=image_size))
        )
    return counts


def markdown(counts: Sequence[Count], *, image_size: int = 224) -> str:
    """A table of counts beside the paper's parameters and accuracies, and what to know about them.

    >>> print(markdown([Count(0.25, "k-odo", "authors", 506920, 52316160)]).splitlines()[2])
    | 0.25 | k-odo | authors | 506,920 | 0.51 M | 52.3 M | 49.2 |
    """
    lines = [
        f"| width | mixing | stage 2 | parameters | paper | multiply-adds, {image_size} px | paper: ImageNet top-1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in counts:
        paper = count.published
        cells = (
            count.width,
            count.mixing,
            count.stage2,
            f"{count.parameters:,}",
            f"{paper.parameters} M" if paper else "-",
            f"{count.multiply_adds / 1e6:.1f} M",
            f"{paper.top1:.1f}" if paper else "-",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    notes = (
        "Paper: Dao et al., ICLR 2020; its parameters are those with the stage 2 of the authors' code. "
        "Multiply-adds are counted: convolutions, the linear layer, and 2 N a stage of a butterfly product of size N. "
        "No network was trained for this table."
    )
    return "\n".join([*lines, "", notes])
