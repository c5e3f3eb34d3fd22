"""The native kernels against the definition, for every instruction set, and their manners as PyTorch operators."""

import gc
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from kaleido_audio import KMatrix, exact, ops
from kaleido_audio.ops import native
from kaleido_audio.ops.reference import multiply_by_stages, power_spectrum_by_stages

pytestmark = pytest.mark.skipif(ops.cpu_capability() is None, reason="the package was built without native kernels")

PAIRS = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.complex64),
    (torch.complex64, torch.complex64),
    (torch.float64, torch.complex128),
    (torch.complex128, torch.complex128),
    (torch.complex64, torch.float32),
]
any_capability = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random_factors(n_factors: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n_factors, n.bit_length() - 1, 2, n, dtype=dtype) * 0.7


def tolerance(dtype: torch.dtype) -> float:
    """Relative to the largest entry: a few roundings for each of up to 64 stages."""
    return 2e-5 if torch.finfo(dtype).bits == 32 else 3e-14


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tol: float) -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if expected.numel():
        scale = expected.abs().max().item()
        error = (actual - expected).abs().max().item()
        assert error <= tol * scale, f"error {error:.2e} of values up to {scale:.2e}"


@any_capability
@given(
    log_n=st.integers(1, 11),
    n_factors=st.integers(1, 5),
    vectors=st.sampled_from([0, 1, 2, 3, 5, 17, 40, 71]),
    pair=st.sampled_from(PAIRS),
    data=st.data(),
)
def test_values_and_gradients(capability, log_n, n_factors, vectors, pair, data) -> None:
    torch.manual_seed(0)
    n = 2**log_n
    m, out = (n, n) if data.draw(st.booleans()) else (data.draw(st.integers(1, n)), data.draw(st.integers(1, n)))
    x = torch.randn(vectors, m, dtype=pair[0], requires_grad=True)
    factors = random_factors(n_factors, n, pair[1]).requires_grad_()
    y = ops.butterfly_multiply(x, factors, out_features=out)
    expected = multiply_by_stages(x, factors)[..., :out]
    tol = tolerance(pair[0])
    assert_near(y, expected, tol)
    grad = torch.randn_like(expected)
    got = torch.autograd.grad(y, (x, factors), grad)
    wanted = torch.autograd.grad(expected, (x, factors), grad)
    assert_near(got[0], wanted[0], tol)
    assert_near(got[1], wanted[1], tol)
    # Either gradient alone is the same one.
    y = ops.butterfly_multiply(x, factors.detach(), out_features=out)
    assert_near(torch.autograd.grad(y, x, grad)[0], got[0], tol)
    y = ops.butterfly_multiply(x.detach(), factors, out_features=out)
    assert torch.equal(torch.autograd.grad(y, factors, grad)[0], got[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("log_n", [12, 14, 16])
def test_large_sizes(capability, log_n, dtype) -> None:
    torch.manual_seed(0)
    n = 2**log_n
    x = torch.randn(5, n - 1, dtype=dtype, requires_grad=True)
    factors = random_factors(2, n, dtype).requires_grad_()
    y = ops.butterfly_multiply(x, factors)
    expected = multiply_by_stages(x, factors)
    assert_near(y, expected, tolerance(dtype))
    grad = torch.randn_like(y)
    for got, wanted in zip(*(torch.autograd.grad(r, (x, factors), grad) for r in (y, expected)), strict=True):
        assert_near(got, wanted, tolerance(dtype))


def test_many_factors(capability) -> None:
    torch.manual_seed(0)
    factors = KMatrix(16, width=80, dtype=torch.complex128).factors.detach()[:157].clone().requires_grad_()
    x = torch.randn(7, 16, dtype=torch.complex128, requires_grad=True)
    results = [ops.butterfly_multiply(x, factors), multiply_by_stages(x, factors)]
    assert_near(*results, 1e-12)
    for got, wanted in zip(*(torch.autograd.grad(r.abs().pow(3).sum(), (x, factors)) for r in results), strict=True):
        assert_near(got, wanted, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 8, 64, 512])
def test_half_precision_rounds_once(capability, n, dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(33, n).to(dtype)
    x[0, 0], x[1, 0], x[2, 0], x[3, 0] = float("inf"), float("nan"), 6e-8, -0.0
    factors = random_factors(2, n, torch.float32) * 0.5
    y = torch.ops.kaleido_audio.butterfly(x, factors, n)
    expected = ops.butterfly_multiply(x.float(), factors)
    assert torch.equal(y.isfinite(), expected.to(dtype).isfinite())
    finite = expected.isfinite()
    torch.testing.assert_close(y[finite], expected.to(dtype)[finite], rtol=0, atol=0)
    gradient = torch.randn(33, n).to(dtype)
    ours = torch.ops.kaleido_audio.butterfly_backward(gradient[4:], x[4:], factors, True, True)
    wide = torch.ops.kaleido_audio.butterfly_backward(gradient[4:].float(), x[4:].float(), factors, True, True)
    assert torch.equal(ours[0], wide[0].to(dtype)) and torch.equal(ours[1], wide[1])


def test_every_half_and_every_tie_converts_as_torch_does(capability) -> None:
    identity = torch.zeros(1, 1, 2, 2)
    identity[0, 0, 0] = 1
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(-1, 2)
        # The off-diagonal coefficients are zero: pairs with an infinity or NaN give NaN.
        finite = values.isfinite().all(1)
        assert torch.equal(torch.ops.kaleido_audio.butterfly(values[finite], identity, 2), values[finite])
        between = values[finite].float()
        halfway = between * (1 + 2.0 ** (-11 if dtype == torch.float16 else -8))
        scaled = identity * (1 + 2.0 ** (-11 if dtype == torch.float16 else -8))
        rounded = torch.ops.kaleido_audio.butterfly(values[finite], scaled, 2)
        assert torch.equal(rounded, halfway.to(dtype))


@any_capability
@given(
    log_n=st.integers(1, 10),
    n_factors=st.integers(1, 4),
    items=st.integers(0, 3),
    hop=st.integers(1, 50),
    double=st.booleans(),
    data=st.data(),
)
def test_power_spectrum(capability, log_n, n_factors, items, hop, double, data) -> None:
    torch.manual_seed(0)
    n = 2**log_n
    length = data.draw(st.integers(1, n))
    time = length + data.draw(st.integers(0, 200))
    # Those of a one-sided spectrum in bit-reversed order are even, but for one: there is a shorter way for them.
    row = st.integers(0, n // 2 - 1).map(lambda i: 2 * i) if data.draw(st.booleans()) else st.integers(0, n - 1)
    rows = data.draw(st.lists(row, min_size=1, max_size=20))
    rows = torch.tensor(rows + data.draw(st.lists(st.integers(0, n - 1), max_size=1)))
    dtype = torch.float64 if double else torch.float32
    inputs = [
        torch.randn(items, time, dtype=dtype),
        torch.rand(length, dtype=dtype),
        random_factors(n_factors, n, dtype.to_complex()),
    ]
    inputs = [t.requires_grad_() for t in inputs]
    ours = ops.butterfly_power_spectrum(*inputs, rows, hop)
    expected = power_spectrum_by_stages(*inputs, rows, hop)
    tol = 2 * tolerance(dtype)
    assert_near(ours, expected, tol)
    grad = torch.randn_like(expected)
    got = torch.autograd.grad(ours, inputs, grad, retain_graph=True)
    for a, b in zip(got, torch.autograd.grad(expected, inputs, grad), strict=True):
        assert_near(a, b, 4 * tol)
    for chosen, whole in zip(inputs, got, strict=True):
        assert_near(torch.autograd.grad(ours, chosen, grad, retain_graph=True)[0], whole, tol)


def test_a_real_product_of_frames() -> None:
    waveform, window = torch.randn(2, 3, 90), torch.rand(12)
    factors, rows = random_factors(2, 16, torch.float32), torch.tensor([3, 1])
    expected = ops.butterfly_outputs(waveform.unfold(-1, 12, 5) * window, factors, rows).square()
    torch.testing.assert_close(ops.butterfly_power_spectrum(waveform, window, factors, rows, 5), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_are_the_same_bits_from_run_to_run(capability, threads) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        x = torch.randn(1037, 256)
        factors = random_factors(2, 256, torch.float32).requires_grad_()
        spectral = exact.dft(256, bit_reversed=True).factors.detach().clone().requires_grad_()
        waveform, window, rows = torch.randn(2, 20000), torch.hann_window(256), torch.arange(129)

        def gradients() -> list[torch.Tensor]:
            (one,) = torch.autograd.grad(ops.butterfly_multiply(x, factors).square().sum(), factors)
            power = ops.butterfly_power_spectrum(waveform, window, spectral, rows, 100)
            (two,) = torch.autograd.grad((power + 1).log().sum(), spectral)
            return [one, two]

        first = gradients()
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(gradients(), first, strict=True))
    finally:
        torch.set_num_threads(before)


def test_threads_and_tiles_do_not_change_values() -> None:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    x, factors = torch.randn(501, 512), random_factors(2, 512, torch.float32)
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(ops.butterfly_multiply(x, factors))
        assert all(torch.equal(r, results[0]) for r in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [64, 512, 4096])  # the longest are copied, as are vectors that lie apart
def test_vectors_read_where_they_are_stay_as_they_are(capability, n) -> None:
    torch.manual_seed(0)
    wide, factors = torch.randn(37, n + 8), random_factors(2, n, torch.float32)
    for vectors in (1, 4, 5, 16, 17, 37):  # less than a tile, whole ones, and a few more
        for x in (wide[:vectors, :n].clone(), wide[:vectors, 8:]):
            before = x.clone()
            assert_near(ops.butterfly_multiply(x, factors), multiply_by_stages(before, factors), 1e-5)
            assert torch.equal(x, before)


# --- manners of an operator ---


def operator_samples() -> dict[str, list[tuple]]:
    """Arguments of each operator, without and with inputs that need a gradient."""
    torch.manual_seed(0)
    calls: dict[str, list[tuple]] = {}
    for x_type, type_ in ((torch.float64, torch.float64), (torch.float32, torch.complex64)):
        x, factors = torch.randn(3, 5, dtype=x_type), random_factors(2, 8, type_)
        calls.setdefault("butterfly", []).append((x, factors, 6))
        calls["butterfly"].append((x.clone().requires_grad_(), factors.clone().requires_grad_(), 6))
        calls.setdefault("butterfly_no_grad", []).append((x, factors, 8))
        calls.setdefault("butterfly_backward", []).append((torch.randn(3, 6, dtype=type_), x, factors, True, True))
        calls["butterfly_backward"].append((torch.randn(3, 6, dtype=type_), x, factors, True, False))
    waveform, window = torch.randn(2, 40), torch.rand(7)
    frames = (waveform, window, random_factors(2, 8, torch.complex64), torch.tensor([0, 5, 5]))
    calls["power_spectrum"] = [
        (*frames, 4),
        (*(t.clone().requires_grad_() for t in frames[:3]), frames[3], 4),
    ]
    calls["power_spectrum_backward"] = [(torch.randn(2, 9, 3), *frames, 4, True, True, True)]
    return calls


@pytest.mark.parametrize("name", list(operator_samples()))
def test_opcheck(name) -> None:
    for arguments in operator_samples()[name]:
        torch.library.opcheck(getattr(torch.ops.kaleido_audio, name).default, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [4, 16])
def test_gradcheck_and_gradgradcheck(capability, n, dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, n - 1, dtype=dtype, requires_grad=True)
    factors = random_factors(2, n, dtype).requires_grad_()
    multiply = lambda x, t: ops.butterfly_multiply(x, t, out_features=n - 1)  # noqa: E731
    assert torch.autograd.gradcheck(multiply, (x, factors))
    assert torch.autograd.gradgradcheck(multiply, (x, factors))


def test_gradcheck_and_gradgradcheck_of_the_power_spectrum(capability) -> None:
    torch.manual_seed(0)
    inputs = (
        torch.randn(2, 13, dtype=torch.float64, requires_grad=True),
        torch.rand(6, dtype=torch.float64, requires_grad=True),
        random_factors(2, 8, torch.complex128).requires_grad_(),
    )
    rows = torch.tensor([0, 3, 3, 7])
    power = lambda *t: ops.butterfly_power_spectrum(*t, rows, 3)  # noqa: E731
    assert torch.autograd.gradcheck(power, inputs)
    assert torch.autograd.gradgradcheck(power, inputs)


def test_third_derivative() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=torch.float64)
    factors = random_factors(2, 4, torch.float64).requires_grad_()

    def third(multiply) -> torch.Tensor:
        value = multiply(x, factors).pow(4).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, factors, create_graph=True)
            value = gradient.pow(3).sum()
        return torch.autograd.grad(value, factors)[0]

    torch.testing.assert_close(third(ops.butterfly_multiply), third(multiply_by_stages))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", ["butterfly", "power spectrum"])
def test_forward_mode_through_gradients_of_an_earlier_forward(name, create_graph) -> None:
    torch.manual_seed(0)
    rows = torch.tensor([0, 3, 3, 7])
    factors = random_factors(2, 8, torch.complex128)
    if name == "butterfly":
        pair, inputs = (ops.butterfly_multiply, multiply_by_stages), (torch.randn(3, 5, dtype=torch.float64), factors)
    else:
        pair = tuple(lambda *t, f=f: f(*t, rows, 3) for f in (ops.butterfly_power_spectrum, power_spectrum_by_stages))
        inputs = (torch.randn(2, 13, dtype=torch.float64), torch.rand(6, dtype=torch.float64), factors)
    inputs = [t.requires_grad_() for t in inputs]
    grad, tangent = torch.randn(2, *pair[1](*inputs).shape, dtype=torch.float64)
    found = []
    for function in pair:
        y = function(*inputs)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(grad.to(y.dtype), tangent.to(y.dtype))
            grads = torch.autograd.grad(y, inputs, dual, create_graph=create_graph)
            primals, tangents = zip(*map(forward_ad.unpack_dual, grads), strict=True)
            found.append([*primals, *tangents])
            if create_graph:
                found[-1] += torch.autograd.grad(sum(t.abs().square().sum() for t in tangents), inputs)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("frozen", [False, True])
def test_functionalize_alone_and_with_other_transforms(frozen) -> None:
    torch.manual_seed(0)
    functionalize, grad, vmap = torch.func.functionalize, torch.func.grad, torch.func.vmap
    k = KMatrix(8, dtype=torch.float64).requires_grad_(not frozen)
    spectral, rows = exact.dft(8, dtype=torch.complex128).factors.detach(), torch.tensor([0, 3])

    def loss(x: torch.Tensor) -> torch.Tensor:
        power = ops.butterfly_power_spectrum(k(x), torch.ones(8, dtype=x.dtype), spectral, rows, 1)
        return power.square().sum()

    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(functionalize(k)(x), k(x))
    nodes = [str(node.target) for node in make_fx(functionalize(k))(x).graph.nodes]
    assert sum("kaleido_audio.butterfly" in name for name in nodes) == 1  # the kernel, not what it is composed of
    torch.testing.assert_close(functionalize(vmap(k))(x), k(x))
    torch.testing.assert_close(vmap(functionalize(k))(x), k(x))
    for transformed in (functionalize(grad(loss)), grad(functionalize(loss))):
        torch.testing.assert_close(transformed(x), grad(loss)(x))
    point = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(functionalize(loss)(point), point)[0], grad(loss)(x))


