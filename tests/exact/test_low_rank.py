"""Low-rank matrices as one BB*."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.sampled_from(DTYPES), st.integers(0, 1000))
def test_equals_the_product_in_one_bb(m, n, rank, dtype, seed) -> None:
    random = torch.Generator().manual_seed(seed)
    double = torch.complex128 if dtype.is_complex else torch.float64
    u, v = (torch.randn(side, rank, dtype=double, generator=random) for side in (m, n))
    k = exact.low_rank(u, v, dtype=dtype)
    assert k.factors.dtype == dtype and k.width == 1
    assert k.expansion == 1 << (min(m, n, rank) - 1).bit_length()
    expected = u @ v.T
    tolerance = 1e-10 if dtype in (torch.float64, torch.complex128) else 1e-5
    assert (k.to_dense() - expected).abs().max() <= tolerance * expected.abs().max()


def test_large() -> None:
    random = torch.Generator().manual_seed(0)
    u, v, x = (torch.randn(shape, dtype=torch.float64, generator=random) for shape in [(4096, 5), (3000, 5), (2, 3000)])
    k = exact.low_rank(u, v, dtype=torch.float64)
    assert (k.width, k.expansion, k.size) == (1, 8, 32768)
    expected = x @ v @ u.T
    assert (k(x) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_default_dtype_and_mixed_operands() -> None:
    u, v = np.array([[1, 2], [3, 4]]), torch.tensor([[1j, 0], [0, 1.0]]).conj()
    k = exact.low_rank(u, v)
    assert k.factors.dtype == torch.complex64
    assert torch.equal(k.to_dense(), torch.tensor([[-1j, 2], [-3j, 4]]))
    assert exact.low_rank(u, u).factors.dtype == torch.float32
    assert exact.low_rank(u, v.to(torch.complex128)).factors.dtype == torch.complex128


def test_zero_columns() -> None:
    u = torch.zeros(6, 3, dtype=torch.float64)
    assert torch.equal(exact.low_rank(u, u, dtype=torch.float64).to_dense(), u @ u.T)


def test_gradients() -> None:
    u, v = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    k = exact.low_rank(u, v, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 7, dtype=torch.float64)
    (k(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ u @ v.T)
    assert k.weight.grad.isfinite().all() and k.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.low_rank(torch.ones(3, 2), torch.ones(4, 1)), r"one rank r, got \(3, 2\) and \(4, 1\)"),
        (lambda: exact.low_rank(torch.ones(3), torch.ones(3)), r"u of shape \(rows, columns\).* got \(3,\)"),
        (lambda: exact.low_rank(np.ones((3, 1)), np.ones((3, 0))), r"v of shape .* got \(3, 0\)"),
        (lambda: exact.low_rank([[float("inf")]], [[1.0]]), "finite entries in u, got 1"),
        (lambda: exact.low_rank([[1.0]], [[1j]], dtype=torch.float32), "complex64 or complex128, got torch.float32"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
