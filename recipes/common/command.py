"""Running one command of a recipe."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

_BROKEN_PIPE = 141
"""The exit status of a program that ends because nobody reads its output any more, e.g. before head."""


class Terminated(BaseException):
    """SIGTERM, as Ctrl-C is KeyboardInterrupt."""


def raise_on_sigterm() -> None:
    """Let SIGTERM end this program as Ctrl-C does: what it has started is ended too, and it says how to go on."""

    def stop(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Call ``run`` of the parsed arguments with them; errors of use end in one line on stderr and exit status 2.

    Returns:
        the exit status.
    """
    status = _run(parser.parse_args(argv))
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # At its end Python tries once more, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return status or _BROKEN_PIPE
        if not status:
            print(f"error: standard output: {error.strerror}", file=sys.stderr)
            return 2
    return status


def _run(args: argparse.Namespace) -> int:
    try:
        args.run(args)
    except BrokenPipeError:
        return _BROKEN_PIPE
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        print(f"error: {described(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Terminated) as stop:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    return 0


def described(error: BaseException) -> str:
    """What an error says, with the file that it is about: one line, unless it lists several files.

    >>> described(FileNotFoundError(2, "No such file or directory", "a.txt"))
    'a.txt: No such file or directory'
    """
    if isinstance(error, OSError) and error.errno is not None:
        # Python forgets which file it was once it is open.
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        remedy = ", where a folder is needed: give another one" if in_the_way else ""
        return f"{error.filename or 'reading or writing failed'}: {error.strerror}{remedy}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "in DataLoader worker process" in lines[0]:
        # The traceback of that process comes before what it says.
        return lines[-1].partition(": ")[2]
    if isinstance(error, ValueError):  # ours, which may list several files
        return str(error).strip() or type(error).__name__
    return " ".join(lines) or type(error).__name__
