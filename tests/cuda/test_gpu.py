"""The CUDA kernels on a GPU against the definition, and their manners: streams, graphs, the same bits in every run.

With ``KALEIDO_SIMULATED_GPU``, as `test_simulated` runs them, the same tests of the kernels run on the processor.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kaleido_audio import check, exact, ops
from kaleido_audio.ops import native
from kaleido_audio.ops.reference import multiply_by_stages, power_spectrum_by_stages
from kaleido_audio.transforms import FlooredLogarithm, KMelSpectrogram

SIMULATED = "KALEIDO_SIMULATED_GPU" in os.environ
DEVICE = "cpu" if SIMULATED else "cuda"
pytestmark = [
    pytest.mark.skipif(not (SIMULATED or torch.cuda.is_available()), reason="there is no GPU"),
    pytest.mark.skipif("cuda" not in native._devices, reason="the package was built without CUDA kernels"),
]
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.complex64),
    (torch.complex64, torch.complex64),
    (torch.float64, torch.complex128),
    (torch.complex128, torch.complex128),
]


def random_factors(n_factors: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n_factors, n.bit_length() - 1, 2, n, dtype=dtype, device=DEVICE) * 0.7


def assert_near(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    scale = max(expected.abs().max().item(), 1e-30)
    error = (actual - expected).abs().max().item() / scale
    assert error <= (3e-5 if torch.finfo(dtype).bits == 32 else 5e-14), f"relative error {error:.2e}"


# First in this file: other tests would have launched these kernels before.
@pytest.mark.skipif(SIMULATED, reason="a simulated GPU has no graphs")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("log_n", "dtype"), [(9, torch.float64), (13, torch.float32), (11, torch.complex64)], ids=str)
def test_the_first_call_of_all_may_be_captured_in_a_graph(log_n: int, dtype: torch.dtype, backward: bool) -> None:
    """What a kernel asks of the driver the first time, it asks here while a graph is captured."""
    torch.manual_seed(0)
    n, vectors = 1 << log_n, 3001
    factors = random_factors(2, n, dtype)
    x, grad = (torch.randn(vectors, n, dtype=dtype, device=DEVICE) for _ in range(2))

    def call() -> torch.Tensor:
        if not backward:
            return torch.ops.kaleido_audio.butterfly(x, factors, n)
        return torch.ops.kaleido_audio.butterfly_backward(grad, x, factors, True, True)[1]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for tensor in (x, grad):
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    assert torch.equal(captured, call())


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("n_factors", [1, 2, 4])
@pytest.mark.parametrize("log_n", [1, 5, 9, 10, 11, 12] if SIMULATED else [1, 2, 5, 7, 8, 9, 10, 11, 12, 14, 16])
def test_values_and_gradients(log_n: int, n_factors: int, pair: tuple[torch.dtype, torch.dtype]) -> None:
    torch.manual_seed(0)
    n = 1 << log_n
    # More than the GPU has warps, so that each holds several vectors; with 128 elements or less they share a tile.
    several = (4 if SIMULATED else 200) if log_n >= 12 else (30 if SIMULATED else 1500) * max(1, 128 >> log_n)
    for vectors, m, out in ((1, n, n), (several, n - n // 4, n - n // 3)):
        x = torch.randn(vectors, m, dtype=pair[0], device=DEVICE, requires_grad=True)
        factors = random_factors(n_factors, n, pair[1]).requires_grad_()
        y, expected = ops.butterfly_multiply(x, factors, out_features=out), multiply_by_stages(x, factors)[..., :out]
        assert_near(y, expected, pair[0])
        grad = torch.randn_like(expected)
        got = torch.autograd.grad(y, (x, factors), grad)
        for mine, wanted in zip(got, torch.autograd.grad(expected, (x, factors), grad), strict=True):
            assert_near(mine, wanted, pair[0])
        again = torch.autograd.grad(ops.butterfly_multiply(x, factors, out_features=out), (x, factors), grad)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize(
    ("log_n", "dtype"),
    [*((k, torch.float32) for k in (11, 12, 13, 14)), *((k, torch.complex64) for k in (10, 11, 12, 13))],
    ids=str,
)
@pytest.mark.parametrize("n_factors", [1, 2, 3])
def test_many_long_vectors(n_factors: int, log_n: int, dtype: torch.dtype) -> None:
    """Enough of them for the launches in which clusters of blocks divide each vector, where the GPU has clusters."""
    torch.manual_seed(0)
    n, vectors = 1 << log_n, 37 if SIMULATED else 3001
    x, factors = torch.randn(vectors, n - 3, dtype=dtype, device=DEVICE), random_factors(n_factors, n, dtype)
    y = torch.ops.kaleido_audio.butterfly(x, factors, n - 5)
    assert_near(y, multiply_by_stages(x, factors)[..., : n - 5], torch.float32)
    assert torch.equal(torch.ops.kaleido_audio.butterfly(x, factors, n - 5), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(100 if SIMULATED else 1000, 512, device=DEVICE).to(dtype)
    factors = random_factors(2, 512, torch.float32)
    y = torch.ops.kaleido_audio.butterfly(x, factors, 512)
    assert torch.equal(y, ops.butterfly_multiply(x.float(), factors).to(dtype))


def rows_of(kind: str, n: int) -> torch.Tensor:
    """Outputs in no order: any, the first of them twice; or even ones, and perhaps one odd one beside them."""
    if kind == "any":
        rows = torch.randperm(n)[: n // 2 + 1]
        return torch.cat([rows, rows[:1]]).to(DEVICE)
    rows = torch.cat([2 * torch.randperm(n // 2), torch.tensor([n // 2 + 1])])
    return rows[torch.randperm(len(rows))].to(DEVICE) if kind == "one odd" else rows[: n // 3].to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    ("n", "length", "hop", "n_factors", "kind"),
    [
        (64, 50, 20, 2, "any"),
        (256, 256, 100, 2, "one odd"),
        (256, 200, 80, 4, "even"),
        (512, 400, 160, 2, "any"),
        (512, 512, 160, 2, "even"),
        (512, 400, 160, 2, "one odd"),
        (1024, 1024, 256, 2, "any"),
    ],
)
def test_power_spectrum_and_gradients(
    n: int, length: int, hop: int, n_factors: int, kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    real = torch.float32 if dtype == torch.complex64 else torch.float64
    waveform = torch.randn(3, 20 * hop + length + 7, dtype=real, device=DEVICE, requires_grad=True)
    window = torch.rand(length, dtype=real, device=DEVICE, requires_grad=True)
    factors, rows = random_factors(n_factors, n, dtype).requires_grad_(), rows_of(kind, n)
    power = ops.butterfly_power_spectrum(waveform, window, factors, rows, hop)
    expected = power_spectrum_by_stages(waveform, window, factors, rows, hop)
    assert_near(power, expected, real)
    grad = torch.randn_like(power)
    leaves = (waveform, window, factors)
    wanted = torch.autograd.grad(expected, leaves, grad)
    for got, other in zip(torch.autograd.grad(power, leaves, grad), wanted, strict=True):
        assert_near(got, other, real)


@pytest.fixture
def seen_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only GPUs have a kernel for is asked of a simulated one's tensors, which are the processor's."""
    if SIMULATED:
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)


