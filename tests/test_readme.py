"""The README's Python runs as it stands there, and what it names exists."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["features"](names["waveform"]).shape == (8, 40, 101)
    assert names["frames"].tolist() == [101] * 4 + [57] * 4
    assert names["k"].weight.numel() == 18_432
    assert torch.is_tensor(names["spectra"])


def test_files_and_commands_that_it_names_exist() -> None:
    pytest.importorskip("lightning")
    from recipes.timit.frontends import FRONTENDS
    from recipes.timit.prepare import BUILDERS

    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).is_file(), path
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
    assert set(re.findall(r"recipes\.timit prepare ([a-z-]+)", README)) == set(BUILDERS)
    for names in re.findall(r"--frontends? ([a-z -]+?)(?: --|`|\n)", README):
        assert set(names.split()) <= set(FRONTENDS), names
