"""The tour of exact K-matrices runs, and its table is right."""

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from matplotlib.image import imread

from examples import kmatrices
from kaleido_audio import KMatrix


def test_main_writes_the_figure_and_the_table(tmp_path, capsys) -> None:
    kmatrices.main(["--sizes", "16", "32", "--learned", "16", "--steps", "20", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "exact.md").read_text()
    learned = (tmp_path / "out" / "recover_dft.md").read_text()
    assert capsys.readouterr().out == text + learned
    assert "factorisation" in learned and (tmp_path / "out" / "recover_dft.png").is_file()
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert len(rows) == 2 * len(kmatrices.MAPS)
    errors = [float(row[header.index("relative error")]) for row in rows]
    assert max(errors) < 1e-13
    fourier = rows[0]
    assert fourier[: header.index("of a dense matrix")] == ["DFT", "complex", "(BB*)^1_1", "16", "512"]
    picture = imread(tmp_path / "out" / "stages.png")
    assert picture.shape[0] > 300 and picture[..., :3].std() > 0.05


def test_a_wrong_map_shows_as_an_error() -> None:
    wrong = kmatrices.Map("wrong", lambda n: (n,), lambda n, dtype: KMatrix(n, dtype=dtype), lambda x, n: x)
    assert kmatrices.check(wrong, 16).error > 0.1


@pytest.mark.parametrize("n", [2, 8, 64])
def test_stages_multiply_to_the_factors(n: int) -> None:
    factors = KMatrix(n, dtype=torch.float64).factors.detach()
    product = torch.eye(n, dtype=torch.float64)
    for factor in range(2):
        for stage in range(factors.shape[1]):
            matrix = kmatrices.stage_matrix(factors, factor, stage)
            assert ((matrix != 0).sum(dim=1) == 2).all()
            product = matrix @ product
    torch.testing.assert_close(product, KMatrix.from_factors(n, factors).to_dense().detach())


def test_sizes_are_checked(capsys) -> None:
    with pytest.raises(SystemExit):
        kmatrices.main(["--sizes", "12"])
    assert "powers of two, at least 4, got [12]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        kmatrices.main(["--steps", "-1"])
    assert "argument --steps: expected a whole number from 1 on, got -1" in capsys.readouterr().err
