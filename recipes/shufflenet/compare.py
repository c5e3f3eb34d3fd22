"""Several mixings and widths over several seeds: the table beside the paper's, and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from recipes.common.files import has_checkpoint, load_json, replace_text
from recipes.common.processes import Processes, check_single_process
from recipes.common.text import spread
from recipes.shufflenet.config import Config
from recipes.shufflenet.counts import PAPER
from recipes.shufflenet.data import ImageData
from recipes.shufflenet.evaluation import Result, evaluate
from recipes.shufflenet.latency import BATCHES, Latency, circumstances, measure_latency
from recipes.shufflenet.model import K_INITS, MIXINGS
from recipes.shufflenet.training import build, check_data, check_run, train

LATENCY_SIZE = 224
"""Height and width of the images of the table's latencies and multiply-adds: ImageNet's."""


@dataclass(frozen=True)
class Row:
    """A network of the comparison.

    Attributes:
        mixing, k_init: as `recipes.shufflenet.model.ShuffleNet` takes them.
    """

    mixing: str
    k_init: str = "orthogonal"

    @property
    def name(self) -> str:
        """As the command line takes it.

        >>> Row("k-odo", "shuffle").name, Row("none").name
        ('k-odo:shuffle', 'none')
        """
        return self.mixing if self.k_init == "orthogonal" else f"{self.mixing}:{self.k_init}"

    @classmethod
    def of(cls, name: str) -> Row:
        """The row of a name: a mixing, for K-matrices with ``:identity`` or ``:shuffle`` if they start as that.

        Raises:
            ValueError: neither, or a start that is given for something else than K-matrices.
        """
        mixing, _, k_init = name.partition(":")
        row = cls(mixing, k_init or "orthogonal")
        if mixing not in MIXINGS or row.k_init not in K_INITS:
            raise ValueError(f"expected one of {MIXINGS}, or K-matrices with :START of {K_INITS}, got {name!r}")
        if k_init and not mixing.startswith("k"):
            raise ValueError(f"{name!r}: {mixing!r} has no K-matrices that could start as {k_init!r}")
        return row


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: of it.
        result: what evaluation found.
        history: a line for every epoch.
    """

    config: Config
    result: Result
    history: list[dict[str, float]]

    @property
    def row(self) -> Row:
        """Which it is of the comparison."""
        return Row(self.config.mixing, self.config.k_init)


