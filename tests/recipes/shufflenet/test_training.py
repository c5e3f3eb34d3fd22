"""Schedules against their definitions; training that resumes exactly; evaluation, latency and the comparison."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision")
pytest.importorskip("timm")

from recipes.shufflenet.__main__ import DEFAULT_ROWS, main
from recipes.shufflenet.compare import Row, Run, compare, figure, markdown
from recipes.shufflenet.config import PRESETS, Config
from recipes.shufflenet.data import load_images
from recipes.shufflenet.evaluation import Result, evaluate, load_model
from recipes.shufflenet.latency import Latency, measure_latency
from recipes.shufflenet.model import MIXINGS, FixedPermutation, ShuffleNet
from recipes.shufflenet.training import build, check_data, groups_of, hits, scheduler, train

TINY = Config(image_size=32, batch_size=8, epochs=2, warmup_epochs=0, schedule="zhang", lr=0.5, min_area=0.5)
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three classes of noise in three colours, 12 pictures of each in train and 6 in val."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for split, n in (("train", 12), ("val", 6)):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 128, (40, 40, 3)) + np.array(colour) // 2
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    (folder / "dataset.json").write_text(json.dumps({"name": "colours"}))
    return folder


@pytest.fixture(scope="module")
def data(root):
    return load_images(root)


# --- schedules and groups ---


def rates(config: Config, updates_an_epoch: int) -> list[float]:
    """Before every update, as a share of the peak; of two groups, the second with a quarter of the rate."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": config.peak_lr * share} for share in (1.0, 0.25)]
    optimizer = torch.optim.SGD(groups)
    schedule = scheduler(optimizer, config, updates_an_epoch)
    found = []
    for update in range(config.epochs * updates_an_epoch):
        schedule.step_update(update)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 4)
        found.append(first / config.peak_lr)
    return found


def test_schedule_of_the_authors() -> None:
    found = rates(Config(**PRESETS["authors"]), 10)
    expected = [i / 50 for i in range(50)] + [1.0] * 250 + [0.1] * 300 + [0.01] * 200 + [0.001] * 100
    assert found == pytest.approx(expected)
    assert Config(**PRESETS["authors"]).peak_lr == 0.1


def test_schedule_of_zhang() -> None:
    config = Config(**PRESETS["zhang"])
    assert rates(config, 3) == pytest.approx([1 - i / 720 for i in range(720)])
    assert config.peak_lr == 0.5 and config.weight_decay == 4e-5 and config.epochs == 240


def test_schedule_with_fewer_epochs_keeps_its_form() -> None:
    found = rates(Config(epochs=9, warmup_epochs=1), 4)
    assert found == pytest.approx([i / 4 for i in range(4)] + [1.0] * 8 + [0.1] * 12 + [0.01] * 8 + [0.001] * 4)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_groups_have_every_parameter_once_and_decay_weights_alone(mixing) -> None:
    config = Config(mixing=mixing, k_lr_multiplier=0.25, weight_decay=0.5)
    model = build(config, 10)
    groups = {group["name"]: group for group in groups_of(model, config)}
    assert ("k_matrices" in groups) == mixing.startswith("k")
    ids = [id(p) for group in groups.values() for p in group["params"]]
    assert len(set(ids)) == len(ids) and set(ids) == {id(p) for p in model.parameters()}
    for name, group in groups.items():
        assert group["weight_decay"] == (0.5 if name == "rest" else 0.0)
        assert group["lr"] == config.peak_lr * (0.25 if name == "k_matrices" else 1.0)
    decayed = {name for name, p in model.named_parameters() if any(p is other for other in groups["rest"]["params"])}
    assert "stem.0.weight" in decayed and "classifier.weight" in decayed and "classifier.bias" not in decayed
    assert not any("depthwise" in name or "bn" in name for name in decayed)
    assert sum("conv" in name for name in decayed) == 2 * 16


# --- starts of K-matrices ---


