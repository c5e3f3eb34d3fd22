"""Models and their counts; training that resumes exactly; two-stage mode; the comparison."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.cifar.__main__ import main
from recipes.cifar.compare import compare
from recipes.cifar.config import PRESETS, ROWS, TITLES, Config
from recipes.cifar.counts import PAPER, count_row
from recipes.cifar.counts import markdown as counts_table
from recipes.cifar.data import PIXELS, load_data, permutation, permuted
from recipes.cifar.evaluation import Result, evaluate, load_model
from recipes.cifar.model import Classifier, ResNet18, build
from recipes.cifar.training import train

TINY = Config(width=4, hidden=16, epochs=2, batch_size=60, lr=1e-3)


@pytest.fixture(scope="module")
def data(root):
    return load_data(root)


def test_counts() -> None:
    assert count_row("cnn") == count_row("unpermuted") == count_row("recovered-k-cnn") == 11_173_962
    assert count_row("dense-cnn") == 11_173_962 + 1024**2
    assert count_row("k-cnn") == 11_173_962 + 2 * 2 * 10 * 1024
    assert count_row("fc") == 3073 * 1024 + 1025 * 1024 + 1025 * 10
    assert count_row("rnn") == 3 * 1024 * (96 + 1024 + 2) + 1025 * 10
    assert set(TITLES) == set(ROWS) > set(PAPER)
    assert "| K + CNN | 11,214,922 | 92.5 |" in counts_table()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_classifies_and_learns(row) -> None:
    config = dataclasses.replace(TINY, **ROWS[row])
    order = None if config.recovery == "none" else torch.arange(PIXELS)
    model = build(config, order)
    scores = model(torch.randn(3, 3, 32, 32))
    assert scores.shape == (3, 10)
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_recovered_order_restores_what_the_network_sees() -> None:
    images, p = torch.randn(2, 3, 32, 32), permutation("random")
    model = Classifier(dataclasses.replace(TINY, recovery="oracle"), p.argsort())
    assert model.pixels(permuted(images, p)).equal(images)
    with pytest.raises(ValueError, match="exactly where one is recovered"):
        Classifier(TINY, p)
    with pytest.raises(ValueError, match="expected a permutation of 1024 pixels"):
        Classifier(dataclasses.replace(TINY, recovery="oracle"), torch.zeros(1024, dtype=torch.int64))


def test_a_k_matrix_from_the_identity_leaves_the_images_alone() -> None:
    images = torch.randn(2, 3, 32, 32)
    pixels = Classifier(dataclasses.replace(TINY, front="k-identity")).pixels(images)
    torch.testing.assert_close(pixels, images, rtol=0, atol=1e-6)
    assert count_row("k-identity-cnn") == count_row("k-cnn")


def test_resnet_halves_three_times() -> None:
    sizes = []
    net = ResNet18(4)
    for block in net.blocks:
        block.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes[::2] == sizes[1::2] == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]


def state_of(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    return load_model(config, folder).state_dict()


@pytest.mark.parametrize("row", ["k-cnn", "fc"])
def test_an_interrupted_training_ends_as_one_that_was_not(data, tmp_path, row) -> None:
    config = dataclasses.replace(TINY, **ROWS[row])
    train(config, data, tmp_path / "whole", accelerator="cpu", progress=False)
    train(config, data, tmp_path / "parts", accelerator="cpu", progress=False, stop_at=1)
    train(config, data, tmp_path / "parts", accelerator="cpu", progress=False)
    whole, parts = (state_of(config, tmp_path / name) for name in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(ValueError, match=r"another configuration \(seed 0, not 1\): give another folder"):
        train(other, data, tmp_path / "whole", accelerator="cpu", progress=False)
    smaller = dataclasses.replace(data, train=data.valid)
    with pytest.raises(ValueError, match="was trained on other data"):
        train(config, smaller, tmp_path / "whole", accelerator="cpu", progress=False)


def test_other_images_of_the_same_number_are_refused(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, net="fc", epochs=1)
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    other = dataclasses.replace(data, test=dataclasses.replace(data.test, labels=data.test.labels.flip(0)))
    with pytest.raises(ValueError, match="was trained on other images of the same number"):
        evaluate(config, other, tmp_path, accelerator="cpu")
    # As earlier versions wrote it.
    (tmp_path / "data.json").write_text(json.dumps({"summary": data.summary()}))
    evaluate(config, data, tmp_path, accelerator="cpu")


@pytest.mark.parametrize("changes", [{"lr": 1e30}, {"lr": 1e30, "net": "resnet18", "epochs": 1}])
def test_a_training_that_diverges_is_no_result(data, tmp_path, changes) -> None:
    config = dataclasses.replace(TINY, **{"net": "fc", **changes})
    with pytest.raises(RuntimeError, match=r"the loss is not finite in epoch \d; .* a smaller --lr"):
        train(config, data, tmp_path, accelerator="cpu", progress=False)
    assert not (tmp_path / "history.json").exists() and not list((tmp_path / "checkpoints").glob("*.pt"))


def test_a_refused_option_does_not_block_its_folder(data, tmp_path) -> None:
    wrong = dataclasses.replace(TINY, net="fc", epochs=1, recovery="oracle", permutation_seed=1)
    train(wrong, data, tmp_path, accelerator="cpu", progress=False, stop_at=0)
    assert (tmp_path / "recovery.json").exists()
    config = dataclasses.replace(wrong, permutation_seed=0)
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    assert evaluate(config, data, tmp_path, accelerator="cpu").neighbours == 1.0, "not the order of the other"


def test_a_run_without_its_configuration_is_not_continued(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, net="fc")
    train(config, data, tmp_path, accelerator="cpu", progress=False, stop_at=1)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"config\.json is missing, .* remove the folder {tmp_path}$"):
        train(dataclasses.replace(config, seed=1), data, tmp_path, accelerator="cpu", progress=False)
    assert not (tmp_path / "config.json").exists()


def test_what_a_kill_leaves_is_put_right(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, net="fc")
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    whole = (tmp_path / "history.json").read_text()
    (tmp_path / "history.json").write_text("[]")
    assert evaluate(config, data, tmp_path, accelerator="cpu").epochs == 2
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    assert (tmp_path / "history.json").read_text() == whole


def test_broken_files_of_a_run_are_named(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, net="fc", epochs=1, recovery="oracle")
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    whole = checkpoint.read_bytes()
    for content in (b"", b"garbage", whole[:-100]):
        checkpoint.write_bytes(content)
        for command in (evaluate, train):
            with pytest.raises(ValueError, match=r"last\.pt cannot be read \(.*\): remove it to train again"):
                command(config, data, tmp_path, accelerator="cpu")
    checkpoint.write_bytes(whole)
    for content in ("", "{}", '{"order": [0, 0], "variation": 1, "seconds": 1}'):
        (tmp_path / "recovery.json").write_text(content)
        with pytest.raises(ValueError, match=r"recovery\.json cannot be read \(.*\): remove it"):
            evaluate(config, data, tmp_path, accelerator="cpu")
    for name, load in (("config.json", Config.load), ("result.json", Result.load)):
        (tmp_path / name).write_text('{"magic": 1}')
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*magic.*\): "):
            load(tmp_path / name)


def test_seeds(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, net="fc", epochs=1, seed=2**63 - 1)
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    for name in ("seed", "permutation_seed"):
        with pytest.raises(ValueError, match=rf"expected 0 <= {name} < 2\*\*63, got -1"):
            Config(**{name: -1})
    for name in ("lr", "k_lr_multiplier", "weight_decay"):
        with pytest.raises(ValueError, match=rf"expected {name} >=? 0 and finite, got inf"):
            Config(**{name: math.inf})


def test_colours_are_learned_through_a_permutation(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, net="fc", epochs=25, augment=False, batch_size=20)
    train(config, data, tmp_path, accelerator="cpu", progress=False)
    model = load_model(config, tmp_path)
    with torch.no_grad():
        found = model(permuted(data.normalized(data.test.images), permutation("random"))).argmax(1)
    # Ten classes have three colours, and nothing else tells them apart.
    assert (found % 3 == data.test.labels % 3).float().mean() > 0.7
    result = evaluate(config, data, tmp_path, accelerator="cpu")
    assert result.test_accuracy == pytest.approx(100 * float((found == data.test.labels).float().mean()))
    assert Result.load(tmp_path / "result.json") == result


def test_two_stages_recover_first_and_see_the_original(data, tmp_path) -> None:
    runs = {}
    for name, changes in (("two", {"recovery": "oracle", "permutation": "random"}), ("none", {"permutation": "none"})):
        config = dataclasses.replace(TINY, epochs=1, **changes)
        train(config, data, tmp_path / name, accelerator="cpu", progress=False)
        runs[name] = evaluate(config, data, tmp_path / name, accelerator="cpu")
    assert runs["two"].test_accuracy == runs["none"].test_accuracy, "an oracle makes it the unpermuted run"
    assert runs["two"].neighbours == 1.0 and runs["none"].neighbours is None
    (tmp_path / "two" / "recovery.json").unlink()
    with pytest.raises(ValueError, match=r"recovery.json is missing: train the run"):
        evaluate(dataclasses.replace(TINY, epochs=1, recovery="oracle"), data, tmp_path / "two", accelerator="cpu")


def test_two_processes_train_what_one_does(root, data, tmp_path) -> None:
    options = "--row fc --hidden 16 --epochs 1 --batch-size 60 --accelerator cpu --quiet --threads 1"
    command = f"recipes.cifar train --data {root} --out {tmp_path / 'two'} {options}".split()
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *command]
    result = subprocess.run(
        run, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert result.returncode == 0, result.stderr
    config = Config.load(tmp_path / "two" / "config.json")
    train(config, data, tmp_path / "one", accelerator="cpu", progress=False)
    one, two = (state_of(config, tmp_path / name) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-4)


def test_compare_prints_the_table_and_keeps_runs(root, tmp_path, capsys) -> None:
    command = (
        f"compare --data {root} --out {tmp_path} --rows fc recovered-spectral-cnn unpermuted --seeds 0 1 --epochs 1 "
        "--permutations bitreversal --width 4 --hidden 8 --accelerator cpu --quiet --no-figure"
    ).split()
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "| CNN, unpermuted | " in table and "94.9 |" in table
    assert "made-up (a stand-in, not CIFAR-10): ResNet18 of width 4, 1 epochs" in table
    assert (tmp_path / "table.md").read_text().strip() in table
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert len(times) == 6
    assert main(command) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_comparison_does_not_take_runs_of_other_images_for_its_own(data, tmp_path) -> None:
    config = dataclasses.replace(TINY, net="fc", front="none", epochs=1)
    options = {"permutations": ["random"], "accelerator": "cpu", "progress": False, "figure": False}
    table = compare({"fc": config}, data, tmp_path, seeds=[0], **options)
    other = dataclasses.replace(data, test=dataclasses.replace(data.test, labels=data.test.labels.flip(0)))
    with pytest.raises(ValueError, match="fc-random-seed0 was trained on other images of the same number"):
        compare({"fc": config}, other, tmp_path, seeds=[1, 0], **options)
    assert not (tmp_path / "fc-random-seed1").exists(), "told before the others are trained"
    (tmp_path / "fc-random-seed0" / "result.json").rename(tmp_path / "result.json")
    with pytest.raises(ValueError, match="fc-random-seed0 was trained on other images of the same number"):
        compare({"fc": config}, other, tmp_path, seeds=[1, 0], **options)
    longer = dataclasses.replace(config, epochs=2)
    with pytest.raises(ValueError, match=r"fc-random-seed0.* another configuration \(epochs 1, not 2\)"):
        compare({"fc": longer}, data, tmp_path, seeds=[1, 0], **options)
    assert not (tmp_path / "fc-random-seed1").exists(), "an unfinished one too"
    (tmp_path / "result.json").rename(tmp_path / "fc-random-seed0" / "result.json")
    # As earlier versions wrote it.
    (tmp_path / "fc-random-seed0" / "data.json").write_text(json.dumps({"summary": data.summary()}))
    assert compare({"fc": config}, data, tmp_path, seeds=[0], **options) == table


def test_a_seed_given_twice_has_no_spread(root, tmp_path, capsys) -> None:
    options = "--epochs 1 --permutations random random --hidden 8 --accelerator cpu --quiet --no-figure"
    assert main(f"compare --data {root} --out {tmp_path} --rows fc fc --seeds 0 0 {options}".split()) == 0
    table = capsys.readouterr().out
    assert "| FC | " in table and "±" not in table


def test_compare_is_for_one_process(root, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(f"compare --data {root} --out {tmp_path} --accelerator cpu --quiet".split()) == 2
    assert "expected one process, got 2: compare trains one run after another" in capsys.readouterr().err


def test_figure(data, tmp_path) -> None:
    from recipes.cifar.figures import recovery_figure, save_small

    figure = recovery_figure(data, [("bitreversal", "spectral")], images=3)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 3
    assert shown[0].images[0].get_array().shape == (32, 3 * 32, 3)
    save_small(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_errors_of_use(root, tmp_path, capsys) -> None:
    def error(line: str) -> str:
        assert main(line.split()) == 2
        return capsys.readouterr().err

    assert "expected width >= 1, got 0" in error(f"train --data {root} --out {tmp_path / 'a'} --width 0")
    assert "has --permutation none" in error(
        f"train --row unpermuted --permutation random --data {root} --out {tmp_path / 'a'}"
    )
    assert "is missing: expected the folder of a run" in error(f"evaluate --data {root} --run {tmp_path}")
    assert "data_batch_1.bin is missing" in error(f"train --data {tmp_path} --out {tmp_path / 'a'}")
    assert "expected --threads >= 1" in error(f"train --data {root} --out {tmp_path / 'a'} --threads 0")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="expected lr > 0"):
        Config(lr=0.0)
    assert Config(**PRESETS["cifar"]) == Config()
