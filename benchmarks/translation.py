"""Translation word by word, one sentence at a time: Transformer, DynamicConv, and its decoder with K-matrices.

The paper's speeds are those of one thread, batch 1 and beam 1 on the test set of IWSLT'14, where models write outputs
of different lengths. Here every model, with random weights at the published sizes, reads a sentence of so many
subwords and writes as many, whatever they are: the ratios are of the work alone. int8 is torch's dynamic quantization
of every linear layer, what a user with a dense model would try first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import report
from benchmarks.runner import Options, Results, Skip, check_memory, open_results, parse_options, run, selected, skip
from benchmarks.timing import Contestant, Measurement
from recipes.translation.config import ROWS, TITLES, Config
from recipes.translation.counts import PAPER, VOCABULARIES, count_row
from recipes.translation.model import EOS, Translator
from recipes.translation.quantize import Unavailable, quantized

LENGTHS = (22, 10, 50)
"""Subwords of a sentence; the first is about the mean of the paper's outputs, its tokens over its sentences."""

BASE = "dynamicconv"
INT8 = {"dynamicconv": "dynamicconv, int8", "dynamicconv-k-all": "dynamicconv-k-all, int8"}
"""Rows that are also measured with their dense layers in int8."""

NAMES = {**TITLES, **{name: f"{TITLES[row]}, dense layers in int8" for row, name in INT8.items()}}
QUICK = {"dim": 32, "ffn": 32, "encoder_layers": 1, "decoder_layers": 1}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        length: subwords of the source, its end included, and of the output.
        threads: that torch may use.
    """

    length: int
    threads: int = 1

    @property
    def name(self) -> str:
        """All of it, e.g. "length22-t1"."""
        return f"length{self.length}-t{self.threads}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, then print and write the tables and the figure."""
    options = parse_options(
        "translation",
        __doc__,
        argv,
        "parts of names such as length22 or t1",
    )
    path = options.out / f"translation{'-cuda' if options.device.type == 'cuda' else ''}.json"
    try:
        results = open_results(path, options)
        every = all_cases(options)
        cases = selected(every, options.patterns, {})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finished = options.redraw or run(cases, Builder(options).contestants, describe, results, options)
    report.publish(results, sections(results), lambda: figure(results))
    return 0 if finished else 130


def all_cases(options: Options) -> list[Case]:
    """Every case, the mean length first."""
    lengths = LENGTHS[:1] if options.quick else LENGTHS
    return [Case(n, threads) for threads in options.threads for n in lengths]


