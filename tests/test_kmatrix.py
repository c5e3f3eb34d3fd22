"""KMatrix: initialisation, corner, types, copies."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kaleido_audio import KMatrix, exact, nn
from kaleido_audio.exact.fourier import frequency_decimated, inverse_time_decimated
from kaleido_audio.factors import identity_factors, invert_factors
from kaleido_audio.kmatrix import padded_size
from kaleido_audio.ops.reference import stage_strides

REAL_AND_COMPLEX = [torch.float64, torch.complex128]
PARAMETRIZATIONS = [
    {"constraint": constraint, "tied": tied} for constraint in (None, "orthogonal", "odo") for tied in (False, True)
]
every_parametrization = pytest.mark.parametrize("options", PARAMETRIZATIONS, ids=str)
real_and_complex = pytest.mark.parametrize("dtype", REAL_AND_COMPLEX, ids=str)


def whole_matrix(k: KMatrix) -> torch.Tensor:
    """The product before the corner is cut."""
    return KMatrix.from_factors(k.size, k.factors.detach()).to_dense()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    """Relative to the largest entry."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    error = (actual - expected).abs().max()
    assert error <= tolerance * expected.abs().max(), error


def circulant(n: int, spectrum: torch.Tensor) -> KMatrix:
    """F^-1 diag(spectrum, bit-reversed) F, unnormalised."""
    factors = torch.stack([frequency_decimated(n), inverse_time_decimated(n)])
    factors[0, -1] *= spectrum
    return KMatrix.from_factors(n, factors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("n", "width", "expansion"), [(8, 1, 1), (6, 2, 1), (5, 1, 3), (64, 3, 1)])
def test_orthogonal_start_is_unitary_times_the_gain_of_the_corner(dtype, n, width, expansion) -> None:
    torch.manual_seed(0)
    k = KMatrix(n, width=width, expansion=expansion, dtype=dtype)
    whole = whole_matrix(k)
    identity = torch.eye(k.size, dtype=dtype)
    torch.testing.assert_close(whole @ whole.mH, identity * k.size / n, rtol=0, atol=1e-12)
    torch.testing.assert_close(k.to_dense(), whole[:n, :n])


def test_orthogonal_start_has_rotations_and_reflections() -> None:
    torch.manual_seed(0)
    k = KMatrix(256, width=2, dtype=torch.float64)
    last = k.factors[1, -1]  # stride 128: pairs (i, i + 128)
    determinants = last[0, :128] * last[0, 128:] - last[1, :128] * last[1, 128:]
    torch.testing.assert_close(determinants.abs(), torch.ones(128, dtype=torch.float64))
    assert 30 < (determinants > 0).sum() < 98


@pytest.mark.parametrize("sides", [(4, 4, 1), (3, 3, 1), (3, 5, 1), (2, 2, 3)], ids=str)
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"init": "orthogonal"}, torch.float64),
        ({"init": "orthogonal"}, torch.complex128),
        ({"init": "normal"}, torch.float64),
        ({"init": "normal", "tied": True}, torch.complex128),
        ({"init": "orthogonal", "tied": True}, torch.float64),
        ({"constraint": "odo", "width": 2}, torch.float64),
        ({"constraint": "odo", "tied": True}, torch.complex128),
        ({"constraint": "orthogonal"}, torch.float64),
    ],
    ids=str,
)
def test_random_starts_keep_the_variance(sides, options, dtype) -> None:
    # Small and many: the gain of a product of normal entries has heavy tails.
    torch.manual_seed(1)
    n, out_features, expansion = sides
    total = torch.zeros(out_features, dtype=torch.float64)
    count = 1200 if options.get("init") == "normal" else 400
    for _ in range(count):
        k = KMatrix(n, out_features=out_features, expansion=expansion, dtype=dtype, **options)
        total += k.to_dense().detach().abs().square().sum(1)  # variance of each output for a white input
    expected = n / k.size if options.get("constraint") == "orthogonal" else 1.0
    assert 0.85 < total.mean() / count / expected < 1.15
    assert total.max() / total.min() < 1.6


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


