"""What holds for every exact K-matrix: cost of construction, gradients, float32."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kaleido_audio import KMatrix, exact


def vector(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), device="cpu")


def shuffled(n: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu")


MAPS: dict[str, Callable[[int], KMatrix]] = {
    "acdc": lambda n: exact.acdc(vector(n), vector(n, 1)),
    "circulant": lambda n: exact.circulant(vector(n)),
    "convolution": lambda n: exact.convolution(vector(n // 2), n),
    "dct": lambda n: exact.dct(n),
    "dct, other length": lambda n: exact.dct(n - 1),
    "dft": lambda n: exact.dft(n),
    "dft, other length": lambda n: exact.dft(n - 1),
    "dft2": lambda n: exact.dft2(n // 8, 8),
    "dft2, other length": lambda n: exact.dft2(n // 32, 5),
    "diagonal": lambda n: exact.diagonal(vector(n)),
    "dst": lambda n: exact.dst(n),
    "fastfood": lambda n: exact.fastfood(vector(n), vector(n, 1), shuffled(n), vector(n, 2)),
    "haar": lambda n: exact.haar(n),
    "hadamard": lambda n: exact.hadamard(n),
    "hankel": lambda n: exact.hankel(vector(n), vector(n, 1)),
    "hartley": lambda n: exact.hartley(n),
    "hartley, other length": lambda n: exact.hartley(n - 1),
    "permutation": lambda n: exact.permutation(shuffled(n)),
    "toeplitz": lambda n: exact.toeplitz(vector(n), vector(n, 1)),
}


class Elements(TorchDispatchMode):
    """Counts the elements that operators write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            self.count += tensor.numel() if isinstance(tensor, torch.Tensor) else 0
        return result


@pytest.mark.parametrize("name", MAPS)
def test_construction_takes_n_log_squared_n(name: str) -> None:
    with Elements() as short:
        MAPS[name](256)
    with Elements() as long:
        MAPS[name](4096)
    # n log^2 n grows by 16 * 2.25, n^2 by 256.
    assert long.count <= 16 * 2.25 * 1.2 * short.count


@pytest.mark.parametrize("name", MAPS)
def test_gradients_are_finite_and_reach_the_coefficients(name: str) -> None:
    k = MAPS[name](64)
    k = k.double()
    x = vector(k.in_features, 3).requires_grad_()
    k(x).abs().square().sum().backward()
    for gradient in (x.grad, k.weight.grad):
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 1e-6


@pytest.mark.parametrize("name", MAPS)
def test_float32_has_the_error_of_an_fft(name: str) -> None:
    k = MAPS[name](1024).double()
    x = vector(k.in_features, 3)
    expected = k(x)
    error = (k.float()(x.float()) - expected).abs().max() / expected.abs().max()
    assert error <= 3e-6


