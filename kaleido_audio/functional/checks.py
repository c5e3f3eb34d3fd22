"""Checks of options that the functions and the modules share."""

from __future__ import annotations


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise the ValueError of an option that is none of its choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"expected {name} in {choices}, got {value!r}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise the ValueError of a whole number that is too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected {name} to be an integer >= {least}, got {value!r}")
