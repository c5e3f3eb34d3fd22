"""CIFAR-10's files, permutations, augmentation, and the stand-in built from made-up wheels."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.cifar.__main__ import main
from recipes.cifar.data import (
    PIXELS,
    RECORD,
    SIDE,
    TEST_FILE,
    TRAIN_FILES,
    augmented,
    load_data,
    permutation,
    permuted,
    write_file,
)
from recipes.cifar.prepare import PICTURES, patches, prepare_photos, textures
from recipes.timit.corpus import CorpusError


def test_bytes_are_label_then_channels_row_by_row(root) -> None:
    content = (root / "data_batch_2.bin").read_bytes()
    record = content[3 * RECORD : 4 * RECORD]
    data = load_data(root)
    image, label = data.train.images[40 + 3], data.train.labels[40 + 3]
    assert record[0] == label
    assert record[1 + 1024 + 32 * 5 + 7] == image[1, 5, 7]
    assert data.summary() == (
        "made-up (a stand-in, not CIFAR-10): 180 images in train, 20 in valid, 40 in test"
    )  # fmt: skip


def test_cifar_is_known_by_its_sizes_in_the_folder_of_its_archive(tmp_path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in (*TRAIN_FILES, TEST_FILE):
        write_file(folder / name, np.zeros((10_000, 3, SIDE, SIDE), np.uint8), np.arange(10_000) % 10)
    data = load_data(tmp_path)
    assert data.title == "CIFAR-10"
    assert [len(split) for split in (data.train, data.valid, data.test)] == [45_000, 5_000, 10_000]


@pytest.mark.parametrize("name", ["data_batch_4.bin", TEST_FILE])
def test_broken_files_are_named(root, tmp_path, name) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(root, folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    with pytest.raises(
        CorpusError, match=f"{name} is cut off: expected 40 images of 3073 bytes, 122920 bytes, got 122919"
    ):
        load_data(folder)
    (folder / name).write_bytes(whole + b"0")
    with pytest.raises(CorpusError, match=f"{name} is too long"):
        load_data(folder)
    (folder / name).write_bytes(whole[: 2 * RECORD] + b"\x0b" + whole[2 * RECORD + 1 :])
    with pytest.raises(CorpusError, match=f"{name}: image 2 has label 11, expected 0 to 9"):
        load_data(folder)
    (folder / name).unlink()
    with pytest.raises(CorpusError, match=f"{name} is missing: expected the files of CIFAR-10's binary version"):
        load_data(folder)
    about = {"name": "few", "records": dict.fromkeys((*TRAIN_FILES, TEST_FILE), 1)}
    (folder / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(CorpusError, match=r"dataset\.json: expected at least 10 images for train and valid, and 1 for"):
        load_data(folder)
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"dataset\.json cannot be read"):
        load_data(folder)


def test_normalized_train_has_no_mean_and_unit_variance(root) -> None:
    data = load_data(root)
    x = data.normalized(data.train.images).double()
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_permutations() -> None:
    for kind in ("none", "random", "bitreversal"):
        assert permutation(kind).sort().values.equal(torch.arange(PIXELS))
    assert permutation("random", 0).equal(permutation("random", 0))
    assert not permutation("random", 0).equal(permutation("random", 1))
    image = torch.arange(PIXELS).view(1, SIDE, SIDE)
    reversed_bits = [int(f"{i:05b}"[::-1], 2) for i in range(SIDE)]
    assert permuted(image, permutation("bitreversal"))[0].equal(image[0][reversed_bits][:, reversed_bits])
    p = permutation("random", 3)
    assert permuted(permuted(image, p), p.argsort()).equal(image)
    with pytest.raises(ValueError, match="expected a permutation in"):
        permutation("reverse")


def test_augmentation_is_a_crop_of_the_padded_image_flipped_or_not() -> None:
    images = torch.randint(1, 256, (64, 3, SIDE, SIDE), dtype=torch.uint8)
    found = augmented(images, torch.Generator().manual_seed(0))
    assert found.dtype == torch.uint8 and found.equal(augmented(images, torch.Generator().manual_seed(0)))
    padded = torch.nn.functional.pad(images, (4,) * 4)
    seen = set()
    for image, whole in zip(found, padded, strict=True):
        places = [
            (row, column, flip)
            for row in range(9)
            for column in range(9)
            for flip in (False, True)
            if whole[:, row : row + SIDE, column : column + SIDE].flip([2] if flip else []).equal(image)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len({row for row, _, _ in seen}) == 9 and {flip for _, _, flip in seen} == {False, True}


@pytest.fixture
def wheels(tmp_path):
    """Two made-up wheels with pictures whose columns can be told apart."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with (
        zipfile.ZipFile(folder / "scikit_image-1-py3-none-any.whl", "w") as first,
        zipfile.ZipFile(folder / "scikit_learn-1-py3-none-any.whl", "w") as second,
    ):
        for label, member in enumerate(PICTURES.values()):
            pixels = np.zeros((160, 500, 3), np.uint8)
            pixels[..., 0] = label
            pixels[..., 1] = np.arange(500) // 2
            pixels[..., 2] = np.random.default_rng(label).integers(0, 256, (160, 500))
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, format="PNG")
            (first if member.startswith("skimage") else second).writestr(member, content.getvalue())
    return folder


