"""Linear arithmetic circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from kaleido_audio.exact.algebra import check_length
from kaleido_audio.exact.arguments import check_finite, integer, made_on_cpu, result_dtype
from kaleido_audio.exact.layers import Layer
from kaleido_audio.kmatrix import KMatrix, padded_size

Gate = Mapping[int, complex]


@made_on_cpu
def circuit(n: int, gates: Sequence[Gate], outputs: Sequence[int], *, dtype: torch.dtype | None = None) -> KMatrix:
    """The linear map that a circuit of sums computes, such as a fast algorithm.

    Wires 0, ..., n - 1 are the inputs, wire n + g is gate g. A gate is a weighted sum of earlier wires:
    ``{0: 1.0, 4: -0.5}`` is ``wire 0 - 0.5 * wire 4``.

    A circuit of depth d (the most gates on a path) is in (BB*)^w_e with w <= 2 d, or 1 or 2 without gates: the gates
    of one depth are one sparse layer, which also carries the wires that later layers read. A layer takes a place
    for each wire that its gates read and each that it carries: at most n + 2 s places for s gates of two wires each,
    if no output is repeated. The factors have the size of the largest layer, so e is in O(1 + s / n). Layers that
    only permute, or only sum neighbours, take one BB* instead of two. Gates that no output needs are left out.

    Theorem 1 of the paper has w in O(d) and e in O(s / n).

    Args:
        n: number of inputs.
        gates: for each gate the coefficients of the wires it reads, at least one.
        outputs: wires, in the order of the outputs; repeats are allowed.
        dtype: of the result; by default float32, or complex64 where a coefficient is complex.

    Raises:
        ValueError: a wire that is not an input or an earlier gate, an empty gate, no outputs, coefficients that
            are not finite, or a type that does not fit.

    Source: Dao et al., ICLR 2020, theorem 1.

    >>> prefix_sums = circuit(3, [{0: 1, 1: 1}, {3: 1, 2: 1}], outputs=[0, 3, 4])
    >>> prefix_sums(torch.tensor([1.0, 10.0, 100.0])).tolist()
    [1.0, 11.0, 111.0]
    """
    n = check_length(n)
    gates = [{integer("a wire", wire): value for wire, value in gate.items()} for gate in gates]
    outputs = [integer("an output", wire) for wire in outputs]
    _check_wires(n, gates, outputs)
    coefficients = [coefficient for gate in gates for coefficient in gate.values()]
    is_complex = torch.tensor(coefficients).is_complex()
    precise = torch.complex128 if is_complex else torch.float64
    check_finite(torch.tensor(coefficients, dtype=precise), "gates")
    dtype = result_dtype(dtype, torch.complex64 if is_complex else torch.float32)
    layers = _layers(n, gates, outputs, precise)
    longer = max(n, len(outputs))
    expansion = 1
    while any(layer.width(padded_size(longer, expansion)) is None for layer in layers):
        expansion *= 2
    size = padded_size(longer, expansion)
    factors = torch.cat([layer.factors(size) for layer in layers])
    return KMatrix.from_factors(n, factors.to(dtype), out_features=len(outputs), expansion=expansion)


def _check_wires(n: int, gates: Sequence[Gate], outputs: Sequence[int]) -> None:
    if len(outputs) == 0:
        raise ValueError("expected at least one output")
    for g, gate in enumerate(gates):
        if not gate:
            raise ValueError(f"gate {g} reads no wire: expected at least one")
        for wire in gate:
            if not 0 <= wire < n + g:
                raise ValueError(
                    f"gate {g} reads wire {wire}: expected wires 0, ..., {n + g - 1} (inputs and earlier gates)"
                )
    for wire in outputs:
        if not 0 <= wire < n + len(gates):
            raise ValueError(f"output {wire} is not a wire: expected wires 0, ..., {n + len(gates) - 1}")


def _layers(n: int, gates: Sequence[Gate], outputs: Sequence[int], dtype: torch.dtype) -> list[Layer]:
    """One layer for each depth. In between lie the wires that later layers read, in ascending order."""
    depth = [0] * n
    for gate in gates:
        depth.append(1 + max(depth[wire] for wire in gate))
    n_layers = max(1, *(depth[wire] for wire in outputs))
    last_read = [0] * len(depth)  # the last layer that reads each wire; 0 where no output needs it
    for wire in outputs:
        last_read[wire] = n_layers
    for wire in range(len(depth) - 1, n - 1, -1):
        if last_read[wire]:
            for source in gates[wire - n]:
                last_read[source] = max(last_read[source], depth[wire])
    layers = []
    wires: Sequence[int] = range(n)
    for d in range(1, n_layers + 1):
        place = {wire: i for i, wire in enumerate(wires)}
        if d < n_layers:
            wires = [wire for wire, at in enumerate(depth) if at <= d < last_read[wire]]
        else:
            wires = outputs
        entries = [
            (place[source], target, coefficient)
            for target, wire in enumerate(wires)
            for source, coefficient in (gates[wire - n] if depth[wire] == d else {wire: 1.0}).items()
        ]
        sources, targets, values = zip(*entries, strict=True)
        layers.append(Layer(torch.tensor(sources), torch.tensor(targets), torch.tensor(values, dtype=dtype)))
    return layers
