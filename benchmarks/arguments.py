"""Values on the command lines of the benchmarks and examples."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive_integer(text: str) -> int:
    """A whole number from 1 on.

    >>> positive_integer("3")
    3
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text}")
    return int(text)


def positive_number(text: str) -> float:
    """A number above zero, which may be infinite.

    >>> positive_number("0.5"), positive_number("inf")
    (0.5, inf)
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above zero, got {text}")
    return value


def folder(text: str) -> Path:
    """A folder that there is or that can be made, so that hours of work are not lost to a file of its name."""
    path = Path(text)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise argparse.ArgumentTypeError(f"expected a folder, got the file {part}")
    return path
