"""The numbers of a comparison as text: Markdown, CSV and a table for the terminal."""

from __future__ import annotations

import csv
import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from recipes.timit.config import Config
from recipes.timit.corpus import SPLITS, Corpus, Utterance
from recipes.timit.evaluation import RunResult
from recipes.timit.frontends import spec_of
from recipes.timit.runs import Groups
from recipes.timit.scoring import ErrorCounts

BASELINE = "mfsc"
TOP_CONFUSIONS = 10
CONFIDENCE = 0.95
_SEEDS_FOR_INTERVAL = 3
# May differ between the runs of one comparison.
_OWN_SETTINGS = frozenset({"frontend", "seed", "frontend_lr_multiplier"})

COLUMNS = (
    "Front end",
    "Seeds",
    "PER strict %",
    "PER forgiving %",
    "Dev PER %",
    "Sub %",
    "Ins %",
    "Del %",
    "Parameters (M)",
    "in the front end (M)",
    "s / epoch",
    "LM weight",
)

DIFFERENCE_COLUMNS = (
    "Front end",
    "Seeds",
    "Strict: mean",
    "95 % interval",
    "Forgiving: mean",
    "95 % interval",
    "Strict, seed by seed",
)

TIMIT_NOTE = (
    "Which published table compares: the strict PER with Kaldi's (s5: tri3 21.6, SGMM2 19.7, DNN 18.5); the "
    "forgiving PER with pytorch-kaldi's (LSTM on fbank 14.3, SincNet 17.2) and so with the Kaleidoscope paper's "
    "(MFSC 14.2, Kaleidoscope 14.6): inferred, as that paper does not say how it scores."
)

LEGEND = (
    "PER: phone error rate on test, 39 phones; strict: every deleted phone is an error; forgiving: a deleted silence "
    "is none. ±: sample standard deviation over seeds (-: one seed). Sub, Ins, Del: substitutions, insertions and "
    "deletions of the strict PER, in % of the reference phones. Dev PER: strict, at the LM weight that is best on "
    "dev. s / epoch: median time to train one, perhaps beside other runs on the same machine."
)


# Words about the corpus and the setting


def corpus_title(corpus: Corpus) -> str:
    """Name, kind of labels, and whether it is TIMIT: what every table and figure says about its numbers."""
    return corpus.title + ("" if is_timit(corpus) else ", not TIMIT")


def is_timit(corpus: Corpus) -> bool:
    """Whether numbers on it are TIMIT results."""
    return corpus.name == "TIMIT"


def headline(corpus: Corpus) -> str:
    """First line of the table."""
    if is_timit(corpus):
        return f"Phone error rates on {corpus.title}"
    return f"These are not TIMIT results: phone error rates on the stand-in corpus {corpus.title}"


def setting(groups: Groups, corpus: Corpus) -> str:
    """Sizes of the splits, epochs, recognizer and hardware, in one line."""
    splits = {name: getattr(corpus, name) for name in SPLITS}
    counts = " / ".join(str(len(utterances)) for utterances in splits.values())
    hours = " / ".join(f"{_hours(utterances, corpus.sample_rate):.2f}" for utterances in splits.values())
    runs = [run for its in groups.values() for run in its]
    parts = [
        f"train / dev / test: {counts} utterances, {hours} h",
        f"seeds: {_distinct(sorted({run.result.seed for run in runs}))}",
        f"epochs: {_distinct(run.result.epochs for run in runs)}",
        f"recognizer: {_distinct(f'{run.config.layers} x {run.config.hidden}' for run in runs)} bidirectional LSTM",
        f"threads: {_distinct(run.result.threads for run in runs)}",
        f"hardware: {_distinct(run.result.hardware for run in runs)}",
    ]
    return "; ".join(parts)


def _hours(utterances: Sequence[Utterance], sample_rate: int) -> float:
    return sum(utterance.n_samples for utterance in utterances) / sample_rate / 3600


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values))


