"""The front-end benchmark: peers that give the same features, and a tiny run from end to end."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import featurizer, peers
from benchmarks.peers import Features
from benchmarks.runner import Results


@pytest.mark.parametrize("n_fft", [400, 512])
def test_the_dense_peer_starts_as_ours(n_fft: int) -> None:
    torch.manual_seed(0)
    waveform = 0.1 * torch.randn(2, 4000)
    ours, dense = peers.kaleidoscope(Features(n_fft)), peers.dense(Features(n_fft))
    torch.testing.assert_close(dense(waveform), ours(waveform), rtol=1e-4, atol=1e-4)
    assert {name: tuple(p.shape) for name, p in dense.named_parameters() if p.requires_grad} == {
        "weight": (2 * (n_fft // 2 + 1), n_fft),
        "mel_scale.fb": (n_fft // 2 + 1, 40),
    }


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnAudio.features", None)
    with pytest.raises(peers.PeerUnavailable, match="needs nnAudio"):
        peers.nnaudio(Features(512))


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featurizer, "QUICK_SECONDS", 1)
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--out", str(tmp_path), "--cases", "nfft512"]
    assert featurizer.main(arguments) == 0
    out = capsys.readouterr().out
    for words in ("its time / K's", "to reach", "For the README", "dense DFT", "difference of the log features"):
        assert words in out
    found = Results.load(tmp_path / "featurizer.json")
    assert list(found.measurements) == ["inference-nfft512-t1", "training-nfft512-t1"]
    fixed = {"torchaudio", "Kaldi (torchaudio)"}
    assert fixed <= set(found.get("inference-nfft512-t1").seconds)
    assert not fixed & set(found.get("training-nfft512-t1").seconds)
    assert (tmp_path / "featurizer.png").stat().st_size > 10_000
    assert featurizer.main([*arguments, "--redraw"]) == 0
    assert capsys.readouterr().out == out


def test_targets_have_their_cases() -> None:
    options = featurizer.parse_options("featurizer", None, ["--quick"], "")
    assert {t.case for t in featurizer.TARGETS} <= {case.name for case in featurizer.all_cases(options)}
