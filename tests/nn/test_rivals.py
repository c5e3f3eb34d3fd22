"""The rivals multiply by the matrices that scipy and torch build, start with unit gain and count as they say."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio.nn import (
    CirculantLinear,
    DenseLinear,
    KLinear,
    KroneckerLinear,
    LowRankLinear,
    MonarchLinear,
    SparseLinear,
    StructuredLinear,
    ToeplitzLinear,
    match_parameters,
)

scipy_linalg = pytest.importorskip("scipy.linalg")
F64 = torch.float64
KINDS = [CirculantLinear, DenseLinear, KroneckerLinear, LowRankLinear, MonarchLinear, SparseLinear, ToeplitzLinear]
SMALL = {LowRankLinear: {"rank": 1}, MonarchLinear: {"blocks": 1}}


def low_rank(layer: LowRankLinear) -> torch.Tensor:
    return torch.einsum("or,ri->oi", layer.left, layer.right)


def sparse(layer: SparseLinear) -> torch.Tensor:
    dense = torch.zeros(layer.out_features, layer.in_features, dtype=F64)
    for place, value in zip(layer.indices("support").tolist(), layer.values.tolist(), strict=True):
        dense[place // layer.in_features, place % layer.in_features] = value
    return dense


def circulant(layer: CirculantLinear) -> torch.Tensor:
    whole = torch.from_numpy(scipy_linalg.circulant(layer.column.detach().numpy()))
    return whole[: layer.out_features, : layer.in_features]


def toeplitz(layer: ToeplitzLinear) -> torch.Tensor:
    diagonals = layer.diagonals.detach().numpy()
    m = layer.in_features
    return torch.from_numpy(scipy_linalg.toeplitz(diagonals[m - 1 :], diagonals[:m][::-1]))


def monarch(layer: MonarchLinear) -> torch.Tensor:
    def transposed(rows: int, columns: int) -> torch.Tensor:
        """The permutation that reads a rows x columns array column by column."""
        return torch.eye(rows * columns, dtype=F64)[torch.arange(rows * columns).view(rows, columns).T.flatten()]

    (blocks, inner, _), (_, outer, _) = layer.first.shape, layer.second.shape
    first, second = torch.block_diag(*layer.first), torch.block_diag(*layer.second)
    whole = transposed(blocks, outer) @ second @ transposed(blocks, inner) @ first
    return whole[: layer.out_features, : layer.in_features]


def kronecker(layer: KroneckerLinear) -> torch.Tensor:
    whole = torch.ones(1, 1, dtype=F64)
    for matrix in layer.matrices:
        whole = torch.kron(whole, matrix)
    return whole


EXPLICIT = {
    CirculantLinear: circulant,
    KroneckerLinear: kronecker,
    LowRankLinear: low_rank,
    MonarchLinear: monarch,
    SparseLinear: sparse,
    ToeplitzLinear: toeplitz,
}


@pytest.mark.parametrize("kind", list(EXPLICIT))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sides=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    leading=st.lists(st.integers(0, 3), max_size=2),
    bias=st.booleans(),
    choice=st.integers(1, 30),
)
def test_layers_multiply_by_the_explicit_matrix(kind, sides, leading, bias, choice) -> None:
    option = {LowRankLinear: "rank", MonarchLinear: "blocks", SparseLinear: "nonzeros", KroneckerLinear: "factors"}
    options = {option[kind]: min(choice, *sides)} if kind in option else {}
    layer = kind(*sides, bias, dtype=F64, **options)
    matrix = EXPLICIT[kind](layer)
    torch.testing.assert_close(layer.weight, matrix, rtol=1e-10, atol=1e-12)
    x = torch.randn(*leading, sides[0], dtype=F64)
    expected = torch.nn.functional.linear(x, matrix, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [(24, 40), (40, 24), (32, 32)])
def test_outputs_keep_the_variance_of_inputs(kind, sides) -> None:
    torch.manual_seed(0)
    energies = [kind(*sides, dtype=F64).weight.square().sum() / sides[1] for _ in range(150)]
    assert 0.88 < torch.stack(energies).mean() < 1.12


@pytest.mark.parametrize(
    ("layer", "parameters"),
    [
        (DenseLinear(48, 32, bias=False), 48 * 32),
        (LowRankLinear(48, 32, bias=False, rank=5), 5 * (48 + 32)),
        (SparseLinear(48, 32, bias=False, density=0.25), 48 * 32 // 4),
        (SparseLinear(48, 32, bias=False, nonzeros=77), 77),
        (CirculantLinear(48, 32, bias=False), 48),
        (ToeplitzLinear(48, 32, bias=False), 79),
        (MonarchLinear(48, 32, bias=False, blocks=4), 4 * 8 * (12 + 8)),
        (MonarchLinear(30, 50, bias=False, blocks=4), 4 * 8 * (8 + 13)),
        (KroneckerLinear(48, 32, bias=False), 8 * 6 + 4 * 8),
        (KroneckerLinear(48, 32, bias=False, factors=1), 48 * 32),
    ],
)
def test_parameters_are_the_formula(layer, parameters) -> None:
    assert sum(p.numel() for p in layer.parameters()) == parameters


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind) -> None:
    layer = kind(6, 4, dtype=F64, **SMALL.get(kind, {}))
    names = [name for name, _ in layer.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    x = torch.randn(2, 6, dtype=F64, requires_grad=True)
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(call, (x, *values))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_autocast(kind) -> None:
    torch.manual_seed(0)
    layer = kind(24, 16)
    x = torch.randn(5, 24)
    expected = layer(x).detach()
    half = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        deep = torch.nn.Sequential(torch.nn.Linear(24, 24), layer)(x)
    deep.float().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_copies_state_and_compile(kind) -> None:
    layer, other = kind(24, 16), kind(24, 16)
    x = torch.randn(3, 24)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("kind", [*KINDS, KLinear])
def test_signature_is_that_of_linear(kind) -> None:
    layer = kind(12, 20, False, device="meta", dtype=F64)
    assert layer.bias is None and layer.in_features == 12 and layer.out_features == 20
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", F64)}
    assert "in_features=12, out_features=20, bias=False" in repr(layer)


def test_a_seed_gives_one_support_whatever_the_default_type() -> None:
    expected = SparseLinear(40, 12, nonzeros=100, seed=3).support
    torch.set_default_dtype(F64)
    try:
        assert torch.equal(SparseLinear(40, 12, nonzeros=100, seed=3).support, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_sparse_rows_are_equally_long_and_seeded() -> None:
    layer = SparseLinear(40, 12, nonzeros=100, seed=3)
    assert sorted((layer.weight != 0).sum(1).tolist()) == [8] * 8 + [9] * 4
    assert torch.equal(layer.support, SparseLinear(40, 12, nonzeros=100, seed=3).support)
    assert not torch.equal(layer.support, SparseLinear(40, 12, nonzeros=100, seed=4).support)
    torch.manual_seed(0)
    assert not torch.equal(SparseLinear(40, 12).support, SparseLinear(40, 12).support)


@pytest.mark.parametrize("budget", [1, 700, 5_000, 10**7])
@pytest.mark.parametrize("sides", [(64, 64), (64, 96)])
@pytest.mark.parametrize(
    ("kind", "option"),
    [(KLinear, "width"), (LowRankLinear, "rank"), (MonarchLinear, "blocks"), (SparseLinear, "nonzeros")],
)
def test_no_neighbour_is_closer_to_the_budget(kind, option, sides, budget) -> None:
    budget = min(budget, 64 * 512)

    def distance(value: int) -> float:
        if value < 1:
            return math.inf
        try:
            layer = kind(*sides, bias=False, device="meta", **{option: value})
        except ValueError:
            return math.inf
        return abs(sum(p.numel() for p in layer.parameters()) - budget)

    (found,) = match_parameters(kind, *sides, budget).items()
    assert found[0] == option
    assert distance(found[1]) <= min(distance(found[1] - 1), distance(found[1] + 1))
    assert distance(found[1]) < math.inf


def test_kronecker_and_layers_without_an_option() -> None:
    assert match_parameters(KroneckerLinear, 64, 64, 130) == {"factors": 2}
    assert match_parameters(KroneckerLinear, 64, 64, 4000) == {"factors": 1}
    for kind in (CirculantLinear, DenseLinear, ToeplitzLinear):
        assert match_parameters(kind, 64, 64, 100) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            (lambda kind=kind: kind(24, 16)(torch.zeros(8, 20)), r"shape \(\.\.\., 24\), got \(8, 20\)")
            for kind in KINDS
        ],
        *[(lambda kind=kind: kind(0, 16), "in_features >= 1, got 0") for kind in EXPLICIT],
        (lambda: LowRankLinear(8, 4, rank=5), "rank between 1 and 4, got 5"),
        (lambda: MonarchLinear(8, 4, blocks=0), "blocks between 1 and 4, got 0"),
        (lambda: SparseLinear(8, 4, density=0.0), r"density in \(0, 1\], got 0\.0"),
        (lambda: SparseLinear(8, 4, nonzeros=33), "nonzeros between 1 and 32, got 33"),
        (lambda: KroneckerLinear(8, 4, factors=0), "factors >= 1, got 0"),
        (lambda: match_parameters(torch.nn.Conv2d, 8, 8, 1), "linear layers of kaleido_audio.nn, got Conv2d"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_layer_must_define_its_product() -> None:
    with pytest.raises(NotImplementedError, match="StructuredLinear does not define multiply"):
        StructuredLinear(2, 2)(torch.zeros(2))
