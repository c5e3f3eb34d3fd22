"""Products by one dense matrix: the same values, and chosen only where the precision allows it and a table says so."""

from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

from kaleido_audio import ops
from kaleido_audio.ops import materialised, multiply
from kaleido_audio.ops.materialised import Row
from kaleido_audio.transforms import KMelSpectrogram

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
DOUBLE = (torch.float64, torch.complex128)
PAIRS = [(a, b) for a in DTYPES for b in DTYPES if (a in DOUBLE) == (b in DOUBLE)]
TOLERANCE = {
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
    torch.float32: 2e-6,
    torch.complex64: 2e-6,
    torch.float64: 1e-14,
    torch.complex128: 1e-14,
}


def random_factors(n_factors: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(n_factors, n.bit_length() - 1, 2, n, dtype=torch.complex128) * 0.7).to(dtype)


@pytest.mark.usefixtures("path")
@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_equals_the_kernels_in_every_type(pair: tuple[torch.dtype, torch.dtype]) -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(2, 25, 20).to(pair[0]), random_factors(3, 32, pair[1])
    expected = ops.butterfly_multiply(x, factors, out_features=30)
    got = ops.butterfly_multiply(x, factors, out_features=30, materialise=True)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert (got - expected).abs().max() <= TOLERANCE[got.dtype] * expected.abs().max()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(0, 16), (16,), (40, 11)])
def test_gradients_equal_the_kernels(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(shape).double().requires_grad_(), random_factors(2, 16, dtype).requires_grad_()
    results = [ops.butterfly_multiply(x, factors, out_features=9, materialise=m) for m in (True, False)]
    g = torch.randn_like(results[0])
    for got, expected in zip(*(torch.autograd.grad(y, (x, factors), g) for y in results), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_under_autocast_the_matrix_is_rounded_once(low: torch.dtype) -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(300, 64), random_factors(2, 64)
    with torch.autocast("cpu", low):
        got = ops.butterfly_multiply(x, factors, materialise=True)
    expected = x.to(low).double() @ ops.to_dense(factors).to(low).double().mT
    assert got.dtype == low
    # What is left is the rounding of the result, and float32 in its sums.
    assert (
        (got - expected).abs() <= 1.01 * torch.finfo(low).eps / 2 * expected.abs() + 1e-5 * expected.abs().max()
    ).all()


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that say they are on a GPU of compute capability 9.0, and a table of measurements for it."""
    rows = [
        Row("9.0", "tf32", 64, 2, False, 1000),
        Row("9.0", "tf32", 64, 4, False, 500),
        Row("9.0", "tf32", 64, 2, True, 2000),
        Row("9.0", "half", 64, 2, False, 100),
        Row("8.0", "tf32", 128, 2, False, 10),
    ]
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(materialised, "read_table", lambda: rows)
    materialised._least_vectors.cache_clear()
    yield
    materialised._least_vectors.cache_clear()


@pytest.fixture
def tf32_allowed() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("on_a_gpu")
def test_full_precision_is_never_left_unasked() -> None:
    x, factors = torch.zeros(5000, 64), torch.zeros(2, 6, 2, 64)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not materialised.is_faster(x, factors)
    assert not materialised.is_faster(x.half(), factors.half())  # the kernels sum these in float32


@pytest.mark.usefixtures("on_a_gpu", "tf32_allowed")
def test_the_table_chooses() -> None:
    x, factors = torch.zeros(5000, 64), torch.zeros(2, 6, 2, 64)
    assert materialised.is_faster(x[:1000], factors)
    assert materialised.is_faster(x[:1000].view(10, 100, 64)[..., :50], factors)
    assert not materialised.is_faster(x[:999], factors)
    assert materialised.is_faster(x[:500], torch.zeros(4, 6, 2, 64))
    assert materialised.is_faster(x[:500], torch.zeros(6, 6, 2, 64))
    assert not materialised.is_faster(x, torch.zeros(1, 6, 2, 64))
    training = factors.clone().requires_grad_()
    assert not materialised.is_faster(x[:1000], training)
    assert materialised.is_faster(x[:2000], training)
    with torch.no_grad():
        assert materialised.is_faster(x[:1000], training)
    assert not materialised.is_faster(torch.zeros(5000, 128), torch.zeros(2, 7, 2, 128))  # of another GPU
    assert not materialised.is_faster(torch.zeros(5000, 32), torch.zeros(2, 5, 2, 32))  # not measured
    assert not materialised.is_faster(x.double(), factors.double())
    assert not materialised.is_faster(x, factors.to(torch.complex64))
    assert not materialised.is_faster(x.half(), factors)
    with forward_ad.dual_level():
        assert not materialised.is_faster(x, factors)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_autocast_goes_by_the_rows_of_half_precision(low: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: low)
    x, factors = torch.zeros(200, 64), torch.zeros(2, 6, 2, 64)
    assert materialised.is_faster(x, factors)
    assert materialised.is_faster(x.to(low), factors.to(low))
    assert not materialised.is_faster(x[:99], factors)
    assert not materialised.is_faster(x.double(), factors.double())
    assert not materialised.is_faster(x, factors.to(torch.complex64))
    assert not materialised.is_faster(x.to(torch.bfloat16 if low == torch.float16 else torch.float16), factors)


def test_what_is_chosen_is_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(8, 16), random_factors(2, 16)
    done = []
    monkeypatch.setattr(multiply, "multiply_by_matrix", lambda x, matrix: done.append(x) or x @ matrix.mT)
    ops.butterfly_multiply(x, factors, materialise=False)
    assert not done
    explicit = ops.butterfly_multiply(x, factors, materialise=True)
    assert len(done) == 1
    monkeypatch.setattr(multiply.native, "is_ready", lambda: False)  # the way of a GPU's tensors
    for faster in (True, False):
        monkeypatch.setattr(materialised, "is_faster", lambda x, factors, faster=faster: faster)
        assert torch.equal(ops.butterfly_multiply(x, factors), explicit) or not faster
        assert len(done) == 2


def test_spectra_keep_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(x: torch.Tensor, factors: torch.Tensor) -> bool:
        raise AssertionError("a spectrum asked for tensor cores")

    monkeypatch.setattr(materialised, "is_faster", chosen)
    monkeypatch.setattr(multiply.native, "is_ready", lambda: False)
    monkeypatch.setattr(multiply.native, "has_power_spectrum", lambda waveform, factors: False)
    features = KMelSpectrogram(16000, 64, n_mels=8)
    assert features(torch.randn(1, 1000)).isfinite().all()
    with pytest.raises(AssertionError, match="tensor cores"):
        ops.butterfly_multiply(torch.zeros(2, 4), torch.zeros(2, 2, 2, 4))


def test_the_table_that_is_shipped_says_what_can_be() -> None:
    for row in materialised.read_table():
        assert row.n & (row.n - 1) == 0 and row.factors > 0 and row.vectors > 0, row
        assert row.precision in ("tf32", "half") and len(row.capability.split(".")) == 2, row


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [Row("9.0", "tf32", 64, 2, False, 1024), Row("10.0", "half", 4096, 4, True, 65536)]
    path = tmp_path / "table.csv"
    materialised.write_table(rows, path)
    assert materialised.read_table(path) == rows


def test_a_damaged_table_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    materialised.write_table([Row("9.0", "tf32", 64, 2, False, 1024)], path)
    path.write_text(path.read_text() + "9.0,tf32,64,two,0,1024\n")
    with pytest.raises(ValueError, match=r"table\.csv, line 3"):
        materialised.read_table(path)
