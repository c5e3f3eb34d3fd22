"""A stand-in for CIFAR-10 in its binary layout: patches of the photographs in scikit-image and scikit-learn.

A patch of 32 x 32 pixels has the picture that it was cut from as its label. Train, valid and test are from disjoint
columns of each picture; patches within a split overlap. Colours and brightness alone tell most pictures apart, in any
order of the pixels: the variant "texture" takes both away, and leaves what a permutation hides.

Photographs at full resolution are smoother than CIFAR-10's small pictures: accuracies and recoveries say how methods
compare, and are never CIFAR-10's.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from recipes.cifar.data import SIDE, TEST_FILE, TRAIN_FILES, write_file
from recipes.common.files import check_free, new_folder
from recipes.common.options import check_seed
from recipes.timit.corpus import CorpusError

PACKAGES = ("scikit-image", "scikit-learn")
PICTURES = {
    "astronaut": "skimage/data/astronaut.png",
    "chelsea": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
}
"""Files in the wheels by class: every colour photograph but the second of a stereo pair."""

_MADE = ("classes", "per_class", "stride", "records")
"""Names in the dataset.json of every folder that `prepare_photos` makes."""

NAME, TEXTURE_NAME = "photo-patches", "photo-textures"
_FLAT = 4.0
"""Standard deviation, in levels of 255, below which a patch shows noise and no texture."""
COLUMNS = (0.65, 0.8)
"""Where the columns of train end and those of test begin, as shares of the width; valid is between."""


def prepare_photos(
    out: Path,
    *,
    per_class: int = 1000,
    stride: int = 8,
    seed: int = 0,
    texture: bool = False,
    wheels: Path | None = None,
    work: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write data_batch_1.bin to data_batch_5.bin, test_batch.bin and dataset.json.

    Args:
        out: folder to make.
        per_class: patches of each picture in the training files, a tenth of which are valid; a multiple of 50. Test
            has a fifth as many. A picture too small for them is an error.
        stride: pixels between patches, down and across.
        seed: of the choice of patches and of their order.
        texture: make patches grey, all with the same mean and contrast; patches that are almost flat are left out.
        wheels: folder with the wheels of both packages; default: downloaded with ``pip download``, 23 MB.
        work: folder for the download, which may be deleted afterwards; default: ``out`` with ``-work`` added.
        overwrite: replace a folder at ``out`` that this function made.
        progress: show a bar.

    Returns:
        ``out``.

    Raises:
        CorpusError: a wheel or a picture is missing.
        FileExistsError: ``out`` exists, and is not to be overwritten or not such a folder.
        ValueError: an option, or more patches than a picture has.
    """
    if per_class < 50 or per_class % 50:
        raise ValueError(f"expected per_class to be a positive multiple of 50, got {per_class}")
    if stride < 1:
        raise ValueError(f"expected stride >= 1 pixel, got {stride}")
    check_seed(seed, "--seed")
    out = out.resolve()
    work = out.with_name(out.name + "-work") if work is None else work
    check_free(out, overwrite=overwrite, made=_MADE, needed=[wheels, work])
    wheels = _downloaded(work) if wheels is None else wheels
    generator = np.random.default_rng(seed)
    counts = {"train": per_class - per_class // 10, "valid": per_class // 10, "test": per_class // 5}
    parts: dict[str, list[np.ndarray]] = {split: [] for split in counts}
    for name, member in track(PICTURES.items(), "Cutting patches", disable=not progress, transient=True):
        picture = np.asarray(Image.open(io.BytesIO(_member(wheels, member))).convert("RGB"))
        for split, region in _regions(picture).items():
            found = patches(region, stride)
            found = textures(found) if texture else found
            if len(found) < counts[split]:
                raise ValueError(
                    f"{name} has {len(found)} patches for {split} at stride {stride}, and {counts[split]} are needed: "
                    "give a smaller --stride or --per-class"
                )
            parts[split].append(found[generator.permutation(len(found))[: counts[split]]])
    labelled = {split: _shuffled(found, generator) for split, found in parts.items()}
    images, labels = (np.concatenate([labelled[split][i] for split in ("train", "valid")]) for i in range(2))
    about = {
        "name": TEXTURE_NAME if texture else NAME,
        "source": "photographs in the wheels of scikit-image and scikit-learn; label = the picture of the patch",
        "classes": list(PICTURES),
        "per_class": per_class,
        "stride": stride,
        "seed": seed,
        "records": {**dict.fromkeys(TRAIN_FILES, len(labels) // 5), TEST_FILE: len(labelled["test"][1])},
    }
    with new_folder(out, overwrite=overwrite, made=_MADE) as folder:
        for file, file_images, file_labels in zip(TRAIN_FILES, np.split(images, 5), np.split(labels, 5), strict=True):
            write_file(folder / file, file_images, file_labels)
        write_file(folder / TEST_FILE, *labelled["test"])
        (folder / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return out


def patches(picture: np.ndarray, stride: int) -> np.ndarray:
    """All patches ``(N, 3, 32, 32)`` of a picture ``(height, width, 3)``.

    >>> patches(np.zeros((40, 48, 3), np.uint8), 8).shape
    (6, 3, 32, 32)
    """
    windows = np.lib.stride_tricks.sliding_window_view(picture, (SIDE, SIDE), axis=(0, 1))
    return windows[::stride, ::stride].reshape(-1, 3, SIDE, SIDE)


def textures(images: np.ndarray) -> np.ndarray:
    """Patches ``(N, 3, 32, 32)`` in grey with mean 128 and standard deviation 50, without those that are almost flat.

    >>> textures(np.full((2, 3, 32, 32), 7, np.uint8)).shape
    (0, 3, 32, 32)
    """
    grey = images.mean(1, keepdims=True)
    contrast = grey.std((2, 3), keepdims=True)
    kept = contrast.ravel() >= _FLAT
    grey, contrast = grey[kept], contrast[kept]
    levels = 128 + 50 * (grey - grey.mean((2, 3), keepdims=True)) / contrast
    return np.repeat(np.rint(levels).clip(0, 255).astype(np.uint8), 3, axis=1)


def _regions(picture: np.ndarray) -> dict[str, np.ndarray]:
    first, second = (round(share * picture.shape[1]) for share in COLUMNS)
    return {"train": picture[:, :first], "valid": picture[:, first:second], "test": picture[:, second:]}


def _shuffled(parts: list[np.ndarray], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    images = np.concatenate(parts)
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = generator.permutation(len(labels))
    return images[order], labels[order]


def _downloaded(work: Path) -> Path:
    """The folder with both wheels, downloaded where it does not hold them."""
    work.mkdir(parents=True, exist_ok=True)
    missing = [name for name in PACKAGES if not list(work.glob(f"{name.replace('-', '_')}-*.whl"))]
    if missing:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(work)]
        result = subprocess.run([*command, *missing], capture_output=True, text=True)
        if result.returncode:
            raise CorpusError(
                f"`pip download --no-deps {' '.join(missing)}` failed; download the wheels elsewhere and give their "
                f"folder as --wheels. It said: {' '.join(result.stderr.split())[-300:]}"
            )
    return work


def _member(folder: Path, member: str) -> bytes:
    """The bytes of a file in one of the wheels."""
    wheels = sorted(folder.glob("scikit_*.whl"))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if member in archive.namelist():
                return archive.read(member)
    names = ", ".join(wheel.name for wheel in wheels) or "no wheel"
    raise CorpusError(f"{folder}: expected {member} in a wheel of {' or '.join(PACKAGES)}, found {names}")
