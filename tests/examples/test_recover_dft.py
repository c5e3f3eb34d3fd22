"""The Fourier transform is learned from examples, by the two ways that are said to work."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
from examples import recover_dft


@pytest.mark.parametrize("n", [64, 256])
def test_both_ways_reach_1e_4(n: int) -> None:
    for found in (recover_dft.by_factorisation(n), recover_dft.by_gradient(n, order_known=True, steps=400)):
        assert found.relative_error < 1e-5
        assert found.rmse == pytest.approx(found.relative_error / n**0.5)
        x = torch.randn(3, n, dtype=torch.complex64)
        torch.testing.assert_close(found.kmatrix(x), torch.fft.fft(x, norm="ortho"), rtol=0, atol=1e-4)
        assert found.kmatrix.width == 1


def test_an_unknown_order_is_not_found_by_gradient_descent() -> None:
    found = recover_dft.by_gradient(64, order_known=False, steps=300)
    assert len(found.curve) == 300 and found.curve[-1] < 0.95 * found.curve[0]
    assert found.relative_error > 0.1


def test_the_same_seed_gives_the_same_transform() -> None:
    first, second, other = (recover_dft.by_gradient(8, order_known=True, steps=5, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.kmatrix.weight, second.kmatrix.weight)
    assert not torch.equal(first.kmatrix.weight, other.kmatrix.weight)


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recover_dft.main(["--sizes", "8", "16", "--steps", "20", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 + 6 and "gradient, order unknown" in out
    assert (tmp_path / "recover_dft.md").read_text() == out
    assert (tmp_path / "recover_dft.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "16", "48"], "expected --sizes that are powers of two, got [16, 48]"),
        (["--sizes", "0"], "expected --sizes that are powers of two, got [0]"),
        (["--steps", "-1"], "argument --steps: expected a whole number from 1 on, got -1"),
        (["--out", __file__], f"argument --out: expected a folder, got the file {__file__}"),
    ],
)
def test_options_out_of_range(arguments, message, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recover_dft.main(arguments)
    assert message in capsys.readouterr().err
