"""Counts: multiply-adds against sums by hand and the literature, and the table that is printed."""

import pytest
import torch
from torch import nn

from kaleido_audio import KMatrix
from kaleido_audio.nn import Hadamard, KConv1x1
from recipes.shufflenet.__main__ import main
from recipes.shufflenet.counts import Count, count_all, count_multiply_adds, count_parameters, markdown
from recipes.shufflenet.model import CHANNELS, GROUPS, UNITS, ShuffleNet


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), 16 * 16 * 8 * 3 * 9),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), 32 * 32 * 6 * 9),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), 3 * 32 * 32 * 10),
        (KConv1x1(3, 3, bias=False), 32 * 32 * 4 * 4 * 2),  # N = 4: two factors of two stages
        (KConv1x1(3, 12, bias=False, constraint="odo", width=2), 32 * 32 * 2 * 4 * 16 * 4),
        (nn.Sequential(KConv1x1(3, 3, bias=False), Hadamard(3, dim=1)), 32 * 32 * (4 * 4 * 2 + 2 * 4 * 2)),
        (nn.Sequential(KMatrix(32), nn.ReLU(), nn.BatchNorm2d(3)), 3 * 32 * 4 * 32 * 5),
    ],
)
def test_one_layer_by_hand(layer, expected) -> None:
    assert count_multiply_adds(layer, image_size=32) == expected


def by_hand(width: float, mixing: str, stage2: str) -> int:
    """The sum over the layers of the architecture, at 224 pixels."""
    stem, *stages = CHANNELS[width]
    total = 112 * 112 * stem * 27
    in_channels, side = stem, 56

    def mixes(channels: int) -> int:
        size = 1 << (channels - 1).bit_length()
        return {"shuffle": 0, "hadamard": 2, "k-odo": 4, "k": 4}[mixing] * size * (size.bit_length() - 1)

    for stage, (out_channels, n_units) in enumerate(zip(stages, UNITS, strict=True)):
        for unit in range(n_units):
            middle = out_channels // 4
            groups = 1 if stage == 0 and (unit == 0 or stage2 == "authors") else GROUPS
            area, area_out = side * side, (side // 2) ** 2 if unit == 0 else side * side
            added = out_channels - in_channels if unit == 0 else out_channels
            total += area * (mixes(in_channels) + in_channels * middle // groups + mixes(middle))
            total += area_out * (9 * middle + middle * added // GROUPS)
            if unit == 0:
                side //= 2
            in_channels = out_channels
    return total + in_channels * 1000


@pytest.mark.parametrize("mixing", ["shuffle", "hadamard", "k-odo", "k"])
@pytest.mark.parametrize("stage2", ["authors", "zhang"])
def test_whole_networks_by_hand(mixing, stage2) -> None:
    for width in CHANNELS:
        model = ShuffleNet(width, mixing=mixing, stage2=stage2)
        assert count_multiply_adds(model) == by_hand(width, mixing, stage2)


def test_shuffle_costs_what_zhang_et_al_say() -> None:
    # Zhang et al., CVPR 2018, table 2: complexity 140, 38 and 13 million, with another stem at the width 0.5.
    counts = [count_multiply_adds(ShuffleNet(width, stage2="zhang")) / 1e6 for width in (0.25, 0.5, 1.0)]
    assert counts == pytest.approx([13, 38, 140], rel=0.07)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = ShuffleNet(0.25).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert count_multiply_adds(model, 64) == count_multiply_adds(model, 64)
    assert model.training and all(layer.training for layer in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.modules())
    assert count_parameters(model) == sum(value.numel() for name, value in before.items() if "running" not in name
                                          and "num_batches" not in name)  # fmt: skip


def test_table_has_the_papers_figures_beside_ours() -> None:
    counts = count_all(widths=(0.25,), image_size=64)
    assert [(c.mixing, c.stage2) for c in counts] == [
        (mixing, stage2) for stage2 in ("authors", "zhang") for mixing in ("shuffle", "hadamard", "k-odo")
    ]
    assert [c.parameters for c in counts] == [460_552, 460_552, 506_920, 454_504, 454_504, 500_872]
    for count in counts:
        paper = count.published
        if count.stage2 == "zhang":
            assert paper is None
        else:
            assert paper is not None and f"{count.parameters / 1e6:.2f}" == paper.parameters
    table = markdown(counts, image_size=64).splitlines()
    assert "64 px" in table[0] and "ImageNet" in table[0]
    assert {line.count("|") for line in table[: 2 + len(counts)]} == {8}
    assert table[4].startswith("| 0.25 | k-odo | authors | 506,920 | 0.51 M |") and table[4].endswith("| 49.2 |")
    assert Count(1.0, "k", "authors", 1, 1).published is None


def test_command_line(capsys) -> None:
    assert main(["counts", "--widths", "1", "--mixings", "k-odo", "k", "--stage2", "authors"]) == 0
    printed = capsys.readouterr().out
    assert "| 1.0 | k-odo | authors | 2,759,056 | 2.8 M | 395.2 M | 66.5 |" in printed
    assert "| 1.0 | k | authors | 3,357,520 | - | 395.2 M | - |" in printed and "shuffle" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--widths", "0.75"], "error: expected width in (0.25, 0.5, 1.0), got 0.75"),
        (["--image-size", "0"], "error: expected --image-size >= 1, got 0"),
    ],
)
def test_mistakes_end_in_one_line(capsys, options, message) -> None:
    assert main(["counts", *options]) == 2
    assert capsys.readouterr().err.strip() == message
