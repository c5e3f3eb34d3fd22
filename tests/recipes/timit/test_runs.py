"""Folders of runs: unfinished, moved, of another corpus, of another configuration, damaged."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

pytest.importorskip("lightning")
from rich.console import Console

from recipes.timit.__main__ import main
from recipes.timit.compare import Plan, compare
from recipes.timit.config import Config
from recipes.timit.corpus import Corpus, load_corpus
from recipes.timit.evaluation import RunResult, evaluate
from recipes.timit.identity import check_identity, write_identity
from recipes.timit.runs import is_finished, load_run
from recipes.timit.training import Speech, WholeFiles, prepare_run_dir, train
from tests.recipes.timit.test_training import SMALL, Crash
from tests.recipes.timit.tones import write_tones

TINY = dataclasses.replace(SMALL, hidden=4, layers=1, epochs=3, realign_after=0, frontend="mfsc")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(write_tones(tmp_path_factory.mktemp("tones") / "corpus"))


def begin(corpus: Corpus, run_dir: Path, epochs: int = 2) -> None:
    """A run that stopped after some epochs."""
    with pytest.raises(RuntimeError, match="power cut"):
        train(TINY, Speech(corpus, TINY), run_dir, progress=False, callbacks=[Crash(epochs)])


def test_an_unfinished_run_is_evaluated_but_not_taken_for_a_finished_one(corpus, tmp_path, capsys) -> None:
    begin(corpus, tmp_path)
    assert main(["evaluate", "--data", str(corpus.root), "--run", str(tmp_path), "--quiet"]) == 0
    assert "UNFINISHED: 2 of 3 epochs" in capsys.readouterr().out
    assert not list(tmp_path.glob("test.*.trn")) and not is_finished(tmp_path)
    data = Speech(corpus, TINY)
    # What an earlier version wrote of an unfinished run.
    dataclasses.replace(evaluate(TINY, data, tmp_path), epochs=3).save(tmp_path / "result.json")
    assert not is_finished(tmp_path)
    with pytest.raises(ValueError, match="is not finished: 2 of 3 epochs"):
        load_run(tmp_path)
    train(TINY, data, tmp_path, progress=False)
    assert evaluate(TINY, data, tmp_path) == RunResult.load(tmp_path / "result.json")
    assert is_finished(tmp_path) and load_run(tmp_path).epochs == 3
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    assert evaluate(TINY, data, tmp_path).epochs == len(json.loads((tmp_path / "history.json").read_text())) == 3


@pytest.mark.parametrize("content", [None, "", "[]", "null", "[1]", '[{"epoch": 1}]'])
def test_the_curves_are_those_of_the_last_checkpoint_whatever_their_file_holds(corpus, tmp_path, content) -> None:
    config, path = dataclasses.replace(TINY, epochs=1), tmp_path / "history.json"
    data = Speech(corpus, config)
    train(config, data, tmp_path, progress=False)
    evaluate(config, data, tmp_path)
    whole = path.read_text()

    def spoil() -> None:
        path.unlink() if content is None else path.write_text(content)

    spoil()
    assert is_finished(tmp_path) and load_run(tmp_path).history == json.loads(whole)
    train(config, data, tmp_path, progress=False)
    assert path.read_text() == whole, "a finished run that is trained again mends it"
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"cut")
    assert is_finished(tmp_path) and load_run(tmp_path).history == json.loads(whole), "either of the two is enough"
    spoil()
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read"):
        load_run(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    for use in (is_finished, load_run):
        with pytest.raises(ValueError, match=r"history\.json .*train and evaluate it again"):
            use(tmp_path)


def test_a_run_belongs_to_its_corpus(corpus, tmp_path) -> None:
    run_dir = tmp_path / "run"
    begin(corpus, run_dir)
    # The same name and the same phones, other utterances.
    other = load_corpus(write_tones(tmp_path / "other", seed=1))
    for use in (train, evaluate):
        with pytest.raises(ValueError, match=r"run was trained on another corpus \(train '24 utterances, digest "):
            use(TINY, Speech(other, TINY), run_dir, progress=False)
    (tmp_path / "runs").mkdir()
    run_dir.rename(tmp_path / "runs" / "mfsc-seed0")
    plan = Plan(data=other.root, out=tmp_path, base=TINY, frontends=["mfsc"], seeds=[0], console=Console(quiet=True))
    with pytest.raises(ValueError, match="mfsc-seed0 was trained on another corpus"):
        compare(plan, other)


def test_other_audio_under_the_same_labels_is_another_corpus(corpus, tmp_path) -> None:
    copy = Path(shutil.copytree(corpus.root, tmp_path / "copy"))
    write_identity(corpus, tmp_path)
    check_identity(load_corpus(copy), tmp_path)
    path = next(copy.glob("TEST/*/*/*.WAV"))
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, samples // 2, rate, format="NIST", subtype="PCM_16")
    changed = load_corpus(copy)
    with pytest.raises(ValueError, match=r"another corpus \((dev|test) audio 'digest \w{16}', not 'digest \w{16}'\)"):
        check_identity(changed, tmp_path)
    # As earlier versions wrote it.
    about = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps({k: v for k, v in about.items() if not k.endswith(" audio")}))
    check_identity(changed, tmp_path)


def test_of_an_older_run_the_name_of_its_corpus_is_checked(corpus, tmp_path) -> None:
    (tmp_path / "result.json").write_text('{"corpus": "tones", "labels": "exact"}')
    check_identity(corpus, tmp_path)
    (tmp_path / "result.json").write_text('{"corpus": "noise", "labels": "exact"}')
    with pytest.raises(ValueError, match=r"another corpus \(name 'noise', not 'tones'\)"):
        check_identity(corpus, tmp_path)


def test_a_folder_without_a_checkpoint_is_free(corpus, tmp_path) -> None:
    for config in (TINY, dataclasses.replace(TINY, hidden=5)):
        prepare_run_dir(config, corpus, tmp_path)
        assert Config.load(tmp_path / "config.json") == config


def test_a_moved_run_keeps_its_best_model(corpus, tmp_path) -> None:
    begin(corpus, tmp_path / "here")
    last = tmp_path / "here" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=False)
    (state,) = [s for key, s in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint") and s["monitor"]]
    state["best_model_score"] = state["kth_value"] = torch.tensor(-1.0)  # no later epoch is better
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(-1.0))
    torch.save(checkpoint, last)
    run_dir = (tmp_path / "here").rename(tmp_path / "there")
    best = (run_dir / "checkpoints" / "best.ckpt").read_bytes()
    train(TINY, Speech(corpus, TINY), run_dir, progress=False)
    assert (run_dir / "checkpoints" / "best.ckpt").read_bytes() == best
    assert not (tmp_path / "here").exists()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"epoch": 1}, path)

    def full(self: Path, data: bytes) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RuntimeError, match=r"last\.ckpt cannot be written \(No space left on device\), .*make room"):
        WholeFiles().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"garbage", "a list"])
def test_a_damaged_checkpoint_is_named(corpus, tmp_path, content) -> None:
    prepare_run_dir(TINY, corpus, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for name, use in (("best", evaluate), ("last", train)):
        path = tmp_path / "checkpoints" / f"{name}.ckpt"
        torch.save([content], path) if isinstance(content, str) else path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.ckpt cannot be read as a checkpoint .*: copy it again"):
            use(TINY, Speech(corpus, TINY), tmp_path, progress=False)


def test_more_gpus_than_there_are_is_an_error(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--devices 2: torch finds 1; give fewer, or --accelerator cpu"):
        train(TINY, Speech(corpus, TINY), tmp_path, devices=2)
