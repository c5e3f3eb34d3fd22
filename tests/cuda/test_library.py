"""The CUDA library without a GPU: it loads, adds kernels to every operator, and its kernels keep to their registers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kaleido_audio import exact, ops
from kaleido_audio import functional as F
from kaleido_audio.ops import native

needs_library = pytest.mark.skipif(
    "cuda" not in native._devices,
    reason=f"no CUDA kernels: {native._missing.get('cuda', 'this torch was built without CUDA')}",
)
OPERATORS = (
    "butterfly",
    "butterfly_no_grad",
    "butterfly_backward",
    "power_spectrum",
    "power_spectrum_backward",
    "log_filterbank",
)


@needs_library
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_cuda_kernel(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"kaleido_audio::{name}", "CUDA")


@needs_library
def test_the_schema_that_only_the_cuda_library_defines() -> None:
    schema = str(torch.ops.kaleido_audio.log_filterbank.default._schema)
    assert schema == (
        "kaleido_audio::log_filterbank(Tensor waveform, Tensor window, Tensor factors, Tensor rows, int hop, "
        "Tensor filterbank, float power, float log_scale, float eps, float floor) -> Tensor"
    )


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64, torch.complex128, torch.bfloat16])
def test_shapes_of_products_on_a_gpu_are_known_without_one(dtype: torch.dtype) -> None:
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    with FakeTensorMode():
        x, factors = (
            torch.empty(3, 5, 7, dtype=dtype, device="cuda"),
            torch.empty(2, 3, 2, 8, dtype=wide, device="cuda"),
        )
        assert ops.backend(x) == "cuda"
        y = torch.ops.kaleido_audio.butterfly(x, factors, 6)
        grads = torch.ops.kaleido_audio.butterfly_backward(y, x, factors, True, False)
    assert (y.shape, y.dtype, y.device.type) == ((3, 5, 6), dtype, "cuda")
    assert grads[0].shape == x.shape and grads[0].dtype == dtype and grads[1].shape == (0,)


@needs_library
def test_shapes_of_spectra_on_a_gpu_are_known_without_one() -> None:
    with FakeTensorMode():
        waveform, window = torch.empty(2, 1000, device="cuda"), torch.empty(60, device="cuda")
        factors = torch.empty(2, 6, 2, 64, dtype=torch.complex64, device="cuda")
        rows, fb = torch.empty(33, dtype=torch.int64, device="cuda"), torch.empty(33, 20, device="cuda")
        power = ops.butterfly_power_spectrum(waveform, window, factors, rows, 40)
        bands = ops.butterfly_filterbank(waveform, window, factors, rows, 40, fb, log_scale=1.0)
        args = (waveform, window, factors, rows, 40)
        grads = torch.ops.kaleido_audio.power_spectrum_backward(power, *args, True, True, True)
    assert power.shape == (2, 24, 33) and bands.shape == (2, 24, 20)
    assert [g.shape for g in grads] == [waveform.shape, window.shape, factors.shape]


@needs_library
@pytest.mark.parametrize(
    ("dtype", "n", "fused"),
    [
        (torch.complex64, 2048, True),
        (torch.complex64, 4096, False),
        (torch.complex128, 1024, True),
        (torch.complex128, 2048, False),
        (torch.float32, 64, False),
    ],
)
def test_spectra_are_fused_as_far_as_registers_reach(dtype: torch.dtype, n: int, fused: bool) -> None:
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    with FakeTensorMode():
        waveform = torch.empty(2, 10000, dtype=real, device="cuda")
        factors = torch.empty(2, n.bit_length() - 1, 2, n, dtype=dtype, device="cuda")
        assert native.has_power_spectrum(waveform, factors) == fused
        assert ops.has_filterbank(waveform, factors) == fused
        # Beyond that, the same result in several steps.
        rows = torch.empty(n // 2, dtype=torch.int64, device="cuda")
        power = ops.butterfly_power_spectrum(waveform, torch.empty(n, dtype=real, device="cuda"), factors, rows, n)
    assert power.shape == (2, (10000 - n) // n + 1, n // 2)


@needs_library
def test_mel_spectra_that_need_gradients_are_not_fused() -> None:
    dft = exact.dft(64, bit_reversed=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        factors = torch.empty(dft.factors.shape, dtype=torch.complex64, device="cuda")
        waveform, window = torch.empty(2, 1000, device="cuda"), torch.empty(64, device="cuda")
        fb = torch.empty(33, 20, device="cuda", requires_grad=True)
        assert not F.fuses_k_mel(waveform, window, factors, fb)
        with torch.no_grad():
            assert F.fuses_k_mel(waveform, window, factors, fb)
        assert F.fuses_k_mel(waveform, window, factors, fb.detach())


def test_the_filterbank_operator_says_where_it_runs() -> None:
    factors = exact.dft(64, bit_reversed=True).factors.detach()
    rows, waveform = torch.arange(33), torch.randn(1000)
    assert not ops.has_filterbank(waveform, factors)
    with pytest.raises(ValueError, match="on a GPU with native kernels"):
        ops.butterfly_filterbank(waveform, torch.ones(64), factors, rows, 32, torch.ones(33, 20))
    with pytest.raises(ValueError, match=r"expected fb \(33, n_bands\)"):
        ops.butterfly_filterbank(waveform, torch.ones(64), factors, rows, 32, torch.ones(32, 20))


def spills(report: str) -> dict[tuple[str, str], int]:
    """Bytes that each kernel stores for want of registers, by its mangled name and architecture."""
    found = {}
    entry = None
    for line in report.splitlines():
        if match := re.search(r"entry function '(\S+)' for '(sm_\w+)'", line):
            entry = (match[1], match[2])
        elif (match := re.search(r"(\d+) bytes spill stores", line)) and entry:
            found[entry] = int(match[1])
            entry = None
    return found


def test_the_kernels_that_shall_be_fast_do_not_spill() -> None:
    path = os.environ.get("KALEIDO_PTXAS_REPORT", "")
    if not path or not Path(path).is_file():
        pytest.skip("no report of ptxas: make test has one where there is nvcc")
    found = spills(Path(path).read_text(encoding="utf-8"))
    architectures = {architecture for _, architecture in found}
    assert architectures >= {"sm_80", "sm_90", "sm_100"}
    # 2^(4 + 5) and 2^(5 + 5) points, all coefficients in shared memory; clusters; the backward of all sizes.
    kernels = re.compile(
        r"multiply_kernelI(?:f|NS_7ComplexIfEE)NS_15ConsecutiveTileILi[45]EEELi\d+ELb1"
        r"|halves_kernelINS_7ComplexIfEE|cluster_kernelI|backward_kernelI(?!d|NS_7ComplexIdEE)"
    )
    checked = {key: bytes_ for key, bytes_ in found.items() if kernels.search(key[0])}
    # For each architecture: two sizes of real products and of complex ones, each for many vectors and for few; two of
    # power spectra; three sizes of clusters of each; backward of real and complex products, and of spectra in one run
    # and at the end of several.
    assert len(checked) == 20 * len(architectures)
    assert not {key: bytes_ for key, bytes_ in checked.items() if bytes_}


@needs_library
def test_a_gpu_that_there_is_no_code_for_takes_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(native, "_has_code_for", {})
    monkeypatch.setattr(native, "_missing", dict(native._missing))
    monkeypatch.setattr(native, "_warned", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (7, 5))
    with FakeTensorMode():
        x = torch.empty(3, 8, device="cuda")
        with pytest.warns(UserWarning, match=r"compiled for .*, and this GPU has capability 7\.5"):
            assert ops.backend(x) == "reference"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (9, 0))
        native._has_code_for.clear()
        assert ops.backend(x) == "cuda"
