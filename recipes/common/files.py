"""Files of runs, which others read while they are written and which one process writes at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all: neither a reader nor a kill ever meets half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def sole_trainer(run_dir: Path) -> Iterator[None]:
    """Keep a second training out of a run's folder, e.g. one that outlived the `compare` that had started it.

    The lock goes with the process, however it ends. The other processes of a DDP training share that of the first.

    Raises:
        ValueError: another process trains in ``run_dir``.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {run_dir}: wait for it, or stop it") from None
        yield
