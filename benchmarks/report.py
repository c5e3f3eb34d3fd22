"""Tables in Markdown and the small parts that the figures share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.runner import Results
from benchmarks.timing import Spread

# Okabe and Ito's palette: told apart with every common kind of colour blindness.
COLOURS = {
    "K": "#0072B2",
    "dense": "#D55E00",
    "dense DFT": "#D55E00",
    "rfft": "#009E73",
    "fft": "#009E73",
    "torchaudio": "#009E73",
    "nnAudio": "#E69F00",
    "LEAF": "#CC79A7",
    "KFbank": "#56B4E9",
    "Kaldi (torchaudio)": "#009E73",
    "limit": "#8C8C8C",
    "copy": "#8C8C8C",
}


@dataclass(frozen=True)
class Target:
    """A ratio to reach.

    Attributes:
        title: what is compared.
        case: name of the case that measures it.
        numerator, denominator: contestants; the ratio is the one's time over the other's.
        reach: ratio to reach.
        aim: ratio to aim for. Below `reach`, smaller ratios are the better ones.
    """

    title: str
    case: str
    numerator: str
    denominator: str
    reach: float
    aim: float

    @property
    def more_is_better(self) -> bool:
        """A speed-up rather than a share of the other's time."""
        return self.aim > self.reach

    def verdict(self, ratio: float) -> str:
        """Whether a ratio reaches the target: "no", "yes", or "yes, and the aim".

        >>> Target("", "", "", "", 20, 30).verdict(25.0), Target("", "", "", "", 1.0, 0.7).verdict(0.6)
        ('yes', 'yes, and the aim')
        """
        sign = 1 if self.more_is_better else -1
        if sign * ratio >= sign * self.aim:
            return "yes, and the aim"
        return "yes" if sign * ratio >= sign * self.reach else "no"


def target_table(targets: Iterable[Target], results: Results) -> str:
    """The targets beside what was measured."""
    rows = []
    for target in targets:
        ratio = results.get(target.case).ratio(target.numerator, target.denominator)
        limit = f"{target.reach:g}x faster" if target.more_is_better else f"at most {target.reach:g}x its time"
        measured, verdict = (
            ("not measured", "-") if ratio is None else (ratio_text(ratio), target.verdict(ratio.median))
        )
        rows.append([target.title, limit, f"{target.aim:g}x", measured, verdict])
    return table(["case", "to reach", "aim", "measured ratio", "reached?"], rows)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table that also reads well as text.

    Args:
        headers: of the columns.
        rows: cells as text.
        left: columns set flush left; the others are numbers, flush right.

    >>> print(table(["n", "time"], [["64", "1.5"], ["512", "20"]]))
    | n   | time |
    | --- | ---: |
    | 64  |  1.5 |
    | 512 |   20 |
    """
    rows = [list(row) for row in rows]
    widths = [max(3, len(header), *(len(row[i]) for row in rows)) if rows else max(3, len(header))
              for i, header in enumerate(headers)]  # fmt: skip

    def line(cells: Sequence[str]) -> str:
        parts = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(parts) + " |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(headers), line(rule), *(line(row) for row in rows)])


def number(value: float) -> str:
    """Three digits that count.

    >>> number(0.12345), number(12.345), number(1234.5)
    ('0.123', '12.3', '1234')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio_text(ratio: Spread | None) -> str:
    """Median, and the smallest and largest of the rounds.

    >>> ratio_text(Spread(2.0, 1.9, 2.25))
    '2x (1.9 to 2.25)'
    """
    return "-" if ratio is None else f"{number(ratio.median)}x ({number(ratio.low)} to {number(ratio.high)})"


def short_ratio(ratio: Spread | None) -> str:
    """The median alone."""
    return "-" if ratio is None else f"{number(ratio.median)}x"


def microseconds(seconds: Spread | None) -> str:
    """The median in microseconds."""
    return "-" if seconds is None else number(seconds.median * 1e6)


def milliseconds(seconds: Spread | None) -> str:
    """The median in milliseconds."""
    return "-" if seconds is None else number(seconds.median * 1e3)


def target_notes(environment: dict[str, Any]) -> list[str]:
    """What keeps the targets from meaning what they say on this machine."""
    notes = []
    if environment["torch_capability"] != "avx512":
        notes.append(
            "Note: the targets are defined on a machine with AVX-512, and this processor has none "
            f"({environment['cpu']}: {environment['torch_capability']})."
        )
    if environment["backend"] == "reference":
        notes.append("Note: there are no native kernels in this installation (backend 'reference').")
    if environment["load"] is not None and environment["load"] > 0.5:
        notes.append(f"Note: other processes were running (load {environment['load']} at the start).")
    return notes


def plain_log_axis(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 of every decade of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=50))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def heading(environment: dict[str, Any]) -> str:
    """Two lines that say where the numbers come from."""
    where = f"{environment['cpu']}, {environment['cores']} cores, {environment['system']}"
    if environment.get("gpu"):
        where = f"{environment['gpu']} ({environment['gpu_gib']} GiB), CUDA {environment['cuda']}; {where}"
    settings = environment["settings"]
    versions = (
        f"torch {environment['torch']} (capability {environment['torch_capability']}), kaleido_audio backend "
        f"{environment['backend']!r}, capability {environment['capability']!r}"
    )
    return (
        f"{where}; load {environment['load']} at the start; {environment['date']}.\n{versions}.\n"
        f"Medians (and smallest to largest) of {settings['min_rounds']} to {settings['rounds']} interleaved rounds, "
        f"ratios within each round{'; --quick: too short to be quoted' if environment['quick'] else ''}."
    )


def threads_text(environment: dict[str, Any], count: int) -> str:
    """ "one thread" or the like; nothing on a GPU, where torch's threads do not matter.

    >>> threads_text({"device": "cpu"}, 2)
    '2 threads'
    """
    if environment["device"] != "cpu":
        return ""
    return "one thread" if count == 1 else f"{count} threads"


def mode_text(training: bool) -> str:
    """What was timed, in words."""
    return "forward + backward" if training else "forward"


def listed(*parts: str) -> str:
    """The parts that say something, with commas.

    >>> listed("forward", "", "n_fft 512")
    'forward, n_fft 512'
    """
    return ", ".join(part for part in parts if part)


def hardware(environment: dict[str, Any]) -> str:
    """The machine in a few words, for figures."""
    return f"{environment.get('gpu') or environment['cpu']}, {environment['capability']}, torch {environment['torch']}"


def skipped_lines(results: Results) -> str:
    """What was left out, a line each."""
    lines = [f"- {name}: {reason}" for name, reasons in results.skipped.items() for reason in reasons]
    return "\n".join(["Not measured:", *lines]) if lines else ""


def publish(results: Results, sections: Iterable[str], figure: Callable[[], Figure | None]) -> None:
    """Print the sections, and write them and the figure beside the JSON."""
    text = "\n\n".join(section for section in sections if section)
    print(text)
    tables, picture = results.path.with_suffix(".md"), results.path.with_suffix(".png")
    written: list[Path] = [results.path, tables]
    results.path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_text(text + "\n", encoding="utf-8")
    drawn = figure()
    if drawn is not None:
        drawn.savefig(picture, dpi=130)
        written.append(picture)
    print("\nwritten: " + ", ".join(str(path) for path in written))
