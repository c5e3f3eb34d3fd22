"""Configurations as dataclasses: checks of their values, and their options on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

_PREFIX = "config_"


def choice(default: Any, choices: Iterable[Any]) -> Any:
    """A field of a dataclass with one of some values, which `check_choices` checks and `add_config_options` shows."""
    return dataclasses.field(default=default, metadata={"choices": tuple(choices)})


def check_choices(config: Any) -> None:
    """Raise ValueError for a field that is none of its choices."""
    for field in dataclasses.fields(config):
        choices, value = field.metadata.get("choices"), getattr(config, field.name)
        if choices is not None and value not in choices:
            raise ValueError(f"expected {field.name} in {choices}, got {value!r}")


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError for a field that is not above 0, or not finite."""
    for name in names:
        value = getattr(config, name)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"expected {name} > 0 and finite, got {value}")


def check_not_negative(config: Any, *names: str) -> None:
    """Raise ValueError for a field below 0, or not finite."""
    for name in names:
        value = getattr(config, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"expected {name} >= 0 and finite, got {value}")


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise ValueError for a seed that not every generator takes."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"expected 0 <= {name} < 2**63, got {seed}")


def add_config_options(
    parser: argparse.ArgumentParser,
    config: type,
    presets: Mapping[str, Mapping[str, Any]],
    *,
    preset_help: str,
    leave_out: tuple[str, ...] = (),
    choices: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """An option for every field of a configuration, explained as its docstring does; and ``--preset``.

    The values are left for the configuration to check: they may depend on each other.

    Args:
        parser: to add them to.
        config: a dataclass whose docstring has a section "Attributes".
        presets: by name, what each has in the place of the dataclass's defaults.
        preset_help: which is the default.
        leave_out: fields without an option.
        choices: to show for fields that do not name theirs.
    """
    group = parser.add_argument_group("configuration")
    group.add_argument("--preset", choices=list(presets), help=preset_help)
    kinds, meanings = typing.get_type_hints(config), _meanings(config)
    for field in dataclasses.fields(config):
        if field.name in leave_out:
            continue
        kind = kinds[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(t for t in typing.get_args(kind) if t is not type(None))
        options: dict[str, Any] = {"dest": _PREFIX + field.name, "help": _help(field, meanings, presets)}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            known = field.metadata.get("choices", (choices or {}).get(field.name))
            shown = kind.__name__.upper() if known is None else f"{{{','.join(map(str, known))}}}"
            options.update(type=kind, metavar=shown)
        group.add_argument("--" + field.name.replace("_", "-"), **options)


def check_row(row: str, given: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError where an option contradicts the row of a comparison, which would then be another one.

    Args:
        row: its name.
        given: as `given_options` gives them.
        rows: what makes up each row.
    """
    for name, value in rows[row].items():
        if given.get(name, value) != value:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"the row {row!r} has {flag} {value}: give another row, or leave {flag} out")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given as options which `add_config_options` had added."""
    return {k.removeprefix(_PREFIX): v for k, v in vars(args).items() if k.startswith(_PREFIX) and v is not None}


def _help(field: dataclasses.Field[Any], meanings: Mapping[str, str], presets: Mapping[str, Mapping[str, Any]]) -> str:
    others = [f"{name}: {preset[field.name]}" for name, preset in presets.items() if field.name in preset]
    default = [] if field.default is None else [f"default: {field.default}"]
    notes = "; ".join([*default, *others])
    meaning = meanings.get(field.name, "").rstrip(".")
    return (f"{meaning} ({notes})" if notes else meaning).replace("%", "%%")


def _meanings(config: type) -> dict[str, str]:
    """By field, what the section "Attributes" of a docstring says of it."""
    _, _, section = inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")
    entries = re.split(r"\n(?=    \w)", "\n" + section)
    meanings = {}
    for entry in entries[1:]:
        names, _, text = entry.strip().partition(": ")
        meanings.update(dict.fromkeys(names.split(", "), " ".join(text.replace("`", "").split())))
    return meanings