def test_stand_in_has_the_layout_and_disjoint_columns(wheels, tmp_path, capsys) -> None:
    out = tmp_path / "stand-in"
    assert main(f"prepare photos --out {out} --per-class 50 --wheels {wheels} --quiet".split()) == 0
    assert (
        "photo-patches (a stand-in, not CIFAR-10): 450 images in train, 50 in valid, 100 in test"
        in capsys.readouterr().out
    )
    data = load_data(out)
    columns = {}
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        assert split.labels.bincount().unique().numel() == 1, "classes are balanced"
        assert (split.images[:, 0] == split.labels[:, None, None]).all()
        columns[name] = set(split.images[:, 1].unique().tolist())
    assert max(columns["train"]) < min(columns["valid"]) < max(columns["valid"]) < min(columns["test"])
    assert json.loads((out / "dataset.json").read_text())["classes"] == list(PICTURES)
    assert main(f"prepare photos --out {out} --wheels {wheels}".split()) == 2
    assert "exists already: remove it, give another folder, or --overwrite it" in capsys.readouterr().err


def test_stand_in_says_what_is_missing(wheels, tmp_path) -> None:
    with pytest.raises(ValueError, match="patches for train at stride 8, and 45000 are needed"):
        prepare_photos(tmp_path / "out", per_class=50_000, wheels=wheels, progress=False)
    with pytest.raises(ValueError, match="a positive multiple of 50, got 30"):
        prepare_photos(tmp_path / "out", per_class=30, wheels=wheels)
    (wheels / "scikit_learn-1-py3-none-any.whl").unlink()
    with pytest.raises(CorpusError, match=r"expected sklearn/.*china.jpg in a wheel of .*, found scikit_image-1"):
        prepare_photos(tmp_path / "out", per_class=50, wheels=wheels, progress=False)
    assert not (tmp_path / "out").exists()


def test_wheels_and_folders_of_others_are_not_overwritten(wheels, root, tmp_path) -> None:
    options = {"per_class": 50, "wheels": wheels, "overwrite": True, "progress": False}
    for out in (wheels, tmp_path):
        with pytest.raises(ValueError, match=r"would be written over .*wheels, which is needed"):
            prepare_photos(out, **options)
    with pytest.raises(ValueError, match="would be written over"):
        prepare_photos(tmp_path / "out", work=tmp_path / "out" / "work")
    # Somebody's own data in the same layout.
    shutil.copytree(root, tmp_path / "mine")
    with pytest.raises(FileExistsError, match="mine is not a folder that this recipe made"):
        prepare_photos(tmp_path / "mine", **options)
    assert load_data(tmp_path / "mine").name == "made-up" and len(list(wheels.iterdir())) == 2
    for texture in (False, True):
        prepare_photos(tmp_path / "out", texture=texture, **options)
    assert load_data(tmp_path / "out").name == "photo-textures"


def test_textures_have_neither_colour_nor_brightness(wheels, tmp_path) -> None:
    rng = np.random.default_rng(1)
    found = textures(rng.integers(0, 120, (5, 3, SIDE, SIDE), dtype=np.uint8)).astype(float)
    assert (found[:, 0] == found[:, 1]).all() and (found[:, 0] == found[:, 2]).all()
    assert np.abs(found.mean((1, 2, 3)) - 128).max() < 1 and np.abs(found.std((1, 2, 3)) - 50).max() < 1
    prepare_photos(tmp_path / "out", per_class=50, texture=True, wheels=wheels, progress=False)
    assert load_data(tmp_path / "out").name == "photo-textures"


def test_patches_are_cut_where_they_should_be() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    found = patches(picture, 8)
    assert found.shape == (3 * 4, 3, SIDE, SIDE)
    assert np.array_equal(found[4 + 2], picture[8:40, 16:48].transpose(2, 0, 1))
