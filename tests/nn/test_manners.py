"""Layers in the hands of PyTorch's own tools: transforms of functions, averages of weights, restarts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vjp, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kaleido_audio import KMatrix
from kaleido_audio.nn import (
    CirculantLinear,
    DenseLinear,
    Hadamard,
    KConv1x1,
    KLinear,
    KPermutation,
    KroneckerLinear,
    LowRankLinear,
    MonarchLinear,
    SparseLinear,
    ToeplitzLinear,
    replace_linear,
    to_dense,
)

LAYERS = [
    CirculantLinear,
    DenseLinear,
    KLinear,
    KroneckerLinear,
    LowRankLinear,
    MonarchLinear,
    SparseLinear,
    ToeplitzLinear,
]


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def test_an_ensemble_by_vmap_has_the_gradients_of_its_members() -> None:
    models = [KMatrix(8, dtype=torch.float64) for _ in range(3)]
    x = torch.randn(5, 8, dtype=torch.float64)
    stacked, _ = stack_module_state(models)

    def call(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(models[0], parameters, (x,))

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return vmap(call, in_dims=(0, None))(parameters, x).square().sum()

    loss(stacked).backward()
    of_transform = grad(loss)({name: value.detach() for name, value in stacked.items()})
    for index, model in enumerate(models):
        model(x).square().sum().backward()
        torch.testing.assert_close(stacked["weight"].grad[index], model.weight.grad)
        torch.testing.assert_close(of_transform["weight"][index], model.weight.grad)


@pytest.mark.parametrize("make", [KMatrix, Hadamard, lambda n, dtype: KLinear(n, n, dtype=dtype)])
def test_vmap_of_a_frozen_layer_passes_gradients(make) -> None:
    layer = make(8, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(5, 8, dtype=torch.float64)
    plain, mapped = (x.clone().requires_grad_() for _ in range(2))
    layer(plain).square().sum().backward()
    vmap(layer)(mapped).square().sum().backward()
    torch.testing.assert_close(mapped.grad, plain.grad)
    _, pull_back = vjp(lambda x: vmap(layer)(x).square().sum(), x)
    torch.testing.assert_close(pull_back(torch.ones((), dtype=x.dtype))[0], plain.grad)


@pytest.mark.parametrize("transform", ["grad", "per sample", "jacrev", "vmap"])
def test_compiled_transforms_of_functions(transform: str) -> None:
    k = KMatrix(8)
    x, parameters = torch.randn(3, 8), {name: p.detach() for name, p in k.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(k, parameters, (x,)).square().sum()

    functions = {
        "grad": lambda p, x: grad(loss)(p, x)["weight"],
        "per sample": lambda p, x: vmap(grad(loss), in_dims=(None, 0))(p, x)["weight"],
        "jacrev": lambda p, x: jacrev(loss)(p, x)["weight"],
        "vmap": lambda p, x: vmap(lambda x: k(x))(x),
    }
    function = functions[transform]
    expected = function(parameters, x)
    assert expected.any()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(parameters, x), expected)


def test_a_frozen_layer_keeps_no_activations() -> None:
    saved: list[int] = []
    k = KMatrix(256).requires_grad_(False)
    x = torch.randn(1000, 256, requires_grad=True)
    inputs = x * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        y = k(inputs)
    assert max(saved) == k.weight.numel()
    inputs.add_(1)  # as behind a frozen nn.Linear
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ k.to_dense(), rtol=1e-4, atol=1e-4)
    g = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    fixed = KMatrix(8, dtype=torch.float64).requires_grad_(False)
    assert torch.autograd.gradgradcheck(fixed, (g,))


@pytest.mark.parametrize("make", [lambda: KMatrix(256, tied=True), lambda: KPermutation(256)])
def test_averages_of_weights_leave_indices_alone(make) -> None:
    module = make()
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(module)
    x = torch.randn(4, 256)
    torch.testing.assert_close(averaged(x), module(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_reset_parameters_draws_everything_anew(kind) -> None:
    layer = kind(16, 16)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    scale = float(layer.weight.detach().square().mean())
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(float("nan"))
    layer.reset_parameters()
    for name, p in layer.named_parameters():
        assert p.isfinite().all() and not torch.equal(p, before[name])
    assert 0.3 * scale < float(layer.weight.detach().square().mean()) < 3 * scale
    with torch.device("meta"):
        empty = kind(16, 16)
    empty.to_empty(device="cpu")
    empty.reset_parameters()
    assert empty(torch.randn(3, 16)).isfinite().all()


def test_to_dense_refuses_what_it_would_change() -> None:
    class Rectified(KLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    with pytest.raises(ValueError, match=r"0 is a Rectified with a forward\(\) of its own"):
        to_dense(nn.Sequential(Rectified(8, 8)))
    tied = nn.Sequential(KLinear(8, 8), nn.Linear(8, 8))
    tied[1].bias = tied[0].bias
    with pytest.raises(ValueError, match="1 and 0 share parameters"):
        to_dense(tied)


def test_an_encoder_of_structured_layers_stays_off_the_path_that_makes_matrices() -> None:
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 32)
    replace_linear(layer, ["linear1", "linear2"], init="orthogonal")
    made: list[int] = []
    original = KMatrix.to_dense
    try:
        KMatrix.to_dense = lambda self: made.append(1) or original(self)
        with torch.inference_mode():
            y = layer(x)
    finally:
        KMatrix.to_dense = original
    assert not made
    to_dense(layer)
    assert layer.activation_relu_or_gelu == 1
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)


def test_numpy_sizes_and_what_are_no_sizes() -> None:
    for size in (np.int64(8), np.int32(8)):
        for layer in (KLinear(size, size), Hadamard(size), KPermutation(size), KMatrix(size, expansion=np.int64(2))):
            assert layer(torch.randn(3, 8)).shape == (3, 8)
    with pytest.raises(ValueError, match="expected out_features as an integer, got True"):
        KLinear(8, True)
    with pytest.raises(ValueError, match="expected bias to be True or False, got 3"):
        KConv1x1(8, 8, 3)
    with pytest.raises(ValueError, match=r"expected a torch\.dtype"):
        KLinear(8, 8, dtype="float32")
    with pytest.raises(ValueError, match="dtype: new layers have those"):
        replace_linear(nn.Sequential(nn.Linear(64, 64)), dtype=torch.float64)


def test_layouts_that_are_not_dense_are_named() -> None:
    k = KMatrix(8)
    with pytest.raises(ValueError, match=r"torch.sparse_coo: use x.to_dense\(\)"):
        k(torch.randn(3, 8).to_sparse())
    with pytest.raises(ValueError, match=r"a nested tensor: give its values\(\)"):
        k(torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)], layout=torch.jagged))


def test_a_seed_gives_one_start_whatever_the_default_type() -> None:
    torch.manual_seed(0)
    first = KMatrix(16).weight
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        second = KMatrix(16).weight
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first, second)
