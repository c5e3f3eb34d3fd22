"""A prepared folder of the made-up language pair, and configurations small enough for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from recipes.translation.config import ROWS, Config
from tests.recipes.translation.toy import numbers

if TYPE_CHECKING:
    from recipes.translation.data import Data


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from recipes.translation.data import write_data

    out = tmp_path_factory.mktemp("numbers") / "data"
    return write_data(out, numbers(), {"name": "numbers"}, symbols=60, joint=True, progress=False)


@pytest.fixture(scope="session")
def data(prepared: Path) -> Data:
    from recipes.translation.data import load_data

    return load_data(prepared)


TINY = {
    "dim": 32, "ffn": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "updates": 12, "batch_tokens": 200,
    "max_length": 40, "lr": 5e-3, "warmup": 20, "dropout": 0.1, "save_every": 4, "average": 2,
}  # fmt: skip


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """Makes a small configuration of a row."""

    def make(row: str = "dynamicconv", **changes: object) -> Config:
        return Config(**{**ROWS[row], **TINY, **changes})

    return make
