"""Several rows over several seeds: the table beside the paper's, and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from recipes.common.files import has_checkpoint, replace_text
from recipes.common.processes import check_single_process
from recipes.common.text import spread
from recipes.translation.config import ROWS, TITLES, Config
from recipes.translation.counts import PAPER
from recipes.translation.data import Data, read_lines
from recipes.translation.evaluate import Result, evaluate
from recipes.translation.training import check_data, check_run, load_history, train

_SAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        row: its name in `recipes.translation.config.ROWS`.
        seed: of it.
        result: what evaluation found.
        history: a line for every checkpoint.
    """

    row: str
    seed: int
    result: Result
    history: list[dict[str, float]]


def compare(
    configs: Mapping[str, Config],
    data: Data,
    out: Path,
    *,
    seeds: Sequence[int],
    accelerator: str = "auto",
    progress: bool = True,
) -> str:
    """Train and evaluate what is not finished in ``out``, one after the other; write table and figure.

    Args:
        configs: by row.
        data: to learn from.
        out: folder; ``ROW-seedN`` in it are the runs, ``table.md`` and ``curves.png`` the result.
        seeds: of every row.
        accelerator, progress: as `recipes.translation.training.train` takes them.

    Returns:
        the table as Markdown.

    Raises:
        ValueError: torchrun started several processes, or a run in ``out`` is of other data or, unfinished, of another
            configuration.
    """
    check_single_process()
    # One that is given twice would count twice, with a spread of zero.
    seeds = list(dict.fromkeys(seeds))
    wanted = [
        (row, replace(config, seed=seed), out / f"{row}-seed{seed}")
        for row, config in configs.items()
        for seed in seeds
    ]
    for _, mine, folder in wanted:
        # Before hours of training.
        if is_finished(mine, folder):
            check_data(data, folder)
        elif has_checkpoint(folder):
            check_run(mine, data, folder)
    runs = []
    for row, mine, folder in wanted:
        if not is_finished(mine, folder):
            if progress:
                print(f"{TITLES[row]}, seed {mine.seed}")
            train(mine, data, folder, accelerator=accelerator, progress=progress)
            evaluate(mine, data, folder, accelerator=accelerator, progress=progress)
        runs.append(load_run(row, folder))
    first = {run.row: out / f"{run.row}-seed{run.seed}" / "test.hyp" for run in runs if run.seed == seeds[0]}
    hypotheses = {row: read_lines(path) for row, path in first.items()}
    table = "\n".join([markdown(runs, data.title), sampling(hypotheses, data.splits["test"].tokens, seeds[0])]).strip()
    replace_text(out / "table.md", table + "\n")
    figure(runs, data.title).savefig(out / "curves.png", dpi=120)
    return table


def is_finished(config: Config, folder: Path) -> bool:
    """Whether a folder holds the result of such a run after all its updates, and of its own search."""
    paths = folder / "config.json", folder / "result.json"
    if not all(path.is_file() for path in paths) or Config.load(paths[0]) != config:
        return False
    result = Result.load(paths[1])
    found = (result.updates, result.beam, result.length_penalty)
    return found == (config.updates, config.beam, config.length_penalty)


def load_run(row: str, folder: Path) -> Run:
    """Read a finished run.

    Raises:
        ValueError: it is not finished.
    """
    for name in ("config.json", "result.json", "history.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: train and evaluate the run first")
    history = load_history(folder)
    return Run(row, Config.load(folder / "config.json").seed, Result.load(folder / "result.json"), history)


def markdown(runs: Sequence[Run], title: str) -> str:
    """A table with a line for each row: what was measured here, and the paper's BLEU on IWSLT'14."""
    lines = [
        "| model | parameters | BLEU, tokens | BLEU, detokenised | loss on valid | paper: BLEU on IWSLT'14 |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        mine = [run.result for run in runs if run.row == row]
        if mine:
            paper = PAPER.get(row)
            cells = [
                TITLES[row],
                f"{mine[0].parameters:,}",
                spread([result.test_bleu for result in mine], 2),
                spread([result.test_detokenized for result in mine], 2),
                spread([result.valid_loss for result in mine], 3),
                f"{paper.bleu}" if paper else "-",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    seeds = sorted({run.seed for run in runs})
    search = sorted({(run.result.beam, run.result.length_penalty, run.result.updates) for run in runs})
    notes = [
        f"Test set of {title}. Seeds: {', '.join(map(str, seeds))}"
        + ("; mean and standard deviation." if len(seeds) > 1 else "."),
        *(f"Beam {beam}, length penalty {penalty:g}, {updates:,} updates." for beam, penalty, updates in search),
        "BLEU of lower-cased Moses tokens (" + "; ".join(sorted({run.result.signatures[0] for run in runs})) + ") and "
        "of detokenised text (" + "; ".join(sorted({run.result.signatures[1] for run in runs})) + ").",
    ]
    return "\n".join([*lines, "", *notes])


def sampling(hypotheses: Mapping[str, Sequence[str]], references: Sequence[str], seed: int) -> str:
    """A note on how far BLEU depends on the sentences of the test set: 95 % intervals, and tests of differences.

    Args:
        hypotheses: tokens of every sentence, by row.
        references: likewise.
        seed: that the models were trained with.

    Returns:
        a sentence; nothing where there is one row only.

    Source: paired bootstrap resampling, Koehn, EMNLP 2004, as sacrebleu has it.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    if len(hypotheses) < 2:
        return ""
    base = "dynamicconv" if "dynamicconv" in hypotheses else next(iter(hypotheses))
    systems: list[tuple[str, Sequence[str]]] = [
        (row, hypotheses[row]) for row in (base, *(row for row in hypotheses if row != base))
    ]
    metric = {"BLEU": BLEU(tokenize="none", force=True, references=[list(references)])}
    _, scores = PairedTest(systems, metric, references=None, test_type="bs", n_samples=_SAMPLES)()
    parts = []
    for (row, _), score in zip(systems, scores["BLEU"], strict=True):
        assert not isinstance(score, str)
        p_value = "" if score.p_value is None else f" (p = {score.p_value:.3f})"
        parts.append(f"{TITLES[row]} {score.score:.2f} ± {score.ci:.2f}{p_value}")
    return (
        f"Seed {seed}, BLEU of tokens with 95 % intervals of the choice of test sentences, and p of the difference "
        f"from {TITLES[base]} ({_SAMPLES:,} paired bootstrap samples; seeds are not in it): {'; '.join(parts)}."
    )


def figure(runs: Sequence[Run], title: str) -> Figure:
    """Loss on valid over the updates, and over hours of training."""
    result = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = result.subplots(1, 2, sharey=True)
    for color, row in enumerate(name for name in ROWS if any(run.row == name for run in runs)):
        for run in (run for run in runs if run.row == row):
            losses = [line["valid_loss"] for line in run.history]
            hours, total = [], 0.0
            for line in run.history:
                total += line["seconds"] / 3600
                hours.append(total)
            label = TITLES[row] if run.seed == min(r.seed for r in runs if r.row == row) else None
            left.plot([line["update"] for line in run.history], losses, color=f"C{color}", label=label)
            right.plot(hours, losses, color=f"C{color}")
    left.set(xlabel="updates", ylabel="cross-entropy on valid (nats a subword)")
    right.set(xlabel="hours of training")
    left.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    result.suptitle(title, fontsize="medium")
    return result
