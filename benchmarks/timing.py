"""Interleaved timing: every contestant once a round, and ratios within each round.

Clock speed, caches and neighbours on the machine drift over seconds. Contestants that take turns meet the same
drift, so the ratio within one round hardly sees it; the median over rounds drops the rounds that were disturbed.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        rounds: rounds where time allows, at most.
        min_rounds: rounds in any case.
        sample_seconds: short calls are repeated within a round until they fill this time.
        case_seconds: time for all rounds of one case, above min_rounds.
        call_seconds: a contestant whose single call takes longer is left out.
    """

    rounds: int = 15
    min_rounds: int = 5
    sample_seconds: float = 0.02
    case_seconds: float = 4.0
    call_seconds: float = 3.0


QUICK = Settings(rounds=3, min_rounds=3, sample_seconds=0.005, case_seconds=0.5, call_seconds=1.0)


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        call: does the work once.
        threads: that torch may use for it.
        grad: whether autograd records it.
    """

    call: Callable[[], object]
    threads: int = 1
    grad: bool = False


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the values of all rounds."""

    median: float
    low: float
    high: float

    def scaled(self, factor: float) -> Spread:
        """The spread of the values times a positive number."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.0, high=3.0)
    """
    return Spread(statistics.median(values), min(values), max(values))


@dataclass
class Measurement:
    """What one case gave.

    Attributes:
        seconds: of one call, by contestant, one value a round.
        loops: calls in a sample of each contestant.
        too_slow: seconds of a call of the contestants that were left out for it.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    loops: dict[str, int] = field(default_factory=dict)
    too_slow: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> Spread | None:
        """Seconds of one call, or None if it was not measured."""
        values = self.seconds.get(name)
        return spread(values) if values else None

    def ratio(self, numerator: str, denominator: str) -> Spread | None:
        """The one's time over the other's, taken within each round; None if either was not measured.

        >>> Measurement({"a": [2.0, 8.0], "b": [1.0, 2.0]}).ratio("a", "b")
        Spread(median=3.0, low=2.0, high=4.0)
        """
        above, below = self.seconds.get(numerator), self.seconds.get(denominator)
        if not above or not below:
            return None
        return spread([a / b for a, b in zip(above, below, strict=True)])


def measure(
    contestants: Mapping[str, Contestant],
    settings: Settings,
    device: torch.device,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement:
    """Time contestants side by side: A B A B ..., after a warm-up.

    A sample is one untimed call, which brings the contestant's own operands back into the caches, and then as
    many calls as fill `Settings.sample_seconds`. A call that fills it alone goes without the untimed one.

    Args:
        contestants: by name, in the order of their turns.
        settings: how long.
        device: CPU, timed by the wall clock; or CUDA, timed by events on the current stream.
        on_round: called after each round with the rounds done and the rounds planned.
    """
    measurement = Measurement()
    with _threads_restored(), _no_collection():
        planned = 0.0
        for name, contestant in contestants.items():
            loops, seconds = _calibrated(contestant, settings, device)
            if seconds > settings.call_seconds:
                measurement.too_slow[name] = seconds
                continue
            measurement.loops[name] = loops
            measurement.seconds[name] = []
            planned += loops * seconds
        affordable = int(settings.case_seconds / max(planned, 1e-9))
        rounds = max(settings.min_rounds, min(settings.rounds, affordable))
        running = -1
        for done in range(rounds):
            for name, loops in measurement.loops.items():
                contestant = contestants[name]
                if loops > 1 or contestant.threads != running:
                    _elapsed(contestant, 1, device)
                running = contestant.threads
                measurement.seconds[name].append(_elapsed(contestant, loops, device) / loops)
            on_round(done + 1, rounds)
    return measurement


def _calibrated(contestant: Contestant, settings: Settings, device: torch.device) -> tuple[int, float]:
    """Calls that fill a sample, and seconds of one; the first call, which may set things up, does not count."""
    first = _elapsed(contestant, 1, device)
    if first > 2 * settings.call_seconds:
        return 1, first
    loops, elapsed = 1, _elapsed(contestant, 1, device)
    while elapsed < 0.5 * settings.sample_seconds:
        wanted = math.ceil(loops * settings.sample_seconds / max(elapsed, 1e-9))
        loops = min(wanted, 10 * loops)
        elapsed = _elapsed(contestant, loops, device)
    return loops, elapsed / loops


def _elapsed(contestant: Contestant, loops: int, device: torch.device) -> float:
    """Seconds of so many calls."""
    if torch.get_num_threads() != contestant.threads:
        torch.set_num_threads(contestant.threads)
    call = contestant.call
    with torch.set_grad_enabled(contestant.grad):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(device)
            start.record()
            for _ in itertools.repeat(None, loops):
                call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000
        begin = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            call()
        return time.perf_counter() - begin


@contextmanager
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No pause for garbage in the middle of a sample."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
