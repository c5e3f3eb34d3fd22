"""The README's Python runs as it stands there, and what the READMEs name exists."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    page for pattern in ("*.md", "docs/*.md", "*/README.md", "recipes/*/README.md") for page in ROOT.glob(pattern)
)


def test_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        if "import torch\n" in block:  # it stands for itself
            exec(block, {})
        exec(block, names)
    assert names["features"](names["waveform"]).shape == (8, 40, 101)
    assert names["frames"].tolist() == [101] * 4 + [57] * 4
    assert names["k"].weight.numel() == 18_432
    assert torch.is_tensor(names["spectra"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / path).is_file(), path


def test_commands_exist() -> None:
    pytest.importorskip("lightning")
    from recipes.timit.frontends import FRONTENDS
    from recipes.timit.prepare import BUILDERS

    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
    timit = (ROOT / "recipes" / "timit" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"recipes\.timit prepare ([a-z-]+)", timit)) == set(BUILDERS)
    for names in re.findall(r"--frontends? ([a-z -]+?)(?: --|`|\n)", timit):
        assert set(names.split()) <= set(FRONTENDS), names