@pytest.mark.parametrize("mixing", ["k", "k-odo", "k-orthogonal"])
@pytest.mark.parametrize("stage2", ["authors", "zhang"])
def test_k_matrices_that_start_as_the_shuffle_are_it(mixing, stage2) -> None:
    torch.manual_seed(0)
    shuffle = ShuffleNet(0.25, stage2=stage2).eval()
    k = ShuffleNet(0.25, stage2=stage2, mixing=mixing, k_init="shuffle").eval()
    left_out = k.load_state_dict(shuffle.state_dict(), strict=False)
    assert not left_out.unexpected_keys and all("mix" in name for name in left_out.missing_keys)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(k(x), shuffle(x), rtol=1e-5, atol=1e-6)
    identity = ShuffleNet(0.25, stage2=stage2, mixing=mixing, k_init="identity").eval()
    identity.load_state_dict(shuffle.state_dict(), strict=False)
    none = ShuffleNet(0.25, stage2=stage2, mixing="none").eval()
    none.load_state_dict(shuffle.state_dict())
    torch.testing.assert_close(identity(x), none(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(none(x), shuffle(x), atol=1e-3)


# --- training ---


def states(folder: Path, config: Config) -> list[dict[str, torch.Tensor]]:
    return [load_model(config, 3, folder, average=average).state_dict() for average in (False, True)]


@pytest.mark.parametrize("mixing", ["k-odo", "random"])
def test_an_interrupted_training_ends_as_one_that_was_not(data, tmp_path, mixing) -> None:
    config = dataclasses.replace(TINY, mixing=mixing)  # 4 updates an epoch
    train(config, data, tmp_path / "whole", accelerator="cpu", progress=False)
    for stop_at in (1, 3, 4, 7, None):
        train(config, data, tmp_path / "parts", accelerator="cpu", progress=False, stop_at=stop_at, save_every=1)
    for whole, parts in zip(states(tmp_path / "whole", config), states(tmp_path / "parts", config), strict=True):
        assert all(whole[name].equal(parts[name]) for name in whole)
    lines = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "parts")]
    for line in (line for lines_of_one in lines for line in lines_of_one):
        del line["seconds"]
    assert lines[0] == lines[1] and len(lines[0]) == 2
    with pytest.raises(ValueError, match=r"another configuration \(seed 0, not 1\): give another folder"):
        train(dataclasses.replace(config, seed=1), data, tmp_path / "whole", accelerator="cpu", progress=False)
    other = dataclasses.replace(data, name="others")
    with pytest.raises(ValueError, match="was trained on other data"):
        train(config, other, tmp_path / "whole", accelerator="cpu", progress=False)


def test_a_killed_training_goes_on(root, data, tmp_path) -> None:
    options = "--preset small --image-size 32 --batch-size 8 --epochs 3 --warmup-epochs 0 --accelerator cpu --quiet"
    command = f"recipes.shufflenet train --data {root} --out {tmp_path / 'killed'} {options} --threads 1".split()
    process = subprocess.Popen([sys.executable, "-m", *command])
    checkpoint, deadline = tmp_path / "killed" / "checkpoints" / "last.pt", time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert main(command[1:]) == 0
    config = Config.load(tmp_path / "killed" / "config.json")
    train(config, data, tmp_path / "whole", accelerator="cpu", progress=False)
    for whole, killed in zip(states(tmp_path / "whole", config), states(tmp_path / "killed", config), strict=True):
        for name in whole:
            torch.testing.assert_close(whole[name], killed[name], rtol=1e-3, atol=1e-3)


def test_colours_are_learned_and_evaluated(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, epochs=16, mixing="k-odo", k_init="shuffle", lr=0.05, ema_decay=0.9)
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    result = evaluate(config, data, tmp_path, accelerator="cpu")
    assert result.top1 > 80 and result.top5 == 100.0, "three classes are always among the first five"
    history = json.loads((tmp_path / "history.json").read_text())
    assert result.top1 == history[-1]["val_top1"] and result.ema_top1 == history[-1]["ema_top1"]
    assert result.data == "colours, not ImageNet" and result.epochs == 16
    assert Result.load(tmp_path / "result.json") == result
    last, average = states(tmp_path, config)
    assert not last["classifier.weight"].equal(average["classifier.weight"])


