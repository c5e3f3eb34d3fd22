from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kaleido_audio import exact
from kaleido_audio import functional as F

PAD_MODES = ("reflect", "constant", "replicate", "circular")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def stft(x: Tensor, n_fft: int, hop: int, window: Tensor, **options) -> Tensor:
    return torch.stft(x, n_fft, hop, len(window), window, return_complex=True, **options)


# --- mel filterbanks ---


@pytest.mark.parametrize("mel_scale", ["htk", "slaney"])
def test_mel_scale_equals_librosa(mel_scale):
    librosa = pytest.importorskip("librosa")
    hz = torch.tensor([0.0, 20.0, 440.0, 999.0, 1000.0, 1001.0, 8000.0], dtype=torch.float64)
    mel = librosa.hz_to_mel(hz.numpy(), htk=mel_scale == "htk")
    np.testing.assert_allclose(F.hz_to_mel(hz, mel_scale).numpy(), mel, rtol=1e-13)
    np.testing.assert_allclose(
        F.mel_to_hz(torch.from_numpy(mel), mel_scale).numpy(), hz.numpy(), rtol=1e-12, atol=1e-10
    )


def test_mel_scales_have_their_defining_points():
    assert F.hz_to_mel(torch.tensor(1000.0), "htk") == pytest.approx(999.99, abs=0.01)
    assert F.hz_to_mel(torch.tensor(6400.0), "slaney") == pytest.approx(15 + 27)


FILTERBANKS = [
    (257, 0.0, 8000.0, 40, 16000, None, "htk"),
    (201, 20.0, 7600.0, 80, 16000, "slaney", "slaney"),
    (513, 0.0, 11025.0, 128, 22050, "slaney", "htk"),
    (129, 100.0, 4000.0, 23, 8000, None, "slaney"),
    (128, 0.0, 8000.0, 24, 16000, None, "htk"),  # of an odd n_fft, 255
    (101, 0.0, 5512.0, 20, 11025, None, "htk"),  # of an odd sample rate
]


@pytest.mark.parametrize("arguments", FILTERBANKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mel_filterbank_equals_torchaudio(arguments, dtype):
    melscale_fbanks = pytest.importorskip("torchaudio").functional.melscale_fbanks
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = melscale_fbanks(*arguments)
            got = F.mel_filterbank(*arguments)
    finally:
        torch.set_default_dtype(default)
    assert got.dtype == dtype
    assert relative_error(got, expected) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("arguments", FILTERBANKS[:4])
def test_mel_filterbank_equals_librosa(arguments):
    librosa = pytest.importorskip("librosa")
    n_freqs, f_min, f_max, n_mels, sample_rate, norm, mel_scale = arguments
    expected = librosa.filters.mel(
        sr=sample_rate,
        n_fft=2 * (n_freqs - 1),
        n_mels=n_mels,
        fmin=f_min,
        fmax=f_max,
        htk=mel_scale == "htk",
        norm=norm,
        dtype=np.float64,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = F.mel_filterbank(*arguments, dtype=torch.float64)
    np.testing.assert_allclose(got.T.numpy(), expected, atol=1e-10 * expected.max())


def test_triangles_overlap_to_one_and_slaney_ones_have_unit_area():
    fb = F.mel_filterbank(4097, 0.0, 8000.0, 20, 16000, dtype=torch.float64)
    centres = fb.argmax(0)
    assert torch.allclose(fb.sum(1)[centres[0] : centres[-1]], torch.ones((), dtype=torch.float64), atol=1e-9)
    area = F.mel_filterbank(4097, 0.0, 8000.0, 20, 16000, "slaney", dtype=torch.float64).sum(0) * (8000 / 4096)
    assert torch.allclose(area, torch.ones_like(area), atol=1e-3)


def test_filters_without_a_bin_are_reported():
    with pytest.warns(UserWarning, match=r"mel filters hold no frequency bin.*n_mels \(128\).*n_freqs = 65"):
        F.mel_filterbank(65, 0.0, 8000.0, 128, 16000)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"norm": "area"}, "norm in"),
        ({"mel_scale": "bark"}, "mel_scale in"),
        ({"f_min": 4000.0, "f_max": 100.0}, "f_min < f_max"),
        ({"f_min": -1.0}, "f_min < f_max"),
        ({"n_mels": 0}, "n_mels"),
    ],
)
def test_mel_filterbank_errors(changed, message):
    arguments = {"n_freqs": 65, "f_min": 0.0, "f_max": 4000.0, "n_mels": 8, "sample_rate": 8000} | changed
    with pytest.raises(ValueError, match=message):
        F.mel_filterbank(**arguments)


