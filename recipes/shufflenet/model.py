"""ShuffleNet v1 with 8 groups, whose channels are mixed by a shuffle, a Hadamard transform or K-matrices."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaleido_audio.exact import permutation
from kaleido_audio.nn import Hadamard, KConv1x1

GROUPS = 8
CHANNELS = {0.25: (8, 96, 192, 384), 0.5: (16, 192, 384, 768), 1.0: (24, 384, 768, 1536)}
"""Channels behind the stem and behind the stages 2, 3 and 4, by width."""
UNITS = (4, 8, 4)
"""Units of the stages 2, 3 and 4."""

MIXINGS = ("shuffle", "none", "random", "hadamard", "k-odo", "k", "k-orthogonal")
POSITIONS = ("both", "first", "second")
K_INITS = ("orthogonal", "identity", "shuffle")
STAGE2 = ("authors", "zhang")

_K_CONSTRAINTS = {"k-odo": "odo", "k": None, "k-orthogonal": "orthogonal"}
_ORDER = ("mix1", "conv1", "bn1", "relu", "mix2", "depthwise", "bn2", "conv2", "bn3")
_HADAMARD_ORDER = ("mix1", "conv1", "mix2", "bn1", "relu", "depthwise", "bn2", "conv2", "bn3")


class ShuffleNet(nn.Module):
    """ShuffleNet v1, g = 8, for ImageNet: a stem, three stages of `Unit`, global average pooling, a linear layer.

    Args:
        width: width multiplier, 0.25, 0.5 or 1.0: channels are those of `CHANNELS`.
        mixing: what lets the groups of the pointwise convolutions exchange channels, see `channel_mixing`.
        position: where in a unit the mixing stands: ``"first"``, before its first pointwise convolution;
            ``"second"``, before its depthwise convolution; or ``"both"``. None is the mixing's own in the paper:
            "second" for "shuffle" and "random", else "both".
        k_init: how K-matrices start: ``"orthogonal"``, at random; ``"identity"``; or ``"shuffle"``: those before a
            depthwise convolution as the channel shuffle, exactly, and the others as the identity, so that the network
            starts as the one with shuffles.
        stage2: ``"authors"``: the first pointwise convolutions of all four units of stage 2 are dense, as in the
            code of Dao et al., whose parameter counts are those. ``"zhang"``: that of the first unit alone is.
        num_classes: outputs.
        permutation_seed: of the permutations of ``mixing="random"``, one a unit; they are buffers, and so saved.

    Shape:
        ``forward(x)``: images ``(N, 3, H, W)`` to logits ``(N, num_classes)``. Made for 224 x 224; the map of the
        last stage is a 32nd of the sides, rounded up.

    Raises:
        ValueError: an option that does not fit, with what was expected.

    Source: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR
    2018, table 1; Dao et al., ICLR 2020, and their public code. Weights start as PyTorch's layers do.

    >>> model = ShuffleNet(0.25, mixing="k-odo")
    >>> sum(p.numel() for p in model.parameters())  # the paper: 0.51M
    506920
    >>> model(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1000])
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        mixing: str = "shuffle",
        position: str | None = None,
        k_init: str = "orthogonal",
        stage2: str = "authors",
        num_classes: int = 1000,
        permutation_seed: int = 0,
    ) -> None:
        super().__init__()
        if position is None:
            position = "second" if mixing in ("shuffle", "random") else "both"
        for name, value, allowed in (
            ("width", width, tuple(CHANNELS)),
            ("mixing", mixing, MIXINGS),
            ("position", position, POSITIONS),
            ("k_init", k_init, K_INITS),
            ("stage2", stage2, STAGE2),
        ):
            if value not in allowed:
                raise ValueError(f"expected {name} in {allowed}, got {value!r}")
        if num_classes < 1:
            raise ValueError(f"expected num_classes >= 1, got {num_classes}")
        stem, *stages = CHANNELS[width]
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        generator = torch.Generator().manual_seed(permutation_seed)
        self.stages = nn.Sequential()
        in_channels = stem
        for stage, (out_channels, n_units) in enumerate(zip(stages, UNITS, strict=True), start=2):
            units = nn.Sequential()
            for unit in range(n_units):
                is_dense = stage == 2 and (unit == 0 or stage2 == "authors")
                units.append(
                    Unit(
                        in_channels,
                        out_channels,
                        stride=2 if unit == 0 else 1,
                        first_groups=1 if is_dense else GROUPS,
                        mixing=mixing,
                        position=position,
                        k_init=k_init,
                        generator=generator,
                    )
                )
                in_channels = out_channels
            self.stages.append(units)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"expected images of shape (N, 3, H, W), got {tuple(x.shape)}")
        return self.classifier(self.stages(self.stem(x)).mean(dim=(2, 3)))


