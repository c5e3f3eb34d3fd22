"""ShuffleNet: the paper's parameter counts, orders of layers and shapes; every mixing equals its dense matrix."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kaleido_audio import exact
from kaleido_audio.nn import Hadamard, KConv1x1
from recipes.shufflenet.model import (
    CHANNELS,
    GROUPS,
    MIXINGS,
    POSITIONS,
    STAGE2,
    FixedPermutation,
    ShuffleNet,
    Unit,
    channel_mixing,
)

scipy_linalg = pytest.importorskip("scipy.linalg")
F64 = torch.float64
K_MIXINGS = [name for name in MIXINGS if name.startswith("k")]


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """The Hadamard transform keeps the rounding of the type that it was built in."""
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def in_use(module: nn.Module) -> nn.Module:
    """In evaluation mode and float64, with batch statistics and affine maps that are not the identity."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.bias.data, layer.running_mean):
                tensor.normal_(std=0.5)
            layer.running_var.uniform_(0.5, 2)
    return module.double().eval()


# --- counts ---


@pytest.mark.parametrize(
    ("mixing", "stage2", "counts"),
    [
        ("shuffle", "authors", (460_552, 1_035_640, 2_531_536)),
        ("shuffle", "zhang", (454_504, 1_011_448, 2_434_768)),
        ("k-odo", "authors", (506_920, 1_138_888, 2_759_056)),
        ("k-odo", "zhang", (500_872, 1_114_696, 2_662_288)),
    ],
)
def test_parameter_counts(mixing, stage2, counts) -> None:
    assert tuple(n_parameters(ShuffleNet(width, mixing=mixing, stage2=stage2)) for width in CHANNELS) == counts


def test_parameter_counts_round_to_those_of_the_paper() -> None:
    # Dao et al., ICLR 2020: millions of parameters.
    for mixing, counts in (
        ("shuffle", ("0.46", "1.0", "2.5")),
        ("hadamard", ("0.46", "1.0", "2.5")),
        ("k-odo", ("0.51", "1.1", "2.8")),
    ):
        for width, count in zip(CHANNELS, counts, strict=True):
            millions = n_parameters(ShuffleNet(width, mixing=mixing)) / 1e6
            assert f"{millions:.{len(count) - 2}f}" == count
    # A K-matrix without constraint has more than the paper counts: that is how its kind is known.
    assert [round(n_parameters(ShuffleNet(w, mixing="k")) / 1e6, 3) for w in CHANNELS] == [0.625, 1.407, 3.358]


@pytest.mark.parametrize("mixing", ["none", "random", "hadamard"])
def test_fixed_mixings_have_no_parameters(mixing) -> None:
    assert n_parameters(ShuffleNet(0.25, mixing=mixing)) == n_parameters(ShuffleNet(0.25))


def test_positions_add_up() -> None:
    plain = n_parameters(ShuffleNet(0.25, mixing="none"))
    both, first, second = (n_parameters(ShuffleNet(0.25, mixing="k", position=p)) - plain for p in POSITIONS)
    assert first > 0 and second > 0 and both == first + second
    assert both == n_parameters(ShuffleNet(0.25, mixing="k")) - plain


def test_only_the_first_layers_are_dense() -> None:
    def dense_layers(stage2: str) -> list[tuple[int, int]]:
        units = ((s, u, unit) for s, stage in enumerate(ShuffleNet(0.25, stage2=stage2).stages, 2)
                 for u, unit in enumerate(stage))  # fmt: skip
        return [(s, u) for s, u, unit in units if unit.branch.conv1.groups == 1]

    assert dense_layers("zhang") == [(2, 0)]
    assert dense_layers("authors") == [(2, 0), (2, 1), (2, 2), (2, 3)]


# --- the whole network ---


@pytest.mark.parametrize("width", CHANNELS)
def test_shapes_at_224_pixels(width) -> None:
    model = ShuffleNet(width, mixing="k-odo").eval()
    sides = []
    for layer in (model.stem, *model.stages):
        layer.register_forward_hook(lambda module, inputs, output: sides.append(tuple(output.shape[1:])))
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 224, 224))
    # Zhang et al., table 1: output sizes.
    assert sides == [(c, s, s) for c, s in zip(CHANNELS[width], (56, 28, 14, 7), strict=True)]
    assert logits.shape == (1, 1000)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("stage2", STAGE2)
def test_small_images_and_gradients(mixing, stage2) -> None:
    torch.manual_seed(0)
    model = ShuffleNet(0.25, mixing=mixing, stage2=stage2, num_classes=10)
    logits = model(torch.randn(4, 3, 64, 64))
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0, name


