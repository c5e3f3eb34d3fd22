"""fit: structured matrices are recovered to rounding, others approached; reproducible; errors."""

import io
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_audio import KMatrix, exact, fit, ops
from kaleido_audio.fit.alternating import alternating_least_squares

scipy_linalg = pytest.importorskip("scipy.linalg")
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
PRECISION = {torch.float32: 1e-6, torch.complex64: 1e-6, torch.float64: 1e-13, torch.complex128: 1e-13}


def butterfly(n: int, dtype: torch.dtype, *, increasing: bool, init: str = "orthogonal") -> torch.Tensor:
    """A random B* or B, by the operator itself."""
    factors = KMatrix(n, dtype=dtype, init=init).factors.detach()[int(increasing)].unsqueeze(0)
    if increasing:
        # A single factor counts as even, a B*: an identity before it makes it the odd one.
        identity = KMatrix(n, dtype=dtype, init="identity").factors.detach()[:1]
        factors = torch.cat([identity, factors])
    return ops.to_dense(factors)


def dense(k: KMatrix) -> torch.Tensor:
    return k.to_dense().detach()


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("increasing", [False, True])
def test_butterfly_matrices_of_every_size_in_float32(n: int, increasing: bool) -> None:
    torch.manual_seed(n)
    matrix = butterfly(n, torch.float32, increasing=increasing)
    found = fit.to_kmatrix(matrix, progress=False)
    assert found.exact and found.relative_error <= 1e-6
    assert found.history == (pytest.approx(found.relative_error, abs=1e-6),)
    if n > 2:
        assert found.start == ("B" if increasing else "B*")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init", ["orthogonal", "normal"])
def test_types_and_ill_scaled_coefficients(dtype: torch.dtype, init: str) -> None:
    torch.manual_seed(1)
    for increasing in (False, True):
        matrix = butterfly(32, dtype, increasing=increasing, init=init)
        found = fit.to_kmatrix(matrix, progress=False)
        assert found.exact and found.kmatrix.factors.dtype == dtype and found.kmatrix.width == 1
        torch.testing.assert_close(dense(found.kmatrix), matrix, rtol=0, atol=20 * PRECISION[dtype])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 2), st.booleans(), st.integers(0, 2**31))
def test_corners_of_butterfly_matrices_with_zeros(n, out_features, expansion, increasing, seed) -> None:
    torch.manual_seed(seed)
    k = KMatrix(n, out_features=out_features, expansion=expansion, dtype=torch.float64, init="identity")
    with torch.no_grad():
        # A third of the coefficients vanish: whole blocks of zeros, whose vectors are not unique.
        k.factors[int(increasing)] = torch.randn_like(k.factors[0]) * (torch.rand_like(k.factors[0]) > 0.33)
    matrix = dense(k)
    found = fit.to_kmatrix(matrix, expansion=expansion, progress=False)
    assert found.exact and found.relative_error <= 1e-12
    assert (found.kmatrix.in_features, found.kmatrix.out_features) == (n, out_features)
    assert (found.kmatrix.size, found.kmatrix.expansion) == (k.size, expansion)


@pytest.mark.parametrize("n", [2, 4, 8, 32, 128, 1024])
def test_the_fourier_transform_in_natural_order_has_width_one(n: int) -> None:
    matrix = torch.fft.fft(torch.eye(n, dtype=torch.complex128))
    found = fit.to_kmatrix(matrix, progress=False)
    assert found.exact and found.relative_error <= 1e-13 and found.kmatrix.width == 1
    assert n <= 4 or found.start == "B* then bit reversal"
    single = fit.to_kmatrix(matrix.to(torch.complex64), progress=False)
    assert single.exact and single.relative_error <= 1e-6


def test_bit_reversal_before_b_star_needs_width_two() -> None:
    torch.manual_seed(0)
    matrix = butterfly(32, torch.float64, increasing=False)[:, exact.bit_reversal(32)]
    assert not fit.to_kmatrix(matrix, sweeps=0).exact
    found = fit.to_kmatrix(matrix, width=3, progress=False)
    assert found.exact and found.start == "bit reversal then B*" and found.relative_error <= 1e-13
    assert found.kmatrix.width == 3


