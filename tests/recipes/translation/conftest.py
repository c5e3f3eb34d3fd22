"""A made-up language pair: numbers, translated word by word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("sacremoses")
pytest.importorskip("sacrebleu")

from recipes.translation.config import ROWS, Config
from recipes.translation.data import SPLITS, Data, Text, load_data, write_data

WORDS = {"null": "zero", "eins": "one", "zwei": "two", "drei": "three", "vier": "four", "acht": "eight", "zehn": "ten"}
SIZES = {"train": 400, "valid": 20, "test": 30}


def sentences(number: int, seed: int) -> tuple[list[str], list[str]]:
    """Sentences of 2 to 6 numbers with a capital and a stop, in both languages."""
    generator = np.random.default_rng(seed)
    german = [generator.choice(list(WORDS), generator.integers(2, 7)).tolist() for _ in range(number)]
    english = [[WORDS[word] for word in line] for line in german]
    texts = [[f"{' '.join(line).capitalize()}." for line in side] for side in (german, english)]
    return texts[0], texts[1]


def numbers() -> Text:
    return {split: sentences(SIZES[split], seed) for seed, split in enumerate(SPLITS)}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("numbers") / "data"
    return write_data(out, numbers(), {"name": "numbers"}, symbols=60, joint=True, progress=False)


@pytest.fixture(scope="session")
def data(prepared: Path) -> Data:
    return load_data(prepared)


TINY = {
    "dim": 32, "ffn": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "updates": 12, "batch_tokens": 200,
    "max_length": 40, "lr": 5e-3, "warmup": 20, "dropout": 0.1, "save_every": 4, "average": 2,
}  # fmt: skip


@pytest.fixture
def tiny():  # type: ignore[no-untyped-def]
    """Makes a small configuration of a row."""

    def make(row: str = "dynamicconv", **changes: object) -> Config:
        return Config(**{**ROWS[row], **TINY, **changes})

    return make
