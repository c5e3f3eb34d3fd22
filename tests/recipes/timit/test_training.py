"""Training: batches, padding, exact resume, realignment, schedules, two processes, failures that name the file."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("lightning")
from lightning.pytorch.callbacks import Callback

from recipes.timit.config import PRESETS, Config, default_preset
from recipes.timit.corpus import Corpus, CorpusError, load_corpus
from recipes.timit.data import LengthBatches, SpeechDataset, collate, phone_inventory
from recipes.timit.evaluation import RunResult, evaluate
from recipes.timit.frontends import FRONTENDS, build_frontend
from recipes.timit.model import BidirectionalLSTM, reverse_within_length
from recipes.timit.phones import IGNORE, frame_states, transcript_48
from recipes.timit.training import Speech, build_task, load_best, train
from tests.recipes.timit.tones import write_tones

ROOT = Path(__file__).parents[3]
SMALL = Config(
    hidden=16,
    layers=2,
    epochs=4,
    batch_size=4,
    lr=0.01,
    optimizer="adam",
    schedule="steps",
    normalization="utterance",
    realign_after=2,
    n_fft=256,
    win_length=256,
    n_mels=20,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(write_tones(tmp_path_factory.mktemp("tones") / "corpus"))


class Crash(Callback):
    """Stops a training in the middle of an epoch, as a power cut does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
        if trainer.current_epoch == self.epoch and trainer.fit_loop.batch_idx == 2:
            raise RuntimeError("power cut")


def weights_after(config: Config, corpus: Corpus, run_dir: Path, crashes: tuple[int, ...] = ()) -> dict:
    for epoch in crashes:
        with pytest.raises(RuntimeError, match="power cut"):
            train(config, Speech(corpus, config), run_dir, progress=False, callbacks=[Crash(epoch)])
    train(config, Speech(corpus, config), run_dir, progress=False)
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=False)


