"""What both benchmarks share: their options, the loop over cases, and results that survive an interruption."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import machine
from benchmarks.arguments import folder, positive_integer, positive_number
from benchmarks.timing import QUICK, Contestant, Measurement, Settings, measure, spread

# A resumed run must be the same run: these say so.
_SAME = ("device", "cpu", "cores", "capability", "backend", "torch", "gpu", "quick")


class Named(Protocol):
    """A case: anything with a name that says all about it."""

    @property
    def name(self) -> str:
        """Unique among the cases."""


CaseT = TypeVar("CaseT", bound=Named)


class Skip(Exception):
    """A case or contestant that cannot or should not be measured here; the message says why."""


@dataclass
class Results:
    """Everything measured so far, in one JSON file that is replaced after every case.

    Attributes:
        path: of the file.
        environment: machine, versions and settings.
        measurements: by name of the case.
        skipped: what was not measured, with the reason, by name of the case.
        notes: other facts to print, by name of the case.
    """

    path: Path
    environment: dict[str, Any] = field(default_factory=dict)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def save(self) -> None:
        """Write the file as a whole or not at all."""
        cases = {
            name: {
                **dataclasses.asdict(measurement),
                "summary": {who: dataclasses.asdict(spread(times)) for who, times in measurement.seconds.items()},
            }
            for name, measurement in self.measurements.items()
        }
        content = {"environment": self.environment, "cases": cases, "skipped": self.skipped, "notes": self.notes}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            measurements = {
                name: Measurement(case["seconds"], case["loops"], case["too_slow"])
                for name, case in content["cases"].items()
            }
            return cls(path, content["environment"], measurements, content["skipped"], content["notes"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} does not hold the results of a benchmark ({type(error).__name__}: {error}): remove it or "
                "take another --out"
            ) from None

    def get(self, name: str) -> Measurement:
        """The measurement of a case, empty if there is none."""
        return self.measurements.get(name, Measurement())


@dataclass
class Options:
    """The command line.

    Attributes:
        out: folder of the results.
        patterns: of the names of the cases to run; all if empty.
        threads: thread counts to measure.
        device: CPU or CUDA.
        quick: small cases and few rounds.
        resume: keep what the folder holds already.
        redraw: measure nothing, write tables and figures of what the folder holds.
        max_bytes: memory that one contestant may need.
        settings: of the timing.
    """

    out: Path
    patterns: list[str]
    threads: list[int]
    device: torch.device
    quick: bool
    resume: bool
    redraw: bool
    max_bytes: float
    settings: Settings


def parse_options(program: str, description: str | None, argv: Sequence[str] | None, help_on_cases: str) -> Options:
    """Read the command line; errors of use end the program with status 2."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}", description=description)
    parser.add_argument(
        "--out",
        type=folder,
        default=Path("runs/benchmarks"),
        help="folder for JSON, tables and figures (default: %(default)s)",
    )
    parser.add_argument("--cases", nargs="+", default=[], metavar="PATTERN", help=help_on_cases)
    parser.add_argument(
        "--threads", nargs="+", type=positive_integer, metavar="N", help="thread counts (default: 1 and all of torch's)"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a subset with few rounds: does everything work?")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in the same folder")
    parser.add_argument("--redraw", action="store_true", help="only tables and figures of what the folder holds")
    parser.add_argument(
        "--max-gib", type=positive_number, help="memory that one contestant may need (default: 8, and half of a GPU's)"
    )
    usual = Settings()
    parser.add_argument(
        "--rounds",
        type=positive_integer,
        help=f"rounds a case, at most (default: {usual.rounds}, and {QUICK.rounds} with --quick)",
    )
    parser.add_argument(
        "--case-seconds",
        type=positive_number,
        help=f"seconds for the rounds of a case (default: {usual.case_seconds:g}, and {QUICK.case_seconds:g} with "
        "--quick)",
    )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not args.redraw and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} finds no CUDA device on this machine")
    settings = QUICK if args.quick else usual
    if args.rounds is not None:
        fewest = min(settings.min_rounds, args.rounds)
        settings = dataclasses.replace(settings, rounds=args.rounds, min_rounds=fewest)
    if args.case_seconds is not None:
        settings = dataclasses.replace(settings, case_seconds=args.case_seconds)
    # A GPU is fed by one thread: counts of them are no dimension there.
    threads = [1] if args.device == "cuda" else args.threads or [1, torch.get_num_threads()]
    return Options(
        out=args.out,
        patterns=args.cases,
        threads=sorted(set(threads)),
        device=torch.device(args.device),
        quick=args.quick,
        resume=args.resume,
        redraw=args.redraw,
        max_bytes=_default_bytes(args.device) if args.max_gib is None else args.max_gib * 2**30,
        settings=settings,
    )


