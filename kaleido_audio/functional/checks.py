"""Checks of options that the functions and the modules share."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise the ValueError of an option that is none of its choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"expected {name} in {choices}, got {value!r}")


def check_at_least(name: str, value: Any, least: int) -> int:
    """A whole number, of Python or NumPy, as an int; a ValueError if it is none or too small."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"expected {name} to be an integer >= {least}, got {value!r}")
    return int(value)