# --- non-negative weights ---


def test_nonnegative_lets_zeros_grow_and_holds_them_at_zero():
    start = torch.tensor([0.0, 0.0, 1.0, -0.2], dtype=torch.float64)
    target = torch.tensor([0.7, -0.5, 0.3, 0.4], dtype=torch.float64)
    weights = start.clone().requires_grad_()
    for _ in range(200):
        (grad,) = torch.autograd.grad((F.nonnegative(weights) - target).square().sum(), weights)
        weights = (weights - 0.1 * grad).detach().requires_grad_()
        assert F.nonnegative(weights).min() >= 0
    assert torch.allclose(F.nonnegative(weights), target.clamp(min=0), atol=1e-6)
    assert weights[1] == 0  # never pushed below zero, so it could grow at once


def test_nonnegative_is_the_identity_for_positive_weights():
    weights = (noise(3, 4).abs() + 0.01).requires_grad_()
    assert torch.equal(F.nonnegative(weights), weights)
    assert torch.autograd.gradcheck(F.nonnegative, weights)
    assert torch.autograd.gradgradcheck(lambda w: F.nonnegative(w) ** 3, weights)
    per_row = torch.vmap(torch.func.grad(lambda w: (F.nonnegative(w) ** 2).sum()))(weights.detach())
    assert torch.allclose(per_row, 2 * weights)


# --- framing ---


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("n_fft", [16, 15])
@pytest.mark.parametrize("pad", [0, 5])
def test_frames_are_those_of_stft(pad_mode, n_fft, pad):
    x = noise(2, 3, 50)
    frames = F.frame(x, n_fft, 7, pad=pad, pad_mode=pad_mode)
    padded = torch.nn.functional.pad(x, (pad, pad)).reshape(6, -1)
    expected = stft(padded, n_fft, 7, torch.ones(n_fft, dtype=x.dtype), pad_mode=pad_mode)
    assert torch.allclose(torch.fft.rfft(frames).transpose(-1, -2).reshape(expected.shape), expected)
    assert frames.shape[-2] == int(F.frame_counts(torch.tensor(50), n_fft, 7, pad=pad))


def test_frame_t_is_centred_on_sample_t_times_hop():
    x = torch.zeros(1000)
    x[10 * 16] = 1
    frames = F.frame(x, 64, 16)
    assert frames[9:13].argmax(-1).tolist() == [48, 32, 16, 0]


def test_frames_without_padding_are_a_view():
    x = noise(2, 100)
    assert F.frame(x, 10, 5, center=False).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("n_fft", [16, 15])
def test_padded_items_have_the_frames_they_have_alone(pad_mode, center, pad, n_fft):
    lengths = torch.tensor([60, 17, 33, 59])
    x = noise(4, 60)
    x[torch.arange(60) >= lengths.unsqueeze(1)] = math.nan  # must not be looked at
    options = {"pad": pad, "center": center, "pad_mode": pad_mode}
    frames = F.frame(x, n_fft, 4, lengths=lengths, **options)
    counts = F.frame_counts(lengths, n_fft, 4, pad=pad, center=center)
    assert frames.isfinite().all()
    for item, length, count in zip(x, lengths.tolist(), counts.tolist(), strict=True):
        assert len(F.frame(item[:length], n_fft, 4, **options)) == count
    for i, length in enumerate(lengths.tolist()):
        alone = F.frame(x[i, :length], n_fft, 4, **options)
        assert torch.equal(frames[i, : counts[i]], alone)


