"""Swapping layers keeps everything but the matrix, refuses what it would break, and can be undone exactly."""

import copy
import re

import pytest
import torch

from kaleido_audio.nn import (
    CirculantLinear,
    KConv1x1,
    KLinear,
    KroneckerLinear,
    LowRankLinear,
    MonarchLinear,
    SparseLinear,
    ToeplitzLinear,
    replace_linear,
    to_dense,
)
from kaleido_audio.transforms import KSpectrogram

Linear = torch.nn.Linear


class Network(torch.nn.Module):
    """Two branches that share a layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Linear(64, 96)
        self.second = torch.nn.Sequential(Linear(96, 96), torch.nn.ReLU(), Linear(96, 64, bias=False))
        self.twin = self.first
        self.head = Linear(64, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)) + self.second(self.twin(x)))


def test_default_replaces_what_gets_smaller() -> None:
    model = Network()
    report = replace_linear(model, init="orthogonal")
    assert [layer.name for layer in report.layers] == ["first", "second.0", "second.2"]
    assert type(model.first) is type(model.second[0]) is KLinear and type(model.head) is Linear
    assert list(report.skipped) == ["head"] and "would grow from 195 to " in report.skipped["head"]
    assert model.second[2].bias is None
    assert model(torch.zeros(2, 64)).shape == (2, 3)
    for layer in report.layers:
        assert layer.parameters_after < layer.parameters_before and layer.relative_error is None
    assert report.parameters_after == sum(layer.parameters_after for layer in report.layers)
    total = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in Network().parameters()) - total == report.parameters_before - report.parameters_after


def test_report_is_a_table() -> None:
    lines = str(replace_linear(Network(), init="orthogonal")).splitlines()
    assert lines[0].split() == ["layer", "shape", "before", "after", "relative", "error"]
    assert lines[1].split() == ["first", "96", "x", "64", "6,240", "3,680", "-"]
    assert lines[4].split()[0] == "total" and len({len(line) for line in lines[:4]}) == 1
    assert lines[5].startswith("left alone: head: would grow")


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("second.*", ["second.0", "second.2"]),
        ("*", ["first", "second.0", "second.2", "head"]),
        ("twin", ["first"]),
        (["head", "second.0"], ["second.0", "head"]),
        (["twin"], ["first"]),
        (lambda name, module: module.in_features == 96, ["second.0", "second.2"]),
    ],
)
def test_select(select, names) -> None:
    report = replace_linear(Network(), select, init="orthogonal")
    assert [layer.name for layer in report.layers] == names


def test_shared_layers_stay_shared() -> None:
    model = Network()
    replace_linear(model, ["twin"], init="orthogonal")
    assert model.first is model.twin and type(model.first) is KLinear


def test_bias_type_mode_and_gradient_flags_are_kept() -> None:
    model = Network().double().eval()
    model.first.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("bias")}
    replace_linear(model, "*", init="orthogonal")
    for name, bias in before.items():
        assert torch.equal(model.get_parameter(name), bias)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())
    assert not model.first.kmatrix.weight.requires_grad and model.first.bias.requires_grad
    assert model.head.kmatrix.weight.requires_grad and not model.head.bias.requires_grad


def test_options_and_rivals() -> None:
    model = Network()
    report = replace_linear(model, "second.0", init="identity", width=2, expansion=2)
    assert model.second[0].kmatrix.width == model.second[0].kmatrix.expansion == 2
    assert report.layers[0].parameters_after == 2 * 4 * 256 * 8 + 96
    replace_linear(model, "second.2", layer=LowRankLinear, init=None, rank=3)
    assert model.second[2].rank == 3


def test_convolutions() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(64, 64, 1),
        torch.nn.Conv2d(64, 64, 3, padding=1),
        torch.nn.Conv2d(64, 64, 1, groups=2),
        torch.nn.Conv2d(64, 128, 1, stride=2),
        torch.nn.Conv2d(64, 128, 1, bias=False, padding="same"),
        torch.nn.Flatten(2),
        torch.nn.Conv1d(128, 64, 1),
    )
    bias = model[0].bias.detach().clone()
    report = replace_linear(model, init="orthogonal", convolutions=True)
    assert [layer.name for layer in report.layers] == ["0", "4", "6"] and not report.skipped
    assert [type(layer) for layer in model].count(KConv1x1) == 3
    assert (model[0].spatial_dims, model[6].spatial_dims) == (2, 1) and torch.equal(model[0].bias, bias)
    with pytest.raises(ValueError, match="no layer to replace"):
        replace_linear(torch.nn.Sequential(torch.nn.Conv2d(64, 64, 1)), init="orthogonal")


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_fit_starts_near_the_weight(kind: str) -> None:
    pytest.importorskip("kaleido_audio.fit")
    source = KLinear(16, 16) if kind == "linear" else KConv1x1(16, 16)
    model = to_dense(torch.nn.Sequential(source))
    x = torch.randn(5, 16) if kind == "linear" else torch.randn(2, 16, 3, 3)
    expected = model(x)
    report = replace_linear(model, "*", convolutions=True, width=1, fit_options={"sweeps": 20})
    (layer,) = report.layers
    assert type(model[0]) is type(source) and layer.relative_error is not None and layer.relative_error < 0.9
    error = (model[0].weight - source.weight).norm() / source.weight.norm()
    assert error.item() == pytest.approx(layer.relative_error, abs=1e-4)
    if layer.relative_error < 1e-6:
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert f"{layer.relative_error:.2e}" in str(report)


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(64, 4)
        self.linear = Linear(64, 64)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 64)
        self.linear = Linear(64, 64)
        self.head = Linear(64, 64)
        self.head.weight = self.embedding.weight


def hooked() -> torch.nn.Module:
    model = torch.nn.Sequential(Linear(64, 64), Linear(64, 64))
    model[0].register_forward_hook(lambda module, inputs, output: output)
    return model


def compiled() -> torch.nn.Module:
    return torch.nn.Sequential(torch.compile(Linear(64, 64), backend="eager"), Linear(64, 64))


def patched() -> torch.nn.Module:
    model = torch.nn.Sequential(Linear(64, 64), Linear(64, 64))
    model[0].forward = torch.relu
    return model


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (compiled, "0._orig_mod", "was compiled by itself"),
        (patched, "0", "has a forward() of its own"),
        (Attention, "attention.out_proj", "is a NonDynamicallyQuantizableLinear"),
        (Tied, "head", "shares a parameter with another layer"),
        (hooked, "0", "has hooks"),
    ],
)
def test_what_would_break_is_left_alone(make, name, reason) -> None:
    model = make()
    untouched = model.get_submodule(name)
    report = replace_linear(model, "*", init="orthogonal")
    assert len(report.layers) == 1 and list(report.skipped) == [name] and report.skipped[name].startswith(reason)
    assert f"left alone: {name}: {reason}" in str(report)
    assert model.get_submodule(name) is untouched
    with pytest.raises(ValueError, match=re.escape(f"cannot replace {name}: {reason}")):
        replace_linear(make(), [name], init="orthogonal")


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_layers_work_in_both_modes(norm_first: bool) -> None:
    # In eval mode and without gradients, PyTorch's fused path reads linear1.weight and linear2.weight.
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first)
    report = replace_linear(layer, "*", init="orthogonal")
    assert {replaced.name for replaced in report.layers} == {"linear1", "linear2"}
    x = torch.randn(2, 5, 32)
    expected = layer(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", [torch.nn.TransformerEncoder, torch.nn.Transformer])
def test_encoders_take_padded_input(kind, nested: bool) -> None:
    # Dense layers take it as nested tensors.
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    model = encoder
    if kind is torch.nn.Transformer:
        model = kind(32, 4, 2, 1, 64, dropout=0.0, batch_first=True, custom_encoder=encoder)
    replace_linear(model, "*layers.0.linear?", init="orthogonal")
    assert isinstance(encoder.layers[0].linear1, KLinear) and type(encoder.layers[1].linear1) is Linear
    replace_linear(model, "*linear?", init="orthogonal")
    x = torch.randn(3, 7, 32)
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[1, 4:] = True
    arguments, masks = [x], {"src_key_padding_mask": mask}
    if model is not encoder:
        arguments, masks = [x, x], {**masks, "memory_key_padding_mask": mask}
    expected = model(*arguments, **masks)
    with torch.no_grad():
        y = copy.deepcopy(model.eval())(*arguments, **masks)
        torch.testing.assert_close(y[~mask], expected[~mask], rtol=1e-4, atol=1e-5)
        assert not encoder.use_nested_tensor
        to_dense(model)
        assert encoder.use_nested_tensor == nested
        y = model(*arguments, **masks)
        torch.testing.assert_close(y[~mask], expected[~mask], rtol=1e-4, atol=1e-5)


def test_errors_leave_the_model_as_it_was() -> None:
    model = Network()
    modules = list(model.modules())
    for call, message in [
        (lambda: replace_linear(model, "decoder.*"), "Candidates: first, second.0, second.2, head"),
        (lambda: replace_linear(model, ["first", "tail"]), "no such layer: tail. Candidates: first, "),
        (lambda: replace_linear(model, layer=LowRankLinear), "for LowRankLinear use init=None"),
        (lambda: replace_linear(model, layer=LowRankLinear, init=None, convolutions=True), "do not go with"),
        (lambda: replace_linear(model, tied=True), "leave constraint and tied out"),
        (lambda: replace_linear(model, init=None, fit_options={"sweeps": 1}), "for init='fit', got init=None"),
        (lambda: replace_linear(model, init="zeros"), "expected init in"),
        (lambda: replace_linear(model, "*", layer=LowRankLinear, init=None, rank=99), "rank between 1 and 3"),
        (lambda: replace_linear(Linear(64, 64), init="orthogonal"), "Candidates: none"),
        (lambda: replace_linear(torch.nn.Sequential(Linear(8, 2)), init="orthogonal"), "0: would grow from 18 to"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
        assert list(model.modules()) == modules
    with pytest.raises(ValueError, match="9 and 2 more"):
        replace_linear(torch.nn.Sequential(*[Linear(8, 8) for _ in range(12)]), "none of them")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: KLinear(12, 20, width=2),
        lambda: KLinear(20, 12, bias=False),
        lambda: CirculantLinear(12, 20),
        lambda: ToeplitzLinear(12, 20),
        lambda: MonarchLinear(12, 20),
        lambda: KroneckerLinear(12, 20),
        lambda: SparseLinear(12, 20),
        lambda: LowRankLinear(12, 20),
    ],
)
def test_to_dense_linear(layer) -> None:
    layer = layer().double().eval()
    model = torch.nn.ModuleDict({"outer": torch.nn.Sequential(layer), "again": layer})
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    expected = layer(x)
    with torch.no_grad():
        assert to_dense(model) is model
    dense = model["again"]
    assert type(dense) is Linear and model["outer"][0] is dense and not dense.training and dense.weight.requires_grad
    torch.testing.assert_close(dense(x), expected, rtol=1e-10, atol=1e-12)
    assert (dense.bias is None) == (layer.bias is None)


@pytest.mark.parametrize(("dims", "kind"), [(1, torch.nn.Conv1d), (2, torch.nn.Conv2d), (3, torch.nn.Conv3d)])
def test_to_dense_convolution(dims: int, kind: type) -> None:
    conv = KConv1x1(6, 10, spatial_dims=dims).requires_grad_(False)
    dense = to_dense(copy.deepcopy(conv))
    assert type(dense) is kind and not dense.weight.requires_grad and not dense.bias.requires_grad
    x = torch.randn(2, 6, *[3] * dims)
    torch.testing.assert_close(dense(x), conv(x), rtol=1e-5, atol=1e-5)


def test_replacing_and_back_keeps_the_outputs() -> None:
    model = Network()
    replace_linear(model, "*", init="orthogonal")
    x = torch.randn(4, 64)
    expected = model(x)
    to_dense(model)
    assert {type(m) for m in model.modules() if hasattr(m, "in_features")} == {Linear}
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_that_cannot_be_is_left_alone_with_the_reason() -> None:
    model = torch.nn.Sequential(Linear(256, 256), Linear(256, 4))
    report = replace_linear(model, layer=LowRankLinear, init=None)
    assert isinstance(model[0], LowRankLinear) and type(model[1]) is Linear
    assert report.skipped == {"1": "cannot be a LowRankLinear: expected rank between 1 and 4, got 8"}


def test_to_dense_refuses_what_would_be_lost() -> None:
    hooked = torch.nn.Sequential(KLinear(8, 8))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="0 has hooks"):
        to_dense(hooked)
    shared = torch.nn.Sequential(KLinear(8, 8), KLinear(8, 8))
    shared[1].kmatrix = shared[0].kmatrix
    with pytest.raises(ValueError, match="0 and 1 share parameters"):
        to_dense(shared)
    assert isinstance(hooked[0], KLinear) and isinstance(shared[0], KLinear)


@pytest.mark.parametrize("make", [lambda: KLinear(8, 8), lambda: KSpectrogram(n_fft=8)])
def test_to_dense_refuses_what_was_compiled_or_patched(make) -> None:
    model = torch.nn.Sequential(torch.compile(make(), backend="eager"))
    with pytest.raises(ValueError, match="was compiled by itself"):
        to_dense(model)
    model = torch.nn.Sequential(make())
    model[0].forward = torch.relu
    with pytest.raises(ValueError, match=r"0 is a \w+ with a forward\(\) of its own"):
        to_dense(model)


def test_a_compiled_model_may_change_its_layers() -> None:
    model = torch.compile(torch.nn.Sequential(Linear(64, 64)), backend="eager")
    x = torch.randn(3, 64)
    before = model(x)
    assert len(replace_linear(model, init="orthogonal").layers) == 1
    after = model(x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(to_dense(model)(x), after)


@pytest.mark.parametrize("make", [lambda: KLinear(8, 8), lambda: KConv1x1(8, 8), lambda: LowRankLinear(8, 8)])
def test_to_dense_under_autocast_is_as_precise(make) -> None:
    model = torch.nn.Sequential(make())
    expected = to_dense(copy.deepcopy(model))
    with torch.autocast("cpu", torch.bfloat16):
        to_dense(model)
    for actual, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert actual.dtype == wanted.dtype and torch.equal(actual, wanted)


def test_to_dense_in_inference_mode_gives_parameters() -> None:
    layer = KConv1x1(8, 8)
    model = torch.nn.Sequential(layer)
    with torch.inference_mode():
        to_dense(model)
    assert model[0].weight.requires_grad and not model[0].weight.is_inference()
    assert isinstance(layer.linear, KLinear)  # the layer itself is as it was
