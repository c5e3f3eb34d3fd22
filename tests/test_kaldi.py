"""KFbank against Kaldi's own features: torchaudio's port, differentiable, and kaldi-native-fbank, in C++."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kaleido_audio import KMatrix
from kaleido_audio import functional as F
from kaleido_audio.transforms import KFbank

FULL_SCALE = 32768.0
OPTIONS = [
    {},
    {"num_mel_bins": 80, "high_freq": -400.0, "low_freq": 60.0},
    {"snip_edges": False},
    {"snip_edges": False, "frame_shift": 12.5, "frame_length": 20.0},
    {"snip_edges": False, "frame_shift": 30.0, "frame_length": 20.0},  # some samples are in no frame
    {"use_energy": True},
    {"use_energy": True, "raw_energy": False, "htk_compat": True, "energy_floor": 0.0},
    {"use_power": False, "use_log_fbank": False},
    {"round_to_power_of_two": False},
    {"remove_dc_offset": False, "preemphasis_coefficient": 0.0},
    {"subtract_mean": True, "num_mel_bins": 40},
    {"window_type": "hamming"},
    {"window_type": "hanning", "preemphasis_coefficient": 1.0},
    {"window_type": "rectangular"},
    {"window_type": "blackman", "blackman_coeff": 0.4},
    {"sample_frequency": 8000.0, "high_freq": 3800.0},
    {"sample_frequency": 11025.0, "num_mel_bins": 20},  # a frame of 275.625 samples
]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return FULL_SCALE / 10 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def torchaudio_fbank(waveform: Tensor, options: dict) -> Tensor:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    with default_dtype(waveform.dtype):  # in which torchaudio makes its filters
        return torch.stack([kaldi.fbank(item.unsqueeze(0), **options).mT for item in waveform])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equal_to_torchaudio_gradients_included(options: dict, dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = (noise(2, 4000, dtype=dtype).requires_grad_() for _ in range(2))
    features = KFbank(dtype=dtype, **options)(ours)
    expected = torchaudio_fbank(theirs, options)
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))

    weights = torch.rand_like(expected)
    (features * weights).sum().backward()
    (expected * weights).sum().backward()
    largest = float(theirs.grad.abs().max())
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=10 * tolerance * largest)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("options", [{}, {"use_energy": True, "energy_floor": 0.0}], ids=str)
def test_the_floor_is_the_same_in_both_precisions(options: dict, dtype: torch.dtype, tolerance: float) -> None:
    quiet = noise(2, 4000, dtype=dtype) * torch.logspace(-4, -12, 4000, dtype=dtype)
    quiet[1, 2000:] = 0
    expected = torchaudio_fbank(quiet, options)
    assert expected.min() == expected[1, :, -1].max()
    torch.testing.assert_close(KFbank(dtype=dtype, **options)(quiet), expected, rtol=0, atol=16 * tolerance)


@pytest.mark.parametrize("options", [options for options in OPTIONS if "subtract_mean" not in options], ids=str)
def test_equal_to_kaldi_itself(options: dict) -> None:
    knf = pytest.importorskip("kaldi_native_fbank")
    waveform = noise(3001)
    opts = knf.FbankOptions()
    frames, mel = opts.frame_opts, opts.mel_opts
    names = {
        "frame_length": (frames, "frame_length_ms"),
        "frame_shift": (frames, "frame_shift_ms"),
        "sample_frequency": (frames, "samp_freq"),
        "preemphasis_coefficient": (frames, "preemph_coeff"),
        "num_mel_bins": (mel, "num_bins"),
        "low_freq": (mel, "low_freq"),
        "high_freq": (mel, "high_freq"),
    }
    frames.dither = 0
    opts.energy_floor = 1.0
    mel.num_bins = 23
    for name, value in options.items():
        owner, attribute = names.get(name, (frames if hasattr(frames, name) else opts, name))
        assert hasattr(owner, attribute), name
        setattr(owner, attribute, value)
    online = knf.OnlineFbank(opts)
    online.accept_waveform(frames.samp_freq, waveform.tolist())
    online.input_finished()
    expected = torch.stack([torch.tensor(online.get_frame(t)) for t in range(online.num_frames_ready)], dim=-1)

    features = KFbank(**options)(waveform)
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_a_tone_lies_in_its_filter() -> None:
    time = torch.arange(8000) / 16000
    tones = torch.sin(2 * torch.pi * torch.tensor([[500.0], [2000.0]]) * time)
    fb = F.kaldi_mel_filterbank(512, 40, 16000.0)
    expected = [int(fb[round(hz / 16000 * 512)].argmax()) for hz in (500, 2000)]
    assert KFbank(num_mel_bins=40)(tones).mean(-1).argmax(-1).tolist() == expected


@pytest.mark.parametrize("snip_edges", [True, False])
@pytest.mark.parametrize("subtract_mean", [True, False])
@settings(deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(400, 2000), min_size=1, max_size=4))
def test_an_item_of_a_padded_batch_gives_what_it_gives_alone(
    lengths: list[int], subtract_mean: bool, snip_edges: bool
) -> None:
    front_end = KFbank(snip_edges=snip_edges, subtract_mean=subtract_mean, use_energy=True)
    waveform = noise(len(lengths), max(lengths))
    features, counts = front_end(waveform, torch.tensor(lengths))
    for item, length, feature, count in zip(waveform, lengths, features, counts.tolist(), strict=True):
        alone = front_end(item[:length])
        assert count == alone.shape[-1]
        torch.testing.assert_close(feature[:, :count], alone, rtol=1e-4, atol=1e-3)
        assert not feature[:, count:].any()


@pytest.mark.parametrize("snip_edges", [True, False])
@pytest.mark.parametrize("use_energy", [True, False])
@pytest.mark.parametrize("rest", [float("nan"), float("inf"), 3e38])
def test_what_lies_behind_an_item_reaches_neither_features_nor_gradients(
    rest: float, use_energy: bool, snip_edges: bool
) -> None:
    front_end = KFbank(num_mel_bins=20, snip_edges=snip_edges, use_energy=use_energy)
    waveform, lengths = noise(2, 6000), torch.tensor([6000, 3000])
    waveform[1, 3000:] = 0
    gradients = []
    for value in (0.0, rest):
        waveform[1, 3000:] = value
        leaf = waveform.clone().requires_grad_()
        features, _ = front_end(leaf, lengths)
        gradients.append(torch.autograd.grad(features.square().sum(), [leaf, *front_end.parameters()]))
    for expected, got in zip(*gradients, strict=True):
        assert torch.equal(got, expected)


def test_what_is_learnable() -> None:
    waveform = noise(1600)
    front_end = KFbank(learnable=("transform", "filterbank", "window"))
    front_end(waveform).sum().backward()
    gradients = {name: parameter.grad for name, parameter in front_end.named_parameters()}
    assert set(gradients) == {"spectrogram.window", "spectrogram.transform.weight", "mel_scale.fb"}
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in gradients.values())
    assert not [p for p in KFbank(learnable=()).parameters() if p.requires_grad]
    again = KFbank(learnable=("transform", "filterbank", "window"))
    again.load_state_dict(front_end.state_dict())
    torch.testing.assert_close(again(waveform), front_end(waveform))
    torch.testing.assert_close(copy.deepcopy(front_end)(waveform), front_end(waveform))


@pytest.mark.parametrize("options", [{}, {"use_power": False}, {"use_energy": True}], ids=str)
def test_gradients_are_finite_on_silence(options: dict) -> None:
    front_end = KFbank(**options)
    waveform = torch.zeros(1600, requires_grad=True)
    features = front_end(waveform)
    features.sum().backward()
    assert features.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (waveform, *front_end.parameters()))


def test_dither_is_noise_of_its_size() -> None:
    torch.manual_seed(0)
    options = {"use_energy": True, "preemphasis_coefficient": 0.0, "remove_dc_offset": False}
    energy = KFbank(dither=2.0, **options)(torch.zeros(64000))[0].exp().mean() / 400
    assert abs(float(energy) - 4.0) < 0.1


def test_transforms_start_and_autocast() -> None:
    waveform = noise(4000)
    expected = KFbank()(waveform)
    for options in ({"width": 2}, {"expansion": 2}, {"round_to_power_of_two": False, "frame_length": 32.0}):
        length = {k: v for k, v in options.items() if k == "frame_length"}
        torch.testing.assert_close(KFbank(**options)(waveform), KFbank(**length)(waveform), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(KFbank()(waveform), expected)
    assert KFbank(init="orthogonal")(waveform).isfinite().all()
    assert KFbank(init=KMatrix(512))(waveform).isfinite().all()
    compiled = torch.compile(KFbank(), fullgraph=True)
    torch.testing.assert_close(compiled(waveform), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_type": "hann"}, "window_type"),
        ({"frame_length": 0.0}, "frame_length of at least 2 samples, got 0.0 ms"),
        ({"frame_shift": 0.01}, "frame_shift of at least 1 samples"),
        ({"sample_frequency": float("nan")}, "sample_frequency"),
        ({"low_freq": 9000.0}, "low_freq = 9000.0"),
        ({"high_freq": -9000.0}, "high_freq = -9000.0"),
        ({"num_mel_bins": 0}, "num_mel_bins"),
        ({"preemphasis_coefficient": 1.5}, "preemphasis_coefficient"),
        ({"dither": -1.0}, "dither"),
        ({"energy_floor": -1.0}, "energy_floor"),
        ({"round_to_power_of_two": False, "frame_length": 25.1}, "even n_fft, got 401"),
        ({"learnable": ("compression",)}, "learnable"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KFbank(**options)


def test_bad_waveforms_are_named() -> None:
    with pytest.raises(ValueError, match=r"one frame needs 400 samples .* got 399"):
        KFbank()(torch.zeros(399))
    with pytest.raises(ValueError, match="got 100 in an item of the batch"):
        KFbank()(torch.zeros(2, 800), torch.tensor([800, 100]))
    with pytest.raises(ValueError, match="floating-point"):
        KFbank()(torch.zeros(800, dtype=torch.int16))
    with pytest.raises(ValueError, match="lengths need a waveform"):
        KFbank()(torch.zeros(800), torch.tensor([800]))


def test_filters_without_a_bin_are_reported() -> None:
    with pytest.warns(UserWarning, match="hold no frequency bin"):
        F.kaldi_mel_filterbank(64, 40, 16000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.kaldi_mel_filterbank(512, 23, 16000.0)
