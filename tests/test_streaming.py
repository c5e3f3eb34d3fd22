"""Features of a signal in pieces are those of the whole signal."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kaleido_audio.frontends import MFSC
from kaleido_audio.transforms import PCEN, FlooredLogarithm, KFbank, KMelSpectrogram, KSpectrogram, Spectrogram

FRONT_ENDS = [
    KMelSpectrogram(16000, 64, n_mels=8, compression="log", dtype=torch.float64),
    KMelSpectrogram(16000, 64, hop_length=100, n_mels=8, dtype=torch.float64),  # samples between frames
    KMelSpectrogram(16000, 63, 50, 20, n_mels=6, pad=5, pad_mode="replicate", dtype=torch.float64),
    KMelSpectrogram(16000, 64, n_mels=8, pad=80, pad_mode="constant", compression="db", dtype=torch.float64),
    KMelSpectrogram(16000, 64, n_mels=8, center=False, compression="pcen", dtype=torch.float64),
    KMelSpectrogram(
        16000, 64, n_mels=8, compression="pcen", learnable=("transform", "compression"), dtype=torch.float64
    ),
    KSpectrogram(50, dtype=torch.float64),
    Spectrogram(64, power=None, dtype=torch.float64),
    MFSC(8000, n_mels=10, dtype=torch.float64),
    KFbank(sample_frequency=8000.0, use_energy=True, dtype=torch.float64),
    KFbank(sample_frequency=8000.0, snip_edges=False, dtype=torch.float64),
    KFbank(sample_frequency=8000.0, snip_edges=False, frame_shift=40.0, dtype=torch.float64),
]

FRONT_ENDS[1].compression = FlooredLogarithm("db", floor=0.1)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda module: f"{type(module).__name__}-{module.hop_length}")
@settings(deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8), items=st.sampled_from([(), (2,), (1, 2)]))
def test_pieces_of_any_size_give_the_whole(front_end: nn.Module, sizes: list[int], items: tuple[int, ...]) -> None:
    waveform = noise(*items, sum(sizes))
    stream = front_end.stream()
    with torch.no_grad():
        try:
            expected = front_end(waveform)
        except ValueError as error:  # too short, which a stream finds out at its end
            with pytest.raises(ValueError, match=str(error)[:18]):
                _ = [stream.push(chunk) for chunk in waveform.split(sizes, dim=-1)], stream.finish()
            return
        parts = [stream.push(chunk) for chunk in waveform.split(sizes, dim=-1)] + [stream.finish()]
    assert all(part.shape[:-1] == expected.shape[:-1] and part.dtype == expected.dtype for part in parts)
    torch.testing.assert_close(torch.cat(parts, dim=-1), expected, rtol=1e-9, atol=1e-9)


def test_a_frame_comes_with_its_last_sample() -> None:
    stream = KMelSpectrogram(16000, 64, hop_length=32, n_mels=8).stream()
    waveform = torch.randn(200)
    frames = list(itertools.accumulate(stream.push(sample).shape[-1] for sample in waveform.split(1)))
    # Frame t is centred on sample 32 t and reaches 32 samples on; the first waits for the 33 that its margin mirrors.
    assert frames == [0 if time < 33 else time // 32 for time in range(1, 201)]
    assert stream.finish().shape[-1] == 1


def test_what_is_held_does_not_grow() -> None:
    stream = KMelSpectrogram(16000, 512, 400, 160, n_mels=40, compression="log").stream()
    held = [stream.push(torch.randn(1600)).shape[-1] and stream._held.shape[-1] for _ in range(50)]
    assert max(held) < 512 + 160


def test_gradients_reach_the_parameters() -> None:
    whole, pieces = (KMelSpectrogram(16000, 64, n_mels=8, compression="log", dtype=torch.float64) for _ in range(2))
    waveform = noise(1000)
    whole(waveform).square().sum().backward()
    stream = pieces.stream()
    sum(stream.push(chunk).square().sum() for chunk in waveform.split(150)).backward()
    stream.finish().square().sum().backward()
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_errors() -> None:
    front_end = KMelSpectrogram(16000, 64, n_mels=8)
    stream = front_end.stream()
    with pytest.raises(ValueError, match="the stream has no samples"):
        stream.finish()
    stream.push(torch.randn(2, 100))
    with pytest.raises(ValueError, match=r"expected a chunk like those before, \(2, 'time'\)"):
        stream.push(torch.randn(100))
    with pytest.raises(ValueError, match="expected a chunk"):
        stream.push([0.0])
    stream.finish()
    for call in (stream.finish, lambda: stream.push(torch.randn(2, 100))):
        with pytest.raises(ValueError, match="the stream has ended"):
            call()
    with pytest.raises(ValueError, match="circular"):
        KMelSpectrogram(16000, 64, n_mels=8, pad_mode="circular").stream()
    with pytest.raises(ValueError, match="subtract_mean needs the whole signal"):
        KFbank(subtract_mean=True).stream()
    short = front_end.stream()
    short.push(torch.randn(10))
    with pytest.raises(ValueError, match="waveform too short"):
        short.finish()


@pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda module: f"{type(module).__name__}-{module.hop_length}")
@pytest.mark.parametrize("samples", [70, 4000])
def test_one_buffer_for_all_chunks(front_end: nn.Module, samples: int) -> None:
    if samples < 400 and isinstance(front_end, KFbank | MFSC):
        samples = 700
    waveform, buffer = noise(samples), torch.empty(30, dtype=torch.float64)
    stream, parts = front_end.stream(), []
    for chunk in waveform.split(30):
        buffer[: len(chunk)] = chunk
        parts.append(stream.push(buffer[: len(chunk)]))
        buffer.fill_(torch.nan)
    parts.append(stream.finish())
    torch.testing.assert_close(torch.cat(parts, dim=-1), front_end(waveform))


@pytest.mark.parametrize("make", [lambda: KMelSpectrogram(16000, 64, n_mels=8), lambda: KFbank(num_mel_bins=8)])
def test_pcen_of_ones_own(make) -> None:
    front_end, waveform = make(), noise(4000).float()
    front_end.compression = PCEN(8, 16000, front_end.hop_length)
    stream = front_end.stream()
    parts = [stream.push(chunk) for chunk in waveform.split(160)] + [stream.finish()]
    torch.testing.assert_close(torch.cat(parts, dim=-1), front_end(waveform), rtol=1e-4, atol=1e-5)
    front_end.compression = nn.Sequential(front_end.compression)
    with pytest.raises(ValueError, match="a Sequential, has a PCEN in it"):
        front_end.stream()


@pytest.mark.parametrize("position", [10, 1000, 3999])
def test_a_sample_that_is_no_number_spoils_the_same_frames(position: int) -> None:
    front_end = KMelSpectrogram(16000, 64, n_mels=8, compression="pcen", dtype=torch.float64)
    waveform = noise(4000)
    waveform[position] = torch.nan
    stream = front_end.stream()
    parts = [stream.push(chunk) for chunk in waveform.split(160)] + [stream.finish()]
    torch.testing.assert_close(torch.cat(parts, dim=-1), front_end(waveform), equal_nan=True)