def test_no_gradient_reaches_the_padding():
    x = noise(2, 40).requires_grad_()
    lengths = torch.tensor([40, 25])
    frames = F.frame(x, 16, 4, lengths=lengths)
    counts = F.frame_counts(lengths, 16, 4)
    kept = F.mask_frames(frames.transpose(1, 2), counts)
    (grad,) = torch.autograd.grad(kept.square().sum(), x)
    assert torch.all(grad[1, 25:] == 0) and torch.all(grad[1, :25] != 0)


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((8,), {"pad_mode": "reflect"}, r"n_fft = 16 needs at least 9 samples, got time = 8"),
        ((7,), {"pad_mode": "circular"}, r"needs at least 8 samples, got time = 7"),
        ((15,), {"center": False}, r"one frame of n_fft = 16 needs at least 16 samples, got time = 15"),
        ((4,), {"pad": 2}, r"got time = 4 and pad = 2"),
        ((2, 0), {}, r"time >= 1, got shape \(2, 0\)"),
        ((), {}, r"got shape \(\)"),
        ((100,), {"pad_mode": "mirror"}, "pad_mode in"),
        ((100,), {"pad": -1}, "pad to be"),
        ((100,), {"lengths": torch.tensor([3])}, r"\(batch, time\)"),
        ((2, 100), {"lengths": torch.tensor([3])}, r"\(2, 100\) and \(1,\)"),
        ((2, 100), {"lengths": torch.tensor([100, 0])}, r"between 1 and time = 100 samples, got \[100, 0\]"),
        ((2, 100), {"lengths": torch.tensor([100, -5])}, "between 1 and time = 100"),
        ((2, 100), {"lengths": torch.tensor([101, 50])}, "between 1 and time = 100"),
        ((2, 100), {"lengths": torch.tensor([100, 8])}, r"got time = 8 \(item 1 of the batch\)"),
        ((2, 100), {"lengths": torch.tensor([100.0, 50.0])}, "integers"),
    ],
)
def test_frame_errors(shape, options, message):
    with pytest.raises(ValueError, match=message):
        F.frame(torch.zeros(shape), 16, 4, **options)


# --- spectrograms ---


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_spectrograms_equal_stft_for_any_settings(data):
    n_fft = data.draw(st.one_of(st.sampled_from([2, 16, 64]), st.integers(3, 70)), label="n_fft")
    win_length = data.draw(st.integers(1, n_fft), label="win_length")
    hop = data.draw(st.integers(1, n_fft + 5), label="hop")
    center = data.draw(st.booleans(), label="center")
    pad_mode = data.draw(st.sampled_from(PAD_MODES), label="pad_mode")
    pad = data.draw(st.integers(0, 20), label="pad")
    onesided = data.draw(st.booleans(), label="onesided")
    frame_norm = data.draw(st.booleans(), label="frame_length")
    power = data.draw(st.sampled_from([None, 0.5, 1.0, 1.5, 2.0, 3.0]), label="power")
    time = data.draw(st.integers(n_fft + 1, 3 * n_fft + 40), label="time")
    x, window = noise(2, time), noise(win_length, seed=1).abs() + 0.1

    expected = stft(
        torch.nn.functional.pad(x, (pad, pad)),
        n_fft,
        hop,
        window,
        center=center,
        pad_mode=pad_mode,
        onesided=onesided,
        normalized=frame_norm,
    )
    expected = expected if power is None else expected.abs() ** power
    arguments = (
        x,
        pad,
        window,
        n_fft,
        hop,
        win_length,
        power,
        "frame_length" if frame_norm else False,
        center,
        pad_mode,
    )
    fixed = F.spectrogram(*arguments, onesided)
    assert fixed.shape == expected.shape
    assert relative_error(fixed, expected) < 1e-10

    dft = exact.dft(n_fft, dtype=torch.complex128)
    learnable = F.k_spectrogram(*arguments, factors=dft.factors, rows=torch.arange(expected.shape[-2]))
    assert learnable.shape == expected.shape
    assert relative_error(learnable, expected) < (1e-10 if power != 0.5 else 1e-7)