class Builder:
    """Makes the contestants of a case: all models, DynamicConv first.

    Args:
        options: of the command line.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.models: dict[str, Translator] = {}

    def contestants(self, case: Case, results: Results) -> Mapping[str, Contestant]:
        """The contestants by name."""
        cores = results.environment["cores"] or 1
        if case.threads > cores:
            raise Skip(f"all: {case.threads} threads on {cores} cores")
        if not self.models:
            check_memory("all models", 4.0 * sum(map(count_row, ROWS)), self.options.max_bytes, self.options.device)
            self.models = {row: self._model(row) for row in (BASE, *(row for row in ROWS if row != BASE))}
        generator = torch.Generator().manual_seed(0)
        source = torch.randint(3, VOCABULARIES[0], (1, case.length), generator=generator)
        source[:, -1] = EOS
        source = source.to(self.options.device)
        found = {}
        for row, model in self.models.items():
            found[row] = _contestant(model, source, case)
        for row, name in INT8.items():
            try:
                found[name] = _contestant(quantized(self.models[row]), source, case)
            except Unavailable as reason:
                skip(results, case, f"{name}: {reason}")
        return found

    def _model(self, row: str) -> Translator:
        torch.manual_seed(0)
        sizes = QUICK if self.options.quick else {}
        return Translator(Config(**{**ROWS[row], **sizes}), *VOCABULARIES).eval().to(self.options.device)


def written(model: Translator, source: Tensor, length: int) -> list[int]:
    """The likeliest next subword, so many times; an end does not end it.

    Args:
        model: in evaluation mode.
        source: ``(1, S)``.
        length: subwords to write.
    """
    state = model.decoder.start(*model.encode(source), length)
    words = [torch.full((1,), EOS, device=source.device)]
    for position in range(length):
        words.append(model.decoder.step(words[-1], state, position).argmax(-1))
    return torch.cat(words[1:]).tolist()


def _contestant(model: Translator, source: Tensor, case: Case) -> Contestant:
    return Contestant(lambda: written(model, source, case.length), case.threads)


def describe(case: Case, measurement: Measurement) -> str:
    """One line: milliseconds a sentence, and how many times as fast as DynamicConv."""
    parts = []
    for name in measurement.seconds:
        ratio = "" if name == BASE else f" ({report.short_ratio(measurement.ratio(BASE, name))})"
        parts.append(f"{name} {report.milliseconds(measurement.time(name))} ms{ratio}")
    rounds = max((len(values) for values in measurement.seconds.values()), default=0)
    return f"{', '.join(parts)}; {rounds} rounds"


# Tables


def case_of(name: str) -> Case:
    """The case of a name.

    >>> case_of("length22-t2")
    Case(length=22, threads=2)
    """
    length, threads = name.split("-")
    return Case(int(length.removeprefix("length")), int(threads[1:]))


def sections(results: Results) -> list[str]:
    """All that is printed: one table a case."""
    tables = [_table(case_of(name), found, results) for name, found in results.measurements.items() if found.seconds]
    return [report.heading(results.environment), *tables, report.skipped_lines(results)]


def _table(case: Case, found: Measurement, results: Results) -> str:
    rows = []
    for name in NAMES:
        time = found.time(name)
        if time is None:
            continue
        paper = PAPER.get(name)
        ratio = "1x" if name == BASE else report.ratio_text(found.ratio(BASE, name))
        base = PAPER[BASE]
        rows.append([
            NAMES[name],
            "-" if name not in ROWS or results.environment["quick"] else f"{count_row(name) / 1e6:.1f} M",
            report.milliseconds(time),
            report.number(1 / time.median),
            report.number(case.length / time.median),
            ratio,
            "-" if paper is None
            else f"{paper.sentences / base.sentences:.2f}x, {paper.tokens / base.tokens:.2f}x",
        ])  # fmt: skip
    headers = ["model", "parameters", "ms a sentence", "sentences/s", "tokens/s", "speed, DynamicConv = 1",
               "paper: sentences/s, tokens/s"]  # fmt: skip
    threads = report.threads_text(results.environment, case.threads)
    title = report.listed(f"{case.length} subwords in and out, batch 1, beam 1, eager", threads)
    quick = " Sizes of --quick, not the published ones." if results.environment["quick"] else ""
    return f"{title}; random weights, lengths forced.{quick}\n\n{report.table(headers, rows)}"


# Figure


def figure(results: Results) -> Figure | None:
    """One panel a case, one bar a model: its speed beside DynamicConv's."""
    cases = [case_of(name) for name, found in results.measurements.items() if found.seconds]
    if not cases:
        return None
    drawn = Figure(figsize=(9, 0.8 + 3.0 * len(cases)), layout="constrained")
    drawn.suptitle(f"Translation, batch 1, beam 1: {report.hardware(results.environment)}", fontsize="medium")
    panels = drawn.subplots(len(cases), 1, squeeze=False, sharex=True)[:, 0]
    for axes, case in zip(panels, cases, strict=True):
        found = results.get(case.name)
        ratios = {name: found.ratio(BASE, name) for name in NAMES}
        shown = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        medians = [ratio.median for ratio in shown.values()]
        errors = [[r.median - r.low for r in shown.values()], [r.high - r.median for r in shown.values()]]
        colours = [report.COLOURS["K"] if "-k-" in name else report.COLOURS["dense"] for name in shown]
        axes.barh([NAMES[name] for name in shown], medians, color=colours, xerr=errors, ecolor="#444444", capsize=3)
        for i, ratio in enumerate(shown.values()):
            axes.annotate(report.short_ratio(ratio), (ratio.high, i), xytext=(6, 0), textcoords="offset points",
                          va="center", fontsize=9)  # fmt: skip
        axes.invert_yaxis()
        axes.axvline(1.0, color="#444444", linewidth=0.8)
        axes.set_title(report.listed(f"{case.length} subwords", report.threads_text(results.environment, case.threads)),
                       fontsize="medium")  # fmt: skip
        axes.margins(x=0.12)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[-1].set_xlabel("speed, DynamicConv = 1")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
