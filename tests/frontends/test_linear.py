"""Linear maps in the place of the Fourier transform: a dense DFT against MFSC, the others against their matrices."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import Tensor

from kaleido_audio import functional
from kaleido_audio.frontends import MFSC, LinearMel, LinearSpectrogram
from kaleido_audio.frontends.linear import TRANSFORMS
from kaleido_audio.transforms import KMelSpectrogram, KSpectrogram, Spectrogram

F64 = torch.float64
SMALL = {"sample_rate": 8000, "n_fft": 64, "win_length": 50, "hop_length": 16, "n_mels": 6}
LEARNED = [name for name in TRANSFORMS if name != "identity"]
EVERYTHING = ("transform", "filterbank", "window", "compression")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def small(transform: str = "dense", **options) -> LinearMel:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filters of the smallest transforms may hold no bin
        return LinearMel(**{**SMALL, **options}, transform=transform)


def matrix_of(spectrogram: LinearSpectrogram) -> Tensor:
    """The complex map ``(n_fft, n_fft)`` of its layers, by their own matrices."""
    if spectrogram.transform == "identity":
        return math.sqrt(spectrogram.n_fft) * torch.eye(spectrogram.n_fft, dtype=torch.complex128)
    return torch.complex(spectrogram.real.weight.double(), spectrogram.imaginary.weight.double())


def waveform_gradient(module: torch.nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x)
    return gradient


# --- equality ---


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-10)])
@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("n_fft", [400, 512])
def test_a_dense_fourier_transform_is_mfsc(n_fft, power, dtype, tolerance):
    options = {"n_fft": n_fft, "power": power, "dtype": dtype}
    fixed, dense = MFSC(**options), LinearMel(transform="dense", init="fourier", **options)
    x = noise(2, 8000, dtype=dtype)
    assert relative_error(dense(x), fixed(x)) < tolerance
    assert relative_error(waveform_gradient(dense, x), waveform_gradient(fixed, x)) < tolerance
    assert dense.load_state_dict(fixed.state_dict(), strict=False).missing_keys == [
        "spectrogram.real.weight",
        "spectrogram.imaginary.weight",
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-10)])
def test_a_dense_fourier_transform_is_torchaudios(dtype, tolerance):
    transforms = pytest.importorskip("torchaudio").transforms
    settings = {"n_fft": 512, "win_length": 400, "hop_length": 160, "f_min": 20.0, "n_mels": 40}
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        theirs = transforms.MelSpectrogram(16000, window_fn=torch.hamming_window, **settings)
        ours = LinearMel(init="fourier", compression=None)
    finally:
        torch.set_default_dtype(default)
    x = noise(2, 8000, dtype=dtype)
    assert relative_error(ours(x), theirs(x)) < tolerance
    assert relative_error(waveform_gradient(ours, x), waveform_gradient(theirs, x)) < tolerance


@pytest.mark.parametrize(
    "changed",
    [
        {"power": None},
        {"power": 1.3},
        {"onesided": False},
        {"normalized": True},
        {"normalized": "frame_length"},
        {"pad": 7},
        {"center": False},
        {"pad_mode": "replicate"},
        {"wkwargs": {"periodic": False}},
    ],
)
def test_every_setting_of_the_spectrogram(changed):
    settings = {"n_fft": 30, "win_length": 21, "hop_length": 8, "dtype": F64, **changed}
    fixed, dense = Spectrogram(**settings), LinearSpectrogram(init="fourier", **settings)
    x = noise(2, 3, 200, dtype=F64)
    assert relative_error(dense(x), fixed(x)) < 1e-12
    assert dense.n_features == fixed.n_features
    lengths = torch.tensor([200, 123])
    (got, counts), (expected, expected_counts) = dense(x[:, 0], lengths), fixed(x[:, 0], lengths)
    assert torch.equal(counts, expected_counts) and relative_error(got, expected) < 1e-12


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("n_fft", [51, 64])
def test_equals_its_matrix(transform, n_fft):
    module = small(transform, n_fft=n_fft, dtype=F64)
    spectrogram = module.spectrogram
    x = noise(2, 500, dtype=F64)
    window = torch.zeros(n_fft, dtype=F64)
    left = (n_fft - 50) // 2
    window[left : left + 50] = spectrogram.window
    frames = functional.frame(x, n_fft, 16) * window
    expected = (frames.to(torch.complex128) @ matrix_of(spectrogram).mT).transpose(-1, -2)
    used = n_fft if transform == "identity" else n_fft // 2 + 1
    assert relative_error(spectrogram(x), expected[:, :used].abs().square()) < 1e-10
    mel = (expected[:, :used].abs().square().mT @ module.mel_scale.fb).mT
    assert relative_error(module(x), (mel + 1e-6).log()) < 1e-10


# --- the start ---


@pytest.mark.parametrize("transform", LEARNED)
def test_random_starts_have_the_level_of_the_fourier_transform(transform):
    torch.manual_seed(1)  # another seed than that of the noise, with which the maps would be correlated
    x = noise(16000)
    levels = [float(LinearSpectrogram(512, transform=transform)(x).mean().detach()) for _ in range(4)]
    fixed = Spectrogram(512)(x).mean()
    assert torch.tensor(levels).mean() == pytest.approx(float(fixed), rel=0.15)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_features_start_at_the_level_of_mfsc(transform):
    torch.manual_seed(1)
    x = noise(16000)
    with torch.no_grad():
        difference = LinearMel(transform=transform)(x) - MFSC()(x)
    assert abs(float(difference.mean())) < 0.7  # 3 dB, where a missing gain would be 27


def test_random_maps_differ_in_their_parts_and_their_seeds():
    for transform in LEARNED:
        first, again = small(transform).spectrogram, small(transform).spectrogram
        torch.manual_seed(1)
        other = LinearMel(**SMALL, transform=transform).spectrogram
        assert torch.equal(matrix_of(first), matrix_of(again))
        assert not torch.equal(matrix_of(first), matrix_of(other))
        assert not torch.equal(first.real.weight, first.imaginary.weight)


@pytest.mark.parametrize("win_length", [400, 512])
def test_the_filterbank_of_the_identity_sees_the_whole_window(win_length):
    module = LinearMel(transform="identity", win_length=win_length, n_fft=512)
    fb = module.mel_scale.fb.detach()
    assert fb.shape == (512, 40) and module.n_features == 40
    left = (512 - win_length) // 2
    seen = fb.sum(1) > 0
    assert seen[left : left + win_length].all() and seen.sum() == win_length
    peaks = fb.argmax(0)
    assert (peaks.diff() > 0).all() and fb.amax(0).min() > 0.9
    torch.testing.assert_close(fb, fb.flip(0, 1), rtol=0, atol=1e-4)


def test_no_filter_of_the_identity_is_empty_and_nobody_is_warned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fb = LinearMel(transform="identity", n_fft=32, win_length=20, n_mels=40).mel_scale.fb
    assert (fb.amax(0) > 0).all()


# --- parameters ---


@pytest.mark.parametrize(
    ("transform", "each"),
    [
        ("dense", 512 * 512),
        ("low_rank", 18 * 1024),
        ("sparse", 18432),
        ("circulant", 512),
        ("toeplitz", 1023),
        ("kronecker", 2 * 16 * 32),
    ],
)
def test_parameters_at_512_points(transform, each):
    spectrogram = LinearSpectrogram(512, transform=transform)
    assert [sum(p.numel() for p in part.parameters()) for part in (spectrogram.real, spectrogram.imaginary)] == [
        each
    ] * 2
    if transform in ("low_rank", "sparse"):
        assert 2 * each == sum(p.numel() for p in KSpectrogram(512).parameters())
    front_end = LinearMel(transform=transform, n_fft=512)
    assert sum(p.numel() for p in front_end.parameters()) == 2 * each + 257 * 40


def test_monarch_comes_near_and_the_identity_has_only_its_filterbank():
    monarch = sum(p.numel() for p in LinearSpectrogram(512, transform="monarch").parameters())
    assert monarch == pytest.approx(36_864, rel=0.05)
    assert list(LinearSpectrogram(512, transform="identity").parameters()) == []
    assert [tuple(p.shape) for p in LinearMel(transform="identity").parameters()] == [(512, 40)]


def test_a_given_number_of_parameters():
    for transform, count in (("low_rank", 2 * 4 * 128), ("sparse", 1000)):
        module = LinearSpectrogram(64, transform=transform, parameters=1000)
        assert sum(p.numel() for p in module.parameters()) == count
    assert LinearSpectrogram(64, transform="low_rank", parameters=1).real.rank == 1


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("part", EVERYTHING)
def test_what_is_learnable_gets_a_gradient_and_nothing_else(transform, part):
    module = small(transform, learnable=(part,))
    learned = {name for name, p in module.named_parameters() if p.requires_grad}
    x = noise(2, 500).requires_grad_()
    module(x).sum().backward()
    assert learned == {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    beginnings = {
        "transform": ("spectrogram.real.", "spectrogram.imaginary."),
        "filterbank": ("mel_scale.fb",),
        "window": ("spectrogram.window",),
        "compression": ("compression.log_eps",),
    }[part]
    if (transform, part) == ("identity", "transform"):
        assert not learned and module.learnable == ()
    else:
        assert learned and module.learnable == (part,)
        assert all(any(name.startswith(begin) for name in learned) for begin in beginnings)
    assert all(name.startswith(beginnings) for name in learned)


def test_unused_outputs_have_a_zero_gradient():
    module = small("dense").spectrogram
    module(noise(500)).sum().backward()
    for part in (module.real, module.imaginary):
        assert part.weight.grad[:33].any(1).all() and not part.weight.grad[33:].any()


# --- batches, gradients, types ---


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("options", [{}, {"pad_mode": "constant", "pad": 5}, {"center": False}])
def test_padded_items_give_what_they_give_alone(transform, options):
    module = small(transform, dtype=F64, **options)
    lengths = torch.tensor([800, 64, 333])
    x = noise(3, 800, dtype=F64)
    x[torch.arange(800) >= lengths.unsqueeze(1)] = float("nan")
    features, counts = module(x, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = module(x[i, :length])
        assert counts[i] == alone.shape[-1]
        torch.testing.assert_close(features[i, :, : counts[i]], alone, rtol=1e-10, atol=1e-10)
        assert torch.all(features[i, :, counts[i] :] == 0)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_silence_is_the_floor_with_finite_gradients(transform, power):
    module = small(transform, power=power, learnable=EVERYTHING)
    x = torch.zeros(2, 500, requires_grad=True)
    features = module(x)
    assert torch.allclose(features, torch.tensor(1e-6).log())
    features.sum().backward()
    assert torch.all(x.grad == 0) and all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradcheck(transform):
    module = small(
        transform, n_fft=8, win_length=7, hop_length=4, n_mels=2, power=1.0, eps=1e-2, learnable=EVERYTHING, dtype=F64
    )
    with torch.no_grad():
        module.mel_scale.fb.add_(0.1)  # away from zero, where the gradient is not a derivative
    names = [name for name, _ in module.named_parameters()]
    x = noise(14, dtype=F64)

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (x, *(p.detach().clone() for p in module.parameters()))
    assert torch.autograd.gradcheck(function, [i.requires_grad_() for i in inputs])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_training_lowers_the_loss(transform):
    module = small(transform, learnable=EVERYTHING, eps=1e-3)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    x, target = noise(4, 800), noise(4, 6, 51, seed=3)
    losses = []
    for _ in range(20):
        loss = (module(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_state_dict_copies_and_compile(transform):
    module, x = small(transform), noise(500)
    expected = module(x)
    assert {"spectrogram.window", "mel_scale.fb"} <= set(module.state_dict())
    torch.manual_seed(7)
    other = LinearMel(**SMALL, transform=transform)
    other.load_state_dict(module.state_dict())
    for twin in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), expected)
    torch._dynamo.reset()  # which counts the programs of all modules together
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), expected) < 1e-5


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_types(transform):
    module, x = small(transform), noise(500)
    expected = module(x)
    assert torch.equal(module(x.bfloat16()), module(x.bfloat16().float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x)
        spectrum = module.spectrogram(x)
    assert torch.equal(got, expected) and spectrum.dtype == torch.float32
    assert relative_error(copy.deepcopy(module).double()(x.double()).float(), expected) < 1e-5
    assert small(transform, dtype=F64)(x).dtype == F64


def test_the_complex_spectrum():
    for transform in TRANSFORMS:
        spectrogram = LinearSpectrogram(64, transform=transform, power=None)
        assert spectrogram(noise(2, 300)).dtype == torch.complex64
        squared = LinearSpectrogram(64, transform=transform)
        squared.load_state_dict(spectrogram.state_dict())
        assert relative_error(spectrogram(noise(2, 300)).abs().square(), squared(noise(2, 300))) < 1e-5


def test_defaults_follow_the_sample_rate():
    for rate, sizes in ((16000, (512, 400, 160)), (8000, (256, 200, 80))):
        spectrogram = LinearMel(rate, transform="circulant").spectrogram
        assert (spectrogram.n_fft, spectrogram.win_length, spectrogram.hop_length) == sizes


def test_repr_tells_what_is_learnable():
    text = repr(small("low_rank", learnable=("transform",), parameters=1024))
    assert "transform='low_rank', learnable=('transform',), learnable parameters=1024" in text and "rank=4" in text
    assert "learnable=('filterbank',), learnable parameters=384" in repr(small("identity"))


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "wavelet"}, "transform in"),
        ({"init": "orthogonal"}, "init in"),
        ({"init": "fourier", "transform": "sparse"}, "transform='dense' with init='fourier', got 'sparse'"),
        ({"learnable": ("rows",)}, "expected learnable to hold any of"),
        ({"learnable": ("compression",), "compression": None}, "'compression', which is None"),
        ({"parameters": 0}, "expected parameters to be an integer >= 1, got 0"),
        ({"win_length": 600, "n_fft": 512}, "win_length <= n_fft = 512, got 600"),
        ({"power": None}, "needs a power"),
        ({"dtype": torch.float16}, "dtype torch.float32 or torch.float64"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        LinearMel(**options)


def test_a_spectrogram_has_no_filterbank_to_learn():
    with pytest.raises(ValueError, match="expected learnable to hold any of"):
        LinearSpectrogram(learnable=("filterbank",))


@pytest.mark.parametrize(
    "module",
    [small("dense"), small("circulant"), small("identity"), KMelSpectrogram(**SMALL)],
    ids=["dense", "circulant", "identity", "kaleidoscope"],
)
@pytest.mark.parametrize(
    ("half", "waveform", "message"),
    [
        (False, torch.zeros(500, dtype=torch.int16), r"int16.*waveform.float\(\) / 32768"),
        (False, torch.zeros(500, dtype=F64), r"waveform.float\(\) or module.double\(\)"),
        (False, torch.zeros(500, dtype=torch.complex64), "floating-point waveform"),
        (False, torch.zeros(500).numpy(), "torch.Tensor, got ndarray"),
        (False, torch.zeros(32), "n_fft = 64 needs at least 33 samples, got time = 32"),
        (False, torch.zeros(2, 0), "time >= 1"),
        (True, torch.zeros(500), r"float32 or float64.*bfloat16"),
    ],
)
def test_waveform_errors_are_those_of_kaleidoscope(module, half, waveform, message):
    module = copy.deepcopy(module).bfloat16() if half else module
    with pytest.raises(ValueError, match=message):
        module(waveform)
