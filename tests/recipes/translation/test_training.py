"""Training: loss, schedule, averages, exact resume, longer runs, two processes, and folders that do not fit."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tokenizers")
pytest.importorskip("sacremoses")

from recipes.common.processes import Processes
from recipes.translation.config import Config
from recipes.translation.data import Data, Pairs, Vocabulary
from recipes.translation.model import PAD
from recipes.translation.training import (
    Trainer,
    build,
    check_data,
    fitting,
    learning_rate,
    left_out,
    load_averaged,
    load_history,
    prepare_run_dir,
    smoothed_loss,
    train,
    weight_files,
)

ROOT = Path(__file__).parents[3]


def last(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)


def fit(config: Config, data: Data, run_dir: Path, stop_at: int | None = None) -> dict:
    train(config, data, run_dir, accelerator="cpu", progress=False, stop_at=stop_at)
    return last(run_dir)


def assert_same_training(a: dict, b: dict) -> None:
    assert a["update"] == b["update"]
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    for i, state in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][i][name]) for name, value in state.items())
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in state["history"]] for state in (a, b)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_is_torchs(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(1, 7, (3, 5), generator=generator)
    target[1, 3:] = target[2, 1:] = PAD
    mine, plain = smoothed_loss(logits, target, smoothing)
    flat = logits.flatten(0, 1), target.flatten()
    theirs = F.cross_entropy(*flat, ignore_index=PAD, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(plain, F.cross_entropy(*flat, ignore_index=PAD, reduction="sum").detach())
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (mine, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_rate_rises_in_a_line_and_falls_with_the_square_root() -> None:
    config = Config(lr=5e-4, warmup=4000)
    assert learning_rate(1, config) == pytest.approx(1e-7 + (5e-4 - 1e-7) / 4000)
    assert learning_rate(2000, config) == pytest.approx((1e-7 + 5e-4) / 2)
    assert learning_rate(3999, config) < learning_rate(4000, config) == 5e-4
    assert learning_rate(16000, config) == pytest.approx(2.5e-4)


def test_k_matrices_have_their_own_rate_and_no_weight_decay(data, tiny, tmp_path) -> None:
    config = tiny("dynamicconv-k-ffn", k_lr_multiplier=0.25)
    (tmp_path / "checkpoints").mkdir()
    trainer = Trainer(config, data, tmp_path, Processes("cpu"))
    trainer.update = 1
    trainer._step([np.arange(10)])
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    rates = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert set(rates) == set(names.values())
    rate = learning_rate(1, config)
    k = {name for name in rates if "kmatrices" in name}
    # In each of two layers: linear1, linear2, fc1 and fc2.
    assert len(k) == 8 and all(rates[name] == (rate * 0.25, 0.0) for name in k)
    assert all(value == (rate, config.weight_decay) for name, value in rates.items() if name not in k)


@pytest.mark.parametrize("row", ["transformer", "dynamicconv-k-all+output"])
def test_an_interrupted_run_ends_with_the_same_weights(data, tiny, tmp_path, row) -> None:
    config = tiny(row, accumulate=2)
    whole = fit(config, data, tmp_path / "whole")
    # Stopped between checkpoints: what came after the last one is done again.
    fit(config, data, tmp_path / "resumed", stop_at=6)
    assert last(tmp_path / "resumed")["update"] == 4
    assert_same_training(whole, fit(config, data, tmp_path / "resumed"))
    assert [line["update"] for line in whole["history"]] == [4, 8, 12]


def test_a_killed_run_ends_with_the_same_weights(data, prepared, tiny, tmp_path) -> None:
    config = tiny(updates=120, save_every=10)
    changed = {name: value for name, value in vars(config).items() if value != getattr(Config(), name)}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in changed.items()]
    command = [sys.executable, "-m", "recipes.translation", "train", "--row", "dynamicconv", "--preset", "iwslt",
               "--data", str(prepared), "--out", str(tmp_path / "killed"), "--accelerator", "cpu", "--quiet",
               "--threads", str(torch.get_num_threads()), *options]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "checkpoints" / "last.pt").exists():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last(tmp_path / "killed")["update"] < 120, "it ended before it was killed: the test shows nothing"
    assert Config.load(tmp_path / "killed" / "config.json") == config
    assert_same_training(fit(config, data, tmp_path / "whole"), fit(config, data, tmp_path / "killed"))


def test_a_run_made_longer_is_what_the_longer_one_is(data, tiny, tmp_path) -> None:
    short = tiny(updates=8)
    fit(short, data, tmp_path / "run")
    assert_same_training(
        fit(replace(short, updates=16, beam=2), data, tmp_path / "run"),
        fit(replace(short, updates=16), data, tmp_path / "whole"),
    )
    assert [p.name for p in weight_files(tmp_path / "run")] == [p.name for p in weight_files(tmp_path / "whole")]
    with pytest.raises(ValueError, match="run of 16 updates: expected as many or more of them, got 8"):
        fit(short, data, tmp_path / "run")
    fit(replace(short, updates=6), data, tmp_path / "odd")
    with pytest.raises(ValueError, match="cannot be made longer: the checkpoint after its 6 updates"):
        fit(short, data, tmp_path / "odd")


def test_two_processes_give_what_one_gives_with_two_batches(data, prepared, tiny, tmp_path) -> None:
    config = tiny(updates=3, save_every=3, dropout=0.0, attention_dropout=0.0, weight_dropout=0.0)
    script = (
        "import sys, torch\nfrom pathlib import Path\nfrom recipes.translation.config import Config\n"
        "from recipes.translation.data import load_data\nfrom recipes.translation.training import train\n"
        "torch.set_num_threads(1)\nroot = Path(sys.argv[1])\n"
        "train(Config.load(root / 'asked.json'), load_data(Path(sys.argv[2])), root / 'two', accelerator='cpu',"
        " progress=False)\n"
    )
    config.save(tmp_path / "asked.json")
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
               str(tmp_path / "script.py"), str(tmp_path), str(prepared)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    one = fit(replace(config, accumulate=2), data, tmp_path / "one")
    two = last(tmp_path / "two")
    for name, value in one["model"].items():
        # The same bias of all keys changes no attention: its gradient is rounding, which Adam makes steps of.
        if not name.endswith(".k.bias"):
            torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert two["history"][0]["valid_loss"] == pytest.approx(one["history"][0]["valid_loss"], rel=1e-4)
    assert two["history"][0]["tokens"] == one["history"][0]["tokens"]


def test_what_is_evaluated_is_the_mean_of_the_last_checkpoints(data, tiny, tmp_path) -> None:
    config = tiny()
    fit(config, data, tmp_path)
    paths = weight_files(tmp_path)
    assert [path.name for path in paths] == ["update-0000008.pt", "update-0000012.pt"]
    a, b = (torch.load(path, weights_only=True) for path in paths)
    model = load_averaged(config, data, tmp_path)
    assert not model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, (a[name] + b[name]) / 2)
    assert not torch.equal(a["decoder.output.weight"], b["decoder.output.weight"])


def test_seeds_and_updates_decide_what_is_drawn(data, tiny, tmp_path) -> None:
    weights = [build(tiny(seed=seed), data).decoder.output.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_pairs_that_are_too_long_are_left_out_and_counted(data, tiny, tmp_path, capsys) -> None:
    train_split = data.splits["train"]
    kept = fitting(train_split, 10)
    sizes = [max(len(a), len(b)) for a, b in zip(train_split.source, train_split.target, strict=True)]
    assert kept.tolist() == [i for i, size in enumerate(sizes) if size <= 10] and 0 < len(kept) < len(sizes)
    assert left_out(train_split, 10) == len(sizes) - len(kept)
    train(tiny(max_length=10, updates=1), data, tmp_path, accelerator="cpu")
    printed = capsys.readouterr().out
    assert f"Left out of train: {len(sizes) - len(kept)} of 400 pairs, longer than 10 subwords\n" in printed
    with pytest.raises(ValueError, match="all pairs of train are longer than max_length = 1"):
        fitting(train_split, 1)


# --- folders and options that do not fit ---


def test_another_configuration_is_refused_by_name(data, tiny, tmp_path) -> None:
    prepare_run_dir(tiny(updates=8), data, tmp_path)
    # Nothing is lost before the first checkpoint, and an option that was refused does not block its folder.
    prepare_run_dir(tiny(), data, tmp_path)
    (tmp_path / "checkpoints" / "last.pt").touch()
    prepare_run_dir(tiny(), data, tmp_path)
    with pytest.raises(
        ValueError,
        match=rf"another configuration \(dropout 0\.1, not 0\.2; lr 0\.005, not 0\.001\): .* folder {tmp_path}$",
    ):
        prepare_run_dir(tiny(lr=1e-3, dropout=0.2), data, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"config\.json is missing, .* remove the folder {tmp_path}$"):
        prepare_run_dir(tiny(lr=1e-3, dropout=0.2), data, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_other_data_and_other_subwords_are_refused(data, tiny, tmp_path) -> None:
    prepare_run_dir(tiny(), data, tmp_path)
    (tmp_path / "checkpoints" / "last.pt").touch()
    fewer = data.splits["valid"]
    fewer = Pairs(fewer.source[1:], fewer.target[1:], fewer.tokens[1:], fewer.text[1:])
    with pytest.raises(ValueError, match=r"was trained on other data .* 20 in valid"):
        prepare_run_dir(tiny(), replace(data, splits={**data.splits, "valid": fewer}), tmp_path)
    shuffled = Vocabulary(data.target.tokenizer, data.target.kept[::-1])
    with pytest.raises(ValueError, match="was trained with other subwords of the same number"):
        prepare_run_dir(tiny(), replace(data, target=shuffled), tmp_path)
    test = data.splits["test"]
    for changed in (replace(test, source=test.source[::-1]), replace(test, text=[*test.text[:-1], "Something else."])):
        with pytest.raises(ValueError, match="was trained on other sentences of the same number"):
            prepare_run_dir(tiny(), replace(data, splits={**data.splits, "test": changed}), tmp_path)
    # As earlier versions wrote it.
    about = json.loads((tmp_path / "data.json").read_text())
    del about["content"]
    (tmp_path / "data.json").write_text(json.dumps(about))
    check_data(replace(data, splits={**data.splits, "test": changed}), tmp_path)
    (tmp_path / "data.json").unlink()
    with pytest.raises(ValueError, match=r"data\.json is missing"):
        prepare_run_dir(tiny(), data, tmp_path)


def test_a_second_training_in_the_same_folder_is_refused(data, tiny, tmp_path) -> None:
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="another process is training in"):
            fit(tiny(), data, tmp_path)
        process.kill()
    fit(tiny(updates=1), data, tmp_path)


def test_no_checkpoint_and_no_gpu(data, tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint: train first"):
        load_averaged(tiny(), data, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"--accelerator gpu: .* finds no CUDA device"):
            Processes("gpu")


def test_the_history_beside_the_checkpoint_is_the_same(data, tiny, tmp_path) -> None:
    state = fit(tiny(), data, tmp_path)
    assert json.loads((tmp_path / "history.json").read_text()) == state["history"]
    losses = [line["train_loss"] for line in state["history"]]
    assert losses == sorted(losses, reverse=True)


# --- trainings that go wrong, and what a kill or a broken disk leaves ---


@pytest.mark.parametrize("changes", [{"lr": 1e8}, {"lr": 1e30, "clip": 1.0}])
def test_a_training_that_diverges_says_so_and_keeps_its_checkpoints(data, tiny, tmp_path, changes) -> None:
    config = tiny(warmup=1, updates=40, **changes)
    with pytest.raises(RuntimeError, match=r"the loss is not finite by update \d+; .* a smaller --lr"):
        fit(config, data, tmp_path)
    for path in (tmp_path / "checkpoints").glob("update-*.pt"):
        assert all(value.isfinite().all() for value in torch.load(path, weights_only=True).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "expected lr > 0 and finite, got 0.0"),
        ({"lr": math.inf}, "expected lr > 0 and finite, got inf"),
        ({"clip": -1.0}, "expected clip >= 0 and finite, got -1.0"),
        ({"clip": math.nan}, "expected clip >= 0 and finite, got nan"),
        ({"k_lr_multiplier": -1.0}, "expected k_lr_multiplier > 0"),
        ({"weight_decay": math.nan}, "expected weight_decay >= 0"),
        ({"length_penalty": math.nan}, r"expected length_penalty in \[-100, 100\], got nan"),
        ({"seed": -1}, r"expected 0 <= seed < 2\*\*63, got -1"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_a_seed_may_be_large(data, tiny, tmp_path) -> None:
    fit(tiny(seed=2**63 - 1, updates=1), data, tmp_path)


def test_a_history_that_a_kill_left_behind_is_written_again(data, tiny, tmp_path) -> None:
    state = fit(tiny(), data, tmp_path)
    for content in ("[]", "[1]", '["valid_loss"]', '{"valid_loss": 1}'):
        (tmp_path / "history.json").write_text(content)
        with pytest.raises(ValueError, match=r"history\.json holds no records of .*valid_loss: train the run again"):
            load_history(tmp_path)
    fit(tiny(), data, tmp_path)
    assert load_history(tmp_path) == state["history"]


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_broken_checkpoints_are_named(data, tiny, tmp_path, content) -> None:
    config = tiny(updates=4)
    fit(config, data, tmp_path)
    for name in ("last.pt", "update-0000004.pt"):
        path = tmp_path / "checkpoints" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"last\.pt cannot be read \(.*\): remove it to train again"):
        fit(config, data, tmp_path)
    with pytest.raises(ValueError, match=r"update-0000004\.pt cannot be read \(.*\): remove the run's checkpoints to"):
        load_averaged(config, data, tmp_path)
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(ValueError, match=r"data\.json cannot be read \(missing 'summary'\): remove the run's folder"):
        check_data(data, tmp_path)
    for text in ("", '{"magic": 1}', "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json cannot be read \(.*\): give another folder"):
            Config.load(tmp_path / "config.json")
