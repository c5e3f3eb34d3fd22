"""The K-matrix benchmark: a tiny run from end to end, and what its tables say of known times."""

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import kmatrix, machine
from benchmarks.kmatrix import CUDA_TARGETS, TARGETS, Case
from benchmarks.report import Target, target_table
from benchmarks.runner import Results, parse_options
from benchmarks.timing import Measurement
from kaleido_audio import ops

ENVIRONMENT = {"capability": "avx512", "torch_capability": "avx2"}


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--out", str(tmp_path), "--cases", "n64-b1-"]
    assert kmatrix.main(arguments) == 0
    out = capsys.readouterr().out
    for words in ("dense / K", "torch.fft.rfft", "to reach", "of the limit", "For the README", "nn.Linear / KMatrix"):
        assert words in out
    found = Results.load(tmp_path / "kmatrix.json")
    assert {case.kind for case in map(kmatrix.case_of, found.measurements)} == {"real", "complex"}
    assert not found.skipped
    assert (tmp_path / "kmatrix.png").stat().st_size > 10_000
    assert (tmp_path / "kmatrix.md").read_text().strip() in out
    assert kmatrix.main([*arguments, "--redraw"]) == 0
    assert capsys.readouterr().out == out


def test_every_target_has_its_case_in_the_quick_run_too() -> None:
    for arguments in ([], ["--quick"], ["--threads", "1"]):
        names = {case.name for case in kmatrix.all_cases(parse_options("kmatrix", None, arguments, ""))}
        assert {target.case for target in TARGETS} <= names


def test_contestants_of_a_training_case_take_gradients_of_vectors_and_weights(tmp_path: Path) -> None:
    options = parse_options("kmatrix", None, ["--quick", "--out", str(tmp_path)], "")
    results = Results(tmp_path / "x.json", {"cores": 1})
    found = kmatrix.Builder(options).contestants(Case("real", 64, 8, training=True), results)
    assert list(found) == ["K", "dense"]
    for contestant in found.values():
        with torch.enable_grad():
            gradients = contestant.call()
        assert isinstance(gradients, tuple)
        assert gradients[0].shape == (8, 64)
        assert gradients[1].shape in {(2, 6, 2, 64), (64, 64)}


def test_what_is_too_big_or_too_slow_is_named(tmp_path: Path) -> None:
    options = parse_options("kmatrix", None, ["--out", str(tmp_path)], "")
    builder = kmatrix.Builder(options)
    results = Results(tmp_path / "x.json", {"cores": 2})
    builder.flops = 1e6
    case = Case("real", 512, 64)
    assert "dense" not in builder.contestants(case, results)
    assert "a call would take about" in results.skipped[case.name][0]
    with pytest.raises(kmatrix.Skip, match="K: needs about"):
        builder.contestants(Case("real", 16384, 65536), results)
    with pytest.raises(kmatrix.Skip, match="3 threads on 2 cores"):
        builder.contestants(Case("real", 64, 1, threads=3), results)


def test_share_of_the_instruction_limit() -> None:
    case = Case("real", 512, 4096)
    # 4 * 512 * 9 / 16 = 1152 operations a vector: a K that takes the time of 2304 is at half of the limit.
    rate = 8e9
    peak, k = machine.MULTIPLY_ADDS_PER_CALL / rate, 2304 * 4096 / rate
    share = kmatrix.limit_share(case, Measurement({"K": [k], "peak": [peak]}), ENVIRONMENT)
    assert share is not None
    assert share.median == pytest.approx(0.5)
    # A product at that rate of vectors of 8 lanes says the same.
    gemm = kmatrix.GEMM**3 / (8 * rate)
    share = kmatrix.limit_share(case, Measurement({"K": [k], "gemm": [gemm]}), ENVIRONMENT)
    assert share is not None
    assert share.median == pytest.approx(0.5)