def compare(
    base: Config,
    data: ImageData,
    out: Path,
    *,
    rows: Sequence[Row],
    widths: Sequence[float],
    seeds: Sequence[int],
    accelerator: str = "auto",
    workers: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> str:
    """Train and evaluate what is not finished in ``out``, one after the other; write table and figure.

    Args:
        base: the configuration that all runs share.
        data: to learn from.
        out: folder; ``ROW-WIDTH-seedN`` in it are the runs, ``table.md`` and ``accuracy.png`` the result.
        rows, widths, seeds: every combination is a run.
        accelerator, workers, progress: as `recipes.shufflenet.training.train` takes them.
        threads: of the latencies; default: 1.

    Returns:
        the table as Markdown.

    Raises:
        ValueError: torchrun started several processes, or a run in ``out`` is of other data or, unfinished, of another
            configuration.
    """
    check_single_process()
    # One that is given twice would count twice, with a spread of zero.
    rows, widths, seeds = list(dict.fromkeys(rows)), list(dict.fromkeys(widths)), list(dict.fromkeys(seeds))
    wanted = [
        (
            row,
            replace(base, seed=seed, width=width, mixing=row.mixing, k_init=row.k_init),
            out / f"{row.name.replace(':', '-from-')}-{width:g}-seed{seed}",
        )
        for seed, width, row in product(seeds, widths, rows)
    ]
    for _, config, folder in wanted:
        # Before hours of training.
        if is_finished(config, folder):
            check_data(data, folder)
        elif has_checkpoint(folder):
            check_run(config, data, folder)
    runs = []
    for row, config, folder in wanted:
        if not is_finished(config, folder):
            if progress:
                print(f"{row.name}, width {config.width:g}, seed {config.seed}")
            train(config, data, folder, accelerator=accelerator, workers=workers, progress=progress)
            evaluate(config, data, folder, accelerator=accelerator, workers=workers)
        runs.append(load_run(folder))
    device, threads = Processes(accelerator).device, threads or 1
    latencies: dict[tuple[Row, float, int], Latency] = {}
    for width in widths:
        networks = {row.name: build(replace(base, width=width, mixing=row.mixing), 1000) for row in rows}
        found = measure_latency(networks, LATENCY_SIZE, threads=threads, device=device, progress=progress)
        latencies.update({(Row.of(name), width, batch): value for (name, batch), value in found.items()})
    notes = circumstances(LATENCY_SIZE, threads, device)
    table = markdown(runs, latencies, notes)
    replace_text(out / "table.md", table + "\n")
    figure(runs, latencies, notes).savefig(out / "accuracy.png", dpi=110)
    return table


def is_finished(config: Config, folder: Path) -> bool:
    """Whether a folder holds the result of such a run after all its epochs."""
    paths = folder / "config.json", folder / "result.json"
    if not all(path.is_file() for path in paths) or Config.load(paths[0]) != config:
        return False
    return Result.load(paths[1]).epochs == config.epochs


def load_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        ValueError: it is not finished.
    """
    for name in ("config.json", "result.json", "history.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: train and evaluate the run first")
    history = load_json(folder / "history.json", "train the run again, which writes it from the checkpoint")
    return Run(Config.load(folder / "config.json"), Result.load(folder / "result.json"), history)


def markdown(runs: Sequence[Run], latencies: Mapping[tuple[Row, float, int], Latency], note: str) -> str:
    """A table with a line for each network: what was measured here, and the paper's accuracy on ImageNet.

    Args:
        runs: finished ones.
        latencies: by row, width and batch size.
        note: what the latencies were measured with.
    """
    titles = [f"ms an image, batch {batch}" for batch in BATCHES]
    lines = [
        f"| width | mixing | parameters | multiply-adds | {' | '.join(titles)} | top-1, % | top-1 of the average, % | "
        "paper: ImageNet top-1, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    cases = {(run.config.width, run.row, run.config.stage2): None for run in sorted(runs, key=lambda r: r.config.width)}
    for width, row, stage2 in cases:
        mine = [run for run in runs if (run.config.width, run.row, run.config.stage2) == (width, row, stage2)]
        paper = PAPER.get((row.mixing, width)) if row.k_init == "orthogonal" and stage2 == "authors" else None
        times = [latencies.get((row, width, batch)) for batch in BATCHES]
        cells = [
            f"{width:g}",
            _title(row),
            f"{mine[0].result.parameters:,}",
            f"{mine[0].result.multiply_adds / 1e6:.1f} M",
            *("-" if time is None else f"{time.milliseconds:.2f}: {time.ratio}" for time in times),
            spread([run.result.top1 for run in mine]),
            spread([run.result.ema_top1 for run in mine]),
            "-" if paper is None else f"{paper.top1:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = sorted({run.config.seed for run in runs})
    settings = sorted(
        {
            (
                run.result.data, run.config.image_size, run.config.epochs, run.config.schedule, run.config.peak_lr,
                run.config.k_lr_multiplier, run.config.batch_size, run.config.stage2,
            )
            for run in runs
        }
    )  # fmt: skip
    notes = [
        "Accuracy on val after the last epoch, of the last weights and of their moving average. Seeds: "
        f"{', '.join(map(str, seeds))}" + ("; mean and standard deviation." if len(seeds) > 1 else "."),
        *(
            f"{data}: {size} x {size} pixels, {epochs} epochs, schedule {schedule!r}, peak rate {lr:.3g}, of "
            f"K-matrices times {multiplier:g}, batches of {batch}, stage 2 {stage2!r}; multiply-adds of such an image."
            for data, size, epochs, schedule, lr, multiplier, batch, stage2 in settings
        ),
        note,
    ]
    return "\n".join([*lines, "", *notes])


def _title(row: Row) -> str:
    start = {"orthogonal": "", "identity": ", from the identity", "shuffle": ", from the shuffle"}[row.k_init]
    return row.mixing + start


def figure(runs: Sequence[Run], latencies: Mapping[tuple[Row, float, int], Latency], note: str) -> Figure:
    """Accuracy over multiply-adds and over latency, a point for each network, with the spread of the seeds."""
    result = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = result.subplots(1, 2, sharey=True)
    rows = list(dict.fromkeys(run.row for run in runs))
    for color, row in enumerate(rows):
        points = []
        for width in sorted({run.config.width for run in runs if run.row == row}):
            mine = [run.result for run in runs if run.row == row and run.config.width == width]
            scores = [found.top1 for found in mine]
            deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
            time = latencies.get((row, width, BATCHES[0]))
            milliseconds = float("nan") if time is None else time.milliseconds
            points.append((mine[0].multiply_adds / 1e6, milliseconds, statistics.fmean(scores), deviation))
        cost, latency, means, deviations = zip(*points, strict=True)
        style = {"color": f"C{color}", "marker": "o", "markersize": 4, "capsize": 3}
        left.errorbar(cost, means, deviations, label=_title(row), **style)
        right.errorbar(latency, means, deviations, **style)
    left.set(xlabel="multiply-adds of an image (millions)", ylabel="top-1 on val (%)")
    right.set(xlabel=f"latency of a {LATENCY_SIZE} px image, batch {BATCHES[0]} (ms)")
    left.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    widths = ", ".join(f"{width:g}" for width in sorted({run.config.width for run in runs}))
    data = ", ".join(sorted({run.result.data for run in runs}))
    result.suptitle(f"{data}; ShuffleNet of width {widths}; bars: standard deviation of seeds", fontsize="medium")
    result.supxlabel(note.partition(";")[0], fontsize="x-small")
    return result