def test_the_average_is_that_of_the_weights(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, epochs=1, batch_size=12, ema_decay=0.5)
    folders = [tmp_path / str(stop) for stop in (1, 2, 3)]
    for stop, folder in enumerate(folders, start=1):
        train(config, data, folder, accelerator="cpu", progress=False, stop_at=stop, save_every=1)
    weights = [states(folder, config)[0]["classifier.weight"] for folder in folders]
    # timm's average begins with the first weights; its decay grows as 1 - (1 + step)^(-2/3), up to the one given.
    second = 1 - 2 ** (-2 / 3)
    expected = second * weights[0] + (1 - second) * weights[1]
    torch.testing.assert_close(states(folders[1], config)[1]["classifier.weight"], expected)
    expected = 0.5 * expected + 0.5 * weights[2]
    torch.testing.assert_close(states(folders[2], config)[1]["classifier.weight"], expected)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, lr=1e20, epochs=3)
    with pytest.raises(RuntimeError, match=r"the loss is not finite in epoch \d; .* smaller --lr"):
        train(config, data, tmp_path, accelerator="cpu", progress=False)
    path = tmp_path / "checkpoints" / "last.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        assert all(line["train_loss"] == line["train_loss"] for line in state["history"])


def test_weights_within_an_epoch_are_called_so(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, epochs=3)  # 4 updates an epoch
    train(config, data, tmp_path, accelerator="cpu", progress=False, stop_at=6, save_every=1)
    assert evaluate(config, data, tmp_path, accelerator="cpu").epochs == 1.5
    train(config, data, tmp_path, accelerator="cpu", progress=False, stop_at=8)
    assert evaluate(config, data, tmp_path, accelerator="cpu").epochs == 2


def test_a_run_without_its_configuration_is_not_continued(data, tmp_path) -> None:
    config = TINY
    train(config, data, tmp_path, accelerator="cpu", progress=False, stop_at=1, save_every=1)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"config\.json is missing, .* remove the folder {tmp_path}$"):
        train(dataclasses.replace(config, seed=1), data, tmp_path, accelerator="cpu", progress=False)
    assert not (tmp_path / "config.json").exists()


def test_what_a_kill_leaves_is_put_right(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, epochs=1)
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    whole = (tmp_path / "history.json").read_text()
    (tmp_path / "history.json").write_text("[]")
    assert evaluate(config, data, tmp_path, accelerator="cpu").epochs == 1
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    assert (tmp_path / "history.json").read_text() == whole


def test_a_refused_option_does_not_block_its_folder(data, tmp_path) -> None:
    train(dataclasses.replace(TINY, epochs=3), data, tmp_path, accelerator="cpu", progress=False, stop_at=0)
    train(TINY, data, tmp_path, accelerator="cpu", progress=False, stop_at=1)
    assert Config.load(tmp_path / "config.json") == TINY


def test_broken_files_of_a_run_are_named(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, epochs=1)
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    whole = checkpoint.read_bytes()
    for content in (b"", b"garbage", whole[:-100]):
        checkpoint.write_bytes(content)
        for command in (evaluate, train):
            with pytest.raises(ValueError, match=r"last\.pt cannot be read \(.*\): remove it to train again"):
                command(config, data, tmp_path, accelerator="cpu")
    for name, load in (("config.json", Config.load), ("result.json", Result.load)):
        (tmp_path / name).write_text('{"magic": 1}')
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*magic.*\): "):
            load(tmp_path / name)


def test_other_images_of_the_same_number_are_refused(root, data, tmp_path) -> None:
    train(TINY, data, tmp_path / "run", accelerator="cpu", progress=False, stop_at=1, save_every=1)
    shutil.copytree(root, tmp_path / "copy")
    check_data(load_images(tmp_path / "copy"), tmp_path / "run")
    (tmp_path / "copy" / "train" / "red" / "0.png").rename(tmp_path / "copy" / "train" / "red" / "other.png")
    with pytest.raises(ValueError, match="was trained on other images of the same number"):
        check_data(load_images(tmp_path / "copy"), tmp_path / "run")
    # As earlier versions wrote it.
    (tmp_path / "run" / "data.json").write_text(json.dumps({"summary": data.summary()}))
    check_data(load_images(tmp_path / "copy"), tmp_path / "run")


def test_two_processes_share_every_batch(root, tmp_path) -> None:
    options = "--preset small --image-size 32 --batch-size 8 --epochs 1 --warmup-epochs 0 --mixing k-odo"
    command = f"recipes.shufflenet train --data {root} --out {tmp_path} {options} --accelerator cpu --quiet".split()
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *command]
    result = subprocess.run(
        run, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    line = json.loads((tmp_path / "history.json").read_text())[0]
    assert (found["epochs"], found["top1"], found["ema_top1"]) == (1, line["val_top1"], line["ema_top1"])
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["update"] == 4
    with pytest.raises(ValueError, match="3 processes can share evenly, got 8"):
        os.environ["WORLD_SIZE"] = "3"
        try:
            train(TINY, load_images(root), tmp_path / "three", accelerator="cpu", progress=False)
        finally:
            del os.environ["WORLD_SIZE"]


def test_hits() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]])
    assert hits(logits, torch.tensor([0, 0])).tolist() == [1, 1]
    assert hits(logits, torch.tensor([4, 1])).tolist() == [0, 2]