# --- what is learned ---


@pytest.mark.parametrize(
    ("options", "n_real", "n_complex"),
    [
        ({}, 4 * 512 * 9, 8 * 512 * 9),
        ({"width": 2}, 8 * 512 * 9, 16 * 512 * 9),
        ({"tied": True}, 8 * 511, 16 * 511),
        ({"constraint": "orthogonal"}, 512 * 9, 4 * 512 * 9),
        ({"constraint": "orthogonal", "tied": True}, 2 * 511, 8 * 511),
        ({"constraint": "odo"}, 512 * 9 + 512, 4 * 512 * 9 + 2 * 512),
        ({"constraint": "odo", "tied": True, "width": 3}, 3 * (2 * 511 + 512), 3 * (8 * 511 + 2 * 512)),
    ],
    ids=str,
)
def test_parameter_counts(options, n_real, n_complex) -> None:
    for dtype, count in ((torch.float32, n_real), (torch.complex64, n_complex)):
        k = KMatrix(512, dtype=dtype, **options)
        assert sum(p.numel() for p in k.parameters()) == count
        assert all(p.dtype == torch.float32 for p in k.parameters())
        assert f"parameters={count}" in repr(k)
        assert k.factors.shape == (2 * k.width, 9, 2, 512) and k.factors.dtype == dtype


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["weight"]),
        ({"tied": True}, ["weight"]),
        ({"constraint": "orthogonal"}, ["angles", "reflection"]),
        ({"constraint": "odo"}, ["angles", "diagonal", "reflection"]),
        ({"constraint": "odo", "dtype": torch.complex64}, ["angles", "diagonal"]),
    ],
    ids=str,
)
def test_state_dict_names(options, names) -> None:
    assert sorted(KMatrix(10, **options).state_dict()) == names


def test_weight_is_the_factors() -> None:
    """The layout of checkpoints."""
    k = KMatrix(10, width=2)
    assert k.weight.shape == (4, 4, 2, 16) and k.factors is k.weight
    k = KMatrix(10, width=2, dtype=torch.complex64)
    assert k.weight.shape == (4, 4, 2, 16, 2)
    assert torch.equal(torch.view_as_real(k.factors), k.weight)


@real_and_complex
@pytest.mark.parametrize("options", [{"init": "normal"}, {"constraint": "orthogonal"}], ids=str)
def test_tied_stages_repeat_their_pattern(options, dtype) -> None:
    torch.manual_seed(0)
    k = KMatrix(32, width=2, tied=True, dtype=dtype, **options)
    factors = k.factors.detach()
    for f in range(4):
        for s, stride in enumerate(stage_strides(f, 5)):
            periods = factors[f, s].unflatten(-1, (-1, 2 * stride))
            assert torch.equal(periods, periods[:, :1].expand_as(periods))
            if options.get("init") == "normal":
                assert periods[:, 0].abs().unique().numel() == 4 * stride  # nothing else is shared


def test_layout_of_a_tied_weight() -> None:
    k = KMatrix(32, tied=True)
    assert k.weight.shape == (2, 2, 2, 31)
    stride, off_diagonal, second = 4, 1, 1
    given = k.weight[1, off_diagonal, second, stride - 1 : 2 * stride - 1]
    assert torch.equal(given, k.factors[1, 2, off_diagonal, stride : 2 * stride])


