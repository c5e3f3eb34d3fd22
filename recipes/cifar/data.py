"""CIFAR-10 in its binary files, or a stand-in in the same layout; permutations of pixels; augmentation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.timit.corpus import CorpusError

SIDE = 32
PIXELS = SIDE * SIDE
CLASSES = 10
RECORD = 1 + 3 * PIXELS
"""Bytes of an image: its label, then the red, the green and the blue channel row by row."""

TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
CIFAR_RECORDS = 10_000
"""Images in each file of CIFAR-10."""

PERMUTATIONS = ("none", "random", "bitreversal")
_SUBFOLDER = "cifar-10-batches-bin"
_PADDING = 4


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 ``(N, 3, 32, 32)``.
        labels: int64 ``(N,)``, from 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class CifarData:
    """A data set in CIFAR-10's layout.

    Attributes:
        name: "CIFAR-10", or that of a stand-in.
        train, valid, test: valid is the last tenth of the training files.
        mean, std: of the channels of train, ``(3,)``, with pixels in [0, 1].
    """

    name: str
    train: Split
    valid: Split
    test: Split
    mean: Tensor
    std: Tensor

    @property
    def title(self) -> str:
        """The name, and whether it is CIFAR-10: what every table says about its numbers."""
        return self.name if self.name == "CIFAR-10" else f"{self.name} (a stand-in, not CIFAR-10)"

    def summary(self) -> str:
        """Name and sizes in one line."""
        return f"{self.title}: {len(self.train)} images in train, {len(self.valid)} in valid, {len(self.test)} in test"

    def fingerprint(self) -> str:
        """Of all images and labels: other data may have the same name and sizes."""
        digest = hashlib.sha256()
        for split in (self.train, self.valid, self.test):
            for part in (split.labels, split.images):
                digest.update(part.contiguous().flatten().numpy().data)
        return digest.hexdigest()[:16]

    def normalized(self, images: Tensor) -> Tensor:
        """Float images ``(N, 3, 32, 32)`` of zero mean and unit variance in every channel, from bytes."""
        mean, std = (value.to(images.device).view(3, 1, 1) for value in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def load_data(root: Path) -> CifarData:
    """Read data_batch_1.bin to data_batch_5.bin and test_batch.bin.

    A folder with a ``dataset.json`` beside them, which `recipes.cifar.prepare` writes, is a stand-in with its own name
    and numbers of images. The last tenth of the training files is valid: 45,000 and 5,000 images of CIFAR-10.

    Args:
        root: the folder of the files, or the one that ``cifar-10-binary.tar.gz`` was unpacked in.

    Raises:
        CorpusError: a file is missing, cut off or no CIFAR-10 file; the message names it.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the "binary version".
    """
    root = root / _SUBFOLDER if (root / _SUBFOLDER).is_dir() else root
    about = root / "dataset.json"
    name, records = "CIFAR-10", dict.fromkeys((*TRAIN_FILES, TEST_FILE), CIFAR_RECORDS)
    if about.is_file():
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
            name, records = str(content["name"]), {file: int(content["records"][file]) for file in records}
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{about} cannot be read ({error!r}): prepare the stand-in again") from error
    if sum(records[file] for file in TRAIN_FILES) < 10 or records[TEST_FILE] < 1:
        raise CorpusError(f"{about}: expected at least 10 images for train and valid, and 1 for test, got {records}")
    files = [_read(root / file, count) for file, count in records.items()]
    images, labels = (torch.cat([part[i] for part in files[:-1]]) for i in range(2))
    n_train = len(labels) - len(labels) // 10
    train = Split(images[:n_train], labels[:n_train])
    pixels = train.images.transpose(0, 1).flatten(1).double() / 255
    return CifarData(
        name,
        train,
        Split(images[n_train:], labels[n_train:]),
        Split(*files[-1]),
        pixels.mean(1).float(),
        pixels.std(1, correction=0).clamp_min(1e-6).float(),
    )


def _read(path: Path, records: int) -> tuple[Tensor, Tensor]:
    """Images uint8 ``(N, 3, 32, 32)`` and labels int64 ``(N,)`` of one file."""
    if not path.is_file():
        raise CorpusError(
            f"{path} is missing: expected the files of CIFAR-10's binary version, {TRAIN_FILES[0]} to "
            f"{TRAIN_FILES[-1]} and {TEST_FILE} (unpack cifar-10-binary.tar.gz), or a folder that `prepare` wrote"
        )
    size, expected = path.stat().st_size, records * RECORD
    if size != expected:
        state = "cut off" if size < expected else "too long"
        raise CorpusError(
            f"{path} is {state}: expected {records} images of {RECORD} bytes, {expected} bytes, got {size}; copy or "
            "unpack it again"
        )
    content = np.fromfile(path, dtype=np.uint8).reshape(records, RECORD)
    labels = content[:, 0].astype(np.int64)
    if records and labels.max() >= CLASSES:
        place = int((labels >= CLASSES).argmax())
        raise CorpusError(f"{path}: image {place} has label {labels[place]}, expected 0 to 9: no file of CIFAR-10")
    return torch.from_numpy(content[:, 1:].reshape(records, 3, SIDE, SIDE).copy()), torch.from_numpy(labels)


def write_file(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write uint8 images ``(N, 3, 32, 32)`` and their labels ``(N,)`` as a file of CIFAR-10's binary version."""
    rows = np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(len(images), 3 * PIXELS)], axis=1)
    rows.astype(np.uint8).tofile(path)


def bit_reversal(n: int) -> Tensor:
    """Indices ``(n,)`` whose bits are those of their place in reverse; n is a power of two.

    >>> bit_reversal(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    bits = n.bit_length() - 1
    index = torch.arange(n)
    return sum((index >> bit & 1) << (bits - 1 - bit) for bit in range(bits)) + torch.zeros_like(index)


def permutation(kind: str, seed: int = 0) -> Tensor:
    """Indices ``(1024,)`` p of a permutation of pixels: pixel i of the permuted image is pixel p[i] of the image.

    Args:
        kind: "random"; "bitreversal", of the 32 rows and of the 32 columns; or "none".
        seed: of "random".

    Raises:
        ValueError: another kind.
    """
    if kind == "none":
        return torch.arange(PIXELS)
    if kind == "random":
        return torch.randperm(PIXELS, generator=torch.Generator().manual_seed(seed))
    if kind == "bitreversal":
        order = bit_reversal(SIDE)
        return (order[:, None] * SIDE + order).flatten()
    raise ValueError(f"expected a permutation in {PERMUTATIONS}, got {kind!r}")


def permuted(images: Tensor, p: Tensor) -> Tensor:
    """Images ``(..., 32, 32)`` with their pixels in the order p ``(1024,)``, the same in all channels."""
    return images.flatten(-2).index_select(-1, p.to(images.device)).unflatten(-1, (SIDE, SIDE))


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops after a padding of 4 black pixels, half of them flipped: what comes before the permutation.

    Args:
        images: ``(N, 3, 32, 32)`` of any type.
        generator: on the CPU, so that a seed means the same crops everywhere.
    """
    n = len(images)
    places = torch.randint(2 * _PADDING + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    index = torch.arange(SIDE)
    rows = places[0, :, None] + index
    columns = places[1, :, None] + torch.where(flip[:, None], index.flip(0), index)
    padded = F.pad(images, (_PADDING,) * 4)
    rows, columns = rows.to(images.device), columns.to(images.device)
    batch = torch.arange(n, device=images.device)
    return padded.permute(0, 2, 3, 1)[batch[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