@pytest.mark.parametrize(("n", "expansion"), [(16, 1), (12, 2), (100, 2)])
def test_circulant_and_toeplitz(n: int, expansion: int) -> None:
    torch.manual_seed(0)
    c, r = torch.randn(2, n, dtype=torch.complex128)
    matrix = torch.from_numpy(scipy_linalg.circulant(c) if expansion == 1 else scipy_linalg.toeplitz(c, r))
    found = fit.to_kmatrix(matrix, expansion=expansion, progress=False)
    assert found.exact and found.start == "circulant" and found.relative_error <= 1e-13
    real = fit.to_kmatrix(matrix.real.float(), expansion=expansion, dtype=torch.complex64, progress=False)
    assert real.exact and real.kmatrix.is_complex and real.relative_error <= 1e-6


def test_a_wide_toeplitz_matrix() -> None:
    c, r = torch.randn(2, 12, dtype=torch.complex128)
    matrix = torch.from_numpy(scipy_linalg.toeplitz(c[:5], r))
    assert fit.to_kmatrix(matrix, progress=False).start == "circulant"  # 5 + 12 - 1 fits in 16


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 50).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.integers(1, n))))
def test_scaled_permutations_and_parts_of_them(case) -> None:
    p, rows = case
    torch.manual_seed(len(p))
    matrix = (torch.randn(len(p), dtype=torch.float64).unsqueeze(1) * torch.eye(len(p)).double()[list(p)])[:rows]
    matrix[0] = 0
    assert fit.to_kmatrix(matrix, sweeps=0).relative_error <= 1e-12


def test_zeros() -> None:
    found = fit.to_kmatrix(torch.zeros(5, 3))
    assert found.exact and found.relative_error == 0 and dense(found.kmatrix).abs().max() == 0
    one = fit.to_kmatrix(torch.tensor([[3.0]]))
    assert one.exact and dense(one.kmatrix).item() == pytest.approx(3)


def test_least_squares_of_one_stage_is_that_of_numpy() -> None:
    """The last of a sweep's problems, stage by stage rebuilt as a dense least-squares problem."""
    torch.manual_seed(0)
    n = 8
    target = torch.randn(5, 6, dtype=torch.complex128)
    start = KMatrix(6, out_features=5, dtype=torch.complex128).factors.detach()
    factors, error = next(alternating_least_squares(target, start))
    # Every column of the problem is the map with one coefficient of the last stage set and the others zero.
    columns = []
    for row in range(2):
        for i in range(n):
            one = factors.clone()
            one[1, -1] = 0
            one[1, -1, row, i] = 1
            columns.append(ops.to_dense(one, out_features=5, in_features=6).flatten())
    problem = torch.stack(columns, dim=1).numpy()
    wanted = target.flatten().numpy()
    best = scipy_linalg.lstsq(problem, wanted)[0]
    assert error == pytest.approx(np.linalg.norm(problem @ best - wanted), rel=1e-8)
    assert error == pytest.approx((ops.to_dense(factors, out_features=5, in_features=6) - target).norm().item())


