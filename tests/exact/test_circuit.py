"""Circuits as K-matrices: equal to evaluating the gates one after the other, in the class of theorem 1."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import exact
from kaleido_audio.exact.circuit import Gate
from kaleido_audio.kmatrix import padded_size


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
    outputs = sorted(set(outputs))
    k = exact.circuit(n, gates, outputs)
    without_expansion = padded_size(max(n, len(outputs)))
    assert k.size == without_expansion or k.size < 2 * (n + 2 * len(gates))
    assert k.size == k.expansion * without_expansion


def prefix_sums(n: int) -> tuple[list[Gate], list[int]]:
    """Sklansky's circuit: depth log2 n, at most n / 2 gates a level."""
    gates: list[Gate] = []
    wire = list(range(n))
    for k in range(n.bit_length() - 1):
        for i in range(n):
            if i >> k & 1:
                gates.append({wire[i]: 1, wire[(i >> k << k) - 1]: 1})
                wire[i] = n + len(gates) - 1
    return gates, wire


def test_prefix_sums() -> None:
    n = 256
    gates, outputs = prefix_sums(n)
    k = exact.circuit(n, gates, outputs, dtype=torch.float64)
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(k(x), x.cumsum(-1), rtol=1e-10, atol=1e-10)
    assert k.width <= 2 * 8 and k.expansion == 2


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_fourier_transform_of_four(dtype) -> None:
    sums = [{0: 1, 2: 1}, {0: 1, 2: -1}, {1: 1, 3: 1}, {1: 1, 3: -1}]
    outputs = [{4: 1, 6: 1}, {5: 1, 7: -1j}, {4: 1, 6: -1}, {5: 1, 7: 1j}]
    k = exact.circuit(4, sums + outputs, [8, 9, 10, 11], dtype=dtype)
    expected = [[1, 1, 1, 1], [1, -1j, -1, 1j], [1, -1, 1, -1], [1, 1j, -1, -1j]]
    assert torch.equal(k.to_dense(), torch.tensor(expected, dtype=dtype))
    assert (k.width, k.expansion) == (4, 2)


def test_a_tree_of_sums_takes_one_bb_a_level() -> None:
    gates: list[Gate] = [{2 * i: 1, 2 * i + 1: 1} for i in range(15)]  # wires 16, ..., 30
    k = exact.circuit(16, gates, [30])
    assert (k.width, k.expansion) == (4, 1)
    assert torch.equal(k.to_dense(), torch.ones(1, 16))


@pytest.mark.parametrize(
    ("n", "gates", "outputs", "rows"),
    [
        (3, [], [2, 0], [[0, 0, 1], [1, 0, 0]]),  # no gates
        (1, [], [0], [[1]]),
        (2, [], [1, 1, 1], [[0, 1]] * 3),  # an input, three times
        (2, [{0: 1, 1: 2}], [2, 2, 0], [[1, 2], [1, 2], [1, 0]]),  # a gate twice, beside an input
        (5, [{4: 2.0}], [5], [[0, 0, 0, 0, 2]]),  # a gate of one wire, unused inputs
        (3, [{0: 1, 1: 1}, {3: 1, 2: 1}, {4: 7}], [3], [[1, 1, 0]]),  # gates that nothing needs
        (2, [{0: 0, 1: 3}], [2], [[0, 3]]),  # a coefficient of zero
    ],
)
def test_corner_cases(n, gates, outputs, rows) -> None:
    k = exact.circuit(n, gates, outputs)
    assert k.to_dense().tolist() == rows
    assert k.width <= 2


def test_gates_that_nothing_needs_cost_nothing() -> None:
    chain: list[Gate] = [{g: 1.0} for g in range(2, 40)]
    assert exact.circuit(3, chain, [0]).width == 1


def test_default_dtype() -> None:
    assert exact.circuit(1, [{0: 1}], [1]).factors.dtype == torch.float32
    assert exact.circuit(1, [{0: np.complex64(1j)}], [1]).factors.dtype == torch.complex64
    assert exact.circuit(1, [{0: torch.tensor(2.0)}], [1]).to_dense().item() == 2.0


def test_gradients() -> None:
    gates, outputs = prefix_sums(8)
    k = exact.circuit(8, gates, outputs, dtype=torch.float64)
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 8, dtype=torch.float64)
    (k(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights.flip(-1).cumsum(-1).flip(-1))
    assert k.weight.grad.isfinite().all() and k.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.circuit(0, [], [0]), "expected n >= 1, got 0"),
        (lambda: exact.circuit(2, [], []), "at least one output"),
        (lambda: exact.circuit(2, [{0: 1}], [2.7]), "expected an output to be an integer, got 2.7"),
        (lambda: exact.circuit(2, [{0.5: 1}], [2]), "expected a wire to be an integer, got 0.5"),
        (lambda: exact.circuit(2, [{}], [2]), "gate 0 reads no wire"),
        (lambda: exact.circuit(2, [{0: 1}, {4: 1}], [2]), r"gate 1 reads wire 4: expected wires 0, \.\.\., 2"),
        (lambda: exact.circuit(2, [{2: 1}], [2]), r"gate 0 reads wire 2: expected wires 0, \.\.\., 1"),
        (lambda: exact.circuit(2, [{-1: 1}], [2]), "gate 0 reads wire -1"),
        (lambda: exact.circuit(2, [{0: 1}], [3]), r"output 3 .*expected wires 0, \.\.\., 2"),
        (lambda: exact.circuit(2, [{0: float("nan")}], [2]), "finite entries in gates, got 1"),
        (lambda: exact.circuit(2, [{0: 1j}], [2], dtype=torch.float32), "complex64 or complex128"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
