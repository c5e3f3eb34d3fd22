"""The command line and `compare`: runs in processes, resumed comparisons, failures that show the log."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
from rich.console import Console

from recipes.common.files import sole_trainer
from recipes.timit.__main__ import main
from recipes.timit.compare import Job, Plan, _failure, compare, read_progress
from recipes.timit.config import Config
from recipes.timit.corpus import Corpus, load_corpus
from tests.recipes.timit.test_training import ROOT, SMALL
from tests.recipes.timit.tones import write_tones


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(write_tones(tmp_path_factory.mktemp("tones") / "corpus"))


def plan_for(corpus: Corpus, out: Path, **changes) -> Plan:
    base = dataclasses.replace(SMALL, epochs=3, realign_after=1)
    plan = Plan(
        data=corpus.root,
        out=out,
        base=base,
        frontends=("mfsc", "kaleidoscope"),
        seeds=(0,),
        jobs=2,
        accelerator="cpu",
        console=Console(record=True, width=160),
    )
    return dataclasses.replace(plan, **changes)


def test_compare_trains_reports_and_goes_on(corpus, tmp_path) -> None:
    plan = plan_for(corpus, tmp_path)
    results = compare(plan, corpus)
    assert [(r.frontend, r.seed) for r in results] == [("mfsc", 0), ("kaleidoscope", 0)]
    assert all(r.corpus == "tones" and r.strict.n_ref > 30 for r in results)
    assert "exact" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "training_curves.png").stat().st_size > 10_000
    # A second seed trains only what is new.
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*-seed0/checkpoints/last.ckpt")}
    assert len(first) == 2
    again = plan_for(corpus, tmp_path, seeds=(0, 1))
    assert len(compare(again, corpus)) == 4
    assert "2 of 4 runs are finished already" in again.console.export_text()
    assert first == {path: path.stat().st_mtime_ns for path in first}


def test_a_failing_run_shows_the_end_of_its_log(corpus, tmp_path) -> None:
    plan = plan_for(corpus, tmp_path, base=dataclasses.replace(SMALL, lr=1e36), frontends=("mfsc",))
    with pytest.raises(
        RuntimeError, match=r"MFSC, seed 0 failed, exit status 2; the end of .*log\.txt:\n(.|\n)*the loss is (nan|inf)"
    ):
        compare(plan, corpus)


def test_every_seed_trains_all_front_ends_before_the_next(corpus, tmp_path) -> None:
    jobs = plan_for(corpus, tmp_path, seeds=(3, 5)).all_jobs()
    assert [(j.config.frontend, j.config.seed) for j in jobs] == [
        ("mfsc", 3),
        ("kaleidoscope", 3),
        ("mfsc", 5),
        ("kaleidoscope", 5),
    ]
    assert jobs[0].title == "MFSC, seed 3" and jobs[0].run_dir == tmp_path / "runs" / "mfsc-seed3"


def test_repeated_seeds_and_front_ends_are_one_run_and_no_jobs_an_error(corpus, tmp_path) -> None:
    plan = plan_for(corpus, tmp_path, frontends=("mfsc", "mfsc"), seeds=(1, 1, 0))
    assert [job.run_dir.name for job in plan.all_jobs()] == ["mfsc-seed1", "mfsc-seed0"]
    with pytest.raises(ValueError, match="expected jobs >= 1, got 0"):
        plan_for(corpus, tmp_path, jobs=0)


def test_a_killed_training_is_said_to_be_killed(tmp_path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    process.kill()
    process.wait()
    (tmp_path / "log.txt").write_text("Reading\n")
    failure = _failure(Job(Config(), tmp_path, process))
    assert failure.startswith(
        "Kaleidoscope, seed 0 failed, exit status -9 (killed by SIGKILL: out of memory?); the end"
    )


def test_a_setting_of_no_use_stops_a_comparison_before_it_has_folders(corpus, tmp_path) -> None:
    plan = plan_for(corpus, tmp_path / "out", base=dataclasses.replace(SMALL, win_length=SMALL.n_fft + 1))
    with pytest.raises(ValueError, match="win_length"):
        compare(plan, corpus)
    assert not (tmp_path / "out").exists()


def test_a_terminated_comparison_ends_its_trainings(corpus, tmp_path) -> None:
    run_dir = tmp_path / "runs" / "mfsc-seed0"
    command = [sys.executable, "-m", "recipes.timit", "compare", "--data", str(corpus.root), "--out", str(tmp_path)]
    command += ["--frontends", "mfsc", "--seeds", "0", "--hidden", "4", "--epochs", "1000", "--accelerator", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(run_dir / "progress.json", process)
    process.terminate()
    assert process.stderr is not None and process.stderr.read().startswith("interrupted: the same command goes on")
    assert process.wait() == 143
    with sole_trainer(run_dir):
        pass
    assert (run_dir / "log.txt").read_text().splitlines()[-1].startswith("interrupted: the same command goes on")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_training_says_so(corpus, tmp_path, number, status) -> None:
    command = [sys.executable, "-m", "recipes.timit", "train", "--data", str(corpus.root), "--out", str(tmp_path)]
    command += ["--frontend", "mfsc", "--hidden", "4", "--epochs", "1000", "--accelerator", "cpu", "--quiet"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which jobs in the background ignore
    )
    wait_for(tmp_path / "progress.json", process)
    process.send_signal(number)
    assert process.stderr is not None
    assert process.stderr.read().splitlines()[-1].startswith("interrupted: the same command goes on")
    assert process.wait() == status


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.05)


def test_read_progress(tmp_path) -> None:
    config = Config(epochs=4)
    assert read_progress(tmp_path, config) == (0.0, "starting")
    state = {"epoch": 1, "batch": 5, "batches": 10, "dev_per": 33.333}
    (tmp_path / "progress.json").write_text(json.dumps(state))
    assert read_progress(tmp_path, config) == (0.375, "epoch 2/4, dev PER 33.3 %")
    (tmp_path / "progress.json").write_text(json.dumps(state | {"epoch": 4, "batch": 0}))
    assert read_progress(tmp_path, config) == (1.0, "decoding, dev PER 33.3 %")
    # After the last batch of the only epoch, dev is still to be decoded.
    only = {"epoch": 0, "batch": 1, "batches": 1, "dev_per": None}
    (tmp_path / "progress.json").write_text(json.dumps(only))
    assert read_progress(tmp_path, Config(epochs=1)) == (1.0, "decoding")
    assert Job(config, tmp_path).result == tmp_path / "result.json"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"null", b"{}", b'{"epoch": "1", "batch": 0, "batches": 1}'])
def test_progress_of_no_use_ends_no_comparison(tmp_path, content) -> None:
    (tmp_path / "progress.json").write_bytes(content)
    assert read_progress(tmp_path, Config()) == (0.0, "starting")


def test_command_line_train_and_evaluate(corpus, tmp_path, capsys) -> None:
    run_dir = tmp_path / "run"
    options = ["--hidden", "8", "--layers", "1", "--epochs", "1", "--n-fft", "256", "--win-length", "256", "--quiet"]
    assert main(["train", "--data", str(corpus.root), "--out", str(run_dir), "--frontend", "mfsc", *options]) == 0
    config = Config.load(run_dir / "config.json")
    assert (config.frontend, config.hidden, config.epochs, config.optimizer) == ("mfsc", 8, 1, "adam")
    trained = json.loads((run_dir / "result.json").read_text())
    assert main(["evaluate", "--data", str(corpus.root), "--run", str(run_dir), "--quiet"]) == 0
    assert json.loads((run_dir / "result.json").read_text()) == trained
    assert '"corpus": "tones (exact labels)"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--data", "{tmp}/nowhere", "--out", "{tmp}/run"], "nowhere"),
        (["compare", "--data", "{tmp}", "--out", "{tmp}/run"], "TRAIN"),
        (["train", "--data", "{data}", "--out", "{tmp}/run", "--hidden", "0"], "expected hidden > 0 and finite, got 0"),
        (["train", "--data", "{data}", "--out", "{tmp}/run", "--clip", "nan"], "expected a finite clip, got nan"),
        (["train", "--data", "{data}", "--out", "{tmp}/run", "--devices", "-1"], "expected devices >= 1, got -1"),
        (["train", "--data", "{data}", "--out", "{tmp}/run", "--threads", "0"], "expected threads >= 1, got 0"),
        (["train", "--data", "{data}", "--out", "{tmp}/file/run"], "file/run"),
        (["train", "--data", "{data}", "--out", "{tmp}/run", "--config", "{tmp}"], "{tmp}"),
        (["compare", "--data", "{data}", "--out", "{tmp}/file"], "{tmp}/file"),
        (["compare", "--data", "{data}", "--out", "{tmp}/run", "--jobs", "0"], "expected jobs >= 1, got 0"),
        (["evaluate", "--data", "{data}", "--run", "{tmp}"], "config.json is missing"),
    ],
)
def test_mistakes_end_in_one_line_that_names_them(corpus, tmp_path, capsys, command, message) -> None:
    (tmp_path / "file").touch()
    *filled, message = [part.format(tmp=tmp_path, data=corpus.root) for part in (*command, message)]
    assert main([*filled, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_package_in_the_folder_to_be_overwritten_is_an_error(tmp_path, capsys) -> None:
    for option in ("--package", "--work"):
        command = ["prepare", "asterisk", "--out", str(tmp_path), "--overwrite", option, str(tmp_path / "files")]
        assert main(command) == 2
        assert f"{tmp_path} would be written over {tmp_path / 'files'}" in capsys.readouterr().err


def test_a_full_disk_ends_in_one_line(corpus, tmp_path, capsys, monkeypatch) -> None:
    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Config, "save", full)
    assert main(["train", "--data", str(corpus.root), "--out", str(tmp_path), "--frontend", "mfsc", "--quiet"]) == 2
    assert capsys.readouterr().err == "error: reading or writing failed: No space left on device\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(corpus, tmp_path, capsys) -> None:
    for command in (["train", "--out", str(tmp_path)], ["evaluate", "--run", str(tmp_path)]):
        Config().save(tmp_path / "config.json")
        assert main([*command, "--data", str(corpus.root), "--quiet", "--accelerator", "gpu"]) == 2
        assert "--accelerator gpu: torch" in capsys.readouterr().err


def test_help_says_what_settings_mean_and_their_defaults(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "passes over train (default: 24; small: 8)" in text and "--schedule {steps,newbob}" in text
    assert "--frontend {mfsc," in text and "--win-length INT samples of a window" in text


def test_two_processes_do_not_train_in_one_folder(corpus, tmp_path, capsys) -> None:
    command = ["train", "--data", str(corpus.root), "--out", str(tmp_path / "run"), "--quiet", "--frontend", "mfsc"]
    command += ["--hidden", "4", "--layers", "1", "--epochs", "1"]
    with sole_trainer(tmp_path / "run"):
        assert main(command) == 2
    assert "another process is training in" in capsys.readouterr().err
    assert main(command) == 0


def test_bad_files_stop_or_are_skipped_and_counted(corpus, tmp_path, capsys) -> None:
    root = write_tones(tmp_path / "bad")
    broken = sorted(root.glob("TRAIN/*/*/*.PHN"))[0]
    broken.write_text("")
    options = ["--hidden", "8", "--layers", "1", "--epochs", "1", "--frontend", "mfsc", "--quiet"]
    command = ["train", "--data", str(root), "--out", str(tmp_path / "run"), *options]
    assert main(command) == 2
    assert broken.name in capsys.readouterr().err
    assert main([*command, "--skip-bad"]) == 0
    printed = capsys.readouterr().out
    assert "1 of train" in printed and broken.name in printed