@pytest.mark.parametrize("compression", [None, "log", "log10", "db"])
@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.usefixtures("seen_on_a_gpu")
def test_the_fused_front_end_equals_its_parts(power: float, compression: str | None) -> None:
    torch.manual_seed(0)
    module = KMelSpectrogram(16000, 512, 400, 160, n_mels=40, power=power, compression=compression).to(DEVICE)
    waveform, lengths = torch.randn(3, 16000, device=DEVICE), torch.tensor([16000, 9000, 4000], device=DEVICE)
    with torch.no_grad():
        assert module._fused(waveform, lengths) is not None
        fused, counts = module(waveform, lengths)
    parts, part_counts = module(waveform, lengths)
    assert torch.equal(counts, part_counts)
    torch.testing.assert_close(fused, parts.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["log", "log10", "db"])
@pytest.mark.usefixtures("seen_on_a_gpu")
def test_the_fused_front_end_with_a_floor(kind: str) -> None:
    torch.manual_seed(0)
    module = KMelSpectrogram(16000, 512, 400, 160, n_mels=40).to(DEVICE)
    module.compression = FlooredLogarithm(kind, floor=10.0)
    waveform = torch.randn(2, 8000, device=DEVICE)
    waveform[:, 4000:] = 0  # under the floor
    waveform[1, 700] = torch.nan
    with torch.no_grad():
        fused = module._fused(waveform, None)
    parts = module(waveform).detach()
    assert fused is not None and fused[0, 0, -1] == parts.nan_to_num(torch.inf).min() and fused[1].isnan().any()
    torch.testing.assert_close(fused, parts, rtol=1e-4, atol=1e-4, equal_nan=True)


