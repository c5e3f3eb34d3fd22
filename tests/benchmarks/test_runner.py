"""The loop over cases: nothing is lost, nothing is silently left out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.runner import Results, Skip, check_memory, open_results, parse_options, run, selected
from benchmarks.timing import Contestant


@dataclass(frozen=True)
class Case:
    name: str


CASES = [Case("one-a"), Case("two-b"), Case("three-b")]


def options(tmp_path: Path, *arguments: str):
    return parse_options("x", None, ["--quick", "--rounds", "2", "--out", str(tmp_path), *arguments], "")


def build(case: Case, results: Results) -> Mapping[str, Contestant]:
    if case.name == "two-b":
        raise Skip("all: for a reason")
    return {"K": Contestant(lambda: None)}


def test_every_case_is_measured_or_named_as_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_results(tmp_path / "x.json", options(tmp_path))
    assert run(CASES, build, lambda case, found: "fine", opened, options(tmp_path))
    loaded = Results.load(tmp_path / "x.json")
    assert list(loaded.measurements) == ["one-a", "three-b"]
    assert loaded.skipped == {"two-b": ["all: for a reason"]}
    assert loaded.measurements == opened.measurements
    assert loaded.environment["torch"] == torch.__version__
    assert "two-b: skipped all: for a reason" in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_it_had_and_resumes(tmp_path: Path) -> None:
    def interrupted(case: Case, results: Results) -> Mapping[str, Contestant]:
        if case.name == "three-b":
            raise KeyboardInterrupt
        return build(case, results)

    path = tmp_path / "x.json"
    assert not run(CASES, interrupted, lambda case, found: "", open_results(path, options(tmp_path)), options(tmp_path))
    first = json.loads(path.read_text())["cases"]["one-a"]["seconds"]
    resumed = options(tmp_path, "--resume")
    assert run(CASES, build, lambda case, found: "", open_results(path, resumed), resumed)
    cases = json.loads(path.read_text())["cases"]
    assert list(cases) == ["one-a", "three-b"]
    assert cases["one-a"]["seconds"] == first


def test_another_machines_run_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    results = open_results(path, options(tmp_path))
    results.environment["cpu"] = "another"
    results.save()
    with pytest.raises(ValueError, match="cpu = 'another'"):
        open_results(path, options(tmp_path, "--resume"))


def test_out_of_memory_is_a_skipped_case(tmp_path: Path) -> None:
    def too_big(case: Case, results: Results) -> Mapping[str, Contestant]:
        raise MemoryError("no room")

    results = open_results(tmp_path / "x.json", options(tmp_path))
    assert run(CASES[:1], too_big, lambda case, found: "", results, options(tmp_path))
    assert results.skipped == {"one-a": ["all: out of memory (no room)"]}


def test_selection_by_part_of_a_name_or_group() -> None:
    assert selected(CASES, [], {}) == CASES
    assert selected(CASES, ["b"], {}) == CASES[1:]
    assert selected(CASES, ["t*-b"], {}) == CASES[1:]
    assert selected(CASES, ["targets"], {"targets": {"one-a"}}) == CASES[:1]
    with pytest.raises(ValueError, match="'nothing'"):
        selected(CASES, ["nothing"], {})


def test_memory_guard() -> None:
    cpu = torch.device("cpu")
    check_memory("K", 1e3, 1e6, cpu)
    with pytest.raises(Skip, match=r"K: needs about 2\.0 GiB"):
        check_memory("K", 2 * 2**30, 2**30, cpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu_ends_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        options(tmp_path, "--device", "cuda")
    assert stopped.value.code == 2
    assert "finds no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-gib", "-1"], "argument --max-gib: expected a number above zero, got -1"),
        (["--max-gib", "nan"], "argument --max-gib: expected a number above zero, got nan"),
        (["--case-seconds", "much"], "argument --case-seconds: expected a number above zero, got much"),
        (["--rounds", "0"], "argument --rounds: expected a whole number from 1 on, got 0"),
        (["--out", __file__], f"argument --out: expected a folder, got the file {__file__}"),
        (["--out", f"{__file__}/below"], f"argument --out: expected a folder, got the file {__file__}"),
    ],
)
def test_options_out_of_range(arguments, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(tmp_path, *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cases": {"one-a": {}}}'])
@pytest.mark.parametrize("way", ["--resume", "--redraw"])
def test_a_file_of_results_that_holds_something_else_is_named(content: str, way: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"{path} does not hold the results of a benchmark \(.*\): remove it"):
        open_results(path, options(tmp_path, way))


def test_help_names_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options("x", None, ["--help"], "cases")
    text = " ".join(capsys.readouterr().out.split())
    for default in ("runs/benchmarks", "cpu", "15, and 3 with --quick", "4, and 0.5 with --quick"):
        assert f"default: {default}" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_results_of_a_gpu_are_drawn_without_one(capsys) -> None:
    assert parse_options("kmatrix", None, ["--device", "cuda", "--redraw"], "").device.type == "cuda"
    with pytest.raises(SystemExit):
        parse_options("kmatrix", None, ["--device", "cuda"], "")
    assert "finds no CUDA device" in capsys.readouterr().err
