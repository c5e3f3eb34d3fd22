"""Fourier and Hartley transforms equal numpy's, in the class their docstrings claim."""

import numpy as np
import pytest
import torch

from kaleido_audio import exact
from tests.exact.closeness import assert_is

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 12, 31, 64, 100, 255, 256, 400, 401]
DOUBLE = {"dtype": torch.complex128}


def is_power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


@pytest.mark.parametrize("n", LENGTHS)
def test_dft_has_width_one(n: int) -> None:
    expansion = 1 if is_power_of_two(n) else 2
    expected = np.fft.fft(np.eye(n))
    forward, inverse = exact.dft(n, **DOUBLE), exact.idft(n, **DOUBLE)
    assert_is(forward, expected, 1, expansion)
    assert_is(inverse, expected.conj() / n, 1, expansion)
    assert (forward.width, forward.expansion) == (inverse.width, inverse.expansion) == (1, expansion)


@pytest.mark.parametrize("n", [400, 512, 1024])
@pytest.mark.parametrize("vectors", [1, 2000])
def test_dft_in_float32_is_as_good_as_an_fft(n: int, vectors: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(vectors, n)
    expected = torch.fft.fft(x.double())
    error = (exact.dft(n)(x) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-6


@pytest.mark.parametrize("n", [1, 2, 8, 64, 512])
def test_bit_reversed_dft_is_one_factor(n: int) -> None:
    k = exact.dft(n, bit_reversed=True, **DOUBLE)
    assert_is(k, np.fft.fft(np.eye(n))[exact.bit_reversal(n).numpy()], 1, 1)
    assert torch.equal(k.factors[1, :, 0], torch.ones_like(k.factors[1, :, 0])) and not k.factors[1, :, 1].any()


@pytest.mark.parametrize("n", [256, 400])
def test_stages_have_one_gain(n: int) -> None:
    level = exact.dft(n, **DOUBLE).factors.abs().square().mean(dim=(2, 3)).sqrt()
    torch.testing.assert_close(level, level[:1, :1].expand_as(level))


@pytest.mark.parametrize(
    ("shape", "width", "expansion"),
    [((4, 8), 1, 1), ((2, 2), 1, 1), ((3, 8), 1, 2), ((5, 2), 1, 2), ((8, 5), 3, 8), ((3, 5), 3, 8), ((7, 1), 3, 8)],
)
def test_dft2(shape: tuple[int, int], width: int, expansion: int) -> None:
    identity = np.eye(shape[0] * shape[1])
    images = identity.reshape(-1, *shape)
    # Row i of the result is the transform of unit vector i: the matrix is symmetric.
    assert_is(exact.dft2(*shape, **DOUBLE), np.fft.fft2(images).reshape(identity.shape).T, width, expansion)
    assert_is(exact.idft2(*shape, **DOUBLE), np.fft.ifft2(images).reshape(identity.shape).T, width, expansion)


@pytest.mark.parametrize("n", LENGTHS)
def test_hartley(n: int) -> None:
    spectrum = np.fft.fft(np.eye(n))
    k = exact.hartley(n, **DOUBLE)
    assert_is(k, spectrum.real - spectrum.imag, 2, 1 if is_power_of_two(n) else 3)


@pytest.mark.parametrize("n", [16, 24])
def test_hartley_is_linear_on_complex_vectors(n: int) -> None:
    x = torch.randn(n, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    k = exact.hartley(n, **DOUBLE)
    torch.testing.assert_close(k(x), torch.complex(k(x.real).real, k(x.imag).real))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.dft(12, bit_reversed=True), "power of two, got 12"),
        (lambda: exact.dft(8, dtype=torch.float32), "complex64 or complex128, got torch.float32"),
        (lambda: exact.dft(0), "expected n >= 1, got 0"),
        (lambda: exact.idft(-1), "expected n >= 1, got -1"),
        (lambda: exact.dft2(0, 3), "expected n >= 1, got 0"),
        (lambda: exact.idft2(3, 3, dtype=torch.float64), "complex64 or complex128, got torch.float64"),
        (lambda: exact.hartley(0), "expected n >= 1, got 0"),
        (lambda: exact.hartley(8, dtype=torch.float32), "factors of a Hartley transform are complex"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
