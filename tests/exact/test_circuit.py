"""Circuits as K-matrices: equal to evaluating the gates one after the other, in the class of theorem 1."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact
from kaleido_audio.exact.circuit import Gate


def evaluate(n: int, gates: list[Gate], outputs: list[int], x: np.ndarray) -> np.ndarray:
    wires = list(x)
    for gate in gates:
        wires.append(sum(coefficient * wires[wire] for wire, coefficient in gate.items()))
    return np.array([wires[wire] for wire in outputs])


def depth(n: int, gates: list[Gate], outputs: list[int]) -> int:
    depths = [0] * n
    for gate in gates:
        depths.append(1 + max(depths[wire] for wire in gate))
    return max(depths[wire] for wire in outputs)


@st.composite
def circuits(draw, max_fan_in: int) -> tuple[int, list[Gate], list[int]]:
    """Random circuits with small integers: every result is exact."""
    n = draw(st.integers(1, 12))
    coefficient = st.sampled_from([-2, -1, 1, 2, 3])
    gates: list[Gate] = []
    for g in range(draw(st.integers(0, 15))):
        near = st.integers(max(0, n + g - 6), n + g - 1)  # deep circuits too
        wire = draw(st.sampled_from([near, st.integers(0, n + g - 1)]))
        gates.append(draw(st.dictionaries(wire, coefficient, min_size=1, max_size=max_fan_in)))
    outputs = draw(st.lists(st.integers(0, n + len(gates) - 1), min_size=1, max_size=14))
    return n, gates, outputs


@settings(max_examples=100, deadline=None, derandomize=True)
@given(circuits(max_fan_in=4))
def test_equals_its_evaluation(case) -> None:
    n, gates, outputs = case
    k = exact.circuit(n, gates, outputs, dtype=torch.float64)
    expected = evaluate(n, gates, outputs, np.eye(n))
    np.testing.assert_array_equal(k.to_dense().detach().numpy(), expected)
    assert k.width <= 2 * max(1, depth(n, gates, outputs))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(circuits(max_fan_in=2))
def test_class(case) -> None:
    n, gates, outputs = case
    k = exact.circuit(n, gates, outputs)
    places = n + 2 * len(gates) + 2 * len(outputs)
    assert k.size < 2 * max(places, 2 * max(n, len(outputs)))
