"""A small made-up data set in CIFAR-10's files: smooth pictures, whose class is their colour."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.cifar.data import SIDE, TEST_FILE, TRAIN_FILES, write_file


def smooth(n: int, seed: int) -> Tensor:
    """Pictures ``(n, 3, 32, 32)`` of unit variance in which pixels are the more alike the nearer they are."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 3, 2 * SIDE, 2 * SIDE, generator=generator)
    frequency = torch.fft.fftfreq(2 * SIDE)
    decay = 1 / (frequency.square() + frequency[:, None].square() + 1e-3) ** 1.25
    pictures = torch.fft.ifft2(torch.fft.fft2(noise) * decay).real[..., :SIDE, :SIDE]
    return pictures / pictures.std()


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cifar")
    for number, name in enumerate((*TRAIN_FILES, TEST_FILE)):
        labels = np.arange(40) % 10
        colours = torch.nn.functional.one_hot(torch.from_numpy(labels) % 3, 3)[..., None, None] * 60
        pixels = (smooth(40, seed=number) * 25 + 80 + colours).clamp(0, 255).to(torch.uint8)
        write_file(folder / name, pixels.numpy(), labels)
    about = {"name": "made-up", "records": dict.fromkeys((*TRAIN_FILES, TEST_FILE), 40)}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder
