"""Permutations are one BB* of zeros and ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact, ops
from kaleido_audio.exact.permutations import increasing_benes
from kaleido_audio.factors import identity_factors


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 70).flatmap(lambda n: st.permutations(range(n))))
def test_any_permutation_is_one_bb(p) -> None:
    k = exact.permutation(p)
    assert k.width == k.expansion == 1
    assert k(torch.arange(float(len(p)))).tolist() == list(map(float, p))
    assert set(k.factors.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("n", [4096, 5000, 65536])
def test_a_long_permutation(n: int) -> None:
    p = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    x = torch.arange(n).double()
    assert torch.equal(exact.permutation(p, dtype=torch.float64)(x), x[p])


@pytest.mark.parametrize("log_n", range(1, 8))
def test_a_permutation_with_increasing_strides_first(log_n: int) -> None:
    p = torch.randperm(1 << log_n, generator=torch.Generator().manual_seed(log_n))
    identity = identity_factors(1, len(p))
    factors = torch.cat([identity, increasing_benes(p), identity])
    x = torch.arange(len(p)).double()
    assert torch.equal(ops.butterfly_multiply(x, factors), x[p])


def test_bit_reversal_is_an_involution() -> None:
    r = exact.bit_reversal(256)
    assert torch.equal(r[r], torch.arange(256)) and r[1] == 128


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.permutation([0, 0, 1]), r"each of 0, \.\.\., n - 1 once, got \[0, 0, 1\] \(n = 3\)"),
        (lambda: exact.permutation([]), r"each of 0, \.\.\., n - 1 once, got \[\] \(n = 0\)"),
        (lambda: exact.permutation(torch.tensor([[0, 1]])), r"each of 0, \.\.\., n - 1 once"),
        (lambda: exact.permutation([0.5, 1.5]), r"each of 0, \.\.\., n - 1 once, got \[0\.5, 1\.5\]"),
        (lambda: exact.bit_reversal(6), "power of two, got 6"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