def test_window_normalization_gives_white_noise_its_variance():
    x = noise(200_000)
    window = torch.hann_window(64, dtype=torch.float64)
    power = F.spectrogram(x, 0, window, 64, 32, 64, 2.0, "window").mean()
    assert power == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_silence_has_a_zero_gradient(power):
    x = torch.zeros(2, 100, requires_grad=True)
    factors = exact.dft(16, bit_reversed=True).factors.detach().requires_grad_()
    spectrum = F.k_spectrogram(x, 0, torch.ones(16), 16, 8, 16, power, factors=factors, rows=torch.arange(9))
    grads = torch.autograd.grad(spectrum.sum(), (x, factors))
    assert torch.all(spectrum == 0) and all(torch.all(grad == 0) for grad in grads)


def test_a_real_map_has_a_complex_spectrum_without_power():
    factors = exact.hadamard(16).factors
    arguments = (noise(100, dtype=torch.float32), 0, torch.ones(16), 16, 8, 16)
    spectrum = F.k_spectrogram(*arguments, None, factors=factors, rows=torch.arange(9))
    assert spectrum.is_complex() and torch.all(spectrum.imag == 0)
    power = F.k_spectrogram(*arguments, 2.0, factors=factors, rows=torch.arange(9))
    assert torch.allclose(power, spectrum.real.square())


def test_k_mel_spectrogram_is_the_filterbank_of_the_spectrogram():
    x, window = noise(2, 400), torch.hann_window(64, dtype=torch.float64)
    fb = F.mel_filterbank(33, 0.0, 4000.0, 6, 8000, dtype=torch.float64)
    dft, rows = exact.dft(64, bit_reversed=True, dtype=torch.complex128), exact.bit_reversal(64)[:33]
    got = F.k_mel_spectrogram(x, 0, window, 64, 16, 64, 2.0, factors=dft.factors, rows=rows, fb=fb)
    wanted = fb.T @ F.spectrogram(x, 0, window, 64, 16, 64, 2.0)
    assert relative_error(got, wanted) < 1e-12
    options = {"factors": dft.factors, "rows": rows, "fb": fb, "log_scale": 3.0}
    offset = F.k_mel_spectrogram(x, 0, window, 64, 16, 64, 2.0, **options, eps=0.1)
    assert relative_error(offset, 3 * (wanted + 0.1).log()) < 1e-12
    floored = F.k_mel_spectrogram(x, 0, window, 64, 16, 64, 2.0, **options, floor=float(wanted.median()))
    assert relative_error(floored, 3 * wanted.clamp(min=wanted.median()).log()) < 1e-12


def test_filterbank_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(5, 7\) and \(4, 2\)"):
        F.apply_filterbank(torch.zeros(5, 7), torch.zeros(4, 2))


# --- compression ---


def test_logarithms():
    x = noise(2, 3, 5).abs()
    assert torch.allclose(F.log_compression(x, 1e-3), (x + 1e-3).log())
    assert torch.allclose(F.log10_compression(x), (x + 1e-6).log10())
    per_channel = torch.tensor([1e-3, 1e-2, 1e-1], dtype=torch.float64)
    assert torch.allclose(F.log_compression(x, per_channel)[:, 1], (x[:, 1] + 1e-2).log())
    # The same level in decibels from power and from magnitude.
    assert torch.allclose(F.db_compression(x**2, 2.0, 1e-300), F.db_compression(x, 1.0, 1e-300))
    with pytest.raises(ValueError, match=r"one value per channel of features \(2, 3, 5\), got shape \(4,\)"):
        F.log_compression(x, torch.ones(4))


