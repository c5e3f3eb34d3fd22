"""docs/switching.md: every block gives what the pipeline gives that it is named after."""

import importlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from kaleido_audio.transforms import Compression, FlooredLogarithm

PAGE = (Path(__file__).parents[1] / "docs" / "switching.md").read_text(encoding="utf-8")
SECTIONS = [part.partition("\n") for part in re.split(r"^##? ", PAGE, flags=re.MULTILINE)[1:]]
BLOCKS = {title: block for title, _, text in SECTIONS for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)}
START = BLOCKS.pop("Switching from other log-mel pipelines")


def run(title: str, waveform: Tensor) -> dict[str, Any]:
    """The names after a block of the page, run with that waveform."""
    names: dict[str, Any] = {}
    exec(START, names)
    names["waveform"] = waveform
    exec(BLOCKS[title], names)
    return names


def signal(dtype: torch.dtype) -> Tensor:
    """Two items as speech is, weaker at high frequencies and with pauses, one of them digital silence; and silence."""
    time = torch.arange(48000, dtype=torch.float64) / 16000
    white = torch.randn(2, 48000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = torch.fft.rfft(white)
    spectrum /= 1 + torch.linspace(0, 16, spectrum.shape[-1])
    levels = torch.exp(-3 * (1 + torch.sin(2 * torch.pi * torch.tensor([[1.3], [2.1]]) * time)))
    speech = torch.fft.irfft(spectrum) * levels
    speech = (0.7 * 32768 * speech / speech.abs().max()).round() / 32768  # 16 bits
    speech[:, 20000:24000] = 0
    return pad(speech, (0, 0, 0, 1)).to(dtype)


@pytest.fixture
def default_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(got: Tensor, expected: Any, tolerance: float) -> None:
    if isinstance(expected, list):
        expected = np.stack([np.asarray(item) for item in expected])
    expected = torch.as_tensor(expected)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


# --- definitions: what each pipeline documents, in terms of torch.stft, librosa's filters and torchaudio's Kaldi ---


def power(x: Tensor, n_fft: int, hop: int, window: Tensor | None = None, **options: Any) -> Tensor:
    window = torch.hann_window(n_fft) if window is None else window
    return torch.stft(x, n_fft, hop, len(window), window, return_complex=True, **options).abs().square()


def slaney(rate: int, n_fft: int, n_mels: int, f_min: float = 0.0, f_max: float | None = None) -> Tensor:
    librosa = pytest.importorskip("librosa")
    options = {"sr": rate, "n_fft": n_fft, "n_mels": n_mels, "fmin": f_min, "fmax": f_max}
    return torch.from_numpy(librosa.filters.mel(**options, dtype=np.float64))


def kaldi(x: Tensor, **options: Any) -> Tensor:
    fbank = pytest.importorskip("torchaudio.compliance.kaldi").fbank
    return torch.stack([fbank(item.unsqueeze(0), **options) for item in x])


def within(x: Tensor, span: float) -> Tensor:
    """Each item, but nothing further than span below its maximum."""
    return torch.stack([item.clamp(min=float(item.max()) - span) for item in x])


def mel_and_mfcc(x: Tensor) -> dict[str, Any]:
    transforms = pytest.importorskip("torchaudio").transforms
    mel = transforms.MelSpectrogram(16000, n_fft=512, hop_length=160, n_mels=80)(x)
    mfcc = transforms.MFCC(16000, 40, melkwargs={"n_mels": 80})
    return {"spectrum": mel, "decibels": transforms.AmplitudeToDB()(mel), "cepstra": mfcc(x)}


def mel_and_decibels(x: Tensor) -> dict[str, Any]:
    librosa = pytest.importorskip("librosa")
    mels = [librosa.feature.melspectrogram(y=item.numpy(), sr=22050, dtype=np.float64) for item in x]
    return {"spectrum": mels, "decibels": [librosa.power_to_db(mel) for mel in mels]}


def wespeaker(x: Tensor) -> Tensor:
    """WeSpeaker, wespeaker/dataset/processor.py; but for the mean FunASR 1.4.16, frontends/wav_frontend.py."""
    fbank = kaldi(32768 * x, num_mel_bins=80, window_type="hamming")
    return fbank - fbank.mean(1, keepdim=True)


def whisper(x: Tensor, n_mels: int = 80) -> Tensor:
    """openai-whisper 20250625, whisper/audio.py."""
    log_mel = (slaney(16000, 400, n_mels) @ power(x, 400, 160)[..., :-1]).clamp(min=1e-10).log10()
    return (within(log_mel, 8.0) + 4) / 4


def seamless(x: Tensor) -> Tensor:
    """transformers 5.24.0, models/seamless_m4t/feature_extraction_seamless_m4t.py."""
    fbank = kaldi(32768 * x, num_mel_bins=80)
    variance, mean = torch.var_mean(fbank, dim=1, keepdim=True)
    return (fbank - mean) / torch.sqrt(variance + 1e-7)


def nemo(x: Tensor) -> Tensor:
    """NeMo 3.0.0, collections/asr/parts/preprocessing/features.py."""
    emphasized = x - 0.97 * pad(x, (1, 0))[..., :-1]
    window = torch.hann_window(400, periodic=False)
    log_mel = torch.log(slaney(16000, 512, 80) @ power(emphasized, 512, 160, window, pad_mode="constant") + 2**-24)
    log_mel = log_mel[..., : x.shape[-1] // 160]
    deviation, mean = torch.std_mean(log_mel, dim=2, keepdim=True)
    return (log_mel - mean) / (deviation + 1e-5)


def espnet(x: Tensor) -> Tensor:
    """ESPnet 202511, espnet2/asr/frontend/default.py."""
    return (slaney(16000, 512, 80) @ power(x, 512, 128)).clamp(min=1e-10).log().mT


def espnet_synthesis(x: Tensor) -> Tensor:
    """ESPnet 202511, espnet2/tts/feats_extract/log_mel_fbank.py."""
    magnitudes = power(x, 1024, 256).clamp(min=1e-10).sqrt()
    return (slaney(16000, 1024, 80, 80.0, 7600.0) @ magnitudes).clamp(min=1e-10).log10().mT


def hifi_gan(x: Tensor) -> Tensor:
    """BigVGAN 2.4.1, meldataset.py, as in HiFi-GAN."""
    padded = torch.cat([x[:, 1:385].flip(1), x, x[:, -385:-1].flip(1)], dim=1)
    magnitudes = torch.sqrt(power(padded, 1024, 256, center=False) + 1e-9)
    return (slaney(22050, 1024, 80, 0.0, 8000.0) @ magnitudes).clamp(min=1e-5).log()


def speechbrain(x: Tensor) -> Tensor:
    """SpeechBrain 1.1.2, processing/features.py."""
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    triangles = [
        np.interp(np.linspace(0, 8000, 201), [low, centre, 2 * centre - low], [0, 1, 0])
        for low, centre in itertools.pairwise(corners[:-1])
    ]
    spectrum = power(x, 400, 160, torch.hamming_window(400), pad_mode="constant")
    decibels = 10 * (torch.from_numpy(np.stack(triangles)) @ spectrum).clamp(min=1e-10).log10()
    return within(decibels, 80.0).mT


ICEFALL = "icefall, with lhotse, kaldifeat or sherpa-onnx"
AST = "Audio Spectrogram Transformer"
SEAMLESS = "SeamlessM4T and w2v-BERT 2.0"
DEFINITIONS: dict[str, Callable[[Tensor], Any]] = {
    "torchaudio": mel_and_mfcc,
    "librosa": mel_and_decibels,
    "Kaldi": lambda x: kaldi(x, num_mel_bins=80),
    ICEFALL: lambda x: kaldi(x, num_mel_bins=80, high_freq=-400.0, snip_edges=False),
    "WeNet": lambda x: kaldi(32768 * x, num_mel_bins=80),
    "WeSpeaker and FunASR": wespeaker,
    "Whisper": whisper,
    AST: lambda x: (kaldi(x, num_mel_bins=128, window_type="hanning") + 4.2677393) / 4.5689974 / 2,
    SEAMLESS: seamless,
    "NeMo": nemo,
    "ESPnet": espnet,
    "ESPnet, speech synthesis": espnet_synthesis,
    "HiFi-GAN and BigVGAN": hifi_gan,
    "SpeechBrain": speechbrain,
}


def test_every_block_has_a_definition() -> None:
    assert set(BLOCKS) == set(DEFINITIONS)


# One of the 128 filters of the Audio Spectrogram Transformer is empty, there as here.
empty_filter = pytest.mark.filterwarnings("ignore:1 of 128 mel filters")


@empty_filter
@pytest.mark.parametrize("title", BLOCKS)
def test_equal_to_the_definition_and_learns(title: str, default_float64: None) -> None:
    waveform = signal(torch.float64)
    expected = DEFINITIONS[title](waveform)
    names = run(title, waveform)
    for name, values in (expected if isinstance(expected, dict) else {"spectrum": expected}).items():
        check(names[name], values, 1e-8)

    parameters = list(names["features"].parameters())
    gradients = torch.autograd.grad(names["spectrum"].square().sum(), parameters)
    assert len(gradients) == 2 and all(grad.isfinite().all() and grad.any() for grad in gradients)


# --- the libraries themselves ---


LENGTHS = torch.tensor([48000] * 3)


def native_fbank(library: ModuleType, x: Tensor) -> list[np.ndarray]:
    options = library.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400
    items = []
    for item in x:
        online = library.OnlineFbank(options)
        online.accept_waveform(16000, item.tolist())
        online.input_finished()
        items.append(np.stack([online.get_frame(frame) for frame in range(online.num_frames_ready)]))
    return items


def extracted(name: str, **options: Any) -> Callable[[ModuleType, Tensor], Tensor]:
    def features(library: ModuleType, x: Tensor) -> Tensor:
        extractor = getattr(library, name)(**options)
        batch = extractor(list(x.numpy()), sampling_rate=16000, return_tensors="pt", padding="longest")
        return batch[extractor.model_input_names[0]]

    return features


def nemo_features(library: ModuleType, x: Tensor) -> Tensor:
    # Silence is left out: it is the rounding of its mean, divided by 1e-5.
    module = library.FilterbankFeatures(n_window_size=400, nfilt=80, pad_to=0).eval()
    return module(x[:2].clone(), LENGTHS[:2])[0][..., :-1]


def parakeet(library: ModuleType, x: Tensor) -> Tensor:
    return extracted("ParakeetFeatureExtractor")(library, x[:2]).mT[..., :-1]


def fbank(library: ModuleType, x: Tensor, **options: Any) -> list[Tensor]:
    return [library.fbank(item.unsqueeze(0), num_mel_bins=80, **options) for item in x]


LIBRARIES: list[tuple[str, str, Callable[[Any, Tensor], Any]]] = [
    ("Kaldi", "torchaudio.compliance.kaldi", fbank),
    (ICEFALL, "kaldi_native_fbank", native_fbank),
    (ICEFALL, "lhotse.features.kaldi.layers", lambda library, x: library.Wav2LogFilterBank()(x)),
    ("WeNet", "torchaudio.compliance.kaldi", lambda library, x: fbank(library, 32768 * x, energy_floor=0.0)),
    (
        "WeSpeaker and FunASR",
        "torchaudio.compliance.kaldi",
        lambda library, x: [item - item.mean(0) for item in fbank(library, 32768 * x, window_type="hamming")],
    ),
    ("Whisper", "whisper", lambda library, x: [library.log_mel_spectrogram(item) for item in x]),
    ("Whisper", "transformers", extracted("WhisperFeatureExtractor")),
    (AST, "transformers", extracted("ASTFeatureExtractor", max_length=298)),
    (SEAMLESS, "transformers", extracted("SeamlessM4TFeatureExtractor", stride=1)),
    ("NeMo", "nemo.collections.asr.parts.preprocessing.features", nemo_features),
    ("NeMo", "transformers", parakeet),
    (
        "ESPnet",
        "espnet2.asr.frontend.default",
        lambda library, x: library.DefaultFrontend(frontend_conf=None)(x, LENGTHS)[0],
    ),
    (
        "ESPnet, speech synthesis",
        "espnet2.tts.feats_extract.log_mel_fbank",
        lambda library, x: library.LogMelFbank()(x, LENGTHS)[0],
    ),
    (
        "HiFi-GAN and BigVGAN",
        "bigvgan.meldataset",
        lambda library, x: library.mel_spectrogram(x, 1024, 80, 22050, 256, 1024, 0, 8000),
    ),
    ("SpeechBrain", "speechbrain.lobes.features", lambda library, x: library.Fbank()(x)),
]


@empty_filter
@pytest.mark.parametrize(
    ("title", "module", "features"), LIBRARIES, ids=[f"{title}-{module}" for title, module, _ in LIBRARIES]
)
def test_equal_to_the_library(title: str, module: str, features: Callable[[Any, Tensor], Any]) -> None:
    library = pytest.importorskip(module.partition(".")[0]) and importlib.import_module(module)
    waveform = signal(torch.float32)
    expected = features(library, waveform)
    check(run(title, waveform)["spectrum"].detach()[: len(expected)], expected, 1e-4)


# --- what else the page says ---


def test_whisper_large_has_128_bands(default_float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, "Whisper", BLOCKS["Whisper"].replace("n_mels=80", "n_mels=128"))
    waveform = signal(torch.float64)
    check(run("Whisper", waveform)["spectrum"], whisper(waveform, 128), 1e-8)


@pytest.mark.parametrize(("kind", "most", "small"), [("log", math.log(2), 0.01), ("db", 3.02, 0.05)])
def test_an_offset_is_a_little_higher_than_a_floor(kind: str, most: float, small: float) -> None:
    x = torch.logspace(-14, 2, 1000, dtype=torch.float64).unsqueeze(0)
    difference = Compression(kind, 1, eps=1e-10)(x) - FlooredLogarithm(kind, floor=1e-10)(x)
    assert 0 <= difference.min() and difference.max() <= most
    assert difference[x > 1e-8].max() < small


def test_hifi_gan_without_its_offset_is_close(default_float64: None) -> None:
    names = run("HiFi-GAN and BigVGAN", signal(torch.float64))
    features = names["features"]
    # An offset of a frequency's power raises its root by that of the offset at most, and a band by its weights' sum.
    assert math.log1p(float(features.mel_scale.weights.detach().sum(0).max()) * 1e-9**0.5 / 1e-5) < 0.15
    features.spectrogram.power = 1.0
    difference = (names["spectrum"] - features(names["padded"])).abs()
    assert 1e-3 < difference.max() < 0.15
