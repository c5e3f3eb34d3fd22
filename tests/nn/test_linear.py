"""KLinear, KConv1x1 and Hadamard equal dense layers with their matrix, and stand where those stand."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensor, FakeTensorMode

from kaleido_audio import KMatrix, exact
from kaleido_audio.nn import Hadamard, KConv1x1, KLinear

scipy_linalg = pytest.importorskip("scipy.linalg")
F64 = torch.float64
CONVOLUTIONS = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    leading=st.lists(st.integers(0, 3), max_size=3),
    bias=st.booleans(),
    width=st.integers(1, 2),
    expansion=st.integers(1, 3),
)
def test_klinear_is_the_dense_layer_of_its_weight(sides, leading, bias, width, expansion) -> None:
    layer = KLinear(*sides, bias, width=width, expansion=expansion, dtype=F64)
    x = torch.randn(*leading, sides[0], dtype=F64)
    assert layer.weight.shape == (sides[1], sides[0])
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_klinear_matrix_is_the_corner_of_a_kmatrix() -> None:
    source = KMatrix(6, out_features=11, width=2, dtype=F64)
    layer = KLinear(6, 11, width=2, init=source, dtype=F64)
    torch.testing.assert_close(layer.weight, source.to_dense(), rtol=0, atol=0)
    identity = KLinear(5, 8, init="identity", dtype=F64)
    torch.testing.assert_close(identity.weight, torch.eye(8, 5, dtype=F64), rtol=0, atol=0)


def test_parameters_are_the_formula_and_the_state_has_no_weight() -> None:
    layer = KLinear(100, 300, width=2)
    assert {name: p.numel() for name, p in layer.named_parameters()} == {
        "bias": 300,
        "kmatrix.weight": 4 * 2 * 512 * 9,
    }
    assert list(layer.state_dict()) == ["bias", "kmatrix.weight"]
    assert KLinear(100, 300, False).bias is None


def test_weight_cannot_be_assigned() -> None:
    layer = KLinear(4, 4)
    for value in (torch.zeros(4, 4), torch.nn.Parameter(torch.zeros(4, 4))):
        with pytest.raises((AttributeError, KeyError), match="weight"):
            layer.weight = value


def test_a_layer_of_a_given_matrix_cannot_be_reset_and_stays_as_it_is() -> None:
    layer = KLinear(6, 6, init=KMatrix(6))
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with pytest.raises(ValueError, match="made from a given K-matrix"):
        layer.reset_parameters()
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


def test_constraint_and_tied_reach_the_kmatrix() -> None:
    layer = KLinear(16, 16, width=2, constraint="orthogonal", dtype=F64)
    for parameter in layer.kmatrix.parameters():
        torch.nn.init.normal_(parameter)
    torch.testing.assert_close(layer.weight @ layer.weight.mT, torch.eye(16, dtype=F64), rtol=0, atol=1e-10)
    tied = KConv1x1(16, 16, width=2, tied=True).linear.kmatrix
    untied = KConv1x1(16, 16, width=2).linear.kmatrix
    assert sum(p.numel() for p in tied.parameters()) < sum(p.numel() for p in untied.parameters())


@pytest.mark.parametrize(("sides", "expansion"), [((32, 32), 1), ((20, 50), 1), ((50, 20), 1), ((16, 16), 2)])
def test_outputs_keep_the_variance_of_inputs(sides: tuple[int, int], expansion: int) -> None:
    torch.manual_seed(0)
    layers = [KLinear(*sides, expansion=expansion, dtype=F64) for _ in range(60)]
    gain = torch.stack([layer.weight.square().sum() / sides[1] for layer in layers]).mean()
    assert 0.93 < gain < 1.07


def test_square_powers_of_two_start_orthogonal() -> None:
    weight = KLinear(64, 64, dtype=F64).weight
    torch.testing.assert_close(weight @ weight.mT, torch.eye(64, dtype=F64), rtol=0, atol=1e-12)


def test_bias_starts_as_in_torch() -> None:
    bias = KLinear(100, 5000).bias
    assert 0.098 < bias.abs().max() <= 0.1 and bias.mean().abs() < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = KLinear(24, 40, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    x = torch.randn(5, 24, dtype=dtype)
    expected = torch.nn.functional.linear(x.double(), layer.double().weight, layer.bias)
    layer.to(dtype)
    assert layer(x).dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    assert (layer(x) - expected).abs().max() <= tolerance * expected.abs().max()


def test_autocast_gives_the_type_of_a_dense_layer() -> None:
    x = torch.randn(3, 16)
    layer, conv = KLinear(16, 8), KConv1x1(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.nn.Linear(16, 8)(x).dtype == torch.bfloat16
        assert conv(torch.randn(2, 3, 4, 4)).dtype == torch.bfloat16


def test_gradients() -> None:
    layer = KLinear(5, 7, width=2, dtype=F64)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    names = list(parameters)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    x = torch.randn(2, 3, 5, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


def test_gradients_flow_through_the_weight() -> None:
    layer = KLinear(6, 4, dtype=F64)
    x = torch.randn(9, 6, dtype=F64)
    (through_weight,) = torch.autograd.grad((x @ layer.weight.mT).sin().sum(), layer.kmatrix.weight)
    (through_layer,) = torch.autograd.grad((layer(x) - layer.bias).sin().sum(), layer.kmatrix.weight)
    torch.testing.assert_close(through_weight, through_layer)


@pytest.mark.parametrize("make", [lambda: KLinear(12, 20, width=2), lambda: KConv1x1(12, 20), lambda: Hadamard(12)])
def test_copies_and_state_dict(make) -> None:
    layer, other = make(), make()
    x = torch.randn(2, 12, 5, 12)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)


def test_compile_and_export() -> None:
    x = torch.randn(4, 12)
    model = torch.nn.Sequential(KLinear(12, 20), torch.nn.ReLU(), KLinear(20, 3))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    batch = {0: torch.export.Dim("batch", min=2, max=32)}
    exported = torch.export.export(model, (x,), dynamic_shapes=(batch,)).module()
    wide = torch.randn(9, 12)
    torch.testing.assert_close(exported(wide), model(wide))


def test_meta_and_default_dtype() -> None:
    assert {p.device.type for p in KLinear(8, 8, device="meta").parameters()} == {"meta"}
    torch.set_default_dtype(F64)
    try:
        assert {p.dtype for p in (*KLinear(8, 8).parameters(), *Hadamard(8).buffers())} == {F64}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "make", [KMatrix, lambda n: KLinear(n, 5, constraint="odo"), lambda n: KConv1x1(n, n), Hadamard]
)
def test_built_of_fake_tensors(make) -> None:
    with FakeTensorMode():
        module = make(8)
        assert isinstance(module(torch.randn(2, 8, 8, 8)), FakeTensor)


def test_attention_may_use_its_weight() -> None:
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    dense = copy.deepcopy(attention)
    attention.out_proj = KLinear(16, 16)
    with torch.no_grad():
        dense.out_proj.weight.copy_(attention.out_proj.weight)
        dense.out_proj.bias.copy_(attention.out_proj.bias)
    x = torch.randn(2, 5, 16)
    for training in (True, False):
        out, _ = attention.train(training)(x, x, x)
        torch.testing.assert_close(out, dense.train(training)(x, x, x)[0], rtol=1e-5, atol=1e-6)
    out.sum().backward()
    assert attention.out_proj.kmatrix.weight.grad.abs().sum() > 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    dims=st.integers(1, 3),
    batch=st.one_of(st.none(), st.integers(1, 3)),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    bias=st.booleans(),
    data=st.data(),
)
def test_kconv_is_the_dense_convolution(dims, batch, channels, bias, data) -> None:
    layer = KConv1x1(*channels, bias, spatial_dims=dims, dtype=F64)
    conv = CONVOLUTIONS[dims](*channels, 1, bias=bias, dtype=F64)
    with torch.no_grad():
        conv.weight.copy_(layer.weight)
        if bias:
            conv.bias.copy_(layer.bias)
    sides = data.draw(st.lists(st.integers(1, 5), min_size=dims, max_size=dims))
    x = torch.randn(*(() if batch is None else (batch,)), channels[0], *sides, dtype=F64)
    assert layer.weight.shape == conv.weight.shape
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-10, atol=1e-12)
    if batch is not None and dims == 2:
        last = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(layer(last), conv(x), rtol=1e-10, atol=1e-12)


def test_kconv_reads_channels_last_without_a_copy() -> None:
    layer = KConv1x1(6, 10)
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
    seen = []
    layer.linear.kmatrix.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    y = layer(x)
    assert seen[0].is_contiguous() and seen[0].data_ptr() == x.data_ptr()
    assert y.shape == (2, 10, 5, 7) and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("n", [1, 2, 3, 12, 16, 33, 256])
def test_hadamard_is_scipys(n: int) -> None:
    size = 1 << (n - 1).bit_length()
    expected = torch.from_numpy(scipy_linalg.hadamard(size)[:n, :n] / size**0.5).double()
    layer = Hadamard(n, dtype=F64)
    torch.testing.assert_close(layer(torch.eye(n, dtype=F64)), expected.T.contiguous(), rtol=1e-12, atol=1e-12)
    if n == size:
        x = torch.randn(3, n, dtype=F64)
        torch.testing.assert_close(layer(layer(x)), x)
    assert not list(layer.parameters()) and not layer.state_dict()


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_hadamard_of_any_dimension(dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(8, 8, 8, dtype=dtype)
    matrix = exact.hadamard(8).to_dense().detach().to(dtype) / 8**0.5
    expected = (x.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    torch.testing.assert_close(Hadamard(8, dim=dim)(x), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KLinear(0, 4), "in_features >= 1, got 0"),
        (lambda: KLinear(4, -1), "out_features >= 1, got -1"),
        (lambda: KLinear(4, 4, width=0), "width >= 1"),
        (lambda: KLinear(4, 4, dtype=torch.complex64), r"real floating-point dtype, got torch\.complex64"),
        (lambda: KLinear(512, 4)(torch.zeros(8, 400)), r"expected x of shape \(\.\.\., 512\), got \(8, 400\)"),
        (lambda: KLinear(512, 4)(torch.tensor(1.0)), r"\(\.\.\., 512\), got \(\)"),
        (lambda: KConv1x1(4, 4, spatial_dims=4), "spatial_dims 1, 2 or 3, got 4"),
        (lambda: KConv1x1(0, 4), "in_channels >= 1"),
        (lambda: KConv1x1(4, 4)(torch.zeros(2, 3, 5, 5)), r"\(N, 4, H, W\) or \(4, H, W\), got \(2, 3, 5, 5\)"),
        (lambda: KConv1x1(4, 4)(torch.zeros(2, 4)), r"got \(2, 4\)"),
        (lambda: Hadamard(8, dim=1)(torch.zeros(8, 4)), r"8 entries in dimension 1, got \(8, 4\)"),
        (lambda: Hadamard(8, dim=2)(torch.zeros(8, 8)), r"8 entries in dimension 2, got \(8, 8\)"),
        (lambda: Hadamard(0), "n >= 1, got 0"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
