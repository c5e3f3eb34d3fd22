"""Circulant, Toeplitz and Hankel matrices and convolutions equal scipy's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact
from tests.exact.closeness import assert_is

scipy_linalg = pytest.importorskip("scipy.linalg")
scipy_signal = pytest.importorskip("scipy.signal")
lengths = st.integers(1, 24)


def vector(n: int, is_complex: bool, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n) + 1j * rng.standard_normal(n) if is_complex else rng.standard_normal(n)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=lengths, is_complex=st.booleans())
def test_circulant(n: int, is_complex: bool) -> None:
    c = vector(n, is_complex)
    assert_is(exact.circulant(c), scipy_linalg.circulant(c), 1, 1 if n & (n - 1) == 0 else 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=lengths, columns=lengths, complex_c=st.booleans(), complex_r=st.booleans())
def test_toeplitz_and_hankel(rows: int, columns: int, complex_c: bool, complex_r: bool) -> None:
    c, r = vector(rows, complex_c, 0), vector(columns, complex_r, 1)
    assert_is(exact.toeplitz(c, r), scipy_linalg.toeplitz(c, r), 1, 2)
    assert_is(exact.hankel(c, r), scipy_linalg.hankel(c, r), 1, 2)


def test_toeplitz_and_hankel_by_the_column_alone() -> None:
    c = vector(5, True)
    assert_is(exact.toeplitz(c), scipy_linalg.toeplitz(c), 1, 2)
    assert_is(exact.hankel(c), scipy_linalg.hankel(c), 1, 2)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(n=lengths, m=lengths, mode=st.sampled_from(["full", "same", "valid"]), is_complex=st.booleans())
def test_convolution(n: int, m: int, mode: str, is_complex: bool) -> None:
    h = vector(m, is_complex)
    expected = np.stack([scipy_signal.convolve(x, h, mode, method="direct") for x in np.eye(n)], axis=1)
    one = mode == "full" or (mode == "valid" and m <= n)
    k = exact.convolution(h, n, mode)
    assert_is(k, expected, 1, 1 if one else 2)
    if n >= m:
        x = vector(n, False, 2)
        y = k(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(y, np.convolve(x, h, mode), rtol=0, atol=1e-12 * np.abs(h).sum() * 5)


def test_the_zero_filter_is_zero_and_finite() -> None:
    k = exact.convolution(np.zeros(3), 4)
    assert torch.equal(k.to_dense(), torch.zeros(6, 4, dtype=torch.complex128))


def test_long_vectors() -> None:
    c, r, x = vector(4096, False, 0), vector(4096, False, 1), vector(4096, False, 2)
    for k, expected in (
        (exact.circulant(c), scipy_linalg.matmul_toeplitz((c, np.roll(c[::-1], 1)), x)),
        (exact.toeplitz(c, r), scipy_linalg.matmul_toeplitz((c, r), x)),
        (exact.convolution(c, 4096), scipy_signal.fftconvolve(x, c)),
    ):
        y = k(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("given_type", "asked", "result"),
    [
        (torch.float32, None, torch.complex64),
        (torch.float64, None, torch.complex128),
        (torch.complex64, None, torch.complex64),
        (torch.int64, None, torch.complex64),
        (torch.float16, None, torch.complex64),
        (torch.float64, torch.complex64, torch.complex64),
    ],
)
def test_types(given_type: torch.dtype, asked: torch.dtype | None, result: torch.dtype) -> None:
    c = torch.tensor([1, 2, 3, 4]).to(given_type)
    for k in (
        exact.circulant(c, dtype=asked),
        exact.toeplitz(c, dtype=asked),
        exact.hankel(c, dtype=asked),
        exact.convolution(c, 5, dtype=asked),
    ):
        assert k.factors.dtype == result


def test_a_list_is_read_in_full_precision() -> None:
    values = [0.1, 0.2, 0.7]
    for ours, theirs in (
        (exact.circulant, scipy_linalg.circulant),
        (exact.toeplitz, scipy_linalg.toeplitz),
        (exact.hankel, scipy_linalg.hankel),
    ):
        assert_is(ours(values, dtype=torch.complex128), theirs(values), 1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.circulant([]), r"expected c of shape \(n,\) with n >= 1, got \(0,\)"),
        (lambda: exact.toeplitz([1.0], torch.ones(2, 3)), r"expected r of shape \(n,\) with n >= 1, got \(2, 3\)"),
        (lambda: exact.hankel(torch.ones(())), r"expected c of shape \(n,\) with n >= 1, got \(\)"),
        (lambda: exact.circulant([1.0], dtype=torch.float32), "circulant matrix are complex: .* got torch.float32"),
        (lambda: exact.convolution([1.0], 0), "expected n >= 1, got 0"),
        (lambda: exact.convolution([1.0], 4, "circular"), r"mode in \('full', 'same', 'valid'\), got 'circular'"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