@real_and_complex
@pytest.mark.parametrize("tied", [False, True])
def test_orthogonal_throughout_training(tied, dtype) -> None:
    torch.manual_seed(0)
    k = KMatrix(20, width=2, constraint="orthogonal", tied=tied, dtype=dtype)
    target = torch.randn(20, 20, dtype=dtype)
    optimizer = torch.optim.Adam(k.parameters(), 0.3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append((k.to_dense() - target).abs().square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    whole = whole_matrix(k)
    torch.testing.assert_close(whole @ whole.mH, torch.eye(32, dtype=dtype), rtol=0, atol=1e-12)


def test_orthogonal_has_rotations_and_reflections_with_equal_odds() -> None:
    torch.manual_seed(0)
    k = KMatrix(256, constraint="orthogonal", dtype=torch.float64)
    assert 0.45 < k.reflection.double().mean() < 0.55
    last = k.factors[1, -1].detach()  # stride 128: pairs (i, i + 128)
    determinants = last[0, :128] * last[0, 128:] - last[1, :128] * last[1, 128:]
    torch.testing.assert_close(determinants, torch.where(k.reflection[1, -1] > 0.5, -1.0, 1.0).double())
    torch.testing.assert_close(last[0, :128], k.angles.detach()[1, -1].cos())
    torch.testing.assert_close(last[1, 128:], k.angles.detach()[1, -1].sin())


def test_complex_angles_are_those_of_the_docstring() -> None:
    torch.manual_seed(0)
    k = KMatrix(2, constraint="orthogonal", dtype=torch.complex128)
    theta, alpha, beta, delta = k.angles.detach()[0, 0, :, 0]
    phase = torch.polar(torch.ones(4, dtype=torch.float64), torch.stack([alpha, delta - beta, beta, delta - alpha]))
    block = phase * torch.stack([theta.cos(), -theta.sin(), theta.sin(), theta.cos()])
    torch.testing.assert_close(
        KMatrix.from_factors(2, torch.stack([k.factors[0].detach(), exact.hadamard(2).factors[1].detach()])).to_dense(),
        block.view(2, 2),
    )


@real_and_complex
@pytest.mark.parametrize("tied", [False, True])
def test_odo_is_orthogonal_diagonal_orthogonal(tied, dtype) -> None:
    torch.manual_seed(0)
    k = KMatrix(16, width=2, constraint="odo", tied=tied, dtype=dtype)
    k.diagonal.data.normal_()
    diagonal = torch.view_as_complex(k.diagonal.detach()) if dtype.is_complex else k.diagonal.detach()
    bare = copy.deepcopy(k)
    bare.diagonal.data.zero_()
    bare.diagonal.data.view(2, 16, -1)[..., 0] = 1
    identity = exact.hadamard(16).factors[1].detach()
    expected = torch.eye(16, dtype=dtype)
    for i, d in enumerate(diagonal):
        b_star, b = bare.factors.detach()[2 * i : 2 * i + 2]
        b_star = KMatrix.from_factors(16, torch.stack([b_star, identity])).to_dense()
        b = KMatrix.from_factors(16, torch.stack([torch.zeros_like(b) + identity, b])).to_dense()
        torch.testing.assert_close(b @ b.mH, torch.eye(16, dtype=dtype))
        expected = b @ torch.diag(d) @ b_star @ expected
    assert_near(k.to_dense(), expected)


@every_parametrization
@real_and_complex
def test_gradients(options, dtype) -> None:
    torch.manual_seed(0)
    k = KMatrix(3, width=2, out_features=4, dtype=dtype, **options)
    names, parameters = zip(*k.named_parameters(), strict=True)
    x = torch.randn(2, 3, dtype=dtype, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(k, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *parameters))


@every_parametrization
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_compile_without_a_break_in_the_graph(options, dtype) -> None:
    torch.compiler.reset()  # each case is a graph of the same code, and those are limited in number
    k = KMatrix(10, dtype=dtype, **options)
    twin = copy.deepcopy(k)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 10)
    expected, actual = k(x), compiled(x)
    torch.testing.assert_close(actual, expected)
    expected.abs().sum().backward()
    actual.abs().sum().backward()
    for p, q in zip(k.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


@every_parametrization
def test_export(options) -> None:
    k = KMatrix(10, **options)
    x = torch.randn(4, 10)
    torch.testing.assert_close(torch.export.export(k, (x,)).module()(x), k(x))


@every_parametrization
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_copies_and_files(options, dtype, tmp_path) -> None:
    k = KMatrix(10, width=2, dtype=dtype, **options)
    x = torch.randn(3, 10)
    for twin in (copy.deepcopy(k), pickle.loads(pickle.dumps(k))):
        assert torch.equal(twin(x), k(x))
        next(twin.parameters()).data.add_(1)
        assert not torch.equal(twin(x), k(x))
    file = io.BytesIO()
    torch.save(k.state_dict(), file)
    file.seek(0)
    save_file(k.state_dict(), tmp_path / "k.safetensors")
    for state in (torch.load(file, weights_only=True), load_file(tmp_path / "k.safetensors")):
        other = KMatrix(10, width=2, dtype=dtype, **options)
        assert not torch.equal(other(x), k(x))
        other.load_state_dict(state)
        assert torch.equal(other(x), k(x))


@every_parametrization
def test_factors_follow_every_change_of_the_parameters(options) -> None:
    k = KMatrix(8, **options)
    x = torch.randn(8)
    with torch.no_grad():
        before = k(x)
        next(k.parameters()).data.add_(0.5)  # what leaves no trace in the version counter
        assert not torch.allclose(k(x), before)
    for p in k.parameters():
        assert p.requires_grad and k.factors.requires_grad
    k.requires_grad_(False)
    assert not k.factors.requires_grad


@every_parametrization
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_types_of_the_module(options, dtype) -> None:
    k = KMatrix(12, dtype=dtype, **options)
    before = k.to_dense()
    double = copy.deepcopy(k).double()
    assert double.factors.dtype == (torch.complex128 if dtype.is_complex else torch.float64)
    assert_near(double.to_dense().to(dtype), before, 1e-6)
    for half, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.1)):
        low = copy.deepcopy(k).to(half)
        x = torch.randn(3, 12, dtype=half)
        y = low(x)
        assert y.dtype == (torch.complex64 if dtype.is_complex else half)
        y.abs().sum().backward()
        assert all(p.grad.dtype == half and p.grad.isfinite().all() for p in low.parameters())
        assert_near(y.to(dtype), k(x.float()), tolerance)