def test_arrays_read_backwards() -> None:
    h = vector(5).numpy()[::-1]
    forward = torch.tensor(h.copy())
    assert torch.equal(exact.convolution(h, 8).to_dense(), exact.convolution(forward, 8).to_dense())
    assert torch.equal(exact.diagonal(h).to_dense(), exact.diagonal(forward).to_dense())
    assert exact.permutation(np.arange(4)[::-1])(torch.arange(4.0)).tolist() == [3.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite(value: float) -> None:
    for build in (exact.diagonal, exact.circulant, exact.toeplitz, lambda h: exact.convolution(h, 4)):
        with pytest.raises(ValueError, match="expected finite entries in"):
            build([1.0, value])


def test_outputs_of_a_circuit_may_be_a_tensor() -> None:
    k = exact.circuit(3, [{0: 1.0, 1: 1.0}], torch.tensor([0, 3]))
    assert k(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.0, 3.0]


TWO = [1.0, 2.0]
OF_SIZE: dict[str, Callable[[Any], KMatrix]] = {
    "circuit": lambda n: exact.circuit(n, [{np.int64(0): 1.0, 1: 2.0}], [n]),
    "convolution": lambda n: exact.convolution(TWO, n),
    "dct": lambda n: exact.dct(n),
    "dft": lambda n: exact.dft(n),
    "dft2": lambda n: exact.dft2(n, n),
    "dst": lambda n: exact.dst(n),
    "haar": lambda n: exact.haar(n),
    "hadamard": lambda n: exact.hadamard(n),
    "hartley": lambda n: exact.hartley(n),
    "idct": lambda n: exact.idct(n),
    "idft": lambda n: exact.idft(n),
    "idft2": lambda n: exact.idft2(n, n),
    "idst": lambda n: exact.idst(n),
    "sparse": lambda n: exact.sparse(np.eye(4), expansion=n),
}


@pytest.mark.parametrize("name", OF_SIZE)
def test_sizes_of_any_integer_type_and_no_other(name: str) -> None:
    assert torch.equal(OF_SIZE[name](np.int64(8)).to_dense(), OF_SIZE[name](8).to_dense())
    for other in (8.0, "8"):
        with pytest.raises(ValueError, match=rf"expected (n|expansion) to be an integer, got {other!r}"):
            OF_SIZE[name](other)


WITH_DTYPE: dict[str, Callable[[Any], KMatrix]] = {
    "diagonal": lambda dtype: exact.diagonal(TWO, dtype=dtype),
    "haar": lambda dtype: exact.haar(4, dtype=dtype),
    "hadamard": lambda dtype: exact.hadamard(4, dtype=dtype),
    "low_rank": lambda dtype: exact.low_rank(np.ones((2, 1)), np.ones((2, 1)), dtype=dtype),
    "permutation": lambda dtype: exact.permutation([1, 0], dtype=dtype),
    "sparse": lambda dtype: exact.sparse(np.eye(2), dtype=dtype),
}


@pytest.mark.parametrize("name", WITH_DTYPE)
def test_types_that_a_k_matrix_cannot_have(name: str) -> None:
    # Maps with entries take None for the type of these; the others must not take it for that of the computation.
    for dtype in ("float32", torch.float16, *([None] if name in ("haar", "hadamard", "permutation") else [])):
        with pytest.raises(ValueError, match=rf"expected dtype in \(torch.float32, .*\), got {dtype!r}"):
            WITH_DTYPE[name](dtype)


def test_a_type_by_its_name() -> None:
    with pytest.raises(ValueError, match="expected dtype complex64 or complex128, got 'complex64'"):
        exact.dft(4, dtype="complex64")  # type: ignore[arg-type]


WHOLE, CORNER = exact.hadamard(4), exact.dft(3)
ANY_DEFAULT: dict[str, Callable[[], Any]] = {
    **{name: functools.partial(build, 64) for name, build in MAPS.items()},
    **{f"{name}, n = 8": functools.partial(build, 8) for name, build in OF_SIZE.items()},
    "bit_reversal": lambda: exact.bit_reversal(8),
    "diagonal, list": lambda: exact.diagonal(TWO),
    "kronecker": lambda: exact.kronecker(WHOLE, CORNER),
    "low_rank": lambda: exact.low_rank(np.ones((3, 2)), np.ones((2, 2))),
    "permutation, list": lambda: exact.permutation([1, 2, 0]),
    "sparse, many entries": lambda: exact.sparse(np.arange(64.0).reshape(8, 8)),
}


@pytest.mark.parametrize("name", ANY_DEFAULT)
def test_any_default_device(name: str) -> None:
    assert {key.partition(",")[0] for key in ANY_DEFAULT} == set(exact.__all__)
    # "meta" stands for a GPU: its tensors do not mix with those of the CPU, and have no values to go by.
    with torch.device("meta"):
        made = ANY_DEFAULT[name]()
    expected = ANY_DEFAULT[name]()
    if isinstance(made, KMatrix):
        made, expected = made.factors, expected.factors
    assert made.is_meta and made.shape == expected.shape and made.dtype == expected.dtype