@pytest.mark.parametrize(
    ("changes", "crashes"),
    [
        ({}, (1, 3)),  # before and after the realignment
        ({"normalization": "speaker", "schedule": "newbob", "optimizer": "rmsprop", "lr": 0.003}, (2,)),
    ],
)
def test_an_interrupted_run_ends_with_the_same_weights(corpus, tmp_path, changes, crashes) -> None:
    config = dataclasses.replace(SMALL, **changes)
    whole = weights_after(config, corpus, tmp_path / "whole")
    resumed = weights_after(config, corpus, tmp_path / "resumed", crashes)
    assert resumed["epoch"] == whole["epoch"] and resumed["global_step"] == whole["global_step"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    assert whole["realigned_labels"] is not None
    for a, b in zip(whole["realigned_labels"], resumed["realigned_labels"], strict=True):
        np.testing.assert_array_equal(a, b)
    without_time = [[{k: v for k, v in r.items() if k != "seconds"} for r in c["history"]] for c in (whole, resumed)]
    assert without_time[0] == without_time[1]


def test_dropout_masks_depend_on_the_seed(corpus, tmp_path) -> None:
    a, b = (weights_after(dataclasses.replace(SMALL, epochs=1, seed=s), corpus, tmp_path / str(s)) for s in (0, 1))
    assert not torch.equal(a["state_dict"]["model.output.weight"], b["state_dict"]["model.output.weight"])


def test_it_learns_the_tones_and_evaluates(corpus, tmp_path) -> None:
    config = dataclasses.replace(SMALL, epochs=12, realign_after=6)
    data = Speech(corpus, config)
    train(config, data, tmp_path, progress=False)
    result = evaluate(config, data, tmp_path)
    assert result.strict.error_rate < 10.0 and result.strict.n_ref == sum(
        len(transcript_48(u.segments)) for u in corpus.test
    )
    assert result.forgiving.errors <= result.strict.errors
    assert result == RunResult.load(tmp_path / "result.json")
    assert (result.corpus, result.labels, result.epochs) == ("tones", "exact", 12)
    history = json.loads((tmp_path / "history.json").read_text())
    assert [record["epoch"] for record in history] == list(range(1, 13))
    assert result.first_epoch_dev_per == history[0]["dev_per"] > 2 * min(r["dev_per"] for r in history)
    hypotheses = (tmp_path / "test.hyp.trn").read_text().splitlines()
    assert len(hypotheses) == len(corpus.test) and hypotheses[0].endswith(f"({corpus.test[0].key})")
    assert sum(count for _, hyp, count in result.confusions if hyp is None) == result.strict.deletions


def test_the_front_end_moves_only_where_it_learns(corpus, tmp_path) -> None:
    moved = {}
    for name in ("mfsc", "kaleidoscope", "kaleidoscope-filterbank", "identity", "dense-fourier"):
        config = dataclasses.replace(SMALL, frontend=name, epochs=1)
        data = Speech(corpus, config)
        start = {k: v.clone() for k, v in build_task(config, data).state_dict().items() if "frontend" in k}
        train(config, data, tmp_path / name, progress=False)
        end = load_best(config, data, tmp_path / name).state_dict()
        moved[name] = {k.split("frontend.")[1] for k, v in start.items() if not torch.equal(v, end[k])}
    assert moved["mfsc"] == set()
    assert moved["kaleidoscope-filterbank"] == moved["identity"] == {"mel_scale.fb"}
    assert moved["dense-fourier"] == {"mel_scale.fb", "spectrogram.real.weight", "spectrogram.imaginary.weight"}
    assert moved["kaleidoscope"] == {"mel_scale.fb", "spectrogram.transform.weight"}


@pytest.mark.parametrize(
    ("name", "transform", "filterbank"),
    [
        ("kaleidoscope-filterbank", 0, 257 * 40),
        ("identity", 0, 512 * 40),
        ("circulant", 2 * 512, 257 * 40),
        ("low-rank", 2 * 18 * 1024, 257 * 40),
        ("sparse", 36_864, 257 * 40),
        ("kaleidoscope", 36_864, 257 * 40),
        ("dense", 2 * 512**2, 257 * 40),
        ("dense-fourier", 2 * 512**2, 257 * 40),
    ],
)
def test_the_maps_in_the_place_of_the_fourier_transform_have_these_parameters(name, transform, filterbank) -> None:
    frontend = build_frontend(Config(frontend=name), sample_rate=16000, bandwidth=8000.0)
    learned = {key: p.numel() for key, p in frontend.named_parameters() if p.requires_grad}
    assert learned.pop("mel_scale.fb") == filterbank
    assert sum(learned.values()) == transform


def test_learning_rates_by_part_and_steps(corpus, tmp_path) -> None:
    config = dataclasses.replace(SMALL, epochs=1, frontend_lr_multiplier=0.25)
    groups = build_task(config, Speech(corpus, config)).configure_optimizers().param_groups
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"k_matrices": 0.0025, "rest": 0.0025, "recognizer": 0.01}
    config = dataclasses.replace(SMALL, epochs=10, hidden=4, layers=1)
    train(config, Speech(corpus, config), tmp_path, progress=False)
    scales = [r["lr_scale"] for r in json.loads((tmp_path / "history.json").read_text())]
    np.testing.assert_allclose(scales, [1.0] * 6 + [0.3] * 3 + [0.1])


def test_newbob_halves_when_dev_stops_improving(corpus, tmp_path) -> None:
    config = dataclasses.replace(SMALL, schedule="newbob", epochs=8, lr=0.03, hidden=4, layers=1)
    train(config, Speech(corpus, config), tmp_path, progress=False)
    history = json.loads((tmp_path / "history.json").read_text())
    scale, best = 1.0, float("inf")
    for record in history:
        assert record["lr_scale"] == scale
        if best < float("inf") and 1 - record["dev_frame_error"] / best < 0.001:
            scale /= 2
        best = min(best, record["dev_frame_error"])
    assert scale < 1.0, "the run never stopped improving: the test shows nothing"


