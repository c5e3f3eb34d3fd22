"""KPermutation: doubly stochastic in the mean, a permutation in every hard draw, and able to learn one."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact
from kaleido_audio.nn import KPermutation

F64 = torch.float64
RELAXATIONS = ["sigmoid", "cos2"]


def routed(p: list[int], sharpness: float = 100.0) -> KPermutation:
    """A layer whose blocks are those of the Benes network of p."""
    n = len(p)
    layer = KPermutation(n, dtype=F64)
    keep = exact.permutation(p).factors[:, :, 0]
    strides = [[n >> (s + 1) for s in range(keep.shape[1])], [1 << s for s in range(keep.shape[1])]]
    with torch.no_grad():
        for f in range(2):
            for s, stride in enumerate(strides[f]):
                first_of_pair = (torch.arange(n) & stride) == 0
                layer.theta[f, s] = (2 * keep[f, s][first_of_pair].double() - 1) * sharpness
    return layer


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize(("n", "width"), [(2, 1), (8, 2), (64, 1), (16, 3)])
def test_mean_is_doubly_stochastic(n: int, width: int, relaxation: str) -> None:
    torch.manual_seed(0)
    layer = KPermutation(n, width=width, relaxation=relaxation, temperature=0.5, dtype=F64)
    torch.nn.init.normal_(layer.theta)
    matrix = layer.to_dense()
    ones = torch.ones(n, dtype=F64)
    torch.testing.assert_close(matrix.sum(0), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(matrix.sum(1), ones, rtol=1e-12, atol=0)
    assert matrix.min() >= 0 and matrix.std() > 0.01 / n


def test_blocks_are_those_of_the_definition() -> None:
    layer = KPermutation(4, dtype=F64)
    (a, b), (c, d) = layer.probabilities()[0].tolist()
    (e, f), (g, h) = layer.probabilities()[1].tolist()

    def stage(p: float, q: float, pairs: list[tuple[int, int]]) -> torch.Tensor:
        matrix = torch.zeros(4, 4, dtype=F64)
        for probability, (i, j) in zip((p, q), pairs, strict=True):
            matrix[i, i] = matrix[j, j] = probability
            matrix[i, j] = matrix[j, i] = 1 - probability
        return matrix

    far, near = [(0, 2), (1, 3)], [(0, 1), (2, 3)]
    expected = stage(g, h, far) @ stage(e, f, near) @ stage(c, d, near) @ stage(a, b, far)
    torch.testing.assert_close(layer.to_dense(), expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from([2, 4, 8, 16]).flatmap(lambda n: st.permutations(range(n))))
def test_every_permutation_is_within_reach(p) -> None:
    layer = routed(p)
    assert layer.permutation().tolist() == list(p)
    assert layer.permutation().dtype == torch.int64
    x = torch.randn(3, len(p), dtype=F64)
    torch.testing.assert_close(layer(x), x[:, p], rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.sample(x), x[:, p])
    assert torch.equal(layer.harden()(x), x[:, p])


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_hard_draws_only_permute(relaxation: str) -> None:
    torch.manual_seed(0)
    layer = KPermutation(64, relaxation=relaxation, temperature=0.3)
    x = torch.randn(64)
    draws = torch.stack([layer.sample(x) for _ in range(5)])
    assert torch.equal(draws.sort(1).values, x.sort().values.expand(5, -1))
    assert not torch.equal(draws[0], draws[1])
    soft = layer.sample(torch.eye(64), hard=False)
    torch.testing.assert_close(soft.sum(0), torch.ones(64))
    assert not torch.equal(soft, soft.round())


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_hard_draws_average_to_the_mean(relaxation: str, temperature: float) -> None:
    torch.manual_seed(0)
    layer = KPermutation(4, relaxation=relaxation, temperature=temperature)
    torch.nn.init.normal_(layer.theta)
    mean = layer.to_dense().detach()
    with torch.no_grad():
        average = torch.stack([layer.sample(torch.eye(4), dim=0) for _ in range(3000)]).mean(0)
    # Of 3000 draws, the standard deviation is below 0.01 an entry.
    assert (average - mean).abs().max() < 0.04


def test_draws_in_half_precision_are_as_likely_as_in_single() -> None:
    torch.manual_seed(0)
    layer = KPermutation(8, dtype=torch.bfloat16)
    torch.nn.init.constant_(layer.theta, 20.0)
    x = torch.arange(8.0, dtype=torch.bfloat16)
    assert all(torch.equal(layer.sample(x), x) for _ in range(300))


def test_gradients() -> None:
    torch.manual_seed(0)
    for relaxation in RELAXATIONS:
        layer = KPermutation(4, width=2, relaxation=relaxation, temperature=0.7, dtype=F64)
        x = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)
        theta = layer.theta.detach().clone().requires_grad_()

        def call(x, theta, layer=layer):
            return torch.func.functional_call(layer, {"theta": theta}, (x, 1))

        assert torch.autograd.gradcheck(call, (x, theta))


def test_hard_gradient_is_that_of_the_draw_before_rounding() -> None:
    layer = KPermutation(2, temperature=0.5, dtype=F64)
    x = torch.tensor([1.0, 3.0], dtype=F64)
    torch.manual_seed(1)
    (grad,) = torch.autograd.grad(layer.sample(x)[0], layer.theta)
    torch.manual_seed(1)
    logistic = torch.logit(torch.rand_like(layer.theta))
    p = torch.sigmoid(layer.theta / 0.5 + logistic)
    # Output 0 is x[0] or x[1]; which of them changes with either block, in a direction that the other decides.
    torch.testing.assert_close(grad.abs(), p * (1 - p) / 0.5 * (x[1] - x[0]))


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_entropy_is_that_of_bernoulli_variables(relaxation: str) -> None:
    torch.manual_seed(0)
    layer = KPermutation(16, relaxation=relaxation, temperature=0.8, dtype=F64)
    assert 0.95 < layer.entropy() / (math.log(2) * layer.theta.numel()) < 1
    torch.nn.init.normal_(layer.theta)
    expected = torch.distributions.Bernoulli(probs=layer.probabilities()).entropy().sum()
    torch.testing.assert_close(layer.entropy(), expected)


@pytest.mark.parametrize(("relaxation", "value"), [("sigmoid", 1e4), ("sigmoid", -300.0), ("cos2", 0.0)])
def test_entropy_and_its_gradient_are_finite_at_hard_blocks(relaxation: str, value: float) -> None:
    layer = KPermutation(8, relaxation=relaxation)
    torch.nn.init.constant_(layer.theta, value)
    entropy = layer.entropy()
    entropy.backward()
    assert 0 <= entropy < 1e-3 and layer.theta.grad.isfinite().all()
    assert torch.equal(layer.sample(torch.arange(8.0)), torch.arange(8.0)[layer.permutation()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_entropy_of_blocks_whose_logits_overflow(dtype: torch.dtype) -> None:
    layer = KPermutation(8, temperature=1e-3, dtype=dtype)
    torch.nn.init.constant_(layer.theta, torch.finfo(dtype).max / 100)
    entropy = layer.entropy()
    (1000 * entropy).backward()
    assert entropy == 0 and not layer.theta.grad.any()


def test_temperature_hardens() -> None:
    torch.manual_seed(0)
    layer = KPermutation(8)
    x = torch.arange(8.0)
    layer.temperature = 1e-6
    torch.testing.assert_close(layer(x), x[layer.permutation()])


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_any_dimension(dim: int, dtype: torch.dtype) -> None:
    layer = KPermutation(8)
    x = torch.randn(8, 8, 8, dtype=dtype)
    expected = (x.movedim(dim, -1) @ layer.to_dense().T.to(dtype)).movedim(-1, dim)
    torch.testing.assert_close(layer(x, dim=dim), expected)


def test_it_learns_a_permutation() -> None:
    torch.manual_seed(0)
    p = torch.tensor([4, 7, 1, 3, 6, 0, 2, 5])
    x = torch.randn(256, 8)
    layer = KPermutation(8, width=2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for step in range(300):
        loss = (layer(x) - x[:, p]).square().mean() + 1e-5 * step * layer.entropy() / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(layer.permutation(), p)


def test_copies_state_and_compile() -> None:
    layer, other = KPermutation(16), KPermutation(16)
    x = torch.randn(3, 16)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    assert list(layer.state_dict()) == ["theta"]
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch.manual_seed(3)
    first = KPermutation(16).theta
    torch.manual_seed(3)
    assert torch.equal(first, KPermutation(16).theta)


def test_half_precision_parameters_harden() -> None:
    layer = KPermutation(16, dtype=torch.bfloat16)
    x = torch.randn(16)
    assert torch.equal(layer.harden()(x), x[layer.permutation()])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KPermutation(12), "power of two and at least 2, got 12"),
        (lambda: KPermutation(1), "at least 2, got 1"),
        (lambda: KPermutation(8, width=0), "width >= 1, got 0"),
        (lambda: KPermutation(8, relaxation="softmax"), r"relaxation in \('sigmoid', 'cos2'\), got 'softmax'"),
        (lambda: KPermutation(8, temperature=0.0), r"temperature > 0, got 0\.0"),
        (lambda: KPermutation(8)(torch.zeros(8, 4)), r"8 entries in dimension -1, got \(8, 4\)"),
        (lambda: KPermutation(8).sample(torch.zeros(8, 4), dim=1), r"8 entries in dimension 1, got \(8, 4\)"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
