"""Classifiers of permuted images, and the maps of pixels before them."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaleido_audio import KMatrix
from recipes.cifar.config import Config
from recipes.cifar.data import CLASSES, PIXELS, SIDE, permuted


class Classifier(nn.Module):
    """A map of the pixels, the same in every channel, and a network behind it.

    Args:
        config: its ``net``, ``front``, ``recovery``, ``width`` and ``hidden``.
        order: the recovered order ``(1024,)`` that undoes the permutation; None where nothing is recovered.

    Shape:
        ``(N, 3, 32, 32)`` to ``(N, 10)``.

    Raises:
        ValueError: an order of another shape, or none although the configuration asks for a recovery.

    >>> Classifier(Config(width=8))(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    order: Tensor | None

    def __init__(self, config: Config, order: Tensor | None = None) -> None:
        super().__init__()
        if (order is not None) != (config.recovery != "none"):
            raise ValueError(f"expected an order of pixels exactly where one is recovered: {config.recovery!r}")
        if order is not None and not order.sort().values.equal(torch.arange(PIXELS)):
            raise ValueError(f"expected a permutation of {PIXELS} pixels, got {tuple(order.shape)}")
        self.register_buffer("order", order)
        self.front = _front(config.front)
        if config.net == "fc":
            self.net: nn.Module = fully_connected(config.hidden)
        elif config.net == "rnn":
            self.net = RowGRU(config.hidden)
        else:
            self.net = ResNet18(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.net(self.pixels(x))

    def pixels(self, x: Tensor) -> Tensor:
        """The images ``(N, 3, 32, 32)`` that the network sees."""
        if self.order is not None:
            x = permuted(x, self.order)
        return x if self.front is None else self.front(x.flatten(-2)).unflatten(-1, (SIDE, SIDE))


def _front(name: str) -> nn.Module | None:
    if name == "none":
        return None
    if name == "dense":
        return nn.Linear(PIXELS, PIXELS, bias=False)
    return KMatrix(PIXELS, init="identity" if name == "k-identity" else "orthogonal")


def fully_connected(hidden: int) -> nn.Sequential:
    """Three layers with ReLU between them."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * PIXELS, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, CLASSES),
    )


class RowGRU(nn.Module):
    """A GRU that reads an image row by row, 96 numbers a row; its last state is classified.

    The paper does not say what its RNN reads at a step; a row keeps it at 32 steps.

    Args:
        hidden: units of the GRU.

    Shape:
        ``(N, 3, 32, 32)`` to ``(N, 10)``.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(3 * SIDE, hidden, batch_first=True)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        states, _ = self.gru(x.transpose(1, 2).flatten(2))
        return self.head(states[:, -1])


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to their input, which a 1 x 1 convolution fits where needed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet18 with a 3 x 3 first convolution and no pooling behind it, as is usual for images of 32 x 32 pixels.

    Args:
        width: channels of the first of four stages; each further one has twice as many. 64 is ResNet18's own.

    Shape:
        ``(N, 3, 32, 32)`` to ``(N, 10)``.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016.

    >>> sum(p.numel() for p in ResNet18().parameters())
    11173962
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(
                BasicBlock(inputs if i == 0 else outputs, outputs, stride=2 if stage and i == 0 else 1)
                for stage, (inputs, outputs) in enumerate(pairwise(channels))
                for i in range(2)
            )
        )
        self.head = nn.Linear(channels[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.head(self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


def build(config: Config, order: Tensor | None = None) -> Classifier:
    """An untrained model; its initial weights depend on ``config.seed`` alone."""
    torch.manual_seed(config.seed)
    return Classifier(config, order)
