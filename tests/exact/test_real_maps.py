"""Hadamard, Haar, diagonal and Kronecker matrices, Fastfood and ACDC equal their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import KMatrix, exact
from tests.exact.closeness import assert_is

scipy_fft = pytest.importorskip("scipy.fft")
scipy_linalg = pytest.importorskip("scipy.linalg")
TYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def haar_matrix(n: int) -> np.ndarray:
    """By the recursion: the coarser transform of the sums, then the differences."""
    if n == 1:
        return np.ones((1, 1))
    sums, differences = np.kron(np.eye(n // 2), [1, 1]), np.kron(np.eye(n // 2), [1, -1])
    return np.concatenate([haar_matrix(n // 2) @ sums, differences]) / np.sqrt(2)


@pytest.mark.parametrize("n", [1, 2, 16, 128])
def test_hadamard(n: int) -> None:
    k = exact.hadamard(n, dtype=torch.float64)
    np.testing.assert_array_equal(k.to_dense().detach().numpy(), scipy_linalg.hadamard(n))
    assert (k.width, k.expansion) == (1, 1)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 256])
def test_haar(n: int) -> None:
    assert_is(exact.haar(n, dtype=torch.float64), haar_matrix(n), 1 if n == 1 else 2, 1)


def test_a_long_haar_transform_finds_one_step() -> None:
    # A unit step in the middle is the sum and the coarsest difference, no more.
    y = exact.haar(4096, dtype=torch.float64)(torch.arange(4096).ge(2048).double())
    torch.testing.assert_close(y[:2], torch.tensor([32.0, -32.0], dtype=torch.float64))
    assert y[2:].abs().max() <= 1e-13


@settings(max_examples=20, deadline=None, derandomize=True)
@given(n=st.integers(1, 20), is_complex=st.booleans())
def test_diagonal(n: int, is_complex: bool) -> None:
    d = normal(n) + 1j * normal(n, seed=1) if is_complex else normal(n)
    k = exact.diagonal(d)
    assert_is(k, np.diag(d), 1, 1)
    assert k.is_complex == is_complex


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    a=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    b=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    widths=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    types=st.tuples(st.sampled_from([torch.float64, torch.complex128]), st.just(torch.float64)),
)
def test_kronecker_of_any_sizes(a, b, widths, types) -> None:
    torch.manual_seed(0)
    left, right = (
        KMatrix(n, out_features=m, width=w, dtype=t) for (m, n), w, t in zip((a, b), widths, types, strict=True)
    )
    k = exact.kronecker(left, right)
    expected = torch.kron(left.to_dense().to(types[0]), right.to_dense().to(types[0]))
    torch.testing.assert_close(k.to_dense(), expected)
    cuts = (right.in_features < right.size) + (right.out_features < right.size)
    assert k.width == max(widths) + cuts and k.size == left.size * right.size


def test_kronecker_of_whole_matrices_keeps_width_and_expansion() -> None:
    k = exact.kronecker(exact.dft(6), exact.hadamard(8))
    assert (k.width, k.expansion, k.in_features, k.factors.dtype) == (1, 2, 48, torch.complex64)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(log_n=st.integers(1, 6), seed=st.integers(0, 99))
def test_fastfood(log_n: int, seed: int) -> None:
    n = 1 << log_n
    s, g, b = normal(3, n, seed=seed)
    p = np.random.default_rng(seed).permutation(n)
    hadamard = scipy_linalg.hadamard(n)
    expected = np.diag(s) @ hadamard @ np.diag(g) @ np.eye(n)[p] @ hadamard @ np.diag(b)
    k = exact.fastfood(s, g, p, b)
    assert_is(k, expected, 2, 1)
    assert not k.is_complex


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(1, 40), is_complex=st.booleans())
def test_acdc(n: int, is_complex: bool) -> None:
    a, d = normal(n), normal(n, seed=1) + (1j * normal(n, seed=2) if is_complex else 0)
    c = scipy_fft.dct(np.eye(n), norm="ortho", axis=0)
    assert_is(exact.acdc(a, d), c.T @ np.diag(d) @ c @ np.diag(a), 2, 2 if n & (n - 1) == 0 else 3)


@pytest.mark.parametrize("n", [4096, 5000])
def test_a_long_acdc(n: int) -> None:
    a, d, x = normal(3, n)
    expected = scipy_fft.idct(d * scipy_fft.dct(a * x, norm="ortho"), norm="ortho")
    y = exact.acdc(a, d)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", TYPES)
def test_real_maps_in_every_type(dtype: torch.dtype) -> None:
    ones = torch.ones(8)
    for k in (
        exact.hadamard(8, dtype=dtype),
        exact.haar(8, dtype=dtype),
        exact.permutation(range(8), dtype=dtype),
        exact.diagonal(ones, dtype=dtype),
        exact.fastfood(ones, ones, range(8), ones, dtype=dtype),
    ):
        x = torch.ones(2, 8, dtype=torch.zeros((), dtype=dtype).real.dtype)
        assert k.factors.dtype == k(x).dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.hadamard(12), "power of two, got 12"),
        (lambda: exact.haar(12), "power of two, got 12"),
        (lambda: exact.haar(0), "power of two, got 0"),
        (lambda: exact.diagonal(torch.ones(2, 2)), r"expected d of shape \(n,\) with n >= 1, got \(2, 2\)"),
        (lambda: exact.diagonal([1j], dtype=torch.float32), "diagonal matrix of complex numbers is complex"),
        (lambda: exact.fastfood([1.0] * 3, [1.0] * 3, range(3), [1.0] * 3), r"power of two >= 2, got lengths"),
        (lambda: exact.fastfood([1.0] * 2, [1.0] * 4, range(4), [1.0] * 4), r"got lengths \(2, 4, 4, 4\)"),
        (lambda: exact.fastfood([1.0] * 2, [1.0] * 2, [0, 0], [1.0] * 2), "each of 0"),
        (lambda: exact.acdc([1.0], [1.0, 2.0]), "a and d of one length, got 1 and 2"),
        (lambda: exact.acdc([1.0], [1.0], dtype=torch.float64), "factors of ACDC are complex"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
