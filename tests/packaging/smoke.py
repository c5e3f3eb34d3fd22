"""A short look at an installed wheel, in an environment that has no more than the package asks for.

    pytest tests/packaging/smoke.py

Named so that the tests of the checkout, which need not be built, leave it alone.
"""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kaleido_audio
from kaleido_audio import KMatrix, check, exact, fit, nn, ops
from kaleido_audio.ops.reference import multiply_by_stages
from kaleido_audio.transforms import KMelSpectrogram

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.to(expected.dtype) - expected).abs().max() / expected.abs().max())


def test_it_is_the_installed_package() -> None:
    assert Path(kaleido_audio.__file__).parents[1].name == "site-packages"


def test_native_kernels_are_in_use_and_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.backend(torch.zeros(3)) == "cpu"


def test_the_check_of_an_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--device", "cpu"]) == 0, capsys.readouterr().out


def test_torchaudio_is_not_imported() -> None:
    assert "torchaudio" not in sys.modules


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "vectors"), [(2, 3), (16, 7), (256, 5), (256, 600), (1024, 2)])
def test_products_and_gradients_equal_the_definition(dtype: torch.dtype, n: int, vectors: int) -> None:
    generator = torch.Generator().manual_seed(n + vectors)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x = torch.randn(vectors, n, dtype=wide, generator=generator).to(dtype).requires_grad_()
    factors = torch.randn(2, n.bit_length() - 1, 2, n, dtype=wide, generator=generator).mul(0.7)
    factors = factors.to(dtype).requires_grad_()
    grad = torch.randn(vectors, n, dtype=wide, generator=generator).to(dtype)

    y = ops.butterfly_multiply(x, factors)
    assert y.dtype == dtype
    y.backward(grad)

    exact_x, exact_factors = (t.detach().to(wide).requires_grad_() for t in (x, factors))
    expected = multiply_by_stages(exact_x, exact_factors)
    expected.backward(grad.to(wide))
    bound = {torch.float32: 1e-5, torch.complex64: 1e-5, torch.bfloat16: 1e-2}.get(dtype, 1e-13)
    assert relative_error(y.detach(), expected.detach()) < bound
    for leaf, exact_leaf in ((x, exact_x), (factors, exact_factors)):
        assert leaf.grad is not None and exact_leaf.grad is not None
        assert relative_error(leaf.grad, exact_leaf.grad) < bound


@pytest.mark.parametrize("n_fft", [400, 512])
def test_spectrogram_in_float32_equals_the_one_in_float64(n_fft: int) -> None:
    single, double = (KMelSpectrogram(16000, n_fft=n_fft, n_mels=40, dtype=t) for t in (torch.float32, torch.float64))
    double.load_state_dict(single.state_dict())
    waveform = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    inputs = [waveform.clone().requires_grad_(), waveform.double().requires_grad_()]
    outputs = [single(inputs[0]), double(inputs[1])]
    for output in outputs:
        output.square().mean().backward()
    assert relative_error(outputs[0].detach(), outputs[1].detach()) < 1e-5
    assert relative_error(inputs[0].grad, inputs[1].grad) < 1e-5
    gradients = [{name: p.grad for name, p in module.named_parameters()} for module in (single, double)]
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        assert relative_error(gradient, gradients[1][name]) < 1e-4, name


@pytest.mark.parametrize("make", [lambda: KMatrix(64), lambda: exact.dft(48)], ids=["real", "complex"])
def test_compile_without_a_break_in_the_graph(make: Callable[[], KMatrix]) -> None:
    eager = make()
    compiled_module = copy.deepcopy(eager)
    compiled = torch.compile(compiled_module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, eager.in_features)
    expected, actual = eager(x), compiled(x)
    torch.testing.assert_close(actual, expected)
    expected.abs().sum().backward()
    actual.abs().sum().backward()
    for p, q in zip(eager.parameters(), compiled_module.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


def test_a_pickled_matrix_is_the_same() -> None:
    k = KMatrix(32, width=2)
    x = torch.randn(3, 32)
    assert torch.equal(pickle.loads(pickle.dumps(k))(x), k(x))


@pytest.mark.parametrize("n", [48, 64])
def test_exact_maps(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    spectrum = torch.fft.fft(x)
    pairs = {
        "dft": (exact.dft(n, dtype=torch.complex128), spectrum),
        "dct": (exact.dct(n, dtype=torch.complex128), 2 * cosine_sums(x)),
        "toeplitz": (exact.toeplitz(torch.arange(1.0, n + 1).double()), None),
        "sparse": (exact.sparse(torch.eye(n, dtype=torch.float64).roll(1, 0)), x.roll(1, -1)),
        "low_rank": (exact.low_rank(x[:2].T, x[1:].T), x @ x[1:].T @ x[:2]),
    }
    for name, (k, expected) in pairs.items():
        dense = x.to(k.to_dense().dtype) @ k.to_dense().T if expected is None else expected
        assert relative_error(k(x).detach(), dense.detach().to(k(x).dtype)) < 1e-12, name


def cosine_sums(x: Tensor) -> Tensor:
    n = x.shape[-1]
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    return x @ torch.cos(torch.pi * k * (2 * i + 1) / (2 * n)).T


def test_fit_and_layers() -> None:
    assert fit.to_kmatrix(torch.fft.fft(torch.eye(64)), progress=False).relative_error < 1e-5
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), nn.KLinear(64, 5, constraint="odo"))
    report = nn.replace_linear(model, init="orthogonal")
    assert report.parameters_after < report.parameters_before
    optimizer = torch.optim.AdamW(nn.param_groups(model, 0.01, weight_decay=0.1))
    x, target = torch.randn(32, 64), torch.randn(32, 5)
    losses = []
    for _ in range(30):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    expected = model(x)
    torch.testing.assert_close(nn.to_dense(model)(x), expected, rtol=1e-4, atol=1e-5)
