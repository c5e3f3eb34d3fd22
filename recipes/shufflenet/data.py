"""Images in folders: ImageNet in its usual layout, or any data set in the same one."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from recipes.common.files import load_json

if TYPE_CHECKING:  # else imported where it is used: the models and their counts do without torchvision
    from torchvision.datasets import ImageFolder

SPLITS = ("train", "val")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's training images, which the literature subtracts and divides by."""

_IMAGENET_IMAGES = (1_281_167, 50_000)


@dataclass(frozen=True)
class ImageData:
    """A data set in the layout ``ROOT/train/CLASS/*.jpg``, ``ROOT/val/CLASS/*.jpg``.

    Attributes:
        name: of the data set.
        train, val: its splits, with paths and labels.
    """

    name: str
    train: ImageFolder
    val: ImageFolder

    @property
    def classes(self) -> list[str]:
        """Names of the folders, in the order of the labels."""
        return list(self.train.classes)

    @property
    def title(self) -> str:
        """The name, and whether it is ImageNet: what every table says about its numbers."""
        return self.name if self.name == "ImageNet" else f"{self.name}, not ImageNet"

    def summary(self) -> str:
        """Name and sizes in one line."""
        return f"{self.title}: {len(self.classes)} classes, {len(self.train)} images in train, {len(self.val)} in val"

    def fingerprint(self) -> str:
        """Of the paths of all images, with the names of their classes: other data may have the same name and sizes."""
        digest = hashlib.sha256()
        for folder in (self.train, self.val):
            root = str(folder.root)
            paths = "\0".join(path.removeprefix(root) for path, _ in folder.samples)
            digest.update(paths.encode(errors="surrogateescape"))
            digest.update(b"\0\0")
        return digest.hexdigest()[:16]

    def sizes_fingerprint(self) -> str:
        """Of the sizes of some files: other images may have the same paths."""
        sizes = "\0".join(_sizes(folder.samples) for folder in (self.train, self.val))
        return hashlib.sha256(sizes.encode()).hexdigest()[:16]


def _sizes(samples: list[tuple[str, int]]) -> str:
    """Bytes of a thousand files, evenly chosen: those of all of ImageNet would take minutes on a network's disk."""
    chosen = samples[:: max(1, len(samples) // 1000)]
    return " ".join(str(os.path.getsize(path)) for path, _ in chosen)


def load_images(root: Path) -> ImageData:
    """Find the images of a data set; they are read when they are needed.

    The name is that in ``ROOT/dataset.json``, which `recipes.shufflenet.prepare` writes; else "ImageNet" if the
    folders are 1000 WordNet ids and hold as many images as those of ILSVRC 2012; else the name of the folder.

    Args:
        root: folder with the folders train and val, each with a folder a class.

    Raises:
        ValueError: a folder that is missing, or classes that differ between train and val.
        FileNotFoundError: a class without images.
    """
    from torchvision.datasets import ImageFolder

    for split in SPLITS:
        if not (root / split).is_dir():
            raise ValueError(
                f"{root / split} is missing: expected images as {root}/train/CLASS/* and {root}/val/CLASS/*"
            )
    train, val = (ImageFolder(root / split) for split in SPLITS)
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise ValueError(
            f"{root}: expected the same classes in train and val; in one only: {', '.join(different[:5])}"
            f"{', ...' if len(different) > 5 else ''}"
        )
    description = root / "dataset.json"
    # A file of that name may also be somebody else's.
    about = load_json(description, "repair or remove it") if description.exists() else None
    name = about.get("name") if isinstance(about, dict) else None
    if not isinstance(name, str):
        name = "ImageNet" if _is_imagenet(train, val) else root.resolve().name
    return ImageData(name, train, val)


def _is_imagenet(train: ImageFolder, val: ImageFolder) -> bool:
    are_ids = len(train.classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in train.classes)
    return are_ids and (len(train), len(val)) == _IMAGENET_IMAGES


class Images(Dataset):
    """One split as normalised tensors ``(3, size, size)`` and labels.

    Training images are random crops, of a share of the area and an aspect ratio of 3/4 to 4/3, and flipped at random;
    others are the central square of 7/8 of the shorter side. The augmentation of an image depends on the seed, the
    epoch and its index alone, and not on which process draws it or when.

    Args:
        folder: paths and labels.
        size: height and width in pixels.
        augment: whether to crop and flip at random.
        min_area: least share of an image's area that a random crop shows.
        seed, epoch: of the augmentation.

    Source: the augmentation that Szegedy et al. introduced with GoogLeNet (CVPR 2015), by timm.
    """

    def __init__(
        self, folder: ImageFolder, size: int, *, augment: bool, min_area: float = 0.08, seed: int = 0, epoch: int = 0
    ) -> None:
        from timm.data import create_transform

        self.folder = folder
        self.augment = augment
        self.place = (seed, epoch)
        options: dict[str, Any] = {"scale": (min_area, 1.0), "color_jitter": None} if augment else {"crop_pct": 7 / 8}
        self.transform = create_transform(
            size, is_training=augment, interpolation="bilinear", mean=MEAN, std=STD, **options
        )

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.folder.samples[index]
        try:
            image = self.folder.loader(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not an image that can be read ({error}): replace or remove it") from error
        if not self.augment:
            return self.transform(image), label
        state = random.getstate()  # timm draws crops by the one, flips by the other
        try:
            with torch.random.fork_rng(devices=[]):
                seed = seed_of(*self.place, index)
                random.seed(seed)
                torch.manual_seed(seed)
                return self.transform(image), label
        finally:
            random.setstate(state)


class EpochBatches(Sampler[list[int]]):
    """Batches of one epoch of training for one of several processes: a random order by seed and epoch alone.

    All processes have as many batches, all full; what is left over sits out this epoch. A data set that is smaller
    than one batch of all processes is one smaller batch.

    Args:
        n: images.
        batch_size: of one process.
        seed, epoch: of the order.
        rank, world: which of how many processes.

    Raises:
        ValueError: fewer images than processes.

    >>> sorted(i for batch in EpochBatches(7, 2, seed=0, epoch=0) for i in batch) != list(range(7))
    True
    """

    def __init__(self, n: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> None:
        if n < world:
            raise ValueError(f"expected at least one image a process, got {n} images for {world} processes")
        order = np.random.default_rng((seed, epoch)).permutation(n)
        size = min(batch_size, n // world)
        count = n // (size * world)
        self.batches = order[: count * size * world].reshape(count, world, size)[:, rank].tolist()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches


def loader(images: Images, *, workers: int, **options: Any) -> DataLoader:
    """A DataLoader whose batches are in pinned memory where there is a GPU.

    Args:
        images: one split.
        workers: processes that read; 0 reads in this one.
        options: the rest of DataLoader's.
    """
    return DataLoader(images, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)


def seed_of(*place: int) -> int:
    """A seed for one place in a training, e.g. (seed, epoch, image).

    >>> seed_of(0, 1, 2) == seed_of(0, 1, 2) != seed_of(0, 2, 1)
    True
    """
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1))