def notes(groups: Groups, corpus: Corpus) -> list[str]:
    """What a reader must know to read the numbers."""
    result = [LEGEND]
    skipped = max(run.result.skipped for its in groups.values() for run in its)
    if skipped:
        result.append(
            f"INCOMPLETE: {skipped} bad utterances of {corpus.name} were left out; these numbers compare with no other "
            "table."
        )
    elif is_timit(corpus):
        result.append(TIMIT_NOTE)
    differing = differing_settings([run.config for its in groups.values() for run in its])
    if differing:
        result.append(f"The runs differ in more than front end and seed: {'; '.join(differing)}.")
    return result


def differing_settings(configs: Sequence[Config]) -> list[str]:
    """Settings shared by a fair comparison that these do not share, with their values."""
    rows = [dataclasses.asdict(config) for config in configs]
    names = [name for name in rows[0] if name not in _OWN_SETTINGS and len({row[name] for row in rows}) > 1]
    return [f"{name} {_distinct(row[name] for row in rows)}" for name in names]


# Numbers


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; a single value has none.

    >>> spread([14.0, 15.0, 16.0]), spread([14.0])
    ('15.00 ± 1.00', '14.00 ± -')
    """
    deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
    return f"{statistics.mean(values):.2f} ± {deviation}"


def _percent(counts: ErrorCounts, name: str) -> float:
    return 100.0 * float(getattr(counts, name)) / counts.n_ref


def _millions(number: int) -> str:
    millions = number / 1e6
    return f"{millions:.3g}" if millions >= 1 else f"{millions:.3f}" if number else "0"


def table_rows(groups: Groups) -> list[tuple[str, ...]]:
    """One row a front end, in the order of `COLUMNS`."""
    rows = []
    for name, runs in groups.items():
        results = [run.result for run in runs]
        kinds = [
            f"{statistics.mean(_percent(r.strict, kind) for r in results):.2f}"
            for kind in ("substitutions", "insertions", "deletions")
        ]
        rows.append(
            (
                spec_of(name).title,
                str(len(results)),
                spread([r.strict.error_rate for r in results]),
                spread([r.forgiving.error_rate for r in results]),
                f"{statistics.mean(r.dev_per for r in results):.2f}",
                *kinds,
                _distinct(_millions(r.parameters) for r in results),
                _distinct(_millions(r.frontend_parameters) for r in results),
                f"{statistics.median(r.seconds_per_epoch for r in results):.3g}",
                _distinct(f"{weight:g}" for weight in sorted(r.lm_weight for r in results)),
            )
        )
    return rows


@dataclass(frozen=True)
class Difference:
    """PER of one front end minus the baseline's, in percentage points, by the seeds both have.

    Attributes:
        frontend: name.
        seeds: the common ones.
        values: one a seed.
    """

    frontend: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.values)

    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % confidence interval of the mean; None for fewer than three seeds.

        >>> low, high = Difference("kaleidoscope", (0, 1, 2), (0.2, 0.4, 0.6)).interval()
        >>> round(low, 3), round(high, 3)
        (-0.097, 0.897)
        """
        n = len(self.values)
        if n < _SEEDS_FOR_INTERVAL:
            return None
        quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1))
        reach = quantile * statistics.stdev(self.values) / math.sqrt(n)
        return self.mean - reach, self.mean + reach


def differences(groups: Groups, kind: str = "strict") -> list[Difference]:
    """Differences to `BASELINE`; none without runs of it.

    Args:
        groups: runs by front end.
        kind: ``"strict"`` or ``"forgiving"``.
    """

    def rates(name: str) -> dict[int, float]:
        return {run.result.seed: getattr(run.result, kind).error_rate for run in groups.get(name, ())}

    baseline = rates(BASELINE)
    result = []
    for name in groups:
        own = rates(name)
        seeds = tuple(seed for seed in own if seed in baseline)
        if name != BASELINE and seeds:
            result.append(Difference(name, seeds, tuple(own[seed] - baseline[seed] for seed in seeds)))
    return result


def top_confusions(result: RunResult, n: int = TOP_CONFUSIONS) -> list[tuple[str, str, int]]:
    """The most frequent substitutions: reference phone, recognised phone, count."""
    counts = Counter({(ref, hyp): count for ref, hyp, count in result.confusions if ref and hyp and ref != hyp})
    return [(ref, hyp, count) for (ref, hyp), count in counts.most_common(n)]


