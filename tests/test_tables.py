"""Modules are right wherever they have been: on the meta device, in averages, in other memory formats."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch.optim import swa_utils

from kaleido_audio import KMatrix, nn
from kaleido_audio.transforms import KFbank, KMelSpectrogram

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


FRONT_ENDS: dict[str, Callable[[], torch.nn.Module]] = {
    "power of two": lambda: KMelSpectrogram(8000, 256, n_mels=10, compression="log"),
    "odd": lambda: KMelSpectrogram(8000, 200, n_mels=10, compression="log"),
    "fbank": lambda: KFbank(num_mel_bins=10, sample_frequency=8000),
}
ALL = {**MODULES, **FRONT_ENDS}


def some_input(name: str) -> torch.Tensor:
    return torch.randn(8, 2000 if name in FRONT_ENDS else 8)


def on_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return ALL[name]()


def poisoned(module: torch.nn.Module) -> torch.nn.Module:
    """The module with memory that holds anything."""
    module.to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.fill_(float("nan"))
    return module


@pytest.mark.filterwarnings("ignore:.*mel filters hold no frequency bin")
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("way", ["to_empty", "assign"])
def test_loading_into_a_module_from_meta(name: str, way: str) -> None:
    torch.manual_seed(0)
    source = ALL[name]()
    if way == "to_empty":
        twin = on_meta(name)
        twin.to_empty(device="cpu")
        twin.load_state_dict(source.state_dict())
    else:
        if name == "Hadamard":
            pytest.skip("a module without parameters does not say where it shall be")
        twin = on_meta(name)
        twin.load_state_dict(source.state_dict(), assign=True)
    x = some_input(name)
    assert torch.equal(twin(x), source(x))


@pytest.mark.parametrize("name", ALL)
def test_parameters_elsewhere_while_the_module_is_on_meta(name: str) -> None:
    """The idiom of PyTorch's tutorial on ensembles."""
    source = ALL[name]()
    base, x = copy.deepcopy(source).to("meta"), some_input(name)
    state = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    assert torch.equal(torch.func.functional_call(base, state, (x,)), source(x))


def test_an_ensemble_of_matrices_with_different_reflections() -> None:
    members = [KMatrix(8, constraint="orthogonal") for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    base, x = copy.deepcopy(members[0]).to("meta"), torch.randn(2, 8)
    y = torch.func.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([k(x) for k in members]))


AVERAGES = {
    "SWA": {},
    "EMA": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9999)},
    "EMA 0.9": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "EMA one by one": {"avg_fn": swa_utils.get_ema_avg_fn(0.9995)},
}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", ALL)
def test_the_average_of_equal_models_is_one_of_them(name: str, average: str) -> None:
    model, x = ALL[name](), some_input(name)
    averaged = swa_utils.AveragedModel(model, use_buffers=True, **AVERAGES[average])
    for _ in range(5):
        averaged.update_parameters(model)
    torch.testing.assert_close(averaged(x), model(x))


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_an_average_over_the_state_dict(name: str) -> None:
    model, x = FRONT_ENDS[name](), some_input(name)
    average = copy.deepcopy(model)
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        mean.copy_(mean * 0.9999 + value * (1 - 0.9999))
    torch.testing.assert_close(average(x), model(x))


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_order_of_frequencies_is_in_the_state_dict(name: str) -> None:
    model = FRONT_ENDS[name]()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["spectrogram.rows"] = state["spectrogram.rows"].roll(1)
    expected = FRONT_ENDS[name]()
    expected.spectrogram.rows = expected.spectrogram.rows.roll(1)
    assert model.load_state_dict(state) == ([], [])
    x = some_input(name)
    assert torch.equal(model(x), expected(x))
    del state["spectrogram.rows"]
    assert model.load_state_dict(state, strict=False) == (["spectrogram.rows"], [])
    state["spectrogram.rows"] = torch.arange(3)
    with pytest.raises(RuntimeError, match=r"size mismatch for spectrogram\.rows"):
        model.load_state_dict(state)