def _default_bytes(device: str) -> float:
    gpu = device == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_properties(0).total_memory / 2 if gpu else 8 * 2**30


def selected(cases: Sequence[CaseT], patterns: Sequence[str], groups: Mapping[str, set[str]]) -> list[CaseT]:
    """The cases whose names match a pattern, or are in a group of that name.

    Raises:
        ValueError: a pattern that matches nothing.
    """
    if not patterns:
        return list(cases)
    chosen: set[str] = set()
    for pattern in patterns:
        matching = groups.get(pattern) or {c.name for c in cases if fnmatch.fnmatch(c.name, f"*{pattern}*")}
        if not matching:
            known = f"one of {sorted(groups)} or " if groups else ""
            raise ValueError(f"no case matches {pattern!r}: expected {known}a part of a name, e.g. {cases[0].name!r}")
        chosen |= matching
    return [case for case in cases if case.name in chosen]


def open_results(path: Path, options: Options) -> Results:
    """Results to add to: new ones, or those of the interrupted run.

    Raises:
        ValueError: nothing to redraw or an interrupted run of another machine or build.
    """
    if options.redraw:
        if not path.is_file():
            raise ValueError(f"--redraw: there is no {path}")
        return Results.load(path)
    environment = machine.environment(options.device)
    environment["quick"] = options.quick
    environment["settings"] = dataclasses.asdict(options.settings)
    if options.resume and path.is_file():
        results = Results.load(path)
        for key in _SAME:
            if results.environment.get(key) != environment.get(key):
                raise ValueError(
                    f"--resume: {path} was measured with {key} = {results.environment.get(key)!r}, here it is "
                    f"{environment.get(key)!r}: take another --out"
                )
        return results
    return Results(path, environment)


def run(
    cases: Sequence[CaseT],
    build: Callable[[CaseT, Results], Mapping[str, Contestant]],
    describe: Callable[[CaseT, Measurement], str],
    results: Results,
    options: Options,
) -> bool:
    """Measure the cases that the results lack; progress and one line a case go to stderr.

    Args:
        cases: in their order.
        build: makes the contestants of a case, notes what it leaves out in ``results.skipped``, and raises `Skip`
            where nothing is left.
        describe: one line about a measured case.
        results: filled and saved after every case.
        options: of the command line.

    Returns:
        whether all cases were done: False after Ctrl-C, with the finished ones saved.
    """
    todo = [case for case in cases if case.name not in results.measurements]
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    # Drawn between rounds only: a thread that draws would take its share of the samples.
    with Progress(*columns, console=console, auto_refresh=False, redirect_stdout=False) as progress:
        bar = progress.add_task("", total=len(todo))
        try:
            for case in todo:
                progress.update(bar, description=case.name)
                progress.refresh()
                results.skipped.pop(case.name, None)
                try:
                    measurement = measure(build(case, results), options.settings, options.device,
                                          lambda done, total: progress.refresh())  # fmt: skip
                    for name, seconds in measurement.too_slow.items():
                        skip(results, case, f"{name}: a call takes {seconds:.2g} s")
                    results.measurements[case.name] = measurement
                    progress.console.print(f"{case.name}: {describe(case, measurement)}", markup=False)
                except Skip as reason:
                    skip(results, case, str(reason))
                except (MemoryError, torch.OutOfMemoryError) as error:
                    skip(results, case, f"all: out of memory ({str(error).splitlines()[0]})")
                for line in results.skipped.get(case.name, []):
                    progress.console.print(f"{case.name}: skipped {line}", markup=False)
                results.save()
                progress.advance(bar)
                progress.refresh()
        except KeyboardInterrupt:
            progress.stop()
            print("interrupted: the same command with --resume goes on", file=sys.stderr)
            return False
    return True


def skip(results: Results, case: Named, reason: str) -> None:
    """Note that something of a case is not measured."""
    results.skipped.setdefault(case.name, []).append(reason)


def check_memory(what: str, needed: float, limit: float, device: torch.device) -> None:
    """Raise `Skip` where a contestant needs more memory than it may, or than there is."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = float(torch.cuda.mem_get_info(device)[0] + cached)
    else:
        free = _free_memory()
    allowed = min(limit, 0.8 * free)
    if needed > allowed:
        raise Skip(f"{what}: needs about {needed / 2**30:.1f} GiB (limit {allowed / 2**30:.1f})")


def _free_memory() -> float:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * float(line.split()[1])
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return float("inf")
