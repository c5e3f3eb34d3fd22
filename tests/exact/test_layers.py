"""Copies, sums and sparse layers against their definitions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import ops
from kaleido_audio.exact.layers import Layer, copies, transposed


@st.composite
def slots_and_sources(draw) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Slots and sources, both ascending or the sources descending, with sources no farther apart than slots."""
    size = draw(st.sampled_from([2, 4, 16, 32]))
    slots = sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))
    sources = [draw(st.integers(0, size - 1))]
    step = draw(st.sampled_from([1, -1]))
    for before, after in pairwise(slots):
        room = size - 1 - sources[-1] if step == 1 else sources[-1]
        sources.append(sources[-1] + step * draw(st.integers(0, min(room, after - before))))
    return torch.tensor(slots), torch.tensor(sources), size


@settings(max_examples=60, deadline=None, derandomize=True)
@given(slots_and_sources())
def test_copies_and_their_transpose(case) -> None:
    slots, sources, size = case
    expected = torch.zeros(size, size, dtype=torch.float64)
    expected[slots, sources] = 1
    factor = copies(slots, sources, size)
    assert torch.equal(ops.to_dense(factor.unsqueeze(0)), expected)
    as_b = torch.stack([torch.zeros_like(factor), transposed(factor)])
    as_b[0, :, 0] = 1
    assert torch.equal(ops.to_dense(as_b), expected.T)


def test_transposed_is_the_transpose_of_any_factor() -> None:
    torch.manual_seed(0)
    factor = torch.randn(4, 2, 16, dtype=torch.complex128)
    as_b = torch.zeros(2, 4, 2, 16, dtype=torch.complex128)
    as_b[0, :, 0] = 1
    as_b[1] = transposed(factor)
    torch.testing.assert_close(ops.to_dense(as_b), ops.to_dense(factor.unsqueeze(0)).T)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([2, 4, 8, 16]).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.sets(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), min_size=1, max_size=size),
        )
    )
)
def test_layer(case) -> None:
    size, entries = case
    sources, targets = torch.tensor(sorted(entries)).T
    values = torch.arange(1.0, len(entries) + 1, dtype=torch.float64)
    expected = torch.zeros(size, size, dtype=torch.float64)
    expected[targets, sources] = values
    layer = Layer(sources, targets, values)
    for n in (size, 2 * size, 4 * size):
        width = layer.width(n)
        if width is None:
            assert n < 2 * size  # at most `size` entries and as many gaps
        else:
            factors = layer.factors(n)
            assert factors.shape[0] == 2 * width
            assert torch.equal(ops.to_dense(factors, out_features=size, in_features=size), expected)


@pytest.mark.parametrize(
    ("sources", "targets", "size", "width"),
    [
        ([3, 0], [1, 2], 4, 1),  # one to one, in any order
        ([0, 1, 1, 2, 2], [0, 0, 1, 1, 2], 8, 1),  # bidiagonal
        ([0, 1, 1, 2, 2], [0, 0, 1, 1, 2], 4, None),
        ([0, 0, 1, 1], [0, 1, 0, 1], 4, 2),  # sources 0, 1, 0, 1 by target
        ([0, 0, 7], [0, 1, 2], 8, None),  # two copies of input 0, a gap of six, one copy of input 7
        ([0, 0, 7], [0, 1, 2], 16, 1),
    ],
)
def test_width_of_a_layer(sources, targets, size, width) -> None:
    layer = Layer(torch.tensor(sources), torch.tensor(targets), torch.ones(len(sources), dtype=torch.float64))
    assert layer.width(size) == width