# Files


def write_csv(path: Path, groups: Groups) -> None:
    """One row a run, all its numbers at full precision."""
    rows = []
    for run in (run for runs in groups.values() for run in runs):
        result = run.result
        row: dict[str, Any] = {
            field.name: getattr(result, field.name)
            for field in dataclasses.fields(result)
            if field.name not in ("strict", "forgiving", "confusions")
        }
        for kind in ("strict", "forgiving"):
            counts: ErrorCounts = getattr(result, kind)
            row[f"per_{kind}"] = counts.error_rate
            row.update({f"{kind}_{name}": value for name, value in dataclasses.asdict(counts).items()})
        rows.append({**row, "run": run.folder.name})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def markdown(groups: Groups, corpus: Corpus) -> str:
    """table.md: headline, setting, the table, notes, differences to the baseline, top confusions."""
    blocks = [f"# {headline(corpus)}", f"{setting(groups, corpus)}.", _grid(COLUMNS, table_rows(groups))]
    blocks += notes(groups, corpus)
    baseline = spec_of(BASELINE).title
    paired = difference_rows(groups)
    if paired:
        blocks += [
            f"## Difference to {baseline}",
            f"Test PER minus that of {baseline} with the same seed, in percentage points: negative is better. "
            f"Intervals are Student's, over seeds, from {_SEEDS_FOR_INTERVAL} seeds on.",
            _grid(DIFFERENCE_COLUMNS, paired),
        ]
    results = [runs[0].result for runs in groups.values()]
    blocks += [
        "## Most frequent confusions",
        f"Reference phone → recognised phone and how often on test; seed {_distinct(r.seed for r in results)}.",
        _grid(["", *(r.title for r in results)], _confusion_rows(results)),
    ]
    return "\n\n".join(blocks) + "\n"


def difference_rows(groups: Groups) -> list[tuple[str, ...]]:
    """One row a front end beside the baseline, in the order of `DIFFERENCE_COLUMNS`."""
    rows = []
    for strict, forgiving in zip(differences(groups), differences(groups, "forgiving"), strict=True):
        cells = [", ".join(map(str, strict.seeds))]
        for difference in (strict, forgiving):
            interval = difference.interval()
            cells.append(f"{difference.mean:+.2f}")
            cells.append(f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "-")
        cells.append(", ".join(f"{value:+.2f}" for value in strict.values))
        rows.append((spec_of(strict.frontend).title, *cells))
    return rows


def _confusion_rows(results: Sequence[RunResult]) -> list[tuple[str, ...]]:
    tops = [top_confusions(result) for result in results]
    rows = []
    for rank in range(max(map(len, tops))):
        cells = [f"{top[rank][0]} → {top[rank][1]}, {top[rank][2]}" if rank < len(top) else "" for top in tops]
        rows.append((str(rank + 1), *cells))
    return rows


def _grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def print_table(groups: Groups, corpus: Corpus, console: Console) -> None:
    """The table on a terminal, 80 columns wide if need be: headline and setting, then the rows."""
    console.print(headline(corpus), style="bold", markup=False, highlight=False)
    console.print(setting(groups, corpus), markup=False, highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False)
    table.add_column("Front end", overflow="fold")
    numbers = (
        ("PER %", "strict"),
        ("PER %", "forgiving"),
        ("dev", "PER %"),
        ("% sub", "/ins/del"),
        ("M params", "/front end"),
        ("s/", "epoch"),
        ("", "LM"),
    )
    for lines in numbers:
        table.add_column("\n".join(lines), justify="right", no_wrap=True)
    for title, _, strict, forgiving, dev, sub, ins, deleted, parameters, own, seconds, lm_weight in table_rows(groups):
        kinds = "/".join(f"{float(value):.1f}" for value in (sub, ins, deleted))
        table.add_row(title, strict, forgiving, dev, kinds, f"{parameters}/{own}", seconds, lm_weight)
    console.print()
    console.print(table)
    console.print()
    for note in notes(groups, corpus):
        console.print(note, markup=False, highlight=False)
