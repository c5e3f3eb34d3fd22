"""What a run's folder says of the run, so that no other one is taken for it or continues it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from recipes.common.files import BROKEN_RUN, load_json, naming

CONFIG = "config.json"
"""The file with a run's configuration."""

DATA = "data.json"
"""The file that says what a run learned from."""

Config = TypeVar("Config")


def check_config(
    mine: Config, load: Callable[[Path], Config], run_dir: Path, *, changeable: Iterable[str] = ()
) -> Config:
    """Check that a run that has a checkpoint, or a result, has the configuration given.

    Args:
        mine: the configuration, a dataclass.
        load: reads one from a file.
        run_dir: folder of the run.
        changeable: fields that may differ.

    Returns:
        the configuration in the folder.

    Raises:
        ValueError: another one, or config.json is missing or broken.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{path} is missing, and nothing else says how the run in this folder was trained: put it back, or "
            f"remove the folder {run_dir}"
        )
    theirs = load(path)
    differences = [
        f"{name} {value!r}, not {vars(mine)[name]!r}"
        for name, value in vars(theirs).items()
        if name not in changeable and value != vars(mine)[name]
    ]
    if differences:
        raise ValueError(
            f"{path} belongs to a run with another configuration ({'; '.join(differences)}): give another folder, or "
            f"remove the folder {run_dir}"
        )
    return theirs


def check_data(mine: Mapping[str, Any], run_dir: Path, digests: Mapping[str, str]) -> None:
    """Check that a run was trained on the data given.

    Args:
        mine: what data.json of a run on these data says: a ``"summary"`` in words, and digests by name.
        run_dir: folder of the run.
        digests: names of those digests, and how to say that one differs while the summary is the same. One that
            data.json lacks, as those of earlier versions may, is not compared.

    Raises:
        ValueError: other data, or data.json is missing or broken.
    """
    path = run_dir / DATA
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected the folder of a run")
    about = load_json(path, BROKEN_RUN)
    with naming(path, BROKEN_RUN):
        summary, theirs = about["summary"], {name: about.get(name) for name in digests}
    if summary != mine["summary"]:
        raise ValueError(f"{run_dir} was trained on other data ({summary}) than given ({mine['summary']})")
    for name, other in digests.items():
        if theirs[name] not in (None, mine[name]):
            raise ValueError(f"{run_dir} was trained {other}: give the folder that it was trained on")


def load_history(path: Path, names: Iterable[str], remedy: str) -> list[dict[str, float]]:
    """Read the curves of a run: a record for every epoch or checkpoint.

    Args:
        path: of the file.
        names: that every record has.
        remedy: what to do about a file that cannot be used.

    Raises:
        ValueError: the file is missing or broken, or holds anything else, or nothing.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: {remedy}")
    history = load_json(path, remedy)
    names = set(names)
    if not (isinstance(history, list) and history and all(isinstance(r, dict) and names <= r.keys() for r in history)):
        raise ValueError(f"{path} holds no records of {', '.join(sorted(names))}: {remedy}")
    return history