@pytest.mark.parametrize(
    ("sides", "expansion", "rank"), [((16, 16), 1, 1), ((9, 30), 2, 2), ((20, 13), 4, 3), ((3, 3), 8, 3)]
)
def test_low_rank(sides: tuple[int, int], expansion: int, rank: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(sides[0], rank, dtype=torch.float64) @ torch.randn(rank, sides[1], dtype=torch.float64)
    found = fit.to_kmatrix(matrix, expansion=expansion, progress=False)
    assert found.exact and found.relative_error <= 1e-13
    if 1 < rank < min(sides):  # rank 1, and a small matrix in a large one, are butterfly matrices too
        assert found.start == "low rank"


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(16, 16), (5, 12)])
def test_the_error_never_grows(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    found = fit.to_kmatrix(torch.randn(shape, dtype=dtype), sweeps=30, expansion=1, progress=False)
    history = torch.tensor(found.history)
    assert 2 < len(history) <= 31 and (history[1:] <= history[:-1] * (1 + 1e-9)).all()
    assert history[-1] == pytest.approx(found.relative_error) and history[-1] < 0.9 * history[0]
    assert not found.exact


def test_a_matrix_in_the_class_is_reached_from_a_random_start() -> None:
    torch.manual_seed(0)
    matrix = dense(KMatrix(8, dtype=torch.float64))
    found = fit.to_kmatrix(matrix, sweeps=500, progress=False)
    assert not found.exact and found.relative_error <= 1e-6


def test_noise_on_a_butterfly_matrix_is_the_error_that_is_left() -> None:
    torch.manual_seed(0)
    matrix = butterfly(64, torch.float64, increasing=False)
    noise = torch.randn_like(matrix)
    noise *= 1e-3 * matrix.norm() / noise.norm()
    found = fit.to_kmatrix(matrix + noise, sweeps=3, restarts=0, progress=False)
    assert found.start == "B*" and 5e-4 < found.relative_error < 1e-3
    assert fit.relative_error(found.kmatrix, matrix) < 1e-3


def test_a_start_without_any_effect_is_no_obstacle() -> None:
    torch.manual_seed(0)
    matrix = torch.randint(-9, 9, (8, 8)).to(torch.complex128)
    matrix -= matrix.roll((1, 1), (0, 1))  # every cyclic diagonal sums to zero: so does the nearest circulant matrix
    found = fit.to_kmatrix(matrix, sweeps=20, progress=False)
    assert found.relative_error < 0.6 and dense(found.kmatrix).isfinite().all()


def test_more_width_is_never_worse() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(16, 16)
    errors = [fit.to_kmatrix(matrix, width=w, sweeps=20, restarts=1, progress=False).relative_error for w in (1, 2, 3)]
    assert errors[2] < errors[1] < errors[0] < 0.8


def test_the_same_seed_gives_the_same_result_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(7)
    matrix = torch.randn(8, 8)
    state = torch.get_rng_state()
    first = fit.to_kmatrix(matrix, sweeps=20, seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    second = fit.to_kmatrix(matrix, sweeps=20, seed=3, progress=False)
    assert first.history == second.history and torch.equal(first.kmatrix.weight, second.kmatrix.weight)


def test_random_starts_help_and_depend_on_the_seed() -> None:
    torch.manual_seed(1)
    matrix = dense(KMatrix(16, dtype=torch.float64))

    def run(restarts: int, seed: int = 0) -> fit.Fit:
        return fit.to_kmatrix(matrix, sweeps=60, restarts=restarts, seed=seed, progress=False)

    structured, found, other = run(0), run(4, seed=1), run(4)
    assert structured.start != "random" and found.start == "random"
    assert found.relative_error < 0.1 * structured.relative_error
    assert other.history != found.history


def test_the_kmatrix_can_be_trained_on() -> None:
    found = fit.to_kmatrix(torch.randn(6, 4).requires_grad_(), sweeps=1, progress=False)
    found.kmatrix(torch.randn(3, 4)).sum().backward()
    assert found.kmatrix.weight.grad is not None and found.kmatrix.weight.is_leaf


def test_relative_error() -> None:
    k = exact.hadamard(8, dtype=torch.float64)
    assert fit.relative_error(k, dense(k)) == 0
    assert fit.relative_error(k, 1j * dense(k)) == pytest.approx(2**0.5)
    assert fit.relative_error(k, torch.zeros(8, 8)) == float("inf")


def test_autocast_does_not_matter() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(16, 16)
    plain = fit.to_kmatrix(matrix, sweeps=2, progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = fit.to_kmatrix(matrix, sweeps=2, progress=False)
    assert found.relative_error == plain.relative_error and torch.equal(found.kmatrix.weight, plain.kmatrix.weight)


def test_butterfly_factor_of_a_hadamard_matrix_is_balanced() -> None:
    stages = fit.butterfly_factor(dense(exact.hadamard(64, dtype=torch.float64)), increasing=True)
    torch.testing.assert_close(stages.abs(), torch.ones(6, 2, 64, dtype=torch.float64))


def test_progress_goes_to_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    matrix = torch.randn(4, 4)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        fit.to_kmatrix(matrix, sweeps=3)
        assert ("relative error" in stream.getvalue()) == shown
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    fit.to_kmatrix(matrix, sweeps=3, progress=False)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    fit.to_kmatrix(matrix, sweeps=3)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit.to_kmatrix(torch.zeros(3)), r"shape \(out_features, n\), got \(3,\)"),
        (lambda: fit.to_kmatrix(torch.zeros(0, 3)), r"got \(0, 3\)"),
        (lambda: fit.to_kmatrix(torch.full((2, 2), float("nan"))), "finite"),
        (lambda: fit.to_kmatrix(torch.eye(4).half()), r"got torch.float16: convert it, e.g. matrix.float\(\)"),
        (lambda: fit.to_kmatrix(torch.ones(2, 2, dtype=torch.int64)), "got torch.int64"),
        (lambda: fit.to_kmatrix(torch.eye(4), dtype=torch.float16), "expected dtype in"),
        (lambda: fit.to_kmatrix(1j * torch.eye(4), dtype=torch.float32), "complex dtype, got torch.float32"),
        (lambda: fit.to_kmatrix(torch.eye(4), dtype="float32"), "expected dtype in .*, got 'float32'"),
        (lambda: fit.to_kmatrix(torch.eye(4).double() * 1e300, dtype=torch.float32), r"up to 1e\+300.* torch.float32"),
        (lambda: fit.to_kmatrix(torch.eye(4), width=1.5), "width to be an integer, got 1.5"),
        (lambda: fit.to_kmatrix(torch.eye(4), width=0), "width >= 1, got 0"),
        (lambda: fit.to_kmatrix(torch.eye(4), expansion=0), "expansion >= 1, got 0"),
        (lambda: fit.to_kmatrix(torch.eye(4), sweeps=-1), "sweeps >= 0, got -1"),
        (lambda: fit.to_kmatrix(torch.eye(4), restarts=-1), "restarts >= 0, got -1"),
        (lambda: fit.to_kmatrix(torch.eye(4), seed=1.5), "seed to be an integer, got 1.5"),
        (lambda: fit.to_kmatrix(torch.eye(4).to_sparse()), r"torch.sparse_coo: use matrix.to_dense\(\)"),
        (lambda: fit.to_kmatrix(torch.eye(4, device="meta")), "with entries, got one on the meta device"),
        (lambda: fit.relative_error(KMatrix(4), torch.eye(3)), r"shape \(4, 4\), got \(3, 3\)"),
        (lambda: fit.butterfly_factor(torch.eye(6), increasing=False), r"2, 4, 8, \.\.\., got \(6, 6\)"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e200])
def test_scale_does_not_matter(scale: float) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(8, 8, dtype=torch.float64)
    plain, scaled = (fit.to_kmatrix(m, sweeps=5, progress=False) for m in (matrix, matrix * scale))
    assert scaled.relative_error == pytest.approx(plain.relative_error, rel=1e-3) and plain.relative_error > 0.01
    assert not scaled.exact


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_entries_whose_reciprocal_overflows(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(8, 8, dtype=dtype)
    plain, tiny = (fit.to_kmatrix(m, sweeps=5, progress=False) for m in (matrix, matrix * 1e-310))
    assert tiny.relative_error == pytest.approx(plain.relative_error, rel=1e-3)
    assert fit.to_kmatrix(torch.eye(8, dtype=dtype) * 1e-310, progress=False).relative_error < 1e-12


def test_arrays_are_matrices_too() -> None:
    found = fit.to_kmatrix(np.eye(4)[::1], progress=False)
    assert found.exact and fit.relative_error(found.kmatrix, np.eye(4)) < 1e-12
    found = fit.to_kmatrix(np.eye(4)[::-1], expansion=np.int64(2), sweeps=np.int64(0), progress=False)
    assert found.exact and found.kmatrix.expansion == 2 and fit.relative_error(found.kmatrix, np.eye(4)[::-1]) < 1e-12


@pytest.mark.parametrize("width", [1, 2])
def test_the_default_device_does_not_matter(width: int) -> None:
    matrix = torch.randn(6, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):  # stands for a GPU: its tensors do not mix with those of the CPU
        found = fit.to_kmatrix(matrix, width=width, sweeps=5, progress=False)
    assert found.relative_error == fit.to_kmatrix(matrix, width=width, sweeps=5, progress=False).relative_error
    assert found.kmatrix.weight.device.type == "cpu"


def test_entries_whose_sums_overflow_are_told() -> None:
    matrix = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).sign() * 3.4e38
    with pytest.raises(ValueError, match=r"up to 3\.4e\+38, or sums .* do not fit torch.float32: scale the matrix"):
        fit.to_kmatrix(matrix, sweeps=1, progress=False)