@pytest.mark.parametrize("frames", [1, 2, 31, 32, 33, 64, 700, 3000])
def test_pcen_equals_librosa(frames):
    librosa = pytest.importorskip("librosa")
    x = noise(2, 5, frames).square() * 100
    for options in ({}, {"gain": 0.8, "bias": 10.0, "power": 0.25, "eps": 1e-8}):
        expected = librosa.pcen(x.numpy(), sr=16000, hop_length=160, time_constant=0.06, **options)
        got = F.pcen(x, F.pcen_smoothing(0.06, 16000, 160), initial=1.0, **options)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)


def test_pcen_of_channels_with_their_own_parameters():
    x = noise(2, 3, 100).abs()
    smoothing, gain = torch.tensor([0.02, 0.5, 1.0]), torch.tensor([0.9, 0.5, 0.98])
    bias, power = torch.tensor([1.0, 2.0, 10.0]), torch.tensor([0.5, 1.0, 0.2])
    together = F.pcen(x, smoothing, gain=gain, bias=bias, power=power)
    for c in range(3):
        numbers = {"gain": float(gain[c]), "bias": float(bias[c]), "power": float(power[c])}
        alone = F.pcen(x[:, c : c + 1], float(smoothing[c]), **numbers)
        assert torch.allclose(together[:, c : c + 1], alone, rtol=1e-10)


def test_pcen_does_not_depend_on_the_level_of_the_audio():
    x = noise(4, 300).square() + 1e-3
    loud, quiet = (F.pcen(scale * x, 0.025, gain=1.0, eps=1e-12) for scale in (1.0, 1e-4))
    assert torch.allclose(loud, quiet, rtol=1e-5)


def test_pcen_can_go_on_from_a_level():
    x = noise(3, 200).square()
    level = x[:, 0]
    for t in range(120):
        level = 0.95 * level + 0.05 * x[:, t]
    assert torch.allclose(F.pcen(x, 0.05)[:, 120:], F.pcen(x[:, 120:], 0.05, initial=level), rtol=1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("frames", "at"), [(20, 0), (20, 7), (100, 40), (3000, 2000)])
def test_pcen_knows_nothing_of_what_comes(frames, at, bad):
    x = torch.rand(2, 3, frames)
    expected = F.pcen(x, 0.1)
    x[0, 1, at] = bad
    y = F.pcen(x, 0.1)
    assert not y[0, 1, at:].isfinite().any()
    y[0, 1, at:] = expected[0, 1, at:]
    torch.testing.assert_close(y, expected)


def test_pcen_gradients():
    x = (noise(2, 2, 40).square() + 1e-3).requires_grad_()
    start = ((0.1, 0.5), (0.9, 0.98), (2.0, 1.0), (0.5, 0.3))
    parameters = [torch.tensor(pair, dtype=torch.float64, requires_grad=True) for pair in start]

    def function(x, smoothing, gain, bias, power):
        return F.pcen(x, smoothing, gain=gain, bias=bias, power=power, eps=1e-3)

    assert torch.autograd.gradcheck(function, (x, *parameters))


def test_pcen_of_silence_is_zero_with_finite_gradients():
    x = torch.zeros(2, 50, requires_grad=True)
    smoothing = torch.tensor(0.025, requires_grad=True)
    result = F.pcen(x, smoothing)
    grads = torch.autograd.grad(result.sum(), (x, smoothing))
    assert torch.all(result == 0) and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"smoothing": 0.0}, r"smoothing in \(0, 1\]"),
        ({"smoothing": 1.5}, r"smoothing in \(0, 1\]"),
        ({"gain": -1.0}, "gain > 0"),
        ({"bias": 0.0}, "bias > 0"),
        ({"power": 0.0}, "power > 0"),
        ({"eps": 0.0}, "eps > 0"),
    ],
)
def test_pcen_errors(options, message):
    with pytest.raises(ValueError, match=message):
        F.pcen(torch.ones(2, 5), **{"smoothing": 0.1, **options})


def test_pcen_needs_channels_and_a_time_constant():
    with pytest.raises(ValueError, match="n_channels, frames"):
        F.pcen(torch.ones(5), 0.1)
    with pytest.raises(ValueError, match="time_constant > 0"):
        F.pcen_smoothing(0.0, 16000, 160)