def test_realigned_labels_keep_the_transcript(corpus, tmp_path) -> None:
    checkpoint = weights_after(SMALL, corpus, tmp_path)
    inventory = phone_inventory(corpus)
    changed = 0
    for utterance, labels in zip(corpus.train, checkpoint["realigned_labels"], strict=True):
        phones = [inventory[state // 3] for state in labels[labels % 3 == 0]]
        runs = [p for p, before in zip(phones, [None, *phones], strict=False) if p != before]
        expected = transcript_48(utterance.segments)
        assert runs == [p for p, before in zip(expected, [None, *expected], strict=False) if p != before]
        changed += (labels != frame_states(utterance.segments, len(labels), SMALL.hop_length, inventory)).sum()
    assert changed > 0


def test_speaker_means_come_from_the_split_alone(corpus) -> None:
    config = dataclasses.replace(SMALL, normalization="speaker")
    data = Speech(corpus, config)
    task = build_task(config, data)
    task.measure_speakers(data, "dev")
    speaker = corpus.dev[0].speaker
    assert set(task._speaker_means) == {u.speaker for u in corpus.dev}
    waveforms = [w for u, w in zip(corpus.dev, data.dataset("dev").waveforms, strict=True) if u.speaker == speaker]
    features = [
        task.model.features(torch.from_numpy(w).float()[None] / 32768, torch.tensor([len(w)]))[0][0] for w in waveforms
    ]
    expected = torch.cat(features, dim=1).mean(dim=1)
    torch.testing.assert_close(task._speaker_means[speaker], expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in FRONTENDS if n != "sincnet-window"])
def test_every_front_end_trains_in_the_same_recognizer(corpus, tmp_path, name) -> None:
    config = dataclasses.replace(SMALL, frontend=name, epochs=1, realign_after=0)
    data = Speech(corpus, config)
    train(config, data, tmp_path, progress=False)
    assert 0 <= evaluate(config, data, tmp_path).forgiving.error_rate <= 200


def test_padding_changes_nothing(corpus) -> None:
    task = build_task(SMALL, Speech(corpus, SMALL)).eval()
    dataset = Speech(corpus, SMALL).dataset("dev")
    order = np.argsort(dataset.lengths)
    short, long = int(order[0]), int(order[-1])
    assert dataset.lengths[short] < dataset.lengths[long]
    both, alone = collate([dataset[short], dataset[long]]), collate([dataset[short]])
    with torch.no_grad():
        together, counts = task.model(both.waveform, both.lengths)
        single, (count,) = task.model(alone.waveform, alone.lengths)
    assert counts[0] == count == len(dataset.labels[short])
    torch.testing.assert_close(together[0, :count], single[0], rtol=1e-5, atol=1e-5)


def test_bidirectional_lstm_equals_torch_on_packed_sequences() -> None:
    ours = BidirectionalLSTM(5, 7, 2, dropout=0.0).double()
    theirs = torch.nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True).double()
    weights = {}
    for layer in range(2):
        for part, suffix in ((ours.forwards[layer], ""), (ours.backwards[layer], "_reverse")):
            weights |= {k.replace("_l0", f"_l{layer}{suffix}"): v for k, v in part.state_dict().items()}
    theirs.load_state_dict(weights)
    x, lengths = torch.randn(3, 9, 5, dtype=torch.float64), torch.tensor([9, 2, 6])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    result = ours(x, lengths)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(result[i, :n], expected[i, :n])
    assert torch.equal(reverse_within_length(reverse_within_length(x, lengths), lengths), x)


def test_batches_cover_everything_once_and_depend_on_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(100, 1000, size=103)
    first = LengthBatches(lengths, 8, seed=1, epoch=0)
    assert sorted(i for batch in first for i in batch) == list(range(103))
    assert list(first) == list(LengthBatches(lengths, 8, seed=1, epoch=0))
    assert list(first) != list(LengthBatches(lengths, 8, seed=1, epoch=1))
    assert list(first) != list(LengthBatches(lengths, 8, seed=2, epoch=0))
    spread = [max(lengths[b]) - min(lengths[b]) for b in first if len(b) == 8]
    assert np.mean(spread) < 200  # of 900
    ranks = [LengthBatches(lengths, 8, seed=1, epoch=0, rank=r, world=3) for r in range(3)]
    assert {len(r) for r in ranks} == {5}
    assert {i for r in ranks for batch in r for i in batch} == set(range(103))


