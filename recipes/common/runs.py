"""What a run's folder says of the run, so that no other one is taken for it or continues it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.common.files import BROKEN_RUN, load_json, naming

DATA = "data.json"
"""The file that says what a run learned from."""


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