def test_jvp_of_a_pull_back() -> None:
    torch.manual_seed(0)
    k = KMatrix(8, dtype=torch.float64)
    x, v, t = torch.randn(3, 2, 8, dtype=torch.float64)
    pull_back = torch.func.vjp(k, x)[1]
    torch.testing.assert_close(torch.func.jvp(pull_back, (v,), (t,))[1], pull_back(t))  # it is linear
    twice = torch.func.vjp(lambda x: torch.func.vjp(k, x)[1](k(x))[0], x)[1]
    torch.testing.assert_close(torch.func.jvp(twice, (v,), (t,))[1], twice(t))


def test_lazy_bits_in_inputs_and_incoming_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 16, dtype=torch.complex64, requires_grad=True)
    factors = random_factors(2, 16, torch.complex64).requires_grad_()
    y, expected = ops.butterfly_multiply(x, factors), multiply_by_stages(x, factors)
    grad = torch.randn_like(expected)
    for lazy in (grad.conj(), torch._neg_view(grad), grad.conj().imag.to(torch.complex64)):
        plain = lazy.clone().resolve_conj().resolve_neg()
        got = torch.autograd.grad(y, (x, factors), lazy, retain_graph=True)
        wanted = torch.autograd.grad(expected, (x, factors), plain, retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            assert_near(a, b, 1e-5)
    for lazy in (x.conj(), torch._neg_view(x), torch._neg_view(x.conj())):
        assert_near(ops.butterfly_multiply(lazy, factors), multiply_by_stages(lazy, factors), 1e-5)
    imaginary = x.conj().imag  # a real view with the negative bit
    assert imaginary.is_neg()
    assert_near(ops.butterfly_multiply(imaginary, factors), multiply_by_stages(imaginary.clone(), factors), 1e-5)


def test_strides_of_inputs_and_gradients() -> None:
    torch.manual_seed(0)
    factors = random_factors(2, 16, torch.float32)
    base = torch.randn(40, 16, 3)
    views = [base[:, :, 1], base.transpose(0, 1)[:, :16, 0], base[3, :, 0].expand(9, 16), base[:: -1 % 3, :, 2]]
    views += [base[:4, :, 0].unsqueeze(1).expand(4, 5, 16), base[7, :, 1], torch.randn(7, 40)[:, 11:27]]
    for x in views:
        assert_near(ops.butterfly_multiply(x, factors), multiply_by_stages(x.clone(), factors), 1e-5)
    x = torch.randn(9, 16, requires_grad=True)
    ops.butterfly_multiply(x, factors).sum().backward()  # an expanded gradient
    assert_near(x.grad, torch.ones(9, 16) @ ops.to_dense(factors), 1e-5)
    wide = torch.randn(2, 3, 2, 4 * 4, dtype=torch.float32)[..., ::2]
    assert_near(ops.butterfly_multiply(x[:, :8], wide), multiply_by_stages(x[:, :8], wide.contiguous()), 1e-5)


def test_empty_batches() -> None:
    factors = random_factors(2, 16, torch.complex64).requires_grad_()
    x = torch.zeros(4, 0, 16, requires_grad=True)
    y = ops.butterfly_multiply(x, factors)
    assert y.shape == (4, 0, 16) and y.dtype == torch.complex64
    y.abs().sum().backward()
    assert x.grad.shape == x.shape and not factors.grad.any()
    power = ops.butterfly_power_spectrum(torch.zeros(0, 50), torch.ones(16), factors, torch.arange(3), 4)
    assert power.shape == (0, 9, 3)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic) -> None:
    torch.manual_seed(0)
    factors = random_factors(2, 16, torch.float32).requires_grad_()
    compiled = torch.compile(
        lambda x: ops.butterfly_multiply(x, factors, out_features=9).relu() + 1,
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for vectors in (3, 7, 40):
        x = torch.randn(vectors, 13, requires_grad=True)
        expected = ops.butterfly_multiply(x, factors, out_features=9).relu() + 1
        torch.testing.assert_close(compiled(x), expected)
        got = torch.autograd.grad(compiled(x).sum(), (x, factors))
        for a, b in zip(got, torch.autograd.grad(expected.sum(), (x, factors)), strict=True):
            torch.testing.assert_close(a, b)


def test_compile_with_inductor() -> None:
    factors = random_factors(2, 16, torch.float32)
    compiled = torch.compile(lambda x: ops.butterfly_multiply(x * 2, factors).sigmoid(), fullgraph=True)
    x = torch.randn(5, 16)
    torch.testing.assert_close(compiled(x), ops.butterfly_multiply(x * 2, factors).sigmoid())


def test_export_with_a_dynamic_batch() -> None:
    k = KMatrix(20)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(k, (torch.randn(3, 20),), dynamic_shapes=({0: batch},))
    assert any("kaleido_audio.butterfly" in str(node.target) for node in program.graph.nodes), program.graph
    x = torch.randn(11, 20)
    torch.testing.assert_close(program.module()(x), k(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_with_gradients() -> None:
    torch.manual_seed(0)
    k = KMatrix(20)
    traced = torch.jit.trace(k, torch.randn(3, 20))
    x = torch.randn(7, 20, requires_grad=True)
    torch.testing.assert_close(traced(x), k(x))
    results = [torch.autograd.grad(f(x).square().sum(), (x, k.weight)) for f in (traced, k)]
    torch.testing.assert_close(*results)


def test_inference_mode_and_function_transforms() -> None:
    torch.manual_seed(0)
    factors = random_factors(2, 16, torch.float64)
    x = torch.randn(5, 16, dtype=torch.float64)
    expected = multiply_by_stages(x, factors)
    with torch.inference_mode():
        torch.testing.assert_close(ops.butterfly_multiply(x, factors), expected)
    loss = lambda f: ops.butterfly_multiply(x, f).square().sum()  # noqa: E731
    wanted = torch.autograd.functional.jacobian(lambda f: multiply_by_stages(x, f).square().sum(), factors)
    torch.testing.assert_close(torch.func.grad(loss)(factors), wanted)
    per_vector = torch.func.vmap(
        torch.func.grad(lambda f, v: ops.butterfly_multiply(v, f).square().sum()), in_dims=(None, 0)
    )
    torch.testing.assert_close(per_vector(factors, x).sum(0), wanted)
    curvature = torch.func.grad(lambda f: torch.func.grad(loss)(f).square().sum())(factors)
    point = factors.clone().requires_grad_()
    (first,) = torch.autograd.grad(multiply_by_stages(x, point).square().sum(), point, create_graph=True)
    torch.testing.assert_close(curvature, torch.autograd.grad(first.square().sum(), point)[0])
    tangent = torch.randn_like(factors)
    value, derivative = torch.func.jvp(loss, (factors,), (tangent,))
    torch.testing.assert_close(derivative, (wanted * tangent).sum())
    torch.testing.assert_close(value, expected.square().sum())


def test_more_than_2_to_the_31_elements() -> None:
    rows, n = 2**25 + 3, 64
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < 7 * 2**30:
        pytest.skip(f"needs 7 GiB of free memory for a result of 2^31 numbers, found {available / 2**30:.1f}")
    torch.manual_seed(0)
    x = torch.randn(n).to(torch.bfloat16)
    factors = (random_factors(2, n, torch.float32) / 2).requires_grad_()
    with torch.no_grad():
        y = torch.ops.kaleido_audio.butterfly(x.expand(rows, n), factors, n)
        assert y.numel() > 2**31
        expected = torch.ops.kaleido_audio.butterfly(x.unsqueeze(0), factors, n)
        for start in (0, 2**24, rows - 1000):
            assert torch.equal(y[start : start + 1000], expected.expand(1000, n))
    del y
    gc.collect()
    many = torch.ops.kaleido_audio.butterfly(x.expand(rows, n), factors, 1)
    weight = torch.zeros(rows, 1, dtype=torch.bfloat16)
    weight[0] = weight[-1] = 1
    one = torch.ops.kaleido_audio.butterfly(x.expand(2, n), factors, 1)
    (got,) = torch.autograd.grad(many, factors, weight)
    (wanted,) = torch.autograd.grad(one, factors, torch.ones_like(one))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 9), torch.zeros(2, 3, 2, 8), 8), "m between 1 and 8, got m = 9"),
        ((torch.zeros(2, 8), torch.zeros(2, 3, 2, 8), 9), "out_features between 1 and 8, got 9"),
        ((torch.zeros(2, 8), torch.zeros(2, 2, 2, 8), 8), "n >= 2 a power of two"),
        ((torch.zeros(2, 8).double(), torch.zeros(2, 3, 2, 8), 8), "one precision"),
        ((torch.zeros(2, 8), torch.zeros(2, 3, 2, 8).long(), 8), "expected"),
        ((torch.zeros(2, 8).to(torch.complex64), torch.zeros(2, 3, 2, 8), 8), "complex factors"),
    ],
)
def test_the_bare_operator_checks_its_arguments(arguments, message) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.kaleido_audio.butterfly(*arguments)


