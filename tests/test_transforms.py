from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kaleido_audio import KMatrix, exact
from kaleido_audio.frontends import MFSC, SincNet
from kaleido_audio.transforms import (
    PCEN,
    Compression,
    Filterbank,
    FlooredLogarithm,
    KFbank,
    KMelSpectrogram,
    KSpectrogram,
    Spectrogram,
)

PAD_MODES = ("reflect", "constant", "replicate", "circular")
SPEECH = {"sample_rate": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40}
SMALL = {"sample_rate": 8000, "n_fft": 64, "hop_length": 16, "n_mels": 6}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module")
def torchaudio_transforms():
    return pytest.importorskip("torchaudio").transforms


@pytest.fixture
def default_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def assert_same_with_gradients(ours: nn.Module, theirs: nn.Module, x: Tensor, gradient_slack: float = 1.0) -> None:
    x = x.clone().requires_grad_()
    tolerance = TOLERANCE[x.dtype]
    got, expected = ours(x), theirs(x)
    assert relative_error(got, expected) < tolerance
    weights = noise(*got.shape, seed=1, dtype=x.dtype)
    grads = [
        torch.autograd.grad(
            (torch.view_as_real(y) if y.is_complex() else y)
            .mul(weights.unsqueeze(-1) if y.is_complex() else weights)
            .sum(),
            x,
        )[0]
        for y in (got, expected)
    ]
    assert relative_error(*grads) < gradient_slack * tolerance


# --- parity with torchaudio ---


