"""Folders of images: names, batches and augmentation by place alone, and the stand-in built from a made-up package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("torchvision")

from recipes.shufflenet import data as data_module
from recipes.shufflenet.__main__ import main
from recipes.shufflenet.data import MEAN, STD, EpochBatches, Images, load_images, loader
from recipes.shufflenet.prepare import CLASSES, prepare_openclipart, square_on_white


def write_noise(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(5):
        for split, n in (("train", 2), ("val", 1)):
            for k in range(n):
                write_noise(tmp_path / "things" / split / f"class{i}" / f"{k}.png", seed=10 * i + k)
    return tmp_path / "things"


def test_layout_and_names(root) -> None:
    found = load_images(root)
    assert found.summary() == "things, not ImageNet: 5 classes, 10 images in train, 5 in val"
    assert found.classes == [f"class{i}" for i in range(5)] and found.val.targets == list(range(5))
    (root / "dataset.json").write_text(json.dumps({"name": "made-up"}))
    assert load_images(root).title == "made-up, not ImageNet"
    for others in ('{"title": "mine"}', '["mine"]'):
        (root / "dataset.json").write_text(others)
        assert load_images(root).title == "things, not ImageNet"
    (root / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json cannot be read \(.*\): repair or remove it"):
        load_images(root)


def test_imagenet_is_known_by_its_ids_and_numbers(tmp_path, monkeypatch) -> None:
    for i in range(1000):
        for split in ("train", "val"):
            folder = tmp_path / "ilsvrc" / split / f"n{i:08}"
            folder.mkdir(parents=True)
            (folder / "0.JPEG").touch()
    assert load_images(tmp_path / "ilsvrc").title == "ilsvrc, not ImageNet"
    monkeypatch.setattr(data_module, "_IMAGENET_IMAGES", (1000, 1000))
    assert load_images(tmp_path / "ilsvrc").title == "ImageNet"


def test_errors(root, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/train is missing: expected .*/train/CLASS/\*"):
        load_images(tmp_path / "nowhere")
    (root / "val" / "class0").rename(root / "val" / "other")
    with pytest.raises(ValueError, match="the same classes in train and val; in one only: class0, other"):
        load_images(root)
    with pytest.raises(ValueError, match="at least one image a process, got 2 images for 3 processes"):
        EpochBatches(2, 4, seed=0, epoch=0, world=3)


def test_val_is_the_central_square(root) -> None:
    path, label = load_images(root).val.samples[3]
    image, its_label = Images(load_images(root).val, 28, augment=False)[3]
    assert its_label == label == 3 and type(image) is torch.Tensor and image.dtype == torch.float32
    resized = Image.open(path).resize((42, 32), Image.Resampling.BILINEAR)  # 40 x 30, the shorter side to 32
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[:, 2:30, 7:35] / 255
    expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(image, expected, rtol=0, atol=0.02)  # a level of 1/255


def test_augmentation_depends_on_seed_epoch_and_index_alone(root) -> None:
    folder = load_images(root).train

    def drawn(**place: int) -> torch.Tensor:
        return Images(folder, 16, augment=True, **place)[4][0]

    before = torch.random.get_rng_state()
    first = drawn(seed=1, epoch=2)
    assert first.shape == (3, 16, 16)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(drawn(seed=1, epoch=2), first)
    assert not torch.equal(drawn(seed=1, epoch=3), first) and not torch.equal(drawn(seed=2, epoch=2), first)


def test_batches_do_not_depend_on_workers(root) -> None:
    folder = load_images(root).train
    results = []
    for workers in (0, 2):
        batches = EpochBatches(len(folder), 4, seed=0, epoch=1)
        images = Images(folder, 16, augment=True, seed=0, epoch=1)
        results.append(list(loader(images, workers=workers, batch_sampler=batches)))
    assert len(results[0]) == 2
    for (x, labels), (same_x, same_labels) in zip(*results, strict=True):
        assert torch.equal(x, same_x) and torch.equal(labels, same_labels) and x.shape == (4, 3, 16, 16)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 200), size=st.integers(1, 40), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_epoch_batches(n, size, world, epoch) -> None:
    if n < world:
        return
    shares = [EpochBatches(n, size, seed=7, epoch=epoch, rank=rank, world=world) for rank in range(world)]
    drawn = [i for share in shares for batch in share for i in batch]
    assert len(set(drawn)) == len(drawn) and set(drawn) <= set(range(n))
    lengths = {len(batch) for share in shares for batch in share}
    assert lengths == {min(size, n // world)} and len({len(share) for share in shares}) == 1
    assert n - len(drawn) < lengths.pop() * world
    assert shares[0].batches == EpochBatches(n, size, seed=7, epoch=epoch, world=world).batches
    if n > 20:
        others = [EpochBatches(n, size, seed=s, epoch=e, world=world).batches for s, e in ((8, epoch), (7, epoch + 1))]
        assert shares[0].batches not in others


# --- the stand-in ---


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A tree like the package's: ten drawings a class in two folders, and some that must be left out."""
    pngs = tmp_path / "package" / "usr" / "share" / "openclipart" / "png"
    for i, name in enumerate((*CLASSES, "unsorted")):
        for k in range(10):
            write_noise(pngs / name / ("deep" if k % 2 else "") / f"{k}.png", seed=100 * i + k)
    write_noise(pngs / "food" / "copy.png", seed=200)  # of food/0.png
    write_noise(pngs / "tools" / "both.png", seed=9999)
    write_noise(pngs / "people" / "both.png", seed=9999)
    (pngs / "animals" / "broken.png").write_bytes(b"no image")
    return tmp_path / "package"