def test_the_bare_power_spectrum_checks_its_arguments() -> None:
    waveform, window, factors = torch.zeros(1, 20), torch.zeros(8), random_factors(2, 8, torch.complex64)
    call = torch.ops.kaleido_audio.power_spectrum
    with pytest.raises(RuntimeError, match=r"rows in \[0, 8\), got 8"):
        call(waveform, window, factors, torch.tensor([8]), 2)
    with pytest.raises(RuntimeError, match="at most 8 samples"):
        call(waveform[:, :5], window, factors, torch.tensor([0]), 2)
    with pytest.raises(RuntimeError, match="hop >= 1"):
        call(waveform, window, factors, torch.tensor([0]), 0)
    with pytest.raises(RuntimeError, match="baseline, avx2 and avx512, got sse9"):
        torch.ops.kaleido_audio.set_cpu_capability("sse9")


def test_what_environment_variables_choose_and_what_is_missing_is_said_once() -> None:
    script = (
        "import torch, warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import kaleido_audio as k\n"
        "    y = k.KMatrix(8)(torch.ones(3, 8)); k.KMatrix(8)(torch.ones(3, 8))\n"
        "print(k.ops.backend(torch.ones(1)), k.ops.cpu_capability(), len(seen), [str(w.message) for w in seen])\n"
    )

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **variables}
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    missing = run(KALEIDO_CPU_LIBRARY="missing.so").stdout
    assert missing.startswith("reference None 1 [") and "KALEIDO_CPU_LIBRARY names 'missing.so'" in missing
    assert "reference None 0 []" in run(KALEIDO_BACKEND="reference").stdout
    assert "cpu baseline 0 []" in run(KALEIDO_CPU_CAPABILITY="baseline").stdout
    for variable, wrong in (("KALEIDO_BACKEND", "Reference"), ("KALEIDO_CPU_CAPABILITY", "AVX2")):
        error = run(**{variable: wrong}).stderr.splitlines()[-1]
        assert error.startswith(f"ValueError: expected the environment variable {variable} to be ")
        assert error.endswith(f"got {wrong!r}")


def test_an_instruction_set_that_is_lacking_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    # A library of another processor answers: this one may have them all.
    monkeypatch.setenv("KALEIDO_CPU_CAPABILITY", "avx512")
    monkeypatch.setattr(native, "_load_library", lambda device, variable, built: device == "cpu")
    monkeypatch.setattr(native, "_register", lambda: None)
    monkeypatch.setattr(native, "cpu_capability", lambda: "avx2")
    with pytest.warns(UserWarning, match="KALEIDO_CPU_CAPABILITY=avx512: .* lacks it, avx2 is in use"):
        native._load()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )


def test_another_library_is_told_from_ours() -> None:
    other = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_global_deps.so")
    code = "import kaleido_audio, torch; print(kaleido_audio.ops.backend(torch.zeros(3)))"
    result = run_python(code, KALEIDO_CPU_LIBRARY=other)
    assert result.stdout == "reference\n"
    assert f"{other} lacks operators of this version of the package: build it again" in result.stderr


def test_the_import_leaves_the_compiler_out() -> None:
    """Which takes as long as the rest of the package."""
    assert run_python("import kaleido_audio, sys; print('torch._dynamo' in sys.modules)").stdout == "False\n"
