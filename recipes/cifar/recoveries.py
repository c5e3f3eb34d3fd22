"""How often, and in what time, each method recovers each kind of permutation: several seeds, a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from recipes.cifar.data import CifarData, permutation, permuted
from recipes.cifar.recovery import Recovery, recover, score
from recipes.common.files import naming, replace_text
from recipes.common.options import check_seed

CASES = {
    "bitreversal-lines": ("bitreversal", "lines"),
    "bitreversal-pixels": ("bitreversal", "pixels"),
    "random-pixels": ("random", "pixels"),
}
"""Permutation, and what the method is told of it, by name."""


def structure_of(permutation: str) -> str:
    """What training in two stages tells the recovery: that bit reversal permutes whole rows and columns.

    >>> structure_of("bitreversal"), structure_of("random")
    ('lines', 'pixels')
    """
    return "lines" if permutation == "bitreversal" else "pixels"


@dataclass(frozen=True)
class Outcome:
    """One recovery and how good it was.

    Attributes:
        case: a name in `CASES`.
        method: of `recipes.cifar.config.METHODS`.
        seed: of the method, of the choice of images, and of the permutation where it is random.
        data: title of the data set.
        images: that it saw.
        neighbours, placed, exact: see `recipes.cifar.recovery.Score`.
        variation: of the restored images; true_variation: of the original ones.
        seconds: that it took.
        content: fingerprint of the data; None in outcomes of earlier versions, of which only the title is compared.
    """

    case: str
    method: str
    seed: int
    data: str
    images: int
    neighbours: float
    placed: float
    exact: bool
    variation: float
    true_variation: float
    seconds: float
    content: str | None = None


def recover_all(
    data: CifarData,
    out: Path,
    *,
    cases: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    images: int = 5000,
    progress: bool = True,
) -> str:
    """Run what is not finished in ``out``; write table.md there.

    Args:
        data: whose training images are permuted and looked at.
        out: folder; ``CASE-METHOD-seedN.json`` in it are the outcomes.
        cases: names in `CASES`.
        methods: of `recipes.cifar.config.METHODS`.
        seeds: of every one.
        images: drawn from train for each seed; all where train has fewer.
        progress: show bars and outcomes.

    Returns:
        the table as Markdown.

    Raises:
        ValueError: an outcome in ``out`` is of other data, or ``images`` below 1.
    """
    if images < 1:
        raise ValueError(f"expected --images >= 1, got {images}")
    for seed in seeds:
        check_seed(seed, "--seeds")
    # One that is given twice would count twice.
    cases, methods, seeds = list(dict.fromkeys(cases)), list(dict.fromkeys(methods)), list(dict.fromkeys(seeds))
    count, content = min(images, len(data.train)), data.fingerprint()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for case in cases:
        kind, structure = CASES[case]
        for seed in seeds:
            for method in methods:
                path = out / f"{case}-{method}-seed{seed}.json"
                if path.is_file():
                    with naming(path, "remove it to recover again"):
                        outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
                    if (outcome.data, outcome.images) != (data.title, count):
                        raise ValueError(
                            f"{path} is of {outcome.images} images of {outcome.data}, not {count} of {data.title}: "
                            "give another folder"
                        )
                    if outcome.content not in (None, content):
                        raise ValueError(
                            f"{path} is of other images than given, of the same name and number: give another folder"
                        )
                else:
                    outcome = _recover_one(data, case, kind, structure, method, seed, count, progress)
                    replace_text(path, json.dumps(asdict(outcome), indent=1) + "\n")
                    if progress:
                        print(
                            f"{case}, {method}, seed {seed}: {outcome.neighbours:.1%} of neighbours, "
                            f"{outcome.placed:.1%} of pixels placed, {outcome.seconds:.1f} s"
                        )
                outcomes.append(outcome)
    table = markdown(outcomes)
    replace_text(out / "table.md", table + "\n")
    return table


def _recover_one(
    data: CifarData, case: str, kind: str, structure: str, method: str, seed: int, count: int, progress: bool
) -> Outcome:
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count]
    images = data.normalized(data.train.images[chosen])
    p = permutation(kind, seed)
    mixed = permuted(images, p)
    found: Recovery = recover(mixed, method, structure=structure, seed=seed, truth=p, progress=progress)
    best = recover(mixed, "oracle", structure=structure, truth=p, progress=False)
    outcome = score(found.order, p)
    return Outcome(
        case, method, seed, data.title, count, outcome.neighbours, outcome.placed, outcome.exact,
        found.variation, best.variation, found.seconds, data.fingerprint(),
    )  # fmt: skip


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A table with a line for each case and method."""
    lines = [
        "| permutation, told to the method | method | exact | neighbours kept, % | pixels placed, % | "
        "variation / true | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    told = {"lines": "rows and columns", "pixels": "nothing"}
    for case, (kind, structure) in CASES.items():
        for method in dict.fromkeys(outcome.method for outcome in outcomes):
            mine = [o for o in outcomes if (o.case, o.method) == (case, method)]
            if mine:
                cells = [
                    f"{kind}, {told[structure]}",
                    method,
                    f"{sum(o.exact for o in mine)} of {len(mine)}",
                    _range([100 * o.neighbours for o in mine], 1),
                    _range([100 * o.placed for o in mine], 1),
                    _range([o.variation / o.true_variation for o in mine], 2),
                    _range([o.seconds for o in mine], 1),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    seeds = ", ".join(map(str, sorted({o.seed for o in outcomes})))
    sources = "; ".join(sorted({f"{o.images:,} images of {o.data}" for o in outcomes}))
    note = (
        f"{sources}. Seeds: {seeds}, each with its own choice of images, and its own permutation where it is random. "
        "Mean (least to most). Exact, and placed: up to the eight symmetries of the square. No labels are used; "
        "the oracle is told the permutation."
    )
    return "\n".join([*lines, "", note])


def _range(values: Sequence[float], digits: int) -> str:
    """Mean, and the least and the most where they differ.

    >>> _range([1.0, 2.0], 1), _range([1.0, 1.0], 1)
    ('1.5 (1.0-2.0)', '1.0')
    """
    mean, least, most = (f"{value:.{digits}f}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if least == most else f"{mean} ({least}-{most})"
