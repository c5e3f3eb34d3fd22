"""Cosine and sine transforms equal scipy's for every length, type, norm and variant."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact
from tests.exact.closeness import assert_is

scipy_fft = pytest.importorskip("scipy.fft")
DOUBLE = {"dtype": torch.complex128}
KINDS = ["dct", "dst", "idct", "idst"]
TYPES = [1, 2, 3, 4]


def claimed_expansion(kind: str, n: int, type: int) -> int:
    """The least e that the docstring promises."""
    special = n if type > 1 else n + 1 if kind.endswith("dst") else n - 1
    if special & (special - 1):
        return 3
    return 1 if type == 1 and kind.endswith("dct") else 2


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 40) | st.sampled_from([63, 64, 65, 127, 128, 129]),
    type=st.sampled_from(TYPES),
    norm=st.sampled_from([None, "backward", "ortho", "forward"]),
    orthogonalize=st.sampled_from([None, None, True, False]),
)
def test_equals_scipy(kind, n, type, norm, orthogonalize) -> None:
    k = getattr(exact, kind)(n, type, norm, orthogonalize=orthogonalize, **DOUBLE)
    expected = getattr(scipy_fft, kind)(np.eye(n), type, norm=norm, orthogonalize=orthogonalize, axis=0)
    assert_is(k, expected, 2, claimed_expansion(kind, n, type))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("type", "n"), [(1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3)])
def test_shortest_lengths(kind: str, type: int, n: int) -> None:
    expected = getattr(scipy_fft, kind)(np.eye(n), type, axis=0)
    assert_is(getattr(exact, kind)(n, type, **DOUBLE), expected, 2, 3)


@pytest.mark.parametrize("kind", ["dct", "dst"])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("n", [4096, 4097])
def test_long_vectors(kind: str, type: int, n: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, n))
    expected = getattr(scipy_fft, kind)(x, type, norm="ortho")
    k = getattr(exact, kind)(n, type, "ortho", **DOUBLE)
    y = k(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("n", [400, 512])
def test_float32_is_as_good_as_an_fft(type: int, n: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, n))
    expected = scipy_fft.dct(x, type)
    y = exact.dct(n, type)(torch.from_numpy(x).float()).detach().numpy()
    assert y.dtype == np.complex64
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()


def test_sine_transform_of_type_1_of_one_point() -> None:
    assert_is(exact.dst(1, 1, **DOUBLE), [[2.0]], 2, 3)


def test_is_linear_on_complex_vectors() -> None:
    x = torch.randn(24, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    k = exact.dct(24, **DOUBLE)
    torch.testing.assert_close(k(x), torch.complex(k(x.real).real, k(x.imag).real))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.dct(8, 5), "type 1, 2, 3 or 4, got 5"),
        (lambda: exact.idct(8, 0), "type 1, 2, 3 or 4, got 0"),
        (lambda: exact.dct(8, norm="unitary"), "norm None or one of .* got 'unitary'"),
        (lambda: exact.idst(8, norm="unitary"), "norm None or one of .* got 'unitary'"),
        (lambda: exact.dct(1, 1), "type 1 needs n >= 2, got 1"),
        (lambda: exact.dst(0), "expected n >= 1, got 0"),
        (lambda: exact.dst(8, dtype=torch.float32), "cosine or sine transform are complex: .* got torch.float32"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