def test_prepare(package, tmp_path, capsys) -> None:
    out = tmp_path / "openclipart"
    command = ["prepare", "openclipart", "--out", str(out), "--package", str(package), "--size", "16"]
    assert main(command) == 0
    assert "100 drawings in 10 classes; left out: 2 in two classes, 1 unreadable, 1 duplicates" in " ".join(
        capsys.readouterr().out.split()
    )
    found = load_images(out)
    assert found.summary() == "openclipart, not ImageNet: 10 classes, 80 images in train, 20 in val"
    assert found.classes == sorted(CLASSES)
    pictures = {path: np.asarray(Image.open(path)).tobytes() for path, _ in found.train.samples + found.val.samples}
    assert len(set(pictures.values())) == 100 and len(pictures[next(iter(pictures))]) == 16 * 16 * 3
    assert any(path.endswith("deep-1.png") for path in pictures)
    assert main(command) == 2
    assert f"error: {out} exists" in capsys.readouterr().err

    def split() -> set[str]:
        return {path for path, _ in load_images(out).val.samples}

    first = split()
    assert main([*command, "--overwrite", "--quiet"]) == 0 and split() == first
    assert main([*command, "--overwrite", "--quiet", "--seed", "1"]) == 0 and split() != first


def test_prepare_says_what_is_missing(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="animals: expected drawings of the package openclipart-png, found 0"):
        prepare_openclipart(tmp_path / "out", package=tmp_path / "empty", progress=False)
    with pytest.raises(ValueError, match="expected size >= 1, got 0"):
        prepare_openclipart(tmp_path / "out", size=0, package=tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file: expected a folder to write"):
        prepare_openclipart(tmp_path / "file", package=tmp_path / "empty", overwrite=True, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file"}


def test_the_package_and_folders_of_others_are_not_overwritten(package, root, tmp_path) -> None:
    options = {"size": 8, "package": package, "overwrite": True, "progress": False}
    for out in (package, tmp_path):
        with pytest.raises(ValueError, match=r"would be written over .*package, which is needed"):
            prepare_openclipart(out, **options)
    with pytest.raises(ValueError, match="would be written over"):
        prepare_openclipart(tmp_path / "out", work=tmp_path / "out" / "work")
    (root / "dataset.json").write_text(json.dumps({"name": "openclipart"}))
    with pytest.raises(FileExistsError, match="things is not a folder that this recipe made"):
        prepare_openclipart(root, **options)
    assert len(load_images(root).train) == 10 and (package / "usr").is_dir()


def test_drawings_stand_on_white_in_the_middle() -> None:
    half = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    pixels = np.asarray(square_on_white(half, 8))
    assert pixels.shape == (8, 8, 3)
    assert (pixels[:2] == 255).all() and (pixels[6:] == 255).all() and (pixels[2:6] == (255, 0, 0)).all()
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (np.asarray(square_on_white(clear, 5)) == 255).all()
    assert (np.asarray(square_on_white(Image.new("L", (4, 4), 7), 2)) == 7).all()
