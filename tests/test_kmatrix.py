"""KMatrix: initialisation, corner, types, copies."""

import copy
import io
import pickle

import pytest
import torch

from kaleido_audio import KMatrix, exact, nn


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("n", "width", "expansion"), [(8, 1, 1), (6, 2, 1), (5, 1, 3), (64, 3, 1)])
def test_orthogonal_start_is_unitary_before_the_corner_is_cut(dtype, n, width, expansion) -> None:
    torch.manual_seed(0)
    k = KMatrix(n, width=width, expansion=expansion, dtype=dtype)
    whole = KMatrix.from_factors(k.size, k.factors.detach()).to_dense()
    torch.testing.assert_close(whole @ whole.mH, torch.eye(k.size, dtype=dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(k.to_dense(), whole[:n, :n])


def test_orthogonal_start_has_rotations_and_reflections() -> None:
    torch.manual_seed(0)
    k = KMatrix(256, width=2, dtype=torch.float64)
    last = k.factors[1, -1]  # stride 128: pairs (i, i + 128)
    determinants = last[0, :128] * last[0, 128:] - last[1, :128] * last[1, 128:]
    torch.testing.assert_close(determinants.abs(), torch.ones(128, dtype=torch.float64))
    assert 30 < (determinants > 0).sum() < 98


@pytest.mark.parametrize("init", ["orthogonal", "normal"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_variance_is_kept_at_a_power_of_two(init, dtype) -> None:
    # Small and many: the gain of a product of normal entries has heavy tails.
    torch.manual_seed(1)
    x = torch.randn(100, 4, dtype=dtype)
    gains = [KMatrix(4, init=init, dtype=dtype)(x).abs().square().mean() for _ in range(3000)]
    assert 0.9 < torch.stack(gains).mean() / x.abs().square().mean() < 1.1


def test_forward_is_the_dense_matrix() -> None:
    k = KMatrix(7, width=2, expansion=2, dtype=torch.complex128)
    x = torch.randn(4, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(k(x), x.to(torch.complex128) @ k.to_dense().T)


@pytest.mark.parametrize(("n", "out_features", "size"), [(5, 12, 16), (12, 5, 16), (3, 1, 4)])
def test_rectangular_corner(n: int, out_features: int, size: int) -> None:
    k = KMatrix(n, out_features=out_features, dtype=torch.float64)
    assert k.size == size and k.to_dense().shape == (out_features, n)
    x = torch.randn(2, 3, n, dtype=torch.float64)
    torch.testing.assert_close(k(x), x @ k.to_dense().T)
    torch.testing.assert_close(
        k.to_dense(), KMatrix.from_factors(size, k.factors.detach()).to_dense()[:out_features, :n]
    )


def test_init_from_a_kmatrix_widens_with_the_identity() -> None:
    source = exact.dft(16, bit_reversed=True, dtype=torch.complex128)
    wide = KMatrix(16, width=3, dtype=torch.complex128, init=source)
    torch.testing.assert_close(wide.to_dense(), source.to_dense())
    assert wide.width == 3
    real = KMatrix(16, dtype=torch.complex64, init=exact.hadamard(16))
    torch.testing.assert_close(real.to_dense().real, exact.hadamard(16).to_dense())


def test_double_keeps_the_imaginary_part() -> None:
    k = exact.dft(12)
    before = k.to_dense()
    after = k.double().to_dense()
    assert after.dtype == torch.complex128
    torch.testing.assert_close(after.to(torch.complex64), before)
    assert before.imag.abs().max() > 0.5


def test_copies_and_state_dict() -> None:
    k = KMatrix(10, width=2, dtype=torch.complex64)
    x = torch.randn(3, 10)
    for twin in (copy.deepcopy(k), pickle.loads(pickle.dumps(k))):
        torch.testing.assert_close(twin(x), k(x))
    file = io.BytesIO()
    torch.save(k.state_dict(), file)
    file.seek(0)
    other = KMatrix(10, width=2, dtype=torch.complex64)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(x), k(x))
    assert list(k.state_dict()) == ["weight"] and k.weight.dtype == torch.float32


def test_parameter_count_is_4_n_log_n_a_width() -> None:
    k = KMatrix(512, width=2)
    assert k.weight.numel() == 2 * 4 * 512 * 9
    assert f"parameters={k.weight.numel()}" in repr(k)


def test_a_kmatrix_learns_a_rotation_of_the_circle() -> None:
    torch.manual_seed(0)
    target = torch.linalg.qr(torch.randn(4, 4)).Q
    k = KMatrix(4, width=2)
    optimizer = torch.optim.Adam(nn.param_groups(k, 0.02))
    for _ in range(600):
        optimizer.zero_grad()
        loss = (k.to_dense() - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KMatrix(0), "n >= 1, got 0"),
        (lambda: KMatrix(4, width=0), "width >= 1"),
        (lambda: KMatrix(4, dtype=torch.float16), "expected dtype in"),
        (lambda: KMatrix(4, init="zeros"), "expected init in .* got 'zeros'"),
        (lambda: KMatrix(8, init=KMatrix(4)), "4 x 4, size 4 and width 1; expected 8 x 8"),
        (lambda: KMatrix(4, init=KMatrix(4, width=2)), "width <= 1"),
        (lambda: KMatrix(4, init=KMatrix(4, dtype=torch.complex64)), "complex dtype"),
        (lambda: KMatrix.from_factors(4, torch.zeros(2, 3, 2, 8)), "N = 4"),
        (lambda: KMatrix(8)(torch.zeros(3, 7)), r"\(\.\.\., 8\), got \(3, 7\)"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
