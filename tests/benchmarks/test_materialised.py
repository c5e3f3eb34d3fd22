"""The benchmark of materialised products: a tiny run, and the table that it makes of known times."""

from pathlib import Path

import pytest

from benchmarks import materialised as benchmark
from benchmarks.materialised import Case
from benchmarks.runner import Results
from benchmarks.timing import Measurement
from kaleido_audio.ops.materialised import Row


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--rounds", "1", "--out", str(tmp_path), "--cases", "f2"]
    assert benchmark.main(arguments) == 0
    out = capsys.readouterr().out
    assert "half, forward + backward" in out and "256 vectors" in out
    found = Results.load(tmp_path / "materialised.json")
    assert {name.split("-")[0] for name in found.measurements} == {"tf32", "half"}
    assert all(set(measured.seconds) == {"kernels", "dense"} for measured in found.measurements.values())
    assert (tmp_path / "materialised.png").stat().st_size > 10_000
    assert not (tmp_path / "materialised.csv").exists()


def results_of(ratios: dict[Case, float]) -> Results:
    measurements = {case.name: Measurement({"kernels": [ratio], "dense": [1.0]}) for case, ratio in ratios.items()}
    return Results(Path("x.json"), {}, measurements)


def test_rows_are_of_series_that_stay_faster() -> None:
    results = results_of(
        {
            Case("tf32", 64, 2, 1024): 2.0,  # faster, but not with 4096
            Case("tf32", 64, 2, 4096): 1.0,
            Case("tf32", 64, 2, 16384): 1.2,
            Case("tf32", 64, 2, 65536): 3.0,
            Case("half", 64, 2, 1024, training=True): 1.5,
            Case("half", 64, 2, 65536, training=True): 2.0,
            Case("half", 64, 2, 65536): 1.04,  # within the noise
        }
    )
    assert benchmark.measured_rows(results, "9.0") == [
        Row("9.0", "half", 64, 2, True, 1024),
        Row("9.0", "tf32", 64, 2, False, 16384),
    ]