@every_parametrization
def test_built_on_meta_and_reset(options) -> None:
    torch.manual_seed(0)
    expected = KMatrix(6, **options)
    with torch.device("meta"):
        k = KMatrix(6, **options)
    k.to_empty(device="cpu")
    torch.manual_seed(0)
    k.reset_parameters()
    assert torch.equal(k.to_dense(), expected.to_dense())


@every_parametrization
@real_and_complex
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_reset_in_half_precision(options, dtype, half) -> None:
    k = KMatrix(8, init="identity", dtype=dtype, **options).to(half)
    with torch.no_grad():
        for p in k.parameters():
            p.fill_(float("nan"))
    k.reset_parameters()
    dense = k.to_dense()
    torch.testing.assert_close(dense, torch.eye(8, dtype=dense.dtype))


def test_many_matrices_at_once_under_vmap() -> None:
    k = KMatrix(6, constraint="odo")
    values = {name: torch.stack([p.detach(), 0.5 * p.detach()]) for name, p in k.named_parameters()}
    x = torch.randn(3, 6)
    y = torch.vmap(lambda v: torch.func.functional_call(k, v, x))(values)
    torch.testing.assert_close(y[0], k(x))
    for p in k.parameters():
        p.data.mul_(0.5)
    torch.testing.assert_close(y[1], k(x))


# --- from another K-matrix ---


def test_tied_from_the_fourier_transform() -> None:
    dft = exact.dft(64, bit_reversed=True, dtype=torch.complex128)
    k = KMatrix(64, tied=True, dtype=torch.complex128, init=dft)
    assert torch.equal(k.factors, dft.factors)
    wide = KMatrix(64, tied=True, width=2, dtype=torch.complex128, init=dft)
    assert_near(wide.to_dense(), dft.to_dense())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("zeros", [[], [3], [2, 9, 12]])
