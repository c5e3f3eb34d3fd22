"""Running one command of a recipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

_BROKEN_PIPE = 141
"""The exit status of a program that ends because nobody reads its output any more, e.g. before head."""


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
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def one_line(error: BaseException) -> str:
    """What an error says, with the file that it is about.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.txt"))
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
    return " ".join(lines) or type(error).__name__
