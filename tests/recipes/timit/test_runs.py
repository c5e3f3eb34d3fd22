"""Folders of runs: unfinished, moved, of another corpus, of another configuration, damaged."""

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from recipes.timit.__main__ import main
from recipes.timit.corpus import Corpus, load_corpus
from recipes.timit.evaluation import RunResult, evaluate
from recipes.timit.runs import is_finished, load_run
from recipes.timit.training import Speech, train
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
