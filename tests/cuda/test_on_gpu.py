"""The script for machines with a GPU, with stand-ins for the interpreter and the sanitizer."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cuda" / "on_gpu.sh"
STEPS = ["tests", "kmatrix", "featurizer", "materialised", "memcheck", "racecheck", "synccheck"]


def run(folder: Path, program: str, *steps: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """The script's end, and the lines of its summary."""
    for name in ("python", "compute-sanitizer"):
        (folder / name).write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PYTHON": str(folder / "python"), "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [SCRIPT, folder / "out", *steps]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    summary = folder / "out" / "summary.txt"
    return result, summary.read_text(encoding="utf-8").splitlines() if summary.is_file() else []


def test_every_step_runs_and_has_a_log(tmp_path: Path) -> None:
    result, summary = run(tmp_path, 'echo "$@"')
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in summary[-len(STEPS) :]] == STEPS
    assert all(line.endswith("passed") for line in summary[-len(STEPS) :])
    assert "benchmarks.kmatrix --device cuda" in (tmp_path / "out" / "kmatrix.log").read_text()
    assert "--tool racecheck" in (tmp_path / "out" / "racecheck.log").read_text()


def test_chosen_steps_run_alone(tmp_path: Path) -> None:
    result, summary = run(tmp_path, 'echo "$@"', "memcheck", "kmatrix")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in summary[-2:]] == ["kmatrix", "memcheck"]
    assert sorted(log.stem for log in (tmp_path / "out").glob("*.log")) == ["kmatrix", "memcheck"]


def test_a_misspelt_step_is_no_success(tmp_path: Path) -> None:
    result, summary = run(tmp_path, 'echo "$@"', "kmatrx")
    assert result.returncode == 2 and "there is no step kmatrx: choose among tests kmatrix" in result.stderr
    assert not summary


def test_a_failure_is_reported_and_the_rest_runs(tmp_path: Path) -> None:
    result, summary = run(tmp_path, 'case "$*" in *featurizer*) exit 3;; esac')
    assert result.returncode == 1
    verdicts = {line.split()[0]: line for line in summary}
    assert "failed (3): see" in verdicts["featurizer"] and "featurizer.log" in verdicts["featurizer"]
    assert sum(line.endswith("passed") for line in summary) == len(STEPS) - 1


def test_no_gpu_is_said_at_once(tmp_path: Path) -> None:
    result, summary = run(tmp_path, "exit 1")
    assert result.returncode == 1 and "sees no GPU" in result.stderr
    assert not summary


def test_a_package_without_kernels_is_no_success(tmp_path: Path) -> None:
    result, _ = run(tmp_path, 'case "$*" in *kaleido_audio*) exit 1;; esac')
    assert result.returncode == 1 and "make cuda" in result.stderr


@pytest.mark.parametrize("name", ["benchmarks.kmatrix", "benchmarks.featurizer", "benchmarks.materialised"])
def test_its_benchmarks_exist(name: str) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert f"-m {name} --device cuda" in text
    assert (SCRIPT.parents[1] / (name.replace(".", "/") + ".py")).is_file()