# --- latency and comparison ---


def test_latency_is_an_image_s() -> None:
    models = {"small": ShuffleNet(0.25), "large": ShuffleNet(1.0)}
    found = measure_latency(models, 64, batches=(1, 2), rounds=3, seconds=0.1, progress=False)
    assert set(found) == {(name, batch) for name in models for batch in (1, 2)}
    assert all(found["large", batch].milliseconds > found["small", batch].milliseconds > 0 for batch in (1, 2))
    assert found["small", 1].ratio == "1x" and found["large", 1].ratio.endswith(")")
    assert models["small"].training, "the networks themselves are left alone"


def made_up(mixing: str, seed: int, top1: float, **changes) -> Run:
    config = dataclasses.replace(TINY, mixing=mixing, seed=seed, **changes)
    result = Result("colours, not ImageNet", 2, 460552, 12_400_000, 50.0, top1, 90.0, top1 + 1, 91.0, 3.0)
    return Run(config, result, [])


def test_table_has_means_and_the_paper_s_accuracies() -> None:
    runs = [made_up("shuffle", seed, 60.0 + seed) for seed in range(3)]
    runs += [made_up("k-odo", seed, 70.0, k_init="shuffle") for seed in range(3)]
    runs += [made_up("shuffle", 0, 80.0, width=0.5)]
    times = {(Row("shuffle"), 0.25, 1): Latency(1.234, "1x")}
    lines = markdown(runs, times, "A note.").splitlines()
    assert lines[2] == "| 0.25 | shuffle | 460,552 | 12.4 M | 1.23: 1x | - | 61.0 ± 1.0 | 62.0 ± 1.0 | 44.1 |"
    assert "| 0.25 | k-odo, from the shuffle | " in lines[3] and lines[3].endswith("| 70.0 ± 0.0 | 71.0 ± 0.0 | - |")
    assert lines[4].startswith("| 0.5 | shuffle ") and lines[4].endswith("| 80.0 | 81.0 | 57.1 |")
    assert "colours, not ImageNet: 32 x 32 pixels, 2 epochs" in "\n".join(lines) and lines[-1] == "A note."
    drawn = figure(runs, times, "A note.")
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == [
        "shuffle",
        "k-odo, from the shuffle",
    ]


def test_compare_is_for_one_process(root, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(f"compare --data {root} --out {tmp_path} --accelerator cpu --quiet".split()) == 2
    assert "expected one process, got 2: compare trains one run after another" in capsys.readouterr().err


def test_compare_keeps_finished_runs(root, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("recipes.shufflenet.compare.LATENCY_SIZE", 32)
    command = (
        f"compare --data {root} --out {tmp_path} --rows none k-odo:shuffle none --widths 0.25 0.25 --seeds 0 1 "
        "--epochs 1 --warmup-epochs 0 --image-size 32 --batch-size 8 --accelerator cpu --quiet"
    ).split()
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "| 0.25 | k-odo, from the shuffle |" in table and "colours, not ImageNet" in table
    assert (tmp_path / "table.md").read_text().strip() in table
    assert (tmp_path / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert {path.parent.name for path in times} == {
        f"{row}-0.25-seed{seed}" for row in ("none", "k-odo-from-shuffle") for seed in (0, 1)
    }
    assert main(command) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}
    capsys.readouterr()
    assert main([*command, "--seeds", "0", "0"]) == 0
    assert "±" not in capsys.readouterr().out
    run = tmp_path / "none-0.25-seed0"
    assert main(f"evaluate --data {root} --run {run} --accelerator cpu".split()) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "result.json").read_text())


