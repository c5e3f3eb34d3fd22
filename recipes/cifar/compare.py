"""Several rows over several seeds and both permutations: the table beside the paper's, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.cifar.config import ROWS, TITLES, Config
from recipes.cifar.counts import PAPER
from recipes.cifar.data import CifarData
from recipes.cifar.evaluation import Result, evaluate
from recipes.cifar.figures import recovery_figure, save_small
from recipes.cifar.training import check_data, check_run, train
from recipes.common.files import has_checkpoint, replace_text
from recipes.common.processes import check_single_process
from recipes.common.text import spread

FIGURE = (("bitreversal", "k"), ("random", "k"), ("random", "spectral+faq"))
"""Permutations and methods of the figure."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        row: its name in `recipes.cifar.config.ROWS`.
        config: of it.
        result: what evaluation found.
    """

    row: str
    config: Config
    result: Result


def compare(
    configs: Mapping[str, Config],
    data: CifarData,
    out: Path,
    *,
    permutations: Sequence[str],
    seeds: Sequence[int],
    accelerator: str = "auto",
    progress: bool = True,
    figure: bool = True,
) -> str:
    """Train and evaluate what is not finished in ``out``, one after the other; write table and figure.

    Args:
        configs: by row; "unpermuted" is trained once for all permutations.
        data: to learn from.
        out: folder; ``ROW-PERMUTATION-seedN`` in it are the runs, ``table.md`` and ``recovery.png`` the result.
        permutations: "random", "bitreversal" or both.
        seeds: of every row.
        accelerator, progress: as `recipes.cifar.training.train` takes them.
        figure: whether to draw recovery.png, for which permutations are recovered anew: minutes.

    Returns:
        the table as Markdown.

    Raises:
        ValueError: torchrun started several processes, or a run in ``out`` is of other data or, unfinished, of another
            configuration.
    """
    check_single_process()
    # One that is given twice would count twice, with a spread of zero.
    seeds, permutations = list(dict.fromkeys(seeds)), list(dict.fromkeys(permutations))
    wanted = [
        (row, replace(config, seed=seed, permutation=kind), out / f"{row}-{kind}-seed{seed}")
        for seed in seeds
        for row, config in configs.items()
        for kind in (["none"] if config.permutation == "none" else permutations)
    ]
    for _, mine, folder in wanted:
        # Before hours of training.
        if _is_finished(mine, folder):
            check_data(data, folder)
        elif has_checkpoint(folder):
            check_run(mine, data, folder)
    runs = []
    for row, mine, folder in wanted:
        if not _is_finished(mine, folder):
            if progress:
                print(f"{TITLES[row]}, permutation {mine.permutation}, seed {mine.seed}")
            train(mine, data, folder, accelerator=accelerator, progress=progress)
            evaluate(mine, data, folder, accelerator=accelerator)
        runs.append(Run(row, mine, Result.load(folder / "result.json")))
    table = markdown(runs)
    replace_text(out / "table.md", table + "\n")
    if figure:
        cases = [case for case in FIGURE if case[0] in permutations]
        save_small(recovery_figure(data, cases, seed=seeds[0]), out / "recovery.png")
    return table


def _is_finished(config: Config, folder: Path) -> bool:
    paths = folder / "config.json", folder / "result.json"
    if not all(path.is_file() for path in paths) or Config.load(paths[0]) != config:
        return False
    return Result.load(paths[1]).epochs == config.epochs


def markdown(runs: Sequence[Run]) -> str:
    """A table with a line for each row: what was measured, and the paper's accuracies on CIFAR-10."""
    lines = [
        "| model | parameters | random, % | bit reversal, % | neighbours kept, % (random; bit reversal) | "
        "paper: permuted CIFAR-10, % |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        mine = [run for run in runs if run.row == row]
        if not mine:
            continue
        cells = [TITLES[row], f"{mine[0].result.parameters:,}"]
        kept = []
        for kind in ("random", "bitreversal"):
            of_kind = [run.result for run in mine if run.config.permutation in (kind, "none")]
            cells.append(spread([result.test_accuracy for result in of_kind]))
            kept.append(spread([100 * r.neighbours for r in of_kind if r.neighbours is not None]))
        cells += ["-" if kept == ["-", "-"] else "; ".join(kept), str(PAPER.get(row, "-"))]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = sorted({run.config.seed for run in runs})
    settings = sorted(
        {(run.result.data, run.config.width, run.config.epochs, run.config.lr, run.config.batch_size) for run in runs}
    )
    notes = [
        f"Accuracy on test after the last epoch. Seeds: {', '.join(map(str, seeds))}"
        + ("; mean and standard deviation." if len(seeds) > 1 else "."),
        *(
            f"{data}: ResNet18 of width {width}, {epochs} epochs, Adam, peak rate {lr:g}, batches of {batch}."
            for data, width, epochs, lr, batch in settings
        ),
        "Two-stage rows are told that bit reversal permutes whole rows and columns, and nothing of the random "
        "permutation; the unpermuted row is what they would reach with an oracle.",
    ]
    return "\n".join([*lines, "", *notes])
