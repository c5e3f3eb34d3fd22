"""Modules made on the meta device are right once they have memory, however they got it."""

from collections.abc import Callable

import pytest
import torch

from kaleido_audio import KMatrix, nn

MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "KMatrix": lambda: KMatrix(8),
    "tied": lambda: KMatrix(8, tied=True),
    "odo": lambda: KMatrix(8, constraint="odo"),
    "complex": lambda: KMatrix(8, dtype=torch.complex64, constraint="orthogonal"),
    "KLinear": lambda: nn.KLinear(8, 8, constraint="orthogonal", tied=True),
    "KConv1x1": lambda: nn.KConv1x1(8, 8, spatial_dims=1, tied=True),
    "Hadamard": lambda: nn.Hadamard(8),
    "KPermutation": lambda: nn.KPermutation(8),
    "SparseLinear": lambda: nn.SparseLinear(8, 8),
}


def on_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return MODULES[name]()


def poisoned(module: torch.nn.Module) -> torch.nn.Module:
    """The module with memory that holds anything."""
    module.to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.fill_(float("nan"))
    return module


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("way", ["to_empty", "assign"])
def test_loading_into_a_module_from_meta(name: str, way: str) -> None:
    torch.manual_seed(0)
    source = MODULES[name]()
    if way == "to_empty":
        twin = on_meta(name)
        twin.to_empty(device="cpu")
        twin.load_state_dict(source.state_dict())
    else:
        if name == "Hadamard":
            pytest.skip("a module without parameters does not say where it shall be")
        twin = on_meta(name)
        twin.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(8, 8)
    assert torch.equal(twin(x), source(x))


@pytest.mark.parametrize("name", ["KMatrix", "tied", "odo", "complex", "KPermutation"])
def test_reset_parameters_after_to_empty(name: str) -> None:
    module = poisoned(on_meta(name))
    module.reset_parameters()
    assert module(torch.randn(2, 8)).isfinite().all()


@pytest.mark.parametrize("name", MODULES)
def test_tables_are_no_part_of_the_state(name: str) -> None:
    module = MODULES[name]()
    state = module.state_dict()
    assert not any(key.split(".")[-1] in ("block_index", "_pair", "factors") for key in state)
    assert module.to(torch.float64)(torch.randn(8, 8, dtype=torch.float64)).dtype in (torch.float64, torch.complex128)


def test_shapes_on_meta() -> None:
    y = KMatrix(8, out_features=5).to("meta")(torch.empty(3, 8, device="meta"))
    assert y.shape == (3, 5) and y.is_meta
