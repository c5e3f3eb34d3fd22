"""Files that others read while they are written."""

from __future__ import annotations

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all: neither a reader nor a kill ever meets half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
