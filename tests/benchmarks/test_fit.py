"""The benchmark of fits: a tiny run from end to end."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import fit


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit.main(["--quick", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    (row,) = (line for line in out.splitlines() if "Toeplitz, complex K" in line)
    assert row.split("|")[-3].strip() == "exact"  # the last class, with expansion 2
    (row,) = (line for line in out.splitlines() if "Fourier" in line)
    assert row.count("exact") == 3
    rows = json.loads((tmp_path / "fit.json").read_text())["fits"]
    assert len(rows) == 30 and all(0 <= r["error"] < 1 for r in rows)
    assert (tmp_path / "fit.md").read_text() in out + "\n"
    assert (tmp_path / "fit.png").stat().st_size > 10_000


def test_low_rank_has_as_many_parameters() -> None:
    matrix = torch.diag(torch.tensor([3.0] * 48 + [4.0] * 16))
    row = fit.measure(64, 1, 1, "diagonal", matrix, torch.float32, 1)
    assert row.exact and row.rank == 12  # 4 * 64 * 6 parameters; a rank takes 2 * 64
    assert row.low_rank_error == pytest.approx(((9 * 48 + 16 * 4) / (9 * 48 + 16 * 16)) ** 0.5)