class Unit(nn.Module):
    """A ShuffleNet unit: a bottleneck of grouped pointwise convolutions beside a shortcut.

    The order of the bottleneck's layers, by mixing (every convolution is followed by batch normalisation):

    * shuffle, random: pointwise, ReLU, *permutation*, 3 x 3 depthwise, pointwise;
    * hadamard: *Hadamard*, pointwise, *Hadamard* (before the normalisation), ReLU, depthwise, pointwise;
    * K-matrices: *K*, pointwise, ReLU, *K*, depthwise, pointwise.

    With stride 1 the input is added; with stride 2 it is average-pooled and concatenated. A ReLU comes last.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the bottleneck has a quarter of them.
        stride: of the depthwise convolution, 1 or 2; with 1, ``in_channels == out_channels``.
        first_groups: groups of the first pointwise convolution; the second has `GROUPS`.
        mixing, position, k_init: as `ShuffleNet` takes them, but position is never None.
        generator: of the random permutations.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Source: Zhang et al., CVPR 2018, figure 2 (b, c); orders: Dao et al., ICLR 2020.

    >>> unit = Unit(24, 384, stride=2, first_groups=1, mixing="hadamard", position="both")
    >>> unit(torch.zeros(2, 24, 56, 56)).shape
    torch.Size([2, 384, 28, 28])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        first_groups: int,
        mixing: str,
        position: str,
        k_init: str = "orthogonal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.stride = stride
        middle = out_channels // 4
        added = out_channels - in_channels if stride == 2 else out_channels

        def mix(here: str, channels: int, groups: int) -> nn.Module:
            name = mixing if position in ("both", here) else "none"
            init = "identity" if k_init == "shuffle" and here == "first" else k_init
            return channel_mixing(name, channels, groups=groups, k_init=init, generator=generator)

        layers = {
            "mix1": mix("first", in_channels, GROUPS),
            "conv1": nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False),
            "bn1": nn.BatchNorm2d(middle),
            "relu": nn.ReLU(),
            # A shuffle undoes the groups of the convolution before it: behind a dense one it is the identity.
            "mix2": mix("second", middle, first_groups),
            "depthwise": nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False),
            "bn2": nn.BatchNorm2d(middle),
            "conv2": nn.Conv2d(middle, added, 1, groups=GROUPS, bias=False),
            "bn3": nn.BatchNorm2d(added),
        }
        order = _HADAMARD_ORDER if mixing == "hadamard" else _ORDER
        self.branch = nn.Sequential(OrderedDict((name, layers[name]) for name in order))

    def forward(self, x: Tensor) -> Tensor:
        """Add, or with stride 2 concatenate, the shortcut and the bottleneck."""
        if self.stride == 1:
            return F.relu(x + self.branch(x))
        shortcut = F.avg_pool2d(x, 3, stride=2, padding=1)
        return F.relu(torch.cat([shortcut, self.branch(x)], dim=1))

    def extra_repr(self) -> str:
        """The stride."""
        return f"stride={self.stride}"


def channel_mixing(
    name: str, channels: int, *, groups: int, k_init: str = "orthogonal", generator: torch.Generator | None = None
) -> nn.Module:
    """A layer that mixes the channels of ``(N, channels, H, W)``.

    Args:
        name: one of `MIXINGS`:

            * ``"shuffle"``: channel k of group g goes to place ``k * groups + g``;
            * ``"none"``: the identity;
            * ``"random"``: a fixed random permutation;
            * ``"hadamard"``: the Hadamard transform divided by sqrt(N), N the next power of two of the channels;
            * ``"k-odo"``: a K-matrix B D B* with orthogonal B and B* and a diagonal D, ``N log2 N + N`` parameters,
              with which the paper's counts agree;
            * ``"k"``: a K-matrix BB* without constraint, ``4 N log2 N`` parameters;
            * ``"k-orthogonal"``: an orthogonal K-matrix, ``N log2 N`` parameters.

            The last four pad to N channels with zeros and keep the first of the outputs.
        channels: channels.
        groups: of the shuffle; must divide the channels.
        k_init: how a K-matrix starts, one of `K_INITS`; "shuffle" is the shuffle of these groups.
        generator: of the random permutation.

    Raises:
        ValueError: another name.

    >>> channel_mixing("shuffle", 6, groups=2)(torch.arange(6.0).view(1, 6, 1, 1)).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    if name == "shuffle":
        return nn.ChannelShuffle(groups)
    if name == "none":
        return nn.Identity()
    if name == "random":
        return FixedPermutation(torch.randperm(channels, generator=generator))
    if name == "hadamard":
        return Hadamard(channels, dim=1)
    if name in _K_CONSTRAINTS:
        init = permutation(_shuffled(channels, groups)) if k_init == "shuffle" else k_init
        return KConv1x1(channels, channels, bias=False, init=init, constraint=_K_CONSTRAINTS[name])
    raise ValueError(f"expected a mixing in {MIXINGS}, got {name!r}")


def _shuffled(channels: int, groups: int) -> Tensor:
    """Where every channel behind a shuffle comes from."""
    return torch.arange(channels).view(groups, channels // groups).T.flatten()


class FixedPermutation(nn.Module):
    """Channel i of the output is channel ``p[i]`` of the input.

    Args:
        p: int64 ``(channels,)``, a permutation; it is a buffer of the state_dict.

    Shape:
        ``(N, channels, ...)`` to the same.

    >>> FixedPermutation(torch.tensor([2, 0, 1]))(torch.tensor([[10, 11, 12]])).tolist()
    [[12, 10, 11]]
    """

    p: Tensor

    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.register_buffer("p", p)

    def forward(self, x: Tensor) -> Tensor:
        """Permute the channels."""
        return x.index_select(1, self.p)

    def extra_repr(self) -> str:
        """The number of channels."""
        return str(len(self.p))