def test_odo_from_a_circulant(tied, zeros) -> None:
    torch.manual_seed(0)
    spectrum = torch.randn(16, dtype=torch.complex128)
    spectrum[zeros] = 0
    source = circulant(16, spectrum)
    k = KMatrix(16, constraint="odo", tied=tied, dtype=torch.complex128, init=source)
    assert_near(k.to_dense(), source.to_dense())
    magnitude = torch.view_as_complex(k.diagonal.detach()).abs()
    torch.testing.assert_close(magnitude, 16 * spectrum.abs().unsqueeze(0))


@real_and_complex
@pytest.mark.parametrize("constraint", ["orthogonal", "odo"])
def test_constrained_from_a_permutation(constraint, dtype) -> None:
    p = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    k = KMatrix(11, width=2, constraint=constraint, dtype=dtype, init=exact.permutation(p))
    assert_near(k.to_dense(), torch.eye(11, dtype=dtype)[p])


def test_odo_from_two_singular_rows() -> None:
    factors = exact.hadamard(4).factors.detach().double()
    factors[0, -1, :, :2] = 0
    source = KMatrix.from_factors(4, factors)
    k = KMatrix(4, constraint="odo", dtype=torch.float64, init=source)
    assert_near(k.to_dense(), source.to_dense())


@every_parametrization
@real_and_complex
def test_from_one_of_its_own_kind(options, dtype) -> None:
    source = KMatrix(6, out_features=5, dtype=dtype, **options)
    k = KMatrix(6, out_features=5, width=2, dtype=dtype, init=source, **options)
    assert_near(k.to_dense(), source.to_dense())
    plain = KMatrix(6, out_features=5, dtype=dtype, init=source)
    assert torch.equal(plain.factors, source.factors)


def test_from_factors_resolves_a_lazy_conjugate() -> None:
    k = exact.dft(8, dtype=torch.complex128)
    assert_near(KMatrix.from_factors(8, k.factors.detach().conj()).to_dense(), k.to_dense().conj())


def test_from_factors_keeps_the_device() -> None:
    assert KMatrix.from_factors(4, torch.zeros(2, 2, 2, 4, device="meta")).weight.device.type == "meta"


# --- algebra ---