def test_labels_are_padded_with_ignore(corpus) -> None:
    dataset = SpeechDataset(corpus.dev, phone_inventory(corpus), sample_rate=16000, hop_length=160)
    batch = collate([dataset[0], dataset[1]])
    for row, i in zip(batch.labels, (0, 1), strict=True):
        n = len(dataset.labels[i])
        assert n == corpus.dev[i].n_samples // 160 + 1 and (row[n:] == IGNORE).all()
        np.testing.assert_array_equal(row[:n].numpy(), dataset.labels[i])


def test_config_round_trip_and_errors(tmp_path) -> None:
    Config().save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == Config()
    for preset in PRESETS.values():
        Config(**preset)
    assert default_preset("TIMIT") == "timit" and default_preset("amazon-queen") == "small"
    for wrong, message in (
        ({"optimizer": "sgd"}, "optimizer in"),
        ({"layers": 0}, "layers > 0"),
        ({"dropout": 1.0}, "dropout in"),
        ({"normalization": "corpus"}, "normalization in"),
        ({"realign_after": -1}, "realign_after >= 0"),
        ({"lr": 0.0}, "lr > 0"),
        ({"lr": float("inf")}, "a finite lr"),
        ({"frontend_lr_multiplier": -0.1}, "frontend_lr_multiplier >= 0"),
        ({"clip": float("nan")}, "a finite clip"),
        ({"clip": -1.0}, "clip >= 0"),
        ({"seed": -1}, "0 <= seed"),
        ({"monitor_lm_weight": -1.0}, "monitor_lm_weight >= 0"),
        ({"hidden": "16"}, "hidden of type int"),
        ({"frontend": "mfcc"}, "unknown front end 'mfcc': choose from mfsc"),
    ):
        with pytest.raises(ValueError, match=message):
            Config(**wrong)
    for content in ("", "[]", '"mfsc"', '{"hiden": 3}', '{"layers": 0}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"config\.json is not the configuration of a run \(.*\): mend it"
        ) as error:
            Config.load(tmp_path / "config.json")
        assert str(error.value).endswith(f": mend it, or remove the folder {tmp_path}")


def test_another_configuration_in_the_same_folder_is_an_error(corpus, tmp_path) -> None:
    SMALL.save(tmp_path / "config.json")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    other = dataclasses.replace(SMALL, hidden=17)
    with pytest.raises(ValueError, match=r"config\.json belongs to a run with another .* \(hidden 16, not 17\)"):
        train(other, Speech(corpus, other), tmp_path, progress=False)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"config\.json is missing, .* remove the folder {tmp_path}$"):
        train(other, Speech(corpus, other), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"best\.ckpt is missing: train first"):
        load_best(SMALL, Speech(corpus, SMALL), tmp_path)


def test_an_infinite_loss_names_epoch_and_utterances(corpus, tmp_path) -> None:
    config = dataclasses.replace(SMALL, lr=1e36)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch 1 on the utterances f.*--lr"):
        train(config, Speech(corpus, config), tmp_path, progress=False)


def with_train_utterance(corpus: Corpus, out: Path, *, n_samples: int, rows: list[str]) -> Corpus:
    """A copy of which the first utterance of train is cut, with other labels."""
    root = Path(shutil.copytree(corpus.root, out))
    first = corpus.train[0]
    samples, rate = soundfile.read(first.wav, dtype="int16")
    soundfile.write(root / first.wav.relative_to(corpus.root), samples[:n_samples], rate, format="NIST")
    (root / first.phn.relative_to(corpus.root)).write_text("".join(f"{row}\n" for row in rows))
    return load_corpus(root)


