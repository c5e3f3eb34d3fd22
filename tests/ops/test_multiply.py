"""butterfly_multiply: the definition, both of its paths, types, shapes, gradients, transforms."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaleido_audio import ops
from kaleido_audio.ops.dense import product_matrix
from kaleido_audio.ops.reference import multiply_by_stages

# All of it with the native kernels and without.
pytestmark = pytest.mark.usefixtures("path")

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
PAIRS = [(a, b) for a in DTYPES for b in DTYPES if torch.finfo(a).bits == torch.finfo(b).bits]


def random_factors(n_factors: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_factors, n.bit_length() - 1, 2, n, dtype=dtype, generator=generator) * 0.7


def explicit_matrix(factors: torch.Tensor) -> torch.Tensor:
    """The product, entry by entry from the formula of the design: no code shared with the package."""
    n_factors, log_n, _, n = factors.shape
    product = torch.eye(n, dtype=factors.dtype)
    for f in range(n_factors):
        for s in range(log_n):
            stride = 2**s if f % 2 else 2 ** (log_n - 1 - s)
            stage = torch.zeros(n, n, dtype=factors.dtype)
            for i in range(n):
                stage[i, i] = factors[f, s, 0, i]
                stage[i, i ^ stride] = factors[f, s, 1, i]
            product = stage @ product
    return product


@pytest.mark.parametrize("n", [1, 2, 4, 16, 32])
@pytest.mark.parametrize("n_factors", [0, 1, 2, 3, 4])
def test_both_paths_equal_the_explicit_product(n: int, n_factors: int) -> None:
    factors = random_factors(n_factors, n, torch.complex128)
    expected = explicit_matrix(factors)
    x = torch.randn(3, n, dtype=torch.complex128)
    torch.testing.assert_close(multiply_by_stages(x, factors), x @ expected.T)
    torch.testing.assert_close(product_matrix(factors, in_features=n), expected)
    torch.testing.assert_close(ops.to_dense(factors), expected)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    log_n=st.integers(1, 6),
    n_factors=st.integers(1, 4),
    lead=st.lists(st.integers(0, 9), max_size=3),
    pair=st.sampled_from(PAIRS),
    data=st.data(),
)
def test_any_shape_and_type(log_n, n_factors, lead, pair, data) -> None:
    n = 2**log_n
    m = data.draw(st.integers(1, n))
    out = data.draw(st.integers(1, n))
    x = torch.randn(*lead, m, dtype=pair[0])
    factors = random_factors(n_factors, n, pair[1])
    y = ops.butterfly_multiply(x, factors, out_features=out)
    assert y.shape == (*lead, out)
    assert y.dtype == torch.promote_types(*pair)
    wide = x.to(torch.complex128), factors.to(torch.complex128)
    expected = wide[0] @ explicit_matrix(wide[1])[:out, :m].T
    single = torch.finfo(pair[0]).bits == 32
    scale = expected.abs().max().item() if expected.numel() else 1.0
    error = (y - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= (3e-6 if single else 1e-14) * max(1.0, scale) * n_factors


@pytest.mark.parametrize("vectors", [3, 40])
def test_gradients(vectors: int) -> None:
    # 3 vectors go stage by stage, 40 through the 16 x 16 matrix.
    x = torch.randn(vectors, 11, dtype=torch.complex128, requires_grad=True)
    factors = random_factors(2, 16, torch.complex128).requires_grad_()
    multiply = lambda x, t: ops.butterfly_multiply(x, t, out_features=5)  # noqa: E731
    assert torch.autograd.gradcheck(multiply, (x, factors), fast_mode=True)
    assert torch.autograd.gradgradcheck(multiply, (x, factors), fast_mode=True)


def test_gradients_of_both_paths_are_equal() -> None:
    factors = random_factors(4, 32).requires_grad_()
    x = torch.randn(33, 32, dtype=torch.float64)
    (by_matrix,) = torch.autograd.grad(ops.butterfly_multiply(x, factors).square().sum(), factors)
    (by_stages,) = torch.autograd.grad(multiply_by_stages(x, factors).square().sum(), factors)
    torch.testing.assert_close(by_matrix, by_stages, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("vectors", [2, 20])
def test_chosen_outputs(vectors: int) -> None:
    factors = random_factors(2, 16, torch.complex128)
    x = torch.randn(vectors, 9, dtype=torch.float64)
    rows = torch.tensor([15, 0, 3, 3])
    expected = ops.butterfly_multiply(x, factors)[:, rows]
    torch.testing.assert_close(ops.butterfly_outputs(x, factors, rows), expected)


@pytest.mark.parametrize("vectors", [2, 20])
def test_strides_and_lazy_bits(vectors: int) -> None:
    factors = random_factors(2, 8, torch.complex128)
    x = torch.randn(8, vectors, dtype=torch.complex128)
    for view in (x.T, x.T.conj(), torch._neg_view(x.T), x.T.flip(0), x.T[:1].expand(vectors, 8)):
        expected = view.clone().resolve_conj().resolve_neg().contiguous() @ explicit_matrix(factors).T
        torch.testing.assert_close(ops.butterfly_multiply(view, factors), expected)
    conjugate = ops.butterfly_multiply(x.T, factors.conj())
    torch.testing.assert_close(conjugate, x.T @ explicit_matrix(factors).conj().T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    factors = random_factors(2, 256, torch.float32).to(dtype)
    x = torch.randn(300, 256).to(dtype)
    y = ops.butterfly_multiply(x, factors)
    assert y.dtype == dtype
    torch.testing.assert_close(y, ops.butterfly_multiply(x.float(), factors.float()).to(dtype))


def test_autocast_gives_the_type_of_linear() -> None:
    factors = random_factors(2, 8, torch.float32)
    x = torch.randn(20, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.butterfly_multiply(x, factors)
        assert y.dtype == torch.nn.functional.linear(x, torch.eye(8)).dtype == torch.bfloat16
        assert ops.butterfly_multiply(x.double(), factors.double()).dtype == torch.float64
    torch.testing.assert_close(y.float(), ops.butterfly_multiply(x, factors), rtol=0.03, atol=0.1)


@pytest.mark.parametrize("vectors", [2, 40])
def test_vmap_over_inputs_and_factors(vectors: int) -> None:
    factors = torch.stack([random_factors(2, 16, seed=seed) for seed in range(3)])
    x = torch.randn(3, vectors, 16, dtype=torch.float64)
    expected = torch.stack([ops.butterfly_multiply(a, t) for a, t in zip(x, factors, strict=True)])
    torch.testing.assert_close(torch.vmap(ops.butterfly_multiply)(x, factors), expected)
    shared = torch.vmap(ops.butterfly_multiply, in_dims=(0, None))(x, factors[0])
    torch.testing.assert_close(shared, ops.butterfly_multiply(x, factors[0]))


@pytest.mark.parametrize("vectors", [2, 40])
def test_compile_fullgraph(vectors: int) -> None:
    factors = random_factors(2, 16)
    x = torch.randn(vectors, 16, dtype=torch.float64)
    compiled = torch.compile(ops.butterfly_multiply, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, factors), ops.butterfly_multiply(x, factors))


def test_empty_batch_has_a_gradient() -> None:
    factors = random_factors(2, 8).requires_grad_()
    y = ops.butterfly_multiply(torch.zeros(0, 8, dtype=torch.float64), factors)
    assert y.shape == (0, 8)
    y.sum().backward()
    assert factors.grad is not None and not factors.grad.any()


@pytest.mark.parametrize(
    ("x", "factors", "message"),
    [
        (torch.zeros(3, 9), torch.zeros(2, 3, 2, 8), r"m between 1 and 8, got \(3, 9\)"),
        (torch.zeros(()), torch.zeros(2, 3, 2, 8), r"m between 1 and 8, got \(\)"),
        (torch.zeros(3, 8), torch.zeros(2, 2, 2, 8), r"\(F, log2 n, 2, n\).*got \(2, 2, 2, 8\)"),
        (torch.zeros(3, 6), torch.zeros(2, 2, 2, 6), "power of two"),
        (torch.zeros(3, 8).long(), torch.zeros(2, 3, 2, 8), r"x\.float\(\)"),
        (torch.zeros(3, 8).double(), torch.zeros(2, 3, 2, 8), r"module\.double\(\)"),
        (torch.zeros(3, 8), torch.zeros(2, 3, 2, 8).long(), "complex factors, got torch.int64"),
        (torch.zeros(3, 8), torch.zeros(2, 3, 2, 8, device="meta"), "on meta: move them"),
    ],
)
def test_errors_say_what_was_expected(x, factors, message) -> None:
    with pytest.raises(ValueError, match=message):
        ops.butterfly_multiply(x, factors)


def test_errors_of_sizes_and_rows() -> None:
    x, factors = torch.zeros(3, 8), torch.zeros(2, 3, 2, 8)
    with pytest.raises(ValueError, match="out_features between 1 and 8"):
        ops.butterfly_multiply(x, factors, out_features=9)
    for value in (-1, 0, 9):
        for side in ("in_features", "out_features"):
            with pytest.raises(ValueError, match=f"expected {side} between 1 and 8 .*, got {value}"):
                ops.to_dense(factors, **{side: value})
    with pytest.raises(ValueError, match="1-D int64"):
        ops.butterfly_outputs(x, factors, torch.zeros(2))
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        ops.backend(torch.zeros(2).long())