@st.composite
def kmatrices(draw, rows=None, columns=None):
    """K-matrices of any sides, kind and type, the sides given or drawn."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    return KMatrix(
        columns or draw(st.integers(1, 9)),
        out_features=rows or draw(st.integers(1, 9)),
        width=draw(st.integers(1, 2)),
        expansion=draw(st.integers(1, 3)),
        dtype=draw(st.sampled_from(REAL_AND_COMPLEX)),
        **draw(st.sampled_from(PARAMETRIZATIONS)),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(kmatrices())
def test_transpose_and_adjoint(k) -> None:
    for result, expected in ((k.transpose(), k.to_dense().mT), (k.adjoint(), k.to_dense().mH)):
        assert_near(result.to_dense(), expected)
        assert (result.width, result.expansion, result.size) == (k.width, k.expansion, k.size)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_products(data) -> None:
    b = data.draw(kmatrices())
    a = data.draw(kmatrices(columns=b.out_features))
    c = a @ b
    expected = a.to_dense().to(c.factors.dtype) @ b.to_dense().to(c.factors.dtype)
    # Relative to what is added up: entries of the product of a one-dimensional middle may vanish.
    assert (c.to_dense() - expected).abs().max() <= 1e-12 * (1 + expected.abs().max())
    assert (c.in_features, c.out_features, c.width) == (b.in_features, a.out_features, a.width + b.width)
    assert c.size == max(a.size, b.size) == padded_size(max(c.in_features, c.out_features), c.expansion)
    assert c.is_complex == (a.is_complex or b.is_complex)


@pytest.mark.parametrize(
    ("sides", "expansions", "expected"),
    [
        ((400, 400, 400), (2, 2), 2),  # two convolutions of one length
        ((512, 512, 512), (1, 2), 2),
        ((4, 512, 4), (1, 1), 128),  # a bottle with a narrow neck on both sides
        ((1, 1, 1), (1, 1), 1),
        ((3, 5, 3), (1, 1), 2),
    ],
    ids=str,
)
def test_expansion_of_a_product(sides, expansions, expected) -> None:
    a = KMatrix(sides[1], out_features=sides[0], expansion=expansions[0])
    b = KMatrix(sides[2], out_features=sides[1], expansion=expansions[1])
    assert a.compose(b).expansion == expected


def test_a_product_is_detached() -> None:
    a, b = KMatrix(4), KMatrix(4)
    c = a @ b
    before = c.to_dense().clone()
    c.to_dense().sum().backward()
    assert a.weight.grad is None and b.weight.grad is None and c.weight.grad is not None
    with torch.no_grad():
        a.weight.zero_()
    assert torch.equal(c.to_dense(), before)


def test_a_product_with_something_else() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        KMatrix(4) @ torch.eye(4)


@real_and_complex
@pytest.mark.parametrize(
    "options",
    [
        {"init": "normal"},
        {"init": "normal", "tied": True},
        {"constraint": "orthogonal", "width": 2},
        {"constraint": "odo"},
    ],
    ids=str,
)
def test_inverse(options, dtype) -> None:
    torch.manual_seed(0)
    k = KMatrix(16, dtype=dtype, **options)
    expected = torch.linalg.inv(k.to_dense())
    assert_near(k.inverse().to_dense(), expected, 1e-8)
    if options.get("constraint") == "orthogonal":
        assert torch.equal(k.inverse().factors, k.adjoint().factors)


def test_inverse_of_a_corner_that_is_a_map_of_its_own() -> None:
    p = [2, 0, 1, 4, 3]
    k = exact.permutation(p)
    assert k.size == 8
    assert k.inverse()(k(torch.arange(5.0))).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert torch.equal(KMatrix(3, init="identity").inverse().to_dense(), torch.eye(3))


def test_inverse_in_float32_is_computed_in_float64() -> None:
    torch.manual_seed(0)
    k = KMatrix(64, width=2)
    x = torch.randn(64)
    assert_near(k.inverse()(k(x)), x, 1e-5)


@real_and_complex
@pytest.mark.parametrize("entries", [(1.0, 1e-20), (1e-200, 1e-200), (1e200, 1e200), (1e-150, 1e150)], ids=str)
def test_inverse_of_blocks_of_any_scale(entries, dtype) -> None:
    inverse = exact.diagonal(entries, dtype=dtype).inverse().to_dense()
    torch.testing.assert_close(inverse, torch.tensor(entries, dtype=dtype).reciprocal().diag(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1.0, 1e15])
def test_blocks_of_rank_one_have_no_inverse(scale, dtype) -> None:
    torch.manual_seed(0)
    for a, b in torch.randn(200, 2, 2, dtype=dtype):
        block = a.unsqueeze(1) * b * scale
        factors = identity_factors(2, 2, dtype)
        factors[0, 0] = torch.stack([block.diagonal(), block.fliplr().diagonal()])
        with pytest.raises(ValueError, match="positions 0 and 1 in stage 0 of factor 0 is singular"):
            invert_factors(factors)


def _singular() -> KMatrix:
    k = KMatrix(8, width=2, init="identity")
    with torch.no_grad():
        k.weight[3, 1, :, 4] = 1.0  # stride 2: [[1, 1], [1, 1]] at positions 4 and 6
        k.weight[3, 1, :, 6] = 1.0
    return k


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KMatrix(3, out_features=5), "square K-matrix has an inverse, this one is 5 x 3"),
        (lambda: KMatrix(6), "map of size 6 is the corner of a matrix of size 8"),
        (lambda: KMatrix(6, constraint="orthogonal"), "map of size 6 is the corner of a matrix of size 8"),
        (_singular, "positions 4 and 6 in stage 1 of factor 3 is singular"),
    ],
)
def test_no_inverse(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make().inverse()


def test_reset_draws_anew() -> None:
    k = KMatrix(8, init="normal", constraint=None, tied=True)
    before = k.to_dense()
    k.reset_parameters()
    assert not torch.allclose(k.to_dense(), before)
    with pytest.raises(ValueError, match="made from given coefficients"):
        exact.hadamard(4).reset_parameters()


# --- in use ---


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
        (lambda: KMatrix(4, init="normal", constraint="odo"), "'odo'.*, got 'normal'"),
        (lambda: KMatrix(4, constraint="unitary"), "expected constraint in .* got 'unitary'"),
        (lambda: KMatrix(4, init=KMatrix(4), tied=True), "without stages that repeat their pattern"),
        (lambda: KMatrix(4, init=exact.hadamard(4), constraint="orthogonal"), "without orthogonal blocks"),
        (lambda: KMatrix(4, init=KMatrix(4, init="normal"), constraint="odo"), "without orthogonal blocks"),
        (lambda: KMatrix(4) @ KMatrix(3), "K-matrix of 4 rows to compose .* got one of 3 rows"),
        (lambda: KMatrix(8, init=KMatrix(4)), "4 x 4, size 4 and width 1; expected 8 x 8"),
        (lambda: KMatrix(4, init=KMatrix(4, width=2)), "width <= 1"),
        (lambda: KMatrix(4, init=KMatrix(4, dtype=torch.complex64)), "complex dtype"),
        (lambda: KMatrix(4, init=None), "expected init in .* got None"),
        (lambda: KMatrix.from_factors(4, torch.zeros(2, 3, 2, 8)), "N = 4"),
        (lambda: KMatrix.from_factors(4, torch.zeros(2, 1, 2, 4)), r"got \(2, 1, 2, 4\)"),
        (lambda: KMatrix.from_factors(4, torch.zeros(3, 2, 2, 4)), r"got \(3, 2, 2, 4\)"),
        (lambda: KMatrix(8)(torch.tensor(1.0)), r"\(\.\.\., 8\), got \(\)"),
        (lambda: KMatrix(8)(torch.zeros(3, 7)), r"\(\.\.\., 8\), got \(3, 7\)"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_algebra_of_half_precision_is_in_float32(dtype) -> None:
    k = KMatrix(8).to(dtype)
    for result in (k.transpose(), k.adjoint(), k.inverse(), k @ k, exact.kronecker(k, k)):
        assert result.weight.dtype == torch.float32
    torch.testing.assert_close((k.inverse() @ k).to_dense(), torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dense_matrix_in_half_precision_is_rounded_once(dtype) -> None:
    torch.manual_seed(0)
    k = KMatrix(256, width=2).to(dtype)
    whole = copy.deepcopy(k).float().to_dense()
    assert k.to_dense().dtype == dtype
    assert torch.equal(k.to_dense(), whole.to(dtype))


def test_sizes_may_be_numpy_integers_but_not_floats() -> None:
    k = KMatrix(np.int64(6), out_features=np.int32(3))
    assert k.size == 8 and k(torch.randn(6)).shape == (3,)
    with pytest.raises(TypeError, match="float"):
        KMatrix(8.0)


def test_a_matrix_with_nan_has_no_inverse() -> None:
    k = KMatrix(4)
    with torch.no_grad():
        k.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="is singular"):
        k.inverse()


def test_a_random_start_is_the_same_whatever_the_default_dtype() -> None:
    def start() -> torch.Tensor:
        torch.manual_seed(0)
        return KMatrix(8).weight.detach()

    expected = start()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(start(), expected)
    finally:
        torch.set_default_dtype(torch.float32)
