"""Pictures of a recovery: permuted, during the search, restored."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from recipes.cifar.data import CifarData, permutation, permuted
from recipes.cifar.recoveries import structure_of
from recipes.cifar.recovery import recover, score

_MOMENTS = (0.0, 0.35, 0.6, 0.8)


def recovery_figure(data: CifarData, cases: Sequence[tuple[str, str]], *, seed: int = 0, images: int = 5) -> Figure:
    """Pictures of test: as they are, permuted, while a method searches, and restored; a block of rows for each case.

    The pictures are not what the methods see, which is train.

    Args:
        data: its train is what methods look at.
        cases: pairs of a permutation and a method.
        seed: of the methods and of the random permutation.
        images: pictures in a row, each the one of most contrast of another class.
    """
    shown = data.test.images[_showy(data, images)]
    columns: list[list[tuple[str, Tensor]]] = []
    for kind, method in cases:
        p = permutation(kind, seed)
        seen: list[tuple[float, Tensor]] = []
        found = recover(
            permuted(data.normalized(data.train.images), p),
            method,
            structure=structure_of(kind),
            seed=seed,
            truth=p,
            progress=False,
            watch=lambda done, order, seen=seen: seen.append((done, order)),  # type: ignore[misc]
        )
        mixed = permuted(shown, p)
        rows = [("original", shown), (f"{kind}", mixed)]
        for moment in _MOMENTS if seen else ():
            done, order = min(seen, key=lambda look, moment=moment: abs(look[0] - moment))  # type: ignore[misc]
            rows.append((f"{done:.0%} of the search", permuted(mixed, order)))
        kept = score(found.order, p).neighbours
        rows.append((f"{method}:\n{kept:.0%} of neighbours", permuted(mixed, found.order)))
        columns.append(rows)
    height = max(map(len, columns))
    result = Figure(figsize=(3.6 * len(columns), 0.52 * height + 0.3), layout="constrained")
    grid = result.subplots(height, len(columns), squeeze=False)
    for column, rows in enumerate(columns):
        for row in range(height):
            axes = grid[row][column]
            axes.axis("off")
            if row < len(rows):
                name, pictures = rows[row]
                axes.imshow(torch.cat(list(pictures), dim=2).permute(1, 2, 0).numpy(), interpolation="nearest")
                axes.text(-4, 16, name, ha="right", va="center", fontsize=6)
    result.suptitle(f"{data.title}: test pictures, restored up to a flip or turn", fontsize=7)
    return result


def _showy(data: CifarData, count: int) -> list[int]:
    """Indices in test of the picture of most contrast in each of the first classes."""
    contrast = data.test.images.float().std((1, 2, 3))
    classes = data.test.labels.unique()[:count]
    return [int(contrast.where(data.test.labels == label, -1.0).argmax()) for label in classes]


def save_small(figure: Figure, path: Path) -> None:
    """Write a figure as PNG with 128 colours: pictures of noise would else be large."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    Image.open(content).convert("RGB").quantize(128).save(path, optimize=True)