@pytest.mark.parametrize("mixing", MIXINGS)
def test_state_dict_round_trip(mixing) -> None:
    model = in_use(ShuffleNet(0.25, mixing=mixing, num_classes=5))
    other = ShuffleNet(0.25, mixing=mixing, num_classes=5, permutation_seed=1).double().eval()
    x = torch.randn(2, 3, 40, 64, dtype=F64)
    assert not torch.allclose(other(x), model(x))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_channels_last_gives_the_same(mixing) -> None:
    model = in_use(ShuffleNet(0.25, mixing=mixing, num_classes=5))
    x = torch.randn(2, 3, 64, 64, dtype=F64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    actual = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mixing", ["shuffle", "hadamard", "k-odo"])
def test_half_precision_by_autocast(mixing) -> None:
    torch.manual_seed(0)
    model = ShuffleNet(0.25, mixing=mixing, num_classes=5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 64, 64))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    logits.float().sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("mixing", MIXINGS)
def test_compile_without_graph_breaks(mixing) -> None:
    unit = in_use(Unit(24, 96, stride=2, first_groups=1, mixing=mixing, position="both"))
    x = torch.randn(2, 24, 8, 8, dtype=F64)
    compiled = torch.compile(unit, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), unit(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mixing", K_MIXINGS)
def test_k_matrices_equal_dense_convolutions(mixing) -> None:
    model = in_use(ShuffleNet(0.25, mixing=mixing, num_classes=5))
    dense = copy.deepcopy(model)
    replaced = 0
    for unit in (unit for stage in dense.stages for unit in stage):
        for name in ("mix1", "mix2"):
            layer = getattr(unit.branch, name)
            assert isinstance(layer, KConv1x1)
            convolution = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False, dtype=F64)
            convolution.weight = nn.Parameter(layer.weight.detach())
            setattr(unit.branch, name, convolution)
            replaced += 1
    x = torch.randn(2, 3, 64, 64, dtype=F64)
    assert replaced == 32
    torch.testing.assert_close(model(x), dense(x), rtol=1e-10, atol=1e-10)


def test_k_matrices_contain_the_shuffle() -> None:
    shuffle = in_use(ShuffleNet(0.25, num_classes=5))
    model = ShuffleNet(0.25, mixing="k", position="second", num_classes=5).double().eval()
    own = {name: value for name, value in model.state_dict().items() if "mix2" in name}
    model.load_state_dict(shuffle.state_dict() | own)
    x = torch.randn(2, 3, 64, 64, dtype=F64)
    assert not torch.allclose(model(x), shuffle(x))
    for unit in (unit for stage in model.stages for unit in stage):
        channels = torch.arange(unit.branch.conv1.out_channels)
        order = channels.view(unit.branch.conv1.groups, -1).T.flatten()
        unit.branch.mix2 = KConv1x1(
            len(order), len(order), bias=False, init=exact.permutation(order, dtype=F64), dtype=F64
        )
    torch.testing.assert_close(model(x), shuffle(x), rtol=1e-10, atol=1e-10)


# --- one unit ---