class Halved(FlooredLogarithm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


@pytest.mark.usefixtures("seen_on_a_gpu")
def test_a_compression_of_ones_own_is_not_left_out() -> None:
    module = KMelSpectrogram(16000, 512, 400, 160, n_mels=40).to(DEVICE)
    module.compression = FlooredLogarithm()
    waveform = torch.randn(8000, device=DEVICE)
    with torch.no_grad():
        whole = module(waveform)
        module.compression = Halved()
        torch.testing.assert_close(module(waveform), whole / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(SIMULATED, reason="a simulated GPU has no streams")
def test_on_another_stream_and_in_a_graph() -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(64, 1024, device=DEVICE), random_factors(2, 1024, torch.float32)
    expected = multiply_by_stages(x, factors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = ops.butterfly_multiply(x, factors)
    stream.synchronize()
    assert_near(y, expected, torch.float32)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.butterfly_multiply(x, factors)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert_near(y, multiply_by_stages(x, factors), torch.float32)


@pytest.mark.skipif(SIMULATED, reason="a simulated GPU has no streams")
def test_threads_with_products_of_different_sizes() -> None:
    torch.manual_seed(0)
    cases = []
    for n_factors in (1, 2, 4, 8):  # which take different amounts of shared memory from one kernel
        x, factors = torch.randn(500, 512, device=DEVICE), random_factors(n_factors, 512, torch.float32) * 0.7
        cases.append((x, factors, torch.ops.kaleido_audio.butterfly(x, factors, 512)))
    torch.cuda.synchronize()

    def work(case: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> bool:
        x, factors, expected = case
        results = [torch.ops.kaleido_audio.butterfly(x, factors, 512) for _ in range(200)]
        return all(torch.equal(result, expected) for result in results)

    with ThreadPoolExecutor(len(cases)) as pool:
        assert all(pool.map(work, cases))


@pytest.mark.parametrize("mode", ["tf32", "autocast"])
def test_materialised_products_are_as_precise_as_tensor_cores(mode: str) -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(3000, 256, device=DEVICE), random_factors(2, 256, torch.float32).requires_grad_()
    expected = ops.butterfly_multiply(x.double(), factors.double(), materialise=False)
    g = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, factors, g)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if mode == "tf32" else "highest")
        with torch.autocast(DEVICE, torch.bfloat16, enabled=mode == "autocast"):
            got = ops.butterfly_multiply(x, factors, materialise=True)
        (grad,) = torch.autograd.grad(got, factors, g.to(got.dtype))
    finally:
        torch.set_float32_matmul_precision(before)
    unit = 2.0**-11 if mode == "tf32" else 2.0**-9
    for mine, exact_value in ((got, expected), (grad, wanted)):
        assert (mine - exact_value).abs().max() <= 8 * unit * exact_value.abs().max()


@pytest.mark.usefixtures("seen_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_filterbank_against_the_definition(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if SIMULATED:
        monkeypatch.setattr(check, "SPECTRA", ((64, 50), (256, 256)))
    finding = check.check_filterbank(dtype, torch.device(DEVICE))
    assert finding.is_right, finding


@pytest.mark.skipif(SIMULATED, reason="to the check of an installation, a simulated GPU is the processor")
def test_the_check_of_an_installation() -> None:
    assert check.main(["--device", "cuda:0"]) == 0


def test_empty_batches() -> None:
    factors = random_factors(2, 64, torch.float32).requires_grad_()
    y = ops.butterfly_multiply(torch.empty(0, 64, device=DEVICE), factors)
    assert y.shape == (0, 64)
    y.sum().backward()
    assert factors.grad is not None and not factors.grad.any()


def test_opcheck() -> None:
    x = torch.randn(5, 16, device=DEVICE, requires_grad=True)
    factors = random_factors(2, 16, torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.kaleido_audio.butterfly.default, (x, factors, 16))
    dft = exact.dft(64, bit_reversed=True).factors.detach().to(DEVICE)
    rows = torch.arange(33, device=DEVICE)
    waveform, window = torch.randn(2, 500, device=DEVICE), torch.ones(64, device=DEVICE)
    fb = torch.rand(33, 20, device=DEVICE)
    torch.library.opcheck(torch.ops.kaleido_audio.power_spectrum.default, (waveform, window, dft, rows, 40))
    args = (waveform, window, dft, rows, 40, fb, 2.0, 1.0, 1e-6, 1e-3)
    torch.library.opcheck(torch.ops.kaleido_audio.log_filterbank.default, args)