@pytest.mark.parametrize("n_fft", [256, 400, 512, 1024, 255, 401])
@pytest.mark.parametrize("power", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mel_spectrogram_equals_torchaudio(torchaudio_transforms, n_fft, power, dtype):
    torch.set_default_dtype(dtype)
    try:
        arguments = {"n_fft": n_fft, "win_length": n_fft - 20, "hop_length": 101, "n_mels": 32, "power": power}
        theirs = torchaudio_transforms.MelSpectrogram(**arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    ours = KMelSpectrogram(**arguments, dtype=dtype)
    # The derivative of the magnitude is the phase, which is ill-conditioned in bins near zero.
    assert_same_with_gradients(ours, theirs, noise(2, 3000, dtype=dtype), gradient_slack=1 if power == 2 else 30)


SETTINGS = [
    {},
    {"win_length": 200},
    {"win_length": 399, "hop_length": 77},
    {"f_min": 60.0, "f_max": 7000.0},
    {"pad": 37},
    {"window_fn": torch.hamming_window},
    {"window_fn": torch.blackman_window},
    {"window_fn": torch.kaiser_window, "wkwargs": {"beta": 8.0, "periodic": False}},
    {"window_fn": torch.ones},
    {"normalized": True},
    {"normalized": "window"},
    {"normalized": "frame_length"},
    {"center": False},
    {"pad_mode": "constant"},
    {"pad_mode": "replicate"},
    {"pad_mode": "circular", "pad": 3},
    {"norm": "slaney"},
    {"mel_scale": "slaney"},
    {"norm": "slaney", "mel_scale": "slaney", "sample_rate": 22050, "n_mels": 64},
]


def named(settings: dict) -> str:
    """The same in every run, which the address of a function is not."""
    return ",".join(f"{name}={getattr(value, '__name__', value)}" for name, value in settings.items()) or "defaults"


@pytest.mark.parametrize("changed", SETTINGS, ids=named)
@pytest.mark.parametrize("n_fft", [400, 512])
def test_every_setting_equals_torchaudio(torchaudio_transforms, default_float64, changed, n_fft):
    arguments = {"n_fft": n_fft, "n_mels": 24, **changed}
    theirs, ours = torchaudio_transforms.MelSpectrogram(**arguments), KMelSpectrogram(**arguments)
    assert_same_with_gradients(ours, theirs, noise(1700, dtype=torch.float64))


def test_defaults_and_positions_are_torchaudios(torchaudio_transforms):
    for ours, theirs in (
        (KMelSpectrogram, torchaudio_transforms.MelSpectrogram),
        (KSpectrogram, torchaudio_transforms.Spectrogram),
    ):
        expected = [(p.name, p.default) for p in inspect.signature(theirs).parameters.values()]
        parameters = inspect.signature(ours).parameters.values()
        assert [(p.name, p.default) for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD] == expected
    with warnings.catch_warnings():  # 128 filters are too many for 201 bins, in both
        warnings.simplefilter("ignore")
        theirs, ours = torchaudio_transforms.MelSpectrogram(), KMelSpectrogram()
    assert_same_with_gradients(ours, theirs, noise(4000))


@pytest.mark.parametrize("power", [None, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("onesided", [True, False])
@pytest.mark.parametrize("n_fft", [60, 64])
def test_spectrogram_equals_torchaudio(torchaudio_transforms, default_float64, power, onesided, n_fft):
    arguments = {"n_fft": n_fft, "hop_length": 16, "power": power, "onesided": onesided}
    theirs = torchaudio_transforms.Spectrogram(**arguments)
    x = noise(2, 500, dtype=torch.float64)
    for ours in (KSpectrogram(**arguments), Spectrogram(**arguments)):
        assert_same_with_gradients(ours, theirs, x, gradient_slack=100 if power == 0.7 else 1)
        assert ours.n_features == ours(x).shape[-2]


@pytest.mark.parametrize("shape", [(700,), (1, 700), (2, 3, 700), (2, 1, 3, 700), (0, 700)])
def test_leading_shapes(torchaudio_transforms, shape):
    ours = KMelSpectrogram(**SMALL)
    features = ours(noise(*shape))
    assert features.shape == (*shape[:-1], 6, 44)
    if features.numel():
        assert relative_error(features, torchaudio_transforms.MelSpectrogram(**SMALL)(noise(*shape))) < 1e-5


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_from_torchaudio_for_any_settings(torchaudio_transforms, data):
    n_fft = data.draw(st.one_of(st.sampled_from([16, 32, 128]), st.integers(8, 140)), label="n_fft")
    sample_rate = data.draw(st.sampled_from([8000, 11025, 16000]), label="sample_rate")
    theirs_arguments = {
        "sample_rate": sample_rate,
        "n_fft": n_fft,
        "win_length": data.draw(st.integers(3, n_fft), label="win_length"),
        "hop_length": data.draw(st.integers(1, n_fft), label="hop_length"),
        "f_min": data.draw(st.sampled_from([0.0, 50.0]), label="f_min"),
        "f_max": data.draw(st.sampled_from([None, 3900.0]), label="f_max"),
        "pad": data.draw(st.integers(0, 10), label="pad"),
        "n_mels": data.draw(st.integers(1, 12), label="n_mels"),
        "window_fn": data.draw(st.sampled_from([torch.hann_window, torch.hamming_window, torch.ones])),
        "power": data.draw(st.sampled_from([1.0, 1.3, 2.0, 3.0]), label="power"),
        "normalized": data.draw(st.sampled_from([False, True, "window", "frame_length"]), label="normalized"),
        "center": data.draw(st.booleans(), label="center"),
        "pad_mode": data.draw(st.sampled_from(PAD_MODES), label="pad_mode"),
        "norm": data.draw(st.sampled_from([None, "slaney"]), label="norm"),
        "mel_scale": data.draw(st.sampled_from(["htk", "slaney"]), label="mel_scale"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torchaudio_transforms.MelSpectrogram(**theirs_arguments).double()
        ours = KMelSpectrogram.from_torchaudio(theirs)
    x = noise(2, data.draw(st.integers(n_fft, 300), label="time"), dtype=torch.float64)
    got, expected = ours(x), theirs(x)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert torch.equal(ours.mel_scale.fb, theirs.mel_scale.fb)
    assert torch.equal(ours.spectrogram.window, theirs.spectrogram.window)


def test_from_torchaudio_keeps_what_a_user_changed(torchaudio_transforms):
    theirs = torchaudio_transforms.MelSpectrogram(**SMALL)
    theirs.mel_scale.fb.mul_(torch.linspace(0.5, 2, 6))
    theirs.spectrogram.window.pow_(0.7)
    ours = KMelSpectrogram.from_torchaudio(theirs, learnable=("filterbank",), compression="log", eps=1e-3)
    assert isinstance(ours.mel_scale.fb, nn.Parameter) and not ours.spectrogram.transform.weight.requires_grad
    x = noise(2, 700)
    assert relative_error(ours(x), (theirs(x) + 1e-3).log()) < 1e-5
    ours.mel_scale.fb.data.zero_()
    assert theirs.mel_scale.fb.any()  # a copy


def test_from_torchaudio_spectrogram(torchaudio_transforms):
    theirs = torchaudio_transforms.Spectrogram(n_fft=60, power=None, window_fn=torch.hamming_window, onesided=False)
    ours = KSpectrogram.from_torchaudio(theirs, learnable=("window",))
    assert_same_with_gradients(ours, theirs, noise(500))
    assert [name for name, p in ours.named_parameters() if p.requires_grad] == ["window"]


def test_from_torchaudio_refuses_other_modules(torchaudio_transforms):
    with pytest.raises(ValueError, match=r"torchaudio.transforms.MelSpectrogram, got Spectrogram"):
        KMelSpectrogram.from_torchaudio(torchaudio_transforms.Spectrogram())
    with pytest.raises(ValueError, match=r"torchaudio.transforms.Spectrogram, got Linear"):
        KSpectrogram.from_torchaudio(nn.Linear(2, 2))
    negative = torchaudio_transforms.MelSpectrogram(**SMALL)
    negative.mel_scale.fb[0, 0] = -1
    with pytest.raises(ValueError, match="negative weights"):
        KMelSpectrogram.from_torchaudio(negative)
    fixed = KMelSpectrogram.from_torchaudio(negative, learnable=("transform",))
    assert relative_error(fixed(noise(500)), negative(noise(500))) < 1e-5


# --- state dicts, copies ---


OWN_KEYS = ["spectrogram.rows", "spectrogram.transform.weight"]


def test_state_dicts_go_both_ways(torchaudio_transforms):
    theirs, ours = torchaudio_transforms.MelSpectrogram(**SMALL), KMelSpectrogram(**SMALL)
    theirs.mel_scale.fb.mul_(3)
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (
        set(result.missing_keys) == {"spectrogram.rows", "spectrogram.transform.weight"}
        and result.unexpected_keys == []
    )
    x = noise(600)
    assert relative_error(ours(x), theirs(x)) < 1e-5

    fresh = torchaudio_transforms.MelSpectrogram(**SMALL)
    result = fresh.load_state_dict(ours.state_dict(), strict=False)
    assert result.missing_keys == [] and sorted(result.unexpected_keys) == OWN_KEYS
    assert torch.equal(fresh(x), theirs(x))


def test_the_filterbank_in_use_after_training_is_not_negative_and_what_torchaudio_needs(torchaudio_transforms):
    ours = KMelSpectrogram(**SMALL, learnable=("filterbank",))
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.05)
    x, target = noise(4, 600), noise(4, 6, 38, seed=2).square()
    for _ in range(10):
        optimizer.zero_grad()
        (ours(x) - target).square().mean().backward()
        optimizer.step()
    assert (ours.mel_scale.fb < 0).any()  # or there would be nothing to test
    assert (ours.mel_scale.weights >= 0).all()
    theirs = torchaudio_transforms.MelSpectrogram(**SMALL)
    theirs.mel_scale.fb.copy_(ours.mel_scale.weights.detach())
    assert relative_error(ours(x), theirs(x)) < 1e-5


@pytest.mark.parametrize("compression", [None, "log", "pcen"])
def test_state_dict_round_trip_deepcopy_and_pickle(compression):
    learnable = ("transform", "filterbank", "window") + (("compression",) if compression else ())
    module = KMelSpectrogram(**SMALL, learnable=learnable, compression=compression)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.01)
    fresh = KMelSpectrogram(**SMALL, learnable=learnable, compression=compression)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    x = noise(2, 500)
    expected = module(x)
    for twin in (fresh, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), expected)
        assert {n for n, p in twin.named_parameters() if p.requires_grad} == {n for n, _ in module.named_parameters()}


# --- types ---


def test_double_keeps_the_transform():
    module = KMelSpectrogram(**SMALL, compression="log").double()
    fixed = KMelSpectrogram(**SMALL, compression="log", dtype=torch.float64)
    x = noise(500, dtype=torch.float64)
    assert relative_error(module(x), fixed(x)) < 1e-5
    assert module.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_waveforms_are_widened(dtype):
    module = KMelSpectrogram(**SMALL)
    x = noise(500).to(dtype)
    assert torch.equal(module(x), module(x.float()))
    assert KSpectrogram(64, dtype=torch.float64)(noise(500)).dtype == torch.float64


def test_autocast_changes_nothing():
    x = noise(2, 500)
    for module in (KMelSpectrogram(**SMALL, compression="log"), KSpectrogram(64), KSpectrogram(64, power=None)):
        expected = module(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = module(x)
        assert got.dtype == expected.dtype and torch.equal(got, expected)


@pytest.mark.parametrize(
    "module, waveform, message",
    [
        (KMelSpectrogram(**SMALL), torch.zeros(500, dtype=torch.int16), r"int16.*waveform.float\(\) / 32768"),
        (KMelSpectrogram(**SMALL), torch.zeros(500, dtype=torch.float64), r"waveform.float\(\) or module.double\(\)"),
        (KMelSpectrogram(**SMALL), torch.zeros(500, dtype=torch.complex64), "floating-point waveform"),
        (KMelSpectrogram(**SMALL), torch.zeros(500).numpy(), "torch.Tensor, got ndarray"),
        (KMelSpectrogram(**SMALL).bfloat16(), torch.zeros(500), r"bfloat16.*float32 or|float32 or float64.*bfloat16"),
        (KMelSpectrogram(**SMALL).half(), torch.zeros(500), "float16"),
        (KMelSpectrogram(**SMALL), torch.zeros(0), "time >= 1"),
        (KMelSpectrogram(**SMALL), torch.zeros(32), "n_fft = 64 needs at least 33 samples, got time = 32"),
        (KSpectrogram(64, center=False), torch.zeros(63), "one frame of n_fft = 64"),
    ],
)
def test_waveform_errors(module, waveform, message):
    with pytest.raises(ValueError, match=message):
        module(waveform)


# --- options ---


@pytest.mark.parametrize(
    "learnable, expected",
    [
        ((), []),
        (("transform",), ["spectrogram.transform.weight"]),
        (("filterbank",), ["mel_scale.fb"]),
        (("window",), ["spectrogram.window"]),
        (("compression",), ["compression.log_eps"]),
        (
            ("compression", "window", "filterbank", "transform"),
            ["compression.log_eps", "mel_scale.fb", "spectrogram.transform.weight", "spectrogram.window"],
        ),
    ],
)
def test_what_is_learnable_gets_a_gradient_and_nothing_else(learnable, expected):
    module = KMelSpectrogram(**SMALL, learnable=learnable, compression="log")
    assert sorted(n for n, p in module.named_parameters() if p.requires_grad) == expected
    x = noise(2, 500).requires_grad_()
    module(x).sum().backward()
    assert sorted(n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()) == expected
    assert x.grad is not None
    assert {"spectrogram.window", "mel_scale.fb", "spectrogram.transform.weight"} <= module.state_dict().keys()


@pytest.mark.parametrize("n_fft", [64, 60])
@pytest.mark.parametrize("width, expansion", [(2, 1), (1, 2), (3, 2), (1, 4), (2, 8)])
def test_wider_and_expanded_transforms_start_exact(n_fft, width, expansion):
    wide = KSpectrogram(n_fft, width=width, expansion=expansion, power=None, dtype=torch.float64)
    plain = KSpectrogram(n_fft, power=None, dtype=torch.float64)
    x = noise(500, dtype=torch.float64)
    assert wide.transform.width == width and wide.transform.size == 64 * max(expansion, plain.transform.size // 64)
    assert relative_error(wide(x), plain(x)) < 1e-12


@pytest.mark.parametrize("width, expansion", [(2, 1), (1, 2), (1, 4)])
def test_the_new_coefficients_can_learn(width, expansion):
    wide = KSpectrogram(64, width=width, expansion=expansion)
    (wide(noise(2000)) * torch.randn(33, 1)).sum().backward()
    grad = wide.transform.weight.grad
    joins = grad[-1, -1, 1] if expansion > 1 else grad[-1, :, 1]  # what joins the new places or stages to the outputs
    assert joins.abs().amax() > 0.01 * grad.abs().amax()


def test_random_orthogonal_start_has_the_level_of_the_fourier_transform():
    x = noise(50_000)
    fourier = float(Spectrogram(256)(x).mean())
    for width, expansion in ((1, 1), (2, 2)):
        random = KSpectrogram(256, init="orthogonal", width=width, expansion=expansion)
        assert float(random(x).mean().detach()) == pytest.approx(fourier, rel=0.1)
    assert relative_error(random(x), KSpectrogram(256, init="orthogonal")(x)) > 0.1


def test_init_from_a_k_matrix():
    x = noise(500)
    fourier = exact.dft(60)
    module = KSpectrogram(60, init=fourier, width=2)
    assert relative_error(module(x), KSpectrogram(60)(x)) < 1e-5
    with torch.no_grad():
        module.transform.weight.zero_()
    assert fourier.weight.any()  # a copy
    real = KSpectrogram(64, init=exact.hadamard(64), power=None)
    assert real(x).is_complex() and not real.transform.is_complex
    with pytest.raises(ValueError, match=r"n_fft = 64 points, got a KMatrix from 60 to 60"):
        KSpectrogram(64, init=fourier)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"win_length": 65}, "win_length <= n_fft = 64, got 65"),
        ({"win_length": 0}, "win_length to be an integer >= 1"),
        ({"hop_length": 0}, "hop_length to be an integer >= 1"),
        ({"n_fft": 1}, "n_fft to be an integer >= 2"),
        ({"n_fft": 64.0}, "n_fft to be an integer"),
        ({"pad": -1}, "pad to be an integer >= 0"),
        ({"pad_mode": "mirror"}, "pad_mode in"),
        ({"normalized": "max"}, "normalized in"),
        ({"power": 0.0}, "power > 0"),
        ({"power": None}, "needs a power"),
        ({"window_fn": lambda n: torch.ones(n + 1)}, r"window_fn to return \(64,\) samples, got \(65,\)"),
        ({"n_mels": 0}, "n_mels"),
        ({"f_min": 4000.0}, "f_min < f_max"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"norm": "area"}, "norm in"),
        ({"mel_scale": "bark"}, "mel_scale in"),
        ({"learnable": "filterbank"}, "collection"),
        ({"learnable": ("filters",)}, r"got \['filters'\]"),
        ({"learnable": ("compression",)}, "'compression', which is None"),
        ({"compression": "cube"}, "compression in"),
        ({"compression": "log", "eps": 0.0}, "eps > 0"),
        ({"compression": "pcen", "eps": -1.0}, "eps > 0"),
        ({"init": "fft"}, "init to be"),
        ({"width": 0}, "width"),
        ({"expansion": 0}, "expansion"),
        ({"dtype": torch.float16}, "dtype torch.float32 or torch.float64, got torch.float16"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        KMelSpectrogram(**{**SMALL, **options})


def test_ignored_arguments_are_reported_as_in_torchaudio():
    with pytest.warns(UserWarning, match="onesided is ignored"):
        KMelSpectrogram(**SMALL, onesided=True)
    with pytest.warns(UserWarning, match="return_complex is ignored"):
        KSpectrogram(64, return_complex=True)


def test_repr_tells_what_is_learnable():
    module = KMelSpectrogram(**SMALL, learnable=("filterbank",), compression="pcen")
    text = repr(module)
    assert "learnable=('filterbank',), learnable parameters=198" in text
    assert "learnable=(), learnable parameters=0" in text  # its spectrogram
    assert "n_fft=64, win_length=64, hop_length=16, power=2.0" in text and "gain=0.98" in text


# --- lengths ---


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("compression, pad", [(None, 0), ("log", 7), ("pcen", 0)])
def test_padded_items_give_what_they_give_alone(pad_mode, center, compression, pad):
    module = KMelSpectrogram(
        **SMALL, pad_mode=pad_mode, center=center, compression=compression, pad=pad, dtype=torch.float64
    )
    lengths = torch.tensor([900, 65, 640, 333])
    x = noise(4, 900, dtype=torch.float64)
    x[torch.arange(900) >= lengths.unsqueeze(1)] = math.nan
    features, counts = module(x, lengths)
    assert features.shape == (4, 6, counts.max())
    for i, length in enumerate(lengths.tolist()):
        alone = module(x[i, :length])
        assert counts[i] == alone.shape[-1]
        assert torch.allclose(features[i, :, : counts[i]], alone, rtol=1e-10, atol=1e-12)
        assert torch.all(features[i, :, counts[i] :] == 0)


def test_counts_follow_the_hop():
    module = KMelSpectrogram(**SPEECH)
    _, counts = module(noise(3, 16000), torch.tensor([16000, 15999, 800]))
    assert counts.tolist() == [16000 // 160 + 1, 15999 // 160 + 1, 800 // 160 + 1]
    assert (module.n_features, module.sample_rate, module.hop_length) == (40, 16000, 160)


def test_spectrogram_with_lengths():
    module = KSpectrogram(64, power=None)
    x = noise(2, 500)
    features, counts = module(x, torch.tensor([500, 200]))
    assert counts.tolist() == [16, 7]
    assert relative_error(features[1, :, :7], module(x[1, :200])) < 1e-5
    assert torch.all(features[1, :, 7:] == 0)


def test_gradients_of_padded_items_are_those_alone():
    module = KMelSpectrogram(**SMALL, compression="log", dtype=torch.float64)
    x = noise(2, 400, dtype=torch.float64).requires_grad_()
    features, _ = module(x, torch.tensor([400, 150]))
    (together,) = torch.autograd.grad(features[1].sum(), x)
    (alone,) = torch.autograd.grad(module(x[1, :150]).sum(), x)
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "lengths, message",
    [
        ([500, 0], r"between 1 and time = 500 samples, got \[500, 0\]"),
        ([500, -3], "between 1 and time = 500"),
        ([501, 3], "between 1 and time = 500"),
        ([500, 30], r"got time = 30 \(item 1 of the batch\)"),
        ([500], r"lengths \(batch,\), got \(2, 500\) and \(1,\)"),
        ([500.0, 40.0], "integers"),
    ],
)
def test_length_errors(lengths, message):
    with pytest.raises(ValueError, match=message):
        KMelSpectrogram(**SMALL)(noise(2, 500), torch.tensor(lengths))


# --- gradients ---


@pytest.mark.parametrize("power, compression", [(1.0, "log"), (2.0, "pcen")])
def test_gradcheck(power, compression):
    module = KMelSpectrogram(
        8000,
        8,
        hop_length=4,
        n_mels=2,
        power=power,
        learnable=("transform", "filterbank", "window", "compression"),
        compression=compression,
        eps=1e-2,
        dtype=torch.float64,
    )
    with torch.no_grad():
        module.mel_scale.fb.add_(0.1)  # away from zero, where the gradient is not a derivative
        module.spectrogram.window.add_(0.1)
    names = [name for name, _ in module.named_parameters()]
    x = noise(14, dtype=torch.float64)

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (x, *(p.detach().clone() for p in module.parameters()))
    assert torch.autograd.gradcheck(function, [i.requires_grad_() for i in inputs])


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("compression", [None, "log", "log10", "db", "pcen"])
def test_silence_is_finite_with_finite_gradients(power, compression):
    learnable = ("transform", "filterbank", "window") + (("compression",) if compression else ())
    module = KMelSpectrogram(**SMALL, power=power, compression=compression, learnable=learnable)
    x = torch.zeros(2, 500, requires_grad=True)
    features = module(x)
    features.sum().backward()
    assert features.isfinite().all() and torch.all(x.grad == 0)
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_training_moves_every_part_and_lowers_the_loss():
    module = KMelSpectrogram(
        **SMALL, compression="log", learnable=("transform", "filterbank", "window", "compression"), eps=1e-3
    )
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    x, target = noise(4, 800), noise(4, 6, 51, seed=3)
    losses = []
    for _ in range(15):
        loss = (module(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(before[name], parameter) for name, parameter in module.named_parameters())


def test_zeros_of_the_filterbank_learn():
    module = KMelSpectrogram(**SMALL, learnable=("filterbank",))
    zero = module.mel_scale.fb.detach() == 0
    x = noise(4, 800)
    target = Spectrogram(64, hop_length=16)(x).sum(1, keepdim=True)  # every filter should pass every frequency
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        (module(x) - target).square().mean().backward()
        optimizer.step()
    assert (module.mel_scale.weights[zero] > 0.1).float().mean() > 0.9


# --- physical facts ---


@pytest.mark.parametrize("n_fft", [400, 512])
def test_a_tone_lands_in_its_bin(n_fft):
    for bin_ in (3, 50, n_fft // 2 - 5):
        tone = torch.sin(2 * math.pi * bin_ / n_fft * torch.arange(4000, dtype=torch.float64)).float()
        spectrum = KSpectrogram(n_fft, hop_length=100)(tone)[:, 5:-5].detach()
        assert torch.all(spectrum.argmax(0) == bin_)
        # A Hann window spreads a tone over three bins; the rest is below -80 dB.
        others = torch.cat([spectrum[: bin_ - 1], spectrum[bin_ + 2 :]])
        assert others.max() < 1e-8 * spectrum.max()


def test_parseval():
    module = KSpectrogram(60, window_fn=torch.ones, center=False, hop_length=60, onesided=False, dtype=torch.float64)
    x = noise(600, dtype=torch.float64)
    assert torch.allclose(module(x).sum(0) / 60, x.view(10, 60).square().sum(1))


def test_decibels_follow_the_level():
    for power in (1.0, 2.0):
        module = KMelSpectrogram(**SMALL, compression="db", power=power, eps=1e-20)
        x = noise(800)
        assert torch.allclose(module(10 * x) - module(x), torch.tensor(20.0), atol=1e-3)


# --- parts, compile ---


def test_parts_check_their_arguments():
    with pytest.raises(ValueError, match=r"\(n_freqs, n_bands\), got \(3,\)"):
        Filterbank(torch.ones(3))
    with pytest.raises(ValueError, match="compression in"):
        Compression("pcen", 3)
    with pytest.raises(ValueError, match="gain > 0"):
        PCEN(3, 16000, 160, gain=0.0)
    with pytest.raises(ValueError, match="kind in"):
        FlooredLogarithm("pcen")
    with pytest.raises(ValueError, match="floor > 0, got 0"):
        FlooredLogarithm(floor=0.0)
    with pytest.raises(ValueError, match="power > 0"):
        FlooredLogarithm("db", power=-1.0)


def test_learnable_compressions_start_where_fixed_ones_are():
    x = noise(2, 5, 200).square()
    for kind in ("log", "log10", "db"):
        assert relative_error(Compression(kind, 5, learnable=True)(x), Compression(kind, 5)(x)) < 1e-5
    assert relative_error(PCEN(5, 16000, 160, learnable=True)(x), PCEN(5, 16000, 160)(x)) < 1e-5


@pytest.mark.parametrize("kind", ["log", "log10", "db"])
def test_a_floor_is_like_an_offset_above_it_and_has_no_gradient_below(kind):
    x = torch.logspace(-4, 4, 50, dtype=torch.float64).requires_grad_()
    floored = FlooredLogarithm(kind, floor=1e-2, power=1.0)
    got, offset = floored(x), Compression(kind, 1, power=1.0, eps=1e-12)(x.unsqueeze(0))[0]
    above = x >= 1e-2
    assert torch.allclose(got[above], offset[above])
    assert torch.equal(got[~above], floored(torch.full_like(x[~above], 1e-2)))
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert torch.equal(gradient != 0, above)


def test_filters_and_a_floor_of_ones_own():
    module, given = KMelSpectrogram(**SMALL), torch.rand(33, 5, generator=torch.Generator().manual_seed(0))
    bands = KMelSpectrogram(**SMALL)
    bands.mel_scale = module.mel_scale = Filterbank(given)
    module.compression = FlooredLogarithm("log10", floor=0.1)
    x, lengths = noise(2, 600), torch.tensor([600, 300])
    assert relative_error(module(x), bands(x).clamp(min=0.1).log10()) < 1e-6 and module.n_features == 5
    features, counts = module(x, lengths)
    assert counts.tolist() == [38, 19] and not features[1, :, 19:].any()
    assert relative_error(features[1, :, :19], module(x[1, :300])) < 1e-5
    fresh = KMelSpectrogram(**{**SMALL, "n_mels": 5})
    fresh.compression = FlooredLogarithm("log10", floor=0.1)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), module(x))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x, lengths)[0], features) < 1e-6
    assert relative_error(torch.export.export(module, (x,)).module()(x), module(x)) < 1e-6


@pytest.mark.parametrize("n_fft, compression", [(8, "log"), (6, "pcen")])
def test_compile_in_one_graph(n_fft, compression):
    learnable = ("transform", "filterbank", "window", "compression")
    module = KMelSpectrogram(8000, n_fft, n_mels=2, compression=compression, learnable=learnable)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, lengths = noise(2, 100), torch.tensor([100, 60])
    features, counts = compiled(x, lengths)
    expected, expected_counts = module(x, lengths)
    assert torch.equal(counts, expected_counts)
    assert relative_error(features, expected) < 1e-5
    parameters = list(module.parameters())
    for got, grad in zip(
        torch.autograd.grad(features.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        assert torch.allclose(got, grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()))


def test_export():
    module = KMelSpectrogram(8000, 32, n_mels=3, compression="log")
    x = noise(2, 200)
    program = torch.export.export(module, (x,))
    assert relative_error(program.module()(x), module(x)) < 1e-6


def test_a_k_matrix_is_what_is_inside():
    assert isinstance(KMelSpectrogram(**SMALL).spectrogram.transform, KMatrix)


def trained(**options) -> KMelSpectrogram:
    """After some steps that leave negative values in the filterbank's parameter."""
    module = KMelSpectrogram(**SMALL, compression="log", **options)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    x = noise(4, 600)
    for _ in range(10):
        optimizer.zero_grad()
        (module(x) + 15).square().mean().backward()
        optimizer.step()
    assert (module.mel_scale.fb < 0).any()
    return module


def test_negative_weights_count_as_zero_however_the_module_is_called():
    module, x = trained(), noise(2, 600)
    expected = module(x).detach()
    plain = {name: parameter.detach() for name, parameter in module.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(module, plain, (x,)), expected)
    frozen = KMelSpectrogram(**SMALL, compression="log", learnable=())
    frozen.load_state_dict(module.state_dict())
    torch.testing.assert_close(frozen(x), expected)
    replicas = torch.func.stack_module_state([module, module])
    results = torch.vmap(lambda p, b: torch.func.functional_call(module, (p, b), (x,)))(*replicas)
    torch.testing.assert_close(results[0], expected)

    def loss(parameters):
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    module.zero_grad()
    module(x).square().sum().backward()
    for name, gradient in torch.func.grad(loss)(plain).items():
        torch.testing.assert_close(gradient, module.get_parameter(name).grad)


@pytest.mark.parametrize("other", ["orthogonal", KMatrix(64, dtype=torch.complex64)], ids=["orthogonal", "KMatrix"])
def test_a_state_dict_means_the_same_whatever_the_module_began_with(other):
    x = noise(600)
    for first, second in ((other, "fourier"), ("fourier", other)):
        source, target = (KSpectrogram(64, hop_length=16, init=init) for init in (first, second))
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(target(x), source(x))


@pytest.mark.parametrize("kind", [torch.int16, torch.int32, torch.uint16])
@pytest.mark.parametrize("make", [MFSC, KMelSpectrogram, KFbank, SincNet])
def test_lengths_of_any_integer_type(make, kind):
    torch.manual_seed(0)
    options = {"context": "utterance", "n_filters": (4, 4, 4, 4)} if make is SincNet else {}
    module, x = make(**options).eval(), noise(2, 32760)
    lengths = torch.tensor([32760, 32700])
    for got, expected in zip(module(x, lengths.to(kind)), module(x, lengths), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("make", [MFSC, KMelSpectrogram, KFbank, SincNet])
def test_lengths_have_to_be_a_tensor(make):
    with pytest.raises(ValueError, match=r"expected lengths as a torch.Tensor of integers \(samples\), got list"):
        make()(noise(1, 1000), [1000])


@pytest.mark.parametrize("make", [MFSC, KMelSpectrogram, KFbank, SincNet])
def test_waveforms_that_are_no_tensors_or_too_wide_are_named(make):
    with pytest.raises(ValueError, match=r"expected the waveform as a torch.Tensor, got ndarray"):
        make()(noise(1, 1000).numpy())
    with pytest.raises(ValueError, match=r"waveform is float64 and the front end float32"):
        make()(noise(1, 1000).double())


@pytest.mark.parametrize("make", [MFSC, KMelSpectrogram, KFbank])
def test_empty_batches_and_the_meta_device(make):
    module = make()
    assert module(torch.empty(0, 1000)).shape == (0, *module(noise(1, 1000)).shape[1:])
    on_meta = module.to("meta")(torch.empty(2, 1000, device="meta"))
    assert on_meta.shape == make()(noise(2, 1000)).shape


def test_what_it_is_made_of_is_copied():
    window, fb = torch.hann_window(64), torch.rand(33, 6)
    module = KMelSpectrogram(**SMALL, window_fn=lambda length: window, learnable=("window",))
    bank = Filterbank(fb)
    with torch.no_grad():
        module.spectrogram.window.add_(1)
        bank.fb.add_(1)
    assert torch.equal(window, torch.hann_window(64)) and fb.max() <= 1


def test_a_constraint_of_the_start_stays():
    start = KMatrix(64, constraint="odo", tied=True)
    module = KSpectrogram(64, init=start)
    assert module.transform.constraint == "odo" and module.transform.tied and module.transform is not start
    torch.testing.assert_close(module.transform.to_dense(), start.to_dense())
    with pytest.raises(ValueError, match=r"constraint='odo' and tied=True is taken as it is"):
        KSpectrogram(64, init=start, width=2)
    with pytest.raises(ValueError, match="from 64 to 65"):
        KSpectrogram(64, init=KMatrix(64, out_features=65, dtype=torch.complex64))


def test_numbers_that_torchaudio_takes(torchaudio_transforms):
    x = noise(2000)
    ours = KMelSpectrogram(8000.0, np.int64(64), hop_length=np.int32(16), n_mels=6)
    theirs = torchaudio_transforms.MelSpectrogram(8000.0, 64, hop_length=16, n_mels=6)
    assert relative_error(ours(x), theirs(x)) < 1e-5
    assert relative_error(KMelSpectrogram.from_torchaudio(theirs)(x), theirs(x)) < 1e-5


def test_from_torchaudio_refuses_what_it_would_not_reproduce(torchaudio_transforms):
    class LogMel(torchaudio_transforms.MelSpectrogram):
        def forward(self, waveform):
            return super().forward(waveform).log()

    with pytest.raises(ValueError, match=r"LogMel has a forward\(\) of its own"):
        KMelSpectrogram.from_torchaudio(LogMel(16000, 512, n_mels=10))
    with pytest.raises(ValueError, match="expected a torchaudio"):
        KMelSpectrogram.from_torchaudio(KMelSpectrogram(**SMALL))


@pytest.mark.parametrize("compression", ["log", "pcen"])
def test_export_with_any_number_of_frames(compression):
    module = KMelSpectrogram(**SMALL, compression=compression)
    program = torch.export.export(module, (noise(2, 600),), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},))
    for samples in (100, 601, 40_000):
        x = noise(2, samples)
        torch.testing.assert_close(program.module()(x), module(x), rtol=1e-4, atol=1e-4)


def test_jit_trace_of_another_length():
    module = KMelSpectrogram(**SMALL, compression="log")
    traced = torch.jit.trace(module, noise(2, 600))
    torch.testing.assert_close(traced(noise(2, 900)), module(noise(2, 900)))


@pytest.mark.parametrize("options", [{}, {"f_min": 50.0, "f_max": 3000.0, "pad": 3, "power": 1.0, "normalized": True}])
def test_attributes_of_torchaudios_module(torchaudio_transforms, options):
    theirs = torchaudio_transforms.MelSpectrogram(**SMALL, **options)
    mine = KMelSpectrogram(**SMALL, **options)
    names = "sample_rate n_fft win_length hop_length pad power normalized n_mels f_min f_max".split()
    assert {name: getattr(mine, name) for name in names} == {name: getattr(theirs, name) for name in names}


@pytest.mark.parametrize("compression", [None, "log", "pcen"])
def test_forward_mode_derivatives_by_the_parameters(compression):
    front_end = KMelSpectrogram(**SMALL, compression=compression, dtype=torch.float64)
    parameters, x = dict(front_end.named_parameters()), noise(2, 500, dtype=torch.float64)
    tangents = {name: torch.randn_like(p) * (p != 0) for name, p in parameters.items()}

    def loss(parameters):
        return torch.func.functional_call(front_end, parameters, (x,)).square().mean()

    _, derivative = torch.func.jvp(loss, (parameters,), (tangents,))
    gradients = torch.func.grad(loss)(parameters)
    expected = sum((gradients[name] * tangents[name]).sum() for name in parameters)
    torch.testing.assert_close(derivative, expected)
