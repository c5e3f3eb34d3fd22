"""Files of runs, read by others while they are written, by one process at a time; and folders of prepared data."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

BROKEN_CHECKPOINT = "remove it to train again from the start"
"""What to do about a checkpoint that cannot be used."""

BROKEN_RUN = "remove the run's folder to train again"
"""What to do about a run whose data cannot be told any more."""


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all: neither a reader nor a kill ever meets half of it."""
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
    except OSError as error:
        # A full disk is found out while writing, when Python no longer says which file it was.
        raise OSError(error.errno, error.strerror, str(path)) from error
    partial.replace(path)


def save_checkpoint(content: Any, path: Path) -> None:
    """Write with torch.save, as a whole or not at all."""
    partial = path.with_suffix(".partial")
    try:
        torch.save(content, partial)
    except RuntimeError as error:
        partial.unlink(missing_ok=True)
        raise RuntimeError(f"{path} cannot be written ({_first_sentence(error)}): is the disk full?") from error
    partial.replace(path)


def _first_sentence(error: Exception) -> str:
    """What an error says at first: torch goes on at length."""
    return (str(error).strip().splitlines() or [""])[0].partition(". ")[0].rstrip(":.") or type(error).__name__


@contextmanager
def naming(path: Path, remedy: str) -> Iterator[None]:
    """Name a file in the errors that its content leads to within the block.

    Args:
        path: of the file.
        remedy: what to do about it.

    Raises:
        ValueError: in the place of those errors.
    """
    try:
        yield
    except (
        ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError, OSError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = f"missing {error}" if isinstance(error, KeyError) else _first_sentence(error)
        raise ValueError(f"{path} cannot be read ({reason}): {remedy}") from error


def load_json(path: Path, remedy: str) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is broken; the message names the file and the remedy.
    """
    with naming(path, remedy):
        return json.loads(path.read_text(encoding="utf-8"))


def load_checkpoint(path: Path, device: torch.device | str = "cpu", *, remedy: str = BROKEN_CHECKPOINT) -> Any:
    """Read what `save_checkpoint` wrote.

    Raises:
        ValueError: it is broken; the message names the file and the remedy.
    """
    with naming(path, remedy):
        return torch.load(path, map_location=device, weights_only=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run has got so far that another configuration would spoil it."""
    return any((run_dir / "checkpoints").glob("*.pt"))


def check_apart(out: Path, needed: Iterable[Path | None]) -> None:
    """Raise `ValueError` where a folder to be written, or overwritten, holds what is read or kept; None is nothing."""
    for path in needed:
        if path is not None and path.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{out} would be written over {path}, which is needed: give another --out")


def check_free(out: Path, *, overwrite: bool, made: Iterable[str], needed: Iterable[Path | None] = ()) -> None:
    """Check that nothing is in the way of a new folder of data.

    Args:
        out: the folder.
        overwrite: whether one that the same recipe made may be there. Any other stays, so that nobody's files are
            lost to a wrong path.
        made: names in the dataset.json of a folder that this recipe made; those of others lack some of them.
        needed: what must not be in it, as `check_apart` takes it.

    Raises:
        FileExistsError: something is in the way.
        ValueError: ``out`` holds what is needed.
    """
    check_apart(out, needed)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: expected a folder to write, give another --out")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already: remove it, give another folder, or --overwrite it")
    if out.exists() and any(out.iterdir()) and not set(made) <= _described(out).keys():
        raise FileExistsError(
            f"{out} is not a folder that this recipe made (by its dataset.json), so it is not overwritten: give "
            "another folder, or remove it"
        )


def _described(folder: Path) -> dict[str, Any]:
    """What dataset.json says; nothing if there is none, or a broken one."""
    try:
        about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


@contextmanager
def new_folder(out: Path, *, overwrite: bool, made: Iterable[str]) -> Iterator[Path]:
    """A hidden folder beside ``out`` to fill in the block, which then takes its place: as a whole or not at all.

    A kill (SIGKILL) leaves that folder, ``.<name>.<id>.partial``, which may be deleted; in the moment in which one
    takes the place of another, it leaves the other as ``.<name>.<id>.old``.

    Args:
        out, overwrite, made: as `check_free` takes them; it is asked again at the end.
    """
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        check_free(out, overwrite=overwrite, made=made)
        replace_folder(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(new: Path, out: Path) -> None:
    """Rename a folder into the place of another one, if there is one, which is removed after that."""
    old = new.with_suffix(".old")
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except BaseException:  # an interruption too, but for one after the new one is in its place
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
