from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from kaleido_audio.frontends import MFSC
from kaleido_audio.transforms import KMelSpectrogram


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def test_the_documented_learnable_twin_starts_equal():
    twin = KMelSpectrogram(16000, 512, 400, 160, 20.0, n_mels=40, window_fn=torch.hamming_window, compression="log")
    x = noise(2, 16000)
    assert relative_error(MFSC()(x), twin(x)) < 1e-5
    missing = twin.load_state_dict(MFSC().state_dict(), strict=False).missing_keys
    assert missing == ["spectrogram.rows", "spectrogram.transform.weight"]


@pytest.mark.parametrize("compression", [None, "log", "log10", "db", "pcen"])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_shared_settings_give_equal_features(compression, power):
    settings = {
        "sample_rate": 8000,
        "n_fft": 200,
        "win_length": 180,
        "hop_length": 50,
        "f_min": 100.0,
        "f_max": 3800.0,
        "pad": 10,
        "n_mels": 12,
        "window_fn": torch.hann_window,
        "power": power,
        "normalized": True,
        "pad_mode": "constant",
        "norm": "slaney",
        "mel_scale": "slaney",
        "compression": compression,
        "eps": 1e-5,
    }
    lengths = torch.tensor([2000, 1203])
    x = noise(2, 2000)
    (fixed, counts), (learnable, expected_counts) = (cls(**settings)(x, lengths) for cls in (MFSC, KMelSpectrogram))
    assert torch.equal(counts, expected_counts)
    assert relative_error(fixed, learnable) < 1e-5


def test_equals_torchaudio():
    transforms = pytest.importorskip("torchaudio").transforms
    theirs = transforms.MelSpectrogram(16000, 512, 400, 160, 20.0, n_mels=40, window_fn=torch.hamming_window)
    x = noise(2, 8000)
    assert relative_error(MFSC()(x), (theirs(x) + 1e-6).log()) < 1e-6


def test_equals_librosa():
    librosa = pytest.importorskip("librosa")
    x = noise(8000, dtype=torch.float64)
    settings = {"n_fft": 512, "hop_length": 160, "win_length": 400, "n_mels": 40}
    mel = librosa.feature.melspectrogram(
        y=x.numpy(),
        sr=16000,
        window="hamming",
        pad_mode="reflect",
        power=2.0,
        fmin=20.0,
        htk=True,
        norm=None,
        **settings,
    )
    got = MFSC(compression=None, dtype=torch.float64)(x)
    np.testing.assert_allclose(got.numpy(), mel, atol=1e-6 * mel.max())


def test_defaults_follow_the_sample_rate():
    wide, narrow = MFSC(), MFSC(8000)
    for front_end, n_fft, win_length, hop_length in ((wide, 512, 400, 160), (narrow, 256, 200, 80)):
        spectrogram = front_end.spectrogram
        assert (spectrogram.n_fft, spectrogram.win_length, spectrogram.hop_length) == (n_fft, win_length, hop_length)
        assert front_end.hop_length == hop_length
    assert (wide.n_features, wide.sample_rate, narrow.sample_rate) == (40, 16000, 8000)


def test_nothing_is_learnable():
    front_end = MFSC(compression="pcen")
    assert list(front_end.parameters()) == []
    assert set(front_end.state_dict()) == {"spectrogram.window", "mel_scale.fb"}
    assert "learnable=()" in repr(front_end)


def test_padded_items_give_what_they_give_alone():
    front_end = MFSC()
    lengths = torch.tensor([16000, 300, 7777])
    x = noise(3, 16000)
    x[torch.arange(16000) >= lengths.unsqueeze(1)] = float("nan")
    features, counts = front_end(x, lengths)
    assert counts.tolist() == [101, 2, 49]
    for i, length in enumerate(lengths.tolist()):
        assert torch.allclose(features[i, :, : counts[i]], front_end(x[i, :length]), atol=1e-5)
        assert torch.all(features[i, :, counts[i] :] == 0)


def test_silence_is_the_floor():
    assert torch.allclose(MFSC(eps=1e-6)(torch.zeros(1600)), torch.tensor(1e-6).log())


def test_copies_and_types():
    front_end, x = MFSC(), noise(1600)
    expected = front_end(x)
    for twin in (copy.deepcopy(front_end), pickle.loads(pickle.dumps(front_end))):
        assert torch.equal(twin(x), expected)
    assert relative_error(MFSC(dtype=torch.float64)(x.double()).float(), expected) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front_end(x), expected)
    compiled = torch.compile(front_end, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), expected) < 1e-6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"win_length": 600, "n_fft": 512}, "win_length <= n_fft = 512, got 600"),
        ({"compression": "cube"}, "compression in"),
        ({"power": None}, "needs a power"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        MFSC(**options)


@pytest.mark.parametrize(
    "waveform, message",
    [
        (torch.zeros(1600, dtype=torch.int16), r"waveform.float\(\) / 32768"),
        (torch.zeros(256), "needs at least 257 samples, got time = 256"),
        (torch.zeros(2, 0), "time >= 1"),
    ],
)
def test_waveform_errors(waveform, message):
    with pytest.raises(ValueError, match=message):
        MFSC()(waveform)
