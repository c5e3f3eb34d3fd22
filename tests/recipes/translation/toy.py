"""A made-up language pair: numbers, translated word by word."""

from __future__ import annotations

import numpy as np

SPLITS = ("train", "valid", "test")
WORDS = {"null": "zero", "eins": "one", "zwei": "two", "drei": "three", "vier": "four", "acht": "eight", "zehn": "ten"}
SIZES = {"train": 400, "valid": 20, "test": 30}


def sentences(number: int, seed: int) -> tuple[list[str], list[str]]:
    """Sentences of 2 to 6 numbers with a capital and a stop, in both languages."""
    generator = np.random.default_rng(seed)
    german = [generator.choice(list(WORDS), generator.integers(2, 7)).tolist() for _ in range(number)]
    english = [[WORDS[word] for word in line] for line in german]
    texts = [[f"{' '.join(line).capitalize()}." for line in side] for side in (german, english)]
    return texts[0], texts[1]


def numbers() -> dict[str, tuple[list[str], list[str]]]:
    return {split: sentences(SIZES[split], seed) for seed, split in enumerate(SPLITS)}