def naturally_ordered() -> KMelSpectrogram:
    """With the parameters of FRONT_ENDS["power of two"], in another order of frequencies."""
    return KMelSpectrogram(8000, 256, n_mels=10, compression="log", init="orthogonal")


def test_models_are_copied_by_parameters_and_buffers() -> None:
    """As DistributedDataParallel and distributed checkpoints do, and loops over a state_dict."""
    source, x = naturally_ordered(), some_input("power of two")
    by_parts, by_state = (FRONT_ENDS["power of two"]() for _ in range(2))
    with torch.no_grad():
        for kind in ("parameters", "buffers"):
            for mine, other in zip(getattr(by_parts, kind)(), getattr(source, kind)(), strict=True):
                mine.copy_(other)
        for mine, other in zip(by_state.state_dict().values(), source.state_dict().values(), strict=True):
            mine.copy_(other)
    assert torch.equal(by_parts(x), source(x)) and torch.equal(by_state(x), source(x))


def test_an_ensemble_of_front_ends_with_different_orders() -> None:
    members, x = [naturally_ordered(), FRONT_ENDS["power of two"]()], some_input("power of two")
    parameters, buffers = torch.func.stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    y = torch.func.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([member(x) for member in members]), rtol=1e-4, atol=1e-4)


def test_indices_saved_as_integers() -> None:
    for make, key, shape in (
        (FRONT_ENDS["power of two"], "spectrogram.rows", (8, 2000)),
        (lambda: nn.SparseLinear(8, 8), "support", (8, 8)),
    ):
        source, x = make(), torch.randn(*shape)
        state = {name: value.long() if name == key else value for name, value in source.state_dict().items()}
        for assign in (False, True):
            twin = make()
            twin.load_state_dict(state, assign=assign)
            assert torch.equal(twin(x), source(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_indices_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    layer = nn.SparseLinear(70, 90)
    assert torch.equal(copy.deepcopy(layer).to(dtype).indices("support"), layer.indices("support"))
    front_end = KMelSpectrogram(16000, 2048)
    expected = front_end.spectrogram.indices("rows")
    assert torch.equal(front_end.to(dtype).spectrogram.indices("rows"), expected)
    huge = nn.Hadamard(2)
    huge.register_indices("huge", torch.tensor([2**31 + 1]), 2**32)
    assert huge.half().indices("huge").item() == 2**31 + 1


def test_reflections_saved_as_bool() -> None:
    source, twin = KMatrix(8, constraint="orthogonal"), KMatrix(8, constraint="orthogonal")
    state = source.state_dict()
    state["reflection"] = state["reflection"].bool()
    twin.load_state_dict(state)
    assert torch.equal(twin.to_dense(), source.to_dense())
    twin.load_state_dict(state, assign=True)
    assert torch.equal(twin.to_dense(), source.to_dense())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d])
@pytest.mark.parametrize("name", ALL)
def test_memory_formats_of_images_leave_them_alone(name: str, memory_format: torch.memory_format) -> None:
    model, x = ALL[name](), some_input(name)
    expected = model(x)
    convolution = torch.nn.Conv2d if memory_format == torch.channels_last else torch.nn.Conv3d
    network = torch.nn.Sequential(model, convolution(3, 5, 3)).to(memory_format=memory_format)
    assert torch.equal(model(x), expected)
    assert all(p.is_contiguous() for p in model.parameters())
    assert network[1].weight.is_contiguous(memory_format=memory_format)
    network.double()
    assert {p.dtype for p in network.parameters()} == {torch.float64}


def test_shared_memory_is_shared() -> None:
    k = KMatrix(8, dtype=torch.complex64).share_memory()
    assert k.weight.is_shared()


@pytest.mark.parametrize("constraint", [None, "orthogonal", "odo"])
def test_a_matrix_on_meta_from_one_that_is_not(constraint: str | None) -> None:
    source = KMatrix(8, constraint=constraint)
    with torch.device("meta"):
        twin = KMatrix(8, constraint=constraint, init=source)
    assert all(p.is_meta for p in twin.parameters())
    twin.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(twin.to_dense(), source.to_dense())


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
