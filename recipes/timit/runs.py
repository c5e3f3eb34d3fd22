"""Finished runs, read from their folders and grouped by front end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.common.files import naming
from recipes.common.runs import load_history
from recipes.timit.config import Config
from recipes.timit.corpus import Corpus
from recipes.timit.evaluation import RunResult
from recipes.timit.frontends import FRONTENDS, spec_of
from recipes.timit.identity import check_identity
from recipes.timit.training import RECORDED, curves


@dataclass(frozen=True)
class Run:
    """A finished run and what it left in its folder."""

    folder: Path
    config: Config
    history: list[dict[str, float]]
    result: RunResult

    @property
    def epochs(self) -> int:
        """Trained and evaluated. An evaluation in mid-training used to claim all; the curves know better."""
        return min(len(self.history), self.result.epochs)


Groups = Mapping[str, Sequence[Run]]


def load_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        ValueError: a file is missing, or is not what this version writes; the message names it.
    """
    for name in ("config.json", "result.json", "checkpoints/best.ckpt"):
        if not (folder / name).exists():
            raise ValueError(f"{folder / name} is missing: the run is not finished; train and evaluate it first")
    run = _load(folder)
    if run.epochs < run.config.epochs:
        raise ValueError(f"{folder} is not finished: {run.epochs} of {run.config.epochs} epochs; train it to the end")
    return run


def is_finished(folder: Path) -> bool:
    """Whether a run has done all its epochs and was evaluated after the last of them.

    Raises:
        ValueError: a file of the run is not what this version writes.
    """
    if not (folder / "result.json").exists():
        return False
    run = _load(folder)
    return run.epochs >= run.config.epochs


def _load(folder: Path) -> Run:
    remedy = "evaluate the run again, or train it again"
    config = Config.load(folder / "config.json")
    with naming(folder / "result.json", remedy):
        result = RunResult.load(folder / "result.json")
    return Run(folder, config, _history(folder), result)


def _history(folder: Path) -> list[dict[str, float]]:
    try:
        return curves(folder)
    except ValueError as error:
        # A finished run no longer needs its last checkpoint: a whole history.json says the same.
        try:
            return load_history(folder / "history.json", RECORDED, "")
        except ValueError:
            raise error from None


def group_runs(runs: Sequence[Run], corpus: Corpus) -> dict[str, list[Run]]:
    """Runs by front end, in the order of `FRONTENDS`, each sorted by seed; checks that they belong together."""
    if not runs:
        raise ValueError("expected at least one run to report on, got none")
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        result = run.result
        spec_of(result.frontend)
        if (result.corpus, result.labels) != (corpus.name, corpus.labels):
            raise ValueError(
                f"{run.folder / 'result.json'} is a result on {result.corpus} ({result.labels}), expected "
                f"{corpus.name} ({corpus.labels}): report each corpus on its own"
            )
        check_identity(corpus, run.folder)
        seeds = groups.setdefault(result.frontend, {})
        if result.seed in seeds:
            raise ValueError(
                f"{seeds[result.seed].folder} and {run.folder} are both {result.frontend} with seed {result.seed}: "
                "leave one out"
            )
        seeds[result.seed] = run
    return {name: [groups[name][seed] for seed in sorted(groups[name])] for name in FRONTENDS if name in groups}