def test_tables_of_a_gpu_are_against_a_copy_and_name_no_threads() -> None:
    environment = {
        "device": "cuda", "gpu": "Some GPU", "gpu_gib": 80.0, "cuda": "13.0", "cpu": "Some CPU", "cores": 2,
        "system": "Linux", "torch": "2", "torch_capability": "avx2", "capability": "avx2", "backend": "cuda",
        "load": 0.0, "date": "today", "quick": False, "settings": {"min_rounds": 2, "rounds": 2},
    }  # fmt: skip
    found = Measurement({"K": [3e-6] * 2, "dense": [30e-6] * 2, "rfft": [6e-6] * 2, "copy": [2e-6] * 2})
    results = Results(Path("x.json"), environment, {Case("real", 512, 4096).name: found})
    text = "\n".join(kmatrix.sections(results))
    row = next(line for line in text.splitlines() if "15x (15 to 15)" in line)
    assert "1.5x (1.5 to 1.5)" in row and "3x (3 to 3)" in row
    assert "thread" not in text.replace("K with one thread (scaling)", "")
    assert "forward, against a copy" in text
    assert kmatrix.figure(results) is not None


def test_targets_of_a_gpu() -> None:
    options = parse_options("kmatrix", None, [], "")
    options = dataclasses.replace(options, device=torch.device("cuda"))
    cases = kmatrix.all_cases(options)
    assert {target.case for target in CUDA_TARGETS} <= {case.name for case in cases}
    assert [case.name for case in cases[:2]] == ["real-n512-b65536-forward-t1", "real-n1024-b65536-forward-t1"]
    graph = Measurement({"K, CUDA graph": [5e-6, 5.5e-6]})
    environment = {"device": "cuda"}
    large = Measurement({"K": [4.0], "copy": [2.9], "dense": [19.0], "dense, tf32": [6.0]})
    results = Results(Path("x.json"), environment, {CUDA_TARGETS[0].case: large, Case("real", 1024, 1).name: graph})
    text = kmatrix._targets_section(results)
    copy, dense = (
        next(line for line in text.splitlines() if f"against {name} " in line) for name in ("a copy", "dense")
    )
    assert copy.endswith(" no |") and "1.38x" in copy, "2.9 / 4 is 72.5 % of the bandwidth of a copy"
    assert dense.endswith(" no |") and "4.75x" in dense
    assert "in a CUDA graph: 5.25 us, to reach at most 6: yes" in text


def test_a_materialised_product_is_the_same_with_its_gradients() -> None:
    x = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(2, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    for found, expected in zip(
        torch.autograd.grad(kmatrix._materialised(x, factors).square().sum(), (x, factors)),
        torch.autograd.grad(ops.butterfly_multiply(x, factors).square().sum(), (x, factors)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_precision_is_restored() -> None:
    before = torch.get_float32_matmul_precision()
    assert kmatrix.in_tf32(torch.get_float32_matmul_precision)() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_verdicts_of_targets() -> None:
    results = Results(Path("x.json"), {}, {"c": Measurement({"a": [2.0, 2.2, 2.4], "b": [1.0, 1.0, 1.0]})})
    table = target_table(
        [
            Target("speed-up", "c", "a", "b", 2, 3),
            Target("share", "c", "b", "a", 0.4, 0.3),
            Target("absent", "d", "a", "b", 1, 2),
        ],
        results,
    )
    speedup, share, absent = table.splitlines()[2:]
    assert "2.2x (2 to 2.4)" in speedup and speedup.endswith(" yes |")
    assert "at most 0.4x its time" in share and share.endswith(" no |")
    assert "not measured" in absent


def test_the_rate_of_multiply_adds_is_a_plausible_one() -> None:
    peak = machine.multiply_adds(machine.capability())
    if peak is None:
        pytest.skip("no C compiler, or not x86-64")
    found = kmatrix.measure({"peak": kmatrix.Contestant(peak)}, kmatrix.Settings(rounds=5), torch.device("cpu"))
    seconds = found.time("peak")
    assert seconds is not None
    assert 0.1e9 < machine.MULTIPLY_ADDS_PER_CALL / seconds.low < 16e9
