"""Exact K-matrices equal numpy's, torch's and scipy's own maps, and lie in the class their docstrings claim."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact

scipy_linalg = pytest.importorskip("scipy.linalg")
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 12, 31, 64, 100, 255, 256, 400, 401]


@pytest.mark.parametrize("n", LENGTHS)
def test_dft_in_float64(n: int) -> None:
    k = exact.dft(n, dtype=torch.complex128)
    expected = torch.fft.fft(torch.eye(n, dtype=torch.complex128))
    assert (k.to_dense() - expected).abs().max() <= 1e-13 * max(1, n)
    power_of_two = n & (n - 1) == 0
    assert (k.width, k.expansion) == ((1, 1) if n == 1 else (2, 1) if power_of_two else (1, 2))
    inverse = exact.idft(n, dtype=torch.complex128)
    assert (inverse.to_dense() - expected.conj() / n).abs().max() <= 1e-13
    assert (inverse.width, inverse.expansion) == (k.width, k.expansion)


@pytest.mark.parametrize("n", [400, 512, 1024])
@pytest.mark.parametrize("vectors", [1, 2000])
def test_dft_in_float32_is_as_good_as_an_fft(n: int, vectors: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(vectors, n)
    expected = torch.fft.fft(x.double())
    error = (exact.dft(n)(x) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-6


@pytest.mark.parametrize("n", [2, 8, 64, 512])
def test_bit_reversed_dft_has_width_one(n: int) -> None:
    k = exact.dft(n, bit_reversed=True, dtype=torch.complex128)
    assert (k.width, k.expansion, k.size) == (1, 1, n)
    x = torch.randn(3, n, dtype=torch.float64)
    torch.testing.assert_close(k(x), torch.fft.fft(x)[:, exact.bit_reversal(n)])


def test_bluestein_stages_have_one_gain() -> None:
    level = exact.dft(400).factors.abs().square().mean(dim=(2, 3)).sqrt()
    assert level.max() / level.min() < 1.2


@pytest.mark.parametrize("n", [1, 2, 16, 128])
def test_hadamard(n: int) -> None:
    k = exact.hadamard(n, dtype=torch.float64)
    np.testing.assert_array_equal(k.to_dense().detach().numpy(), scipy_linalg.hadamard(n))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 70).flatmap(lambda n: st.permutations(range(n))))
def test_any_permutation_is_one_bb(p) -> None:
    k = exact.permutation(p)
    assert k.width == k.expansion == 1
    assert k(torch.arange(float(len(p)))).tolist() == list(map(float, p))
    assert set(k.factors.unique().tolist()) <= {0.0, 1.0}


def test_bit_reversal_is_an_involution() -> None:
    r = exact.bit_reversal(256)
    assert torch.equal(r[r], torch.arange(256)) and r[1] == 128


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.dft(12, bit_reversed=True), "power of two, got 12"),
        (lambda: exact.dft(8, dtype=torch.float32), "complex64 or complex128"),
        (lambda: exact.hadamard(12), "power of two, got 12"),
        (lambda: exact.permutation([0, 0, 1]), r"each of 0, \.\.\., n - 1 once"),
        (lambda: exact.bit_reversal(6), "power of two, got 6"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