def reference_unit(unit: Unit, x: torch.Tensor, mixing: str) -> torch.Tensor:
    """The paper's lists of layers, written out, with explicit matrices for the mixing."""
    layers = unit.branch

    def normalize(layer: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        mean, variance, weight, bias = (
            t.view(-1, 1, 1) for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        )
        return (x - mean) / (variance + layer.eps).sqrt() * weight + bias

    def mix(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        if mixing == "hadamard":
            size = 1 << (n - 1).bit_length()
            matrix = torch.from_numpy(scipy_linalg.hadamard(size)[:n, :n] / size**0.5)
        else:
            matrix = layer.weight.view(n, n)
        return torch.einsum("ij,njhw->nihw", matrix, x)

    def convolve(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, layer.weight, stride=layer.stride, padding=layer.padding, groups=layer.groups)

    if mixing == "shuffle":
        y = normalize(layers.bn1, convolve(layers.conv1, x)).relu()
        n, c, h, w = y.shape
        groups = layers.conv1.groups
        y = y.view(n, groups, c // groups, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)
    elif mixing == "hadamard":
        y = mix(layers.mix2, convolve(layers.conv1, mix(layers.mix1, x)))
        y = normalize(layers.bn1, y).relu()
    else:
        y = normalize(layers.bn1, convolve(layers.conv1, mix(layers.mix1, x))).relu()
        y = mix(layers.mix2, y)
    y = normalize(layers.bn2, convolve(layers.depthwise, y))
    y = normalize(layers.bn3, convolve(layers.conv2, y))
    if unit.stride == 1:
        return (x + y).relu()
    return torch.cat([F.avg_pool2d(x, 3, 2, 1), y], dim=1).relu()


@pytest.mark.parametrize("mixing", ["shuffle", "hadamard", *K_MIXINGS])
@pytest.mark.parametrize(("in_channels", "stride", "groups"), [(96, 1, 8), (96, 1, 1), (24, 2, 1), (48, 2, 8)])
def test_unit_is_the_papers_list_of_layers(float64_by_default, mixing, in_channels, stride, groups) -> None:
    position = "second" if mixing == "shuffle" else "both"
    unit = in_use(Unit(in_channels, 96, stride=stride, first_groups=groups, mixing=mixing, position=position))
    x = torch.randn(2, in_channels, 6, 7, dtype=F64)
    expected = reference_unit(unit, x, mixing)
    assert expected.shape == (2, 96, -(-6 // stride), -(-7 // stride))
    torch.testing.assert_close(unit(x), expected, rtol=1e-10, atol=1e-10)


def test_layers_stand_where_the_position_says() -> None:
    for position, kinds in (
        ("both", (KConv1x1, KConv1x1)),
        ("first", (KConv1x1, nn.Identity)),
        ("second", (nn.Identity, KConv1x1)),
    ):
        for unit in ShuffleNet(0.25, mixing="k", position=position).stages[1]:
            assert (type(unit.branch.mix1), type(unit.branch.mix2)) == kinds
    for mixing, kinds in (
        ("shuffle", (nn.Identity, nn.ChannelShuffle)),
        ("random", (nn.Identity, FixedPermutation)),
        ("hadamard", (Hadamard, Hadamard)),
        ("none", (nn.Identity, nn.Identity)),
    ):
        for unit in ShuffleNet(0.25, mixing=mixing).stages[1]:
            assert (type(unit.branch.mix1), type(unit.branch.mix2)) == kinds


@pytest.mark.parametrize(("groups", "channels"), [(1, 5), (2, 6), (8, 96), (8, 8)])
def test_shuffle_interleaves_the_groups(groups, channels) -> None:
    x = torch.randn(2, channels, 3, 4, dtype=F64)
    y = channel_mixing("shuffle", channels, groups=groups)(x)
    per_group = channels // groups
    for group in range(groups):
        for k in range(per_group):
            assert torch.equal(y[:, k * groups + group], x[:, group * per_group + k])


def test_without_mixing_groups_stay_apart() -> None:
    """The input of one group reaches only outputs of that group; with any mixing it reaches all groups."""
    x = torch.randn(1, 1536, 2, 2, dtype=F64)
    changed = x.clone()
    changed[:, : 1536 // GROUPS] += 1
    for mixing in MIXINGS:
        position = "second" if mixing in ("shuffle", "random") else "both"
        options = {"mixing": mixing, "position": position, "generator": torch.Generator().manual_seed(0)}
        unit = in_use(Unit(1536, 1536, stride=1, first_groups=GROUPS, **options))
        change = (unit.branch(changed) - unit.branch(x)).abs().amax(dim=(0, 2, 3))
        reached = change.view(GROUPS, -1).amax(dim=1) > 1e-9
        assert reached.tolist() == ([True] + [False] * 7 if mixing == "none" else [True] * 8), mixing


def test_random_permutations_differ_by_unit_and_repeat_by_seed() -> None:
    def permutations(seed: int) -> list[torch.Tensor]:
        model = ShuffleNet(0.25, mixing="random", permutation_seed=seed)
        return [layer.p for layer in model.modules() if isinstance(layer, FixedPermutation)]

    first, again, other = permutations(0), permutations(0), permutations(1)
    assert len(first) == 16
    assert all(torch.equal(p.sort().values, torch.arange(len(p))) for p in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[4], first[5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ShuffleNet(0.75), r"expected width in \(0\.25, 0\.5, 1\.0\), got 0\.75"),
        (lambda: ShuffleNet(mixing="fft"), r"expected mixing in \('shuffle', .*\), got 'fft'"),
        (lambda: ShuffleNet(position="third"), "expected position in .*, got 'third'"),
        (lambda: ShuffleNet(stage2="dense"), "expected stage2 in .*, got 'dense'"),
        (lambda: ShuffleNet(num_classes=0), "expected num_classes >= 1, got 0"),
        (lambda: channel_mixing("fft", 8, groups=2), "expected a mixing in .*, got 'fft'"),
        (lambda: ShuffleNet(0.25)(torch.zeros(2, 1, 64, 64)), r"\(N, 3, H, W\), got \(2, 1, 64, 64\)"),
        (lambda: ShuffleNet(0.25)(torch.zeros(3, 64, 64)), r"\(N, 3, H, W\), got \(3, 64, 64\)"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