def test_an_utterance_too_short_to_realign_is_named_before_the_training(corpus, tmp_path) -> None:
    rows = [f"{80 * i} {80 * i + 80} {phone}" for i, phone in enumerate(("h#", "iy", "aa", "s", "m", "h#"))]
    changed = with_train_utterance(corpus, tmp_path / "corpus", n_samples=480, rows=rows)
    name = rf"{changed.train[0].wav.name}: 4 frames for 6 phones \({changed.train[0].phn.name}\)"
    with pytest.raises(CorpusError, match=rf"for --hop-length 160, 1 in all:\n.*{name}\n.*--realign-after 0"):
        Speech(changed, SMALL)
    for changes in ({"realign_after": 0}, {"realign_after": 4, "epochs": 4}, {"hop_length": 80}):
        Speech(changed, dataclasses.replace(SMALL, **changes))
    with pytest.raises(CorpusError, match=r"2 frames, where a phone takes 3[\s\S]*smaller --hop-length\.$"):
        Speech(corpus, dataclasses.replace(SMALL, realign_after=0, hop_length=corpus.dev[0].n_samples))


def test_an_utterance_without_a_labelled_frame_is_no_loss(corpus, tmp_path) -> None:
    changed = with_train_utterance(corpus, tmp_path / "corpus", n_samples=1600, rows=["10 150 iy"])
    config = dataclasses.replace(SMALL, epochs=1, batch_size=1, realign_after=0, hidden=4, layers=1, frontend="mfsc")
    data = Speech(changed, config)
    assert (data.dataset("train").labels[0] == IGNORE).all()
    train(config, data, tmp_path / "run", progress=False)
    (record,) = json.loads((tmp_path / "run" / "history.json").read_text())
    assert 0 < record["train_loss"] < 10
    model = load_best(config, data, tmp_path / "run")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


DISTRIBUTED = """
import sys, torch
from pathlib import Path
from recipes.timit.config import Config
from recipes.timit.corpus import load_corpus
from recipes.timit.training import Speech, train
from lightning.pytorch.callbacks import Callback

class Keep(Callback):
    def on_fit_end(self, trainer, module):
        torch.save(module.state_dict(), Path(sys.argv[2]) / f"rank{trainer.global_rank}of{trainer.world_size}.pt")

config = Config.load(Path(sys.argv[3]))
corpus = load_corpus(sys.argv[1])
first = train(config, Speech(corpus, config), Path(sys.argv[2]) / "run", accelerator="cpu", devices=2,
              progress=False, callbacks=[Keep()])
print("first" if first else "other")
"""


def test_two_processes_over_gloo_share_weights_and_data(corpus, tmp_path) -> None:
    script = tmp_path / "distributed.py"
    script.write_text(DISTRIBUTED)
    dataclasses.replace(SMALL, epochs=3, realign_after=1).save(tmp_path / "config.json")
    command = [sys.executable, str(script), str(corpus.root), str(tmp_path), str(tmp_path / "config.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"rank{r}of2.pt") for r in range(2)]
    learned = [name for name in ranks[0] if "running_" not in name and "num_batches" not in name]
    for name in learned:
        assert torch.equal(ranks[0][name], ranks[1][name]), name
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert len(history) == 3 and history[-1]["train_loss"] < history[0]["train_loss"]


def test_a_killed_command_goes_on_from_its_last_epoch(corpus, tmp_path) -> None:
    run_dir = tmp_path / "run"
    config = dataclasses.replace(SMALL, epochs=40, hidden=4, layers=1, realign_after=0, frontend="mfsc")
    config.save(tmp_path / "config.json")
    command = [sys.executable, "-m", "recipes.timit", "train", "--data", str(corpus.root), "--out", str(run_dir)]
    command += ["--config", str(tmp_path / "config.json"), "--quiet", "--accelerator", "cpu", "--threads", "1"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (run_dir / "checkpoints" / "last.ckpt").exists():
        assert first.poll() is None and time.monotonic() < deadline, first.stderr and first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    reached = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=False)["history"]
    assert 1 <= len(reached) < 40
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stdout + second.stderr
    history = json.loads((run_dir / "history.json").read_text())
    assert history[: len(reached)] == reached and len(history) == 40
    assert "tones (exact labels)" in second.stdout
