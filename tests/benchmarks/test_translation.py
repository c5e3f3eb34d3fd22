"""The translation benchmark: equal lengths, int8 that still translates, and a tiny run from end to end."""

from pathlib import Path

import pytest
import torch

from benchmarks import translation
from benchmarks.runner import Results
from recipes.translation.config import ROWS, Config
from recipes.translation.model import EOS, Translator

SMALL = {"dim": 32, "ffn": 32, "encoder_layers": 1, "decoder_layers": 2}


def small(row: str) -> Translator:
    torch.manual_seed(0)
    return Translator(Config(**{**ROWS[row], **SMALL}), 20, 20).eval()


@pytest.mark.parametrize("row", ["transformer", "dynamicconv-k-all+output"])
def test_as_many_words_as_asked_for_and_each_the_likeliest(row: str) -> None:
    model = small(row)
    source = torch.tensor([[5, 6, 7, EOS]])
    with torch.no_grad():
        words = translation.written(model, source, 9)
        logits = model(source, torch.tensor([[EOS, *words[:-1]]]))
    assert words == logits[0].argmax(-1).tolist() and len(words) == 9


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    assert translation.main(arguments) == 0
    out = capsys.readouterr().out
    for words in ("speed, DynamicConv = 1", "1.36x, 1.29x", "lengths forced", "not the published ones"):
        assert words in out
    found = Results.load(tmp_path / "translation.json")
    assert list(found.measurements) == ["length22-t1"]
    assert set(ROWS) <= set(found.get("length22-t1").seconds)
    assert (tmp_path / "translation.png").stat().st_size > 10_000
    assert translation.main([*arguments, "--redraw"]) == 0
    assert capsys.readouterr().out == out


def test_a_pattern_that_matches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert translation.main(["--quick", "--out", str(tmp_path), "--cases", "length7"]) == 2
    assert "no case matches 'length7'" in capsys.readouterr().err
