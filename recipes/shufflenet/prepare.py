"""A stand-in for ImageNet in its layout: ten classes of drawings from the Debian package openclipart-png.

The drawings are in the public domain; labels are the folders into which its authors sorted them. Many come in series
(signs, icons), so that val has near relatives in train: accuracies say how networks compare, not how well drawings are
recognised.
"""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from recipes.common.files import check_free, new_folder
from recipes.timit.prepare import debian

PACKAGE = "openclipart-png"
CLASSES = (
    "animals", "computer", "food", "office", "people",
    "recreation", "shapes", "signs_and_symbols", "tools", "transportation",
)  # fmt: skip
VAL_SHARE = 0.2

_MADE = ("source", "size", "images")
"""Names in the dataset.json of every folder that `prepare_openclipart` makes."""

_PNGS = Path("usr/share/openclipart/png")


def prepare_openclipart(
    out: Path,
    *,
    size: int = 64,
    seed: int = 0,
    package: Path | None = None,
    work: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Build the data set "openclipart" as ``OUT/train/CLASS/*.png`` and ``OUT/val/CLASS/*.png``.

    Drawings are padded to squares, put on white and scaled. Those that look alike in 32 x 32 pixels are one; those
    that are in two classes are left out. A fifth of every class, drawn at random, is val.

    Args:
        out: folder to make.
        size: height and width in pixels.
        seed: of the split.
        package: the package's .deb file, or the folder into which it was unpacked; default: downloaded with
            ``apt-get download``, 131 MB.
        work: folder for the download, which may be deleted afterwards; default: ``out`` with ``-work`` added.
        overwrite: replace a folder at ``out`` that this function made.
        progress: show a bar and the outcome.

    Returns:
        ``out``.

    Raises:
        CorpusError: the package cannot be had or unpacked.
        FileExistsError: ``out`` exists, and is not to be overwritten or not such a folder.
        ValueError: the package has other folders, or the size is below 1.
    """
    if size < 1:
        raise ValueError(f"expected size >= 1, got {size}")
    out = out.resolve()
    work = out.with_name(out.name + "-work") if work is None else work
    check_free(out, overwrite=overwrite, made=_MADE, needed=[package, work])
    pngs = debian.unpack([PACKAGE], work=work, package=package) / _PNGS
    drawings, problems = _distinct_drawings(pngs, size, progress=progress)
    paths = {name: sorted(p for p in drawings if p.relative_to(pngs).parts[0] == name) for name in CLASSES}
    counts = {name: len(of_class) for name, of_class in paths.items()}
    for name, count in counts.items():
        if count < 2:
            raise ValueError(f"{pngs / name}: expected drawings of the package {PACKAGE}, found {count}")
    about = {
        "name": "openclipart",
        "source": f"Debian package {PACKAGE}: public-domain drawings, labelled by folder",
        "size": size,
        "seed": seed,
        "images": counts,
    }
    with new_folder(out, overwrite=overwrite, made=_MADE) as folder:
        for name, of_class in paths.items():
            random.Random(f"{seed} {name}").shuffle(of_class)
            n_val = max(1, round(VAL_SHARE * len(of_class)))
            for split, chosen in (("val", of_class[:n_val]), ("train", of_class[n_val:])):
                (folder / split / name).mkdir(parents=True)
                for path in chosen:
                    drawings[path].save(folder / split / name / "-".join(path.relative_to(pngs).parts[1:]))
        (folder / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
    if progress:
        left_out = ", ".join(f"{count} {reason}" for reason, count in problems.most_common())
        print(f"{out}: {sum(counts.values())} drawings in {len(counts)} classes; left out: {left_out or 'none'}")
    return out


def _distinct_drawings(pngs: Path, size: int, *, progress: bool) -> tuple[dict[Path, Image.Image], Counter[str]]:
    """One drawing for each look, and why others were left out."""
    by_look: dict[bytes, dict[Path, Image.Image]] = {}
    problems: Counter[str] = Counter()
    paths = [path for name in CLASSES for path in sorted((pngs / name).rglob("*.png"))]
    for path in track(paths, "Reading drawings", disable=not progress, transient=True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                drawing = square_on_white(Image.open(path), size)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            problems["too large for Pillow"] += 1
            continue
        except (UnidentifiedImageError, OSError, SyntaxError):
            problems["unreadable"] += 1
            continue
        look = np.asarray(drawing.resize((32, 32), Image.Resampling.BOX)).tobytes()
        by_look.setdefault(look, {})[path] = drawing
    distinct = {}
    for alike in by_look.values():
        first = next(iter(alike))
        if len({path.relative_to(pngs).parts[0] for path in alike}) > 1:
            problems["in two classes"] += len(alike)
            continue
        problems["duplicates"] += len(alike) - 1
        distinct[first] = alike[first]
    return distinct, +problems


def square_on_white(image: Image.Image, size: int) -> Image.Image:
    """An RGB image of ``size`` x ``size`` pixels: the whole of ``image``, centred on white.

    >>> square_on_white(Image.new("RGBA", (20, 10), (255, 0, 0, 255)), 4).getpixel((1, 0))
    (255, 255, 255)
    """
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Scaled with its transparency multiplied in: colours of transparent pixels do not bleed into the others.
    scaled = image.convert("RGBA").convert("RGBa").resize((width, height), Image.Resampling.BICUBIC).convert("RGBA")
    canvas = Image.new("RGBA", (size, size), "white")
    canvas.alpha_composite(scaled, ((size - width) // 2, (size - height) // 2))
    return canvas.convert("RGB")