def test_a_comparison_does_not_take_runs_of_other_images_for_its_own(root, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("recipes.shufflenet.compare.LATENCY_SIZE", 32)
    shutil.copytree(root, tmp_path / "copy")
    config = dataclasses.replace(TINY, epochs=1)
    options = {"rows": [Row("none")], "widths": [0.25], "accelerator": "cpu", "progress": False}
    compare(config, load_images(tmp_path / "copy"), tmp_path / "out", seeds=[0], **options)
    image = tmp_path / "copy" / "train" / "red" / "0.png"
    whole = image.read_bytes()
    image.write_bytes(whole + b" ")
    with pytest.raises(ValueError, match=r"none-0\.25-seed0 was trained on other images of the same names"):
        compare(config, load_images(tmp_path / "copy"), tmp_path / "out", seeds=[1, 0], **options)
    image.write_bytes(whole)
    image.rename(image.with_name("other.png"))
    with pytest.raises(ValueError, match=r"none-0\.25-seed0 was trained on other images of the same number"):
        compare(config, load_images(tmp_path / "copy"), tmp_path / "out", seeds=[1, 0], **options)
    assert not (tmp_path / "out" / "none-0.25-seed1").exists(), "told before the others are trained"


def test_errors_of_use(root, tmp_path, capsys) -> None:
    def error(line: str) -> str:
        assert main(line.split()) == 2
        return capsys.readouterr().err

    out = tmp_path / "a"
    assert "expected width in (0.25, 0.5, 1.0), got 0.3" in error(f"train --data {root} --out {out} --width 0.3")
    assert "expected 0 <= warmup_epochs < epochs = 1, got 5" in error(
        f"train --data {root} --out {out} --preset authors --epochs 1"
    )
    assert "train is missing: expected images as" in error(f"train --data {tmp_path} --out {out}")
    assert "expected --threads >= 1" in error(f"train --data {root} --out {out} --threads 0")
    assert "expected 0 <= seed < 2**63, got -1" in error(f"train --data {root} --out {out} --seed -1")
    assert "expected lr > 0 and finite, got inf" in error(f"train --data {root} --out {out} --lr inf")
    (tmp_path / "file").touch()
    expected = f"error: {tmp_path / 'file'}: File exists, where a folder is needed: give another one\n"
    assert error(f"train --data {root} --out {tmp_path / 'file'}") == expected
    assert "expected --workers >= 0" in error(f"train --data {root} --out {out} --workers -1")
    assert "got 'magic'" in error(f"compare --data {root} --out {out} --rows magic")
    assert "'hadamard' has no K-matrices that could start as 'shuffle'" in error(
        f"compare --data {root} --out {out} --rows hadamard:shuffle"
    )
    assert "is missing: expected the folder of a run" in error(f"evaluate --data {root} --run {tmp_path}")
    assert not out.exists()
    assert {Row.of(name).name for name in DEFAULT_ROWS} == set(DEFAULT_ROWS)


def test_a_broken_image_is_named(root, data, tmp_path, capsys, monkeypatch) -> None:
    for split in ("train", "val"):
        for name in COLOURS:
            (tmp_path / split / name).mkdir(parents=True)
            source = root / split / name / "0.png"
            (tmp_path / split / name / "0.png").write_bytes(source.read_bytes()[: 700 if name == "red" else None])
    with pytest.raises(ValueError, match=r"red/0\.png: not an image that can be read"):
        train(TINY, load_images(tmp_path), tmp_path / "run", accelerator="cpu", progress=False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40 // 2 - 1)
    for workers in (0, 1):
        command = f"train --data {root} --out {tmp_path / 'bomb'} --image-size 32 --accelerator cpu --quiet"
        assert main([*command.split(), "--workers", str(workers)]) == 2
        error = capsys.readouterr().err
        assert "png: not an image that can be read (Image size (1600 pixels) exceeds limit" in error
        assert error.startswith(f"error: {root}") and error.count("\n") == 1


def test_random_permutations_are_saved_with_the_network(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, mixing="random", seed=3, epochs=1)
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    found = [m.p for m in load_model(config, 3, tmp_path).modules() if isinstance(m, FixedPermutation)]
    expected = [m.p for m in build(config, 3).modules() if isinstance(m, FixedPermutation)]
    others = [m.p for m in build(dataclasses.replace(config, seed=4), 3).modules() if isinstance(m, FixedPermutation)]
    assert len(found) == 16 and all(a.equal(b) for a, b in zip(found, expected, strict=True))
    assert not any(a.equal(b) for a, b in zip(found, others, strict=True))
