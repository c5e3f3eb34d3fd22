"""Training: Adam, a checkpoint after every epoch, exact resume, one or several processes, two-stage mode."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from kaleido_audio.nn import param_groups
from recipes.cifar.config import Config
from recipes.cifar.data import CifarData, Split, augmented, permutation, permuted
from recipes.cifar.model import Classifier, build
from recipes.cifar.recoveries import structure_of
from recipes.cifar.recovery import Recovery, recover
from recipes.common import runs
from recipes.common.files import (
    BROKEN_CHECKPOINT,
    BROKEN_RUN,
    has_checkpoint,
    load_checkpoint,
    load_json,
    naming,
    replace_text,
    save_checkpoint,
    sole_trainer,
)
from recipes.common.processes import Processes

_EVALUATION_BATCH = 500

_SEEDS = 2**64
"""Seeds that torch takes. Odd multiples of different seeds are different modulo it, too."""


def learning_rate(epoch: int, config: Config) -> float:
    """Of the epoch of that number, from 0: times 0.2 after every quarter of the epochs.

    >>> [f"{learning_rate(epoch, Config(epochs=4, lr=1.0)):.2g}" for epoch in range(3)]
    ['1', '0.2', '0.04']
    """
    return config.lr * 0.2 ** (4 * epoch // config.epochs)


def permutation_of(config: Config) -> Tensor:
    """Indices ``(1024,)`` of the run's permutation."""
    return permutation(config.permutation, config.permutation_seed)


class Trainer:
    """One training.

    Args:
        config: of the run.
        data: what it learns from.
        run_dir: receives config.json, history.json and checkpoints/.
        processes: this one among them all.
        order: the recovered order, in two-stage mode.
    """

    def __init__(
        self, config: Config, data: CifarData, run_dir: Path, processes: Processes, order: Tensor | None
    ) -> None:
        self.config = config
        self.data = data
        self.run_dir = run_dir
        self.processes = processes
        self.p = permutation_of(config)
        self.model = build(config, order).to(processes.device)
        self.parallel = processes.parallel(self.model)
        groups = param_groups(
            self.model, config.lr, k_lr_multiplier=config.k_lr_multiplier, weight_decay=config.weight_decay
        )
        self.optimizer = torch.optim.Adam(groups, lr=config.lr)
        # The multiplier of a group stays beside it: the schedule sets its rate at every epoch.
        self.multipliers = [group["lr"] / config.lr for group in self.optimizer.param_groups]
        self.history: list[dict[str, float]] = []
        self._resume()

    @property
    def checkpoint(self) -> Path:
        """The state from which the training resumes, and which is evaluated."""
        return self.run_dir / "checkpoints" / "last.pt"

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return len(self.history)

    def fit(self, *, progress: bool = True, stop_at: int | None = None) -> None:
        """Train until all epochs are over, or ``stop_at`` of them, as an interruption would."""
        stop_at = self.config.epochs if stop_at is None else min(stop_at, self.config.epochs)
        batches = len(self._batches(0))
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            disable=not progress or self.processes.rank > 0,
        )  # fmt: skip
        with bar:
            task = bar.add_task(
                "Batches", total=self.config.epochs * batches, completed=self.epoch * batches, note=self._note()
            )
            while self.epoch < stop_at:
                self._epoch(lambda: bar.advance(task))
                bar.update(task, note=self._note())

    def _batches(self, epoch: int) -> list[Tensor]:
        """Indices of the images of every batch: an order by seed and epoch alone; what is left over sits out."""
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % _SEEDS)
        order = torch.randperm(len(self.data.train), generator=generator)
        full = order.split(self.config.batch_size)
        return [batch for batch in full if len(batch) == self.config.batch_size] or list(full)

    def _epoch(self, advance: Any) -> None:
        """One pass over train, a line of the history and a checkpoint."""
        config, processes = self.config, self.processes
        for group, multiplier in zip(self.optimizer.param_groups, self.multipliers, strict=True):
            group["lr"] = learning_rate(self.epoch, config) * multiplier
        self.parallel.train()
        began = time.monotonic()
        loss_sum, right, count = 0.0, 0.0, 0.0
        for number, batch in enumerate(self._batches(self.epoch)):
            images = self.data.train.images[batch]
            if config.augment:
                # By place alone, for the batch as a whole: the same however many processes share it.
                place = (config.seed * 1_000_003 + self.epoch) * 100_003 + number
                images = augmented(images, torch.Generator().manual_seed(place % _SEEDS))
            mine = slice(processes.rank, None, processes.world)
            x = self._network_input(images[mine])
            labels = self.data.train.labels[batch][mine].to(processes.device)
            scores = self.parallel(x)
            loss = F.cross_entropy(scores, labels, reduction="sum")
            self.optimizer.zero_grad(set_to_none=True)
            # Gradients of processes are averaged; the mean over the whole batch is meant.
            (loss * (processes.world / len(batch))).backward()
            self.optimizer.step()
            loss_sum += float(loss.detach())
            right += float((scores.argmax(1) == labels).sum())
            count += len(labels)
            advance()
        loss_sum, right, count = processes.summed(loss_sum, right, count)
        valid_loss, valid_accuracy = measure(self.model, self.config, self.data, self.data.valid, processes)
        if not (math.isfinite(loss_sum) and math.isfinite(valid_loss)):
            raise RuntimeError(
                f"{self.run_dir}: the loss is not finite in epoch {self.epoch + 1}; the last checkpoint is from before "
                "it. Train in another folder with a smaller --lr or --k-lr-multiplier"
            )
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "train_loss": loss_sum / count,
                "train_accuracy": 100 * right / count,
                "valid_loss": valid_loss,
                "valid_accuracy": valid_accuracy,
                "lr": learning_rate(self.epoch, config),
                "seconds": time.monotonic() - began,
            }
        )
        if processes.rank == 0:
            self._save()
        if processes.world > 1:
            dist.barrier()

    def _network_input(self, images: Tensor) -> Tensor:
        return permuted(self.data.normalized(images.to(self.processes.device)), self.p)

    def _note(self) -> str:
        return f"valid {self.history[-1]['valid_accuracy']:.1f} %" if self.history else ""

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "history": self.history}
        save_checkpoint(state, self.checkpoint)
        self._save_history()

    def _save_history(self) -> None:
        replace_text(self.run_dir / "history.json", json.dumps(self.history, indent=1) + "\n")

    def _resume(self) -> None:
        if self.checkpoint.exists():
            state = load_checkpoint(self.checkpoint, self.processes.device)
            with naming(self.checkpoint, BROKEN_CHECKPOINT):
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.history = state["history"]
            if self.processes.rank == 0:
                # A kill after the checkpoint may have left it behind, and a finished training writes it no more.
                self._save_history()


@torch.no_grad()
def measure(
    model: Classifier, config: Config, data: CifarData, split: Split, processes: Processes
) -> tuple[float, float]:
    """Cross-entropy in nats and accuracy in percent on permuted images, shared out over the processes."""
    model.eval()
    p = permutation_of(config)
    loss, right = 0.0, 0.0
    for start in range(processes.rank * _EVALUATION_BATCH, len(split), processes.world * _EVALUATION_BATCH):
        part = slice(start, start + _EVALUATION_BATCH)
        scores = model(permuted(data.normalized(split.images[part].to(processes.device)), p))
        labels = split.labels[part].to(processes.device)
        loss += float(F.cross_entropy(scores, labels, reduction="sum"))
        right += float((scores.argmax(1) == labels).sum())
    loss, right = processes.summed(loss, right)
    return loss / len(split), 100 * right / len(split)


def train(
    config: Config,
    data: CifarData,
    run_dir: Path,
    *,
    accelerator: str = "auto",
    progress: bool = True,
    stop_at: int | None = None,
) -> bool:
    """Train, or resume from the last checkpoint in ``run_dir``; in two-stage mode, recover the permutation first.

    Under torchrun, every process calls this and each batch is shared out.

    Args:
        config: of the run; must equal the one in ``run_dir`` if there is one.
        data: what it learns from.
        run_dir: receives config.json, data.json, history.json, checkpoints/ and, in two-stage mode, recovery.json.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        progress: show progress bars.
        stop_at: epochs after which to stop, as an interruption would.

    Returns:
        whether this is the first, or only, process: the one that goes on to evaluate.

    Raises:
        ValueError: ``run_dir`` holds another run, another process trains in it, or a batch is smaller than the number
            of processes.
    """
    processes = Processes(accelerator)
    smallest = min(config.batch_size, len(data.train))
    if smallest < processes.world:
        raise ValueError(f"expected batches of at least {processes.world} images, one a process, got {smallest}")
    with ExitStack() as stack:
        if processes.rank == 0:
            stack.enter_context(sole_trainer(run_dir))
            _prepare_run_dir(config, data, run_dir)
            if config.recovery != "none":
                _recover_first(config, data, run_dir, progress=progress)
        stack.enter_context(processes.joined())
        if processes.world > 1:
            dist.barrier()  # until the first process has written the order
        trainer = Trainer(config, data, run_dir, processes, recovered_order(config, run_dir))
        trainer.fit(progress=progress, stop_at=stop_at)
    return processes.rank == 0


def _recover_first(config: Config, data: CifarData, run_dir: Path, *, progress: bool) -> None:
    """The first of two stages: all training images, permuted and without labels, give recovery.json."""
    path = run_dir / "recovery.json"
    if path.is_file():
        return
    p = permutation_of(config)
    images = permuted(data.normalized(data.train.images), p)
    structure = structure_of(config.permutation)
    recover(images, config.recovery, structure=structure, seed=config.seed, truth=p, progress=progress).save(path)


def recovered_order(config: Config, run_dir: Path) -> Tensor | None:
    """The order of pixels that the first stage of a run found; None in supervised mode.

    Raises:
        ValueError: there is none yet.
    """
    if config.recovery == "none":
        return None
    path = run_dir / "recovery.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: train the run, whose first stage writes it")
    return Recovery.load(path).order


def _prepare_run_dir(config: Config, data: CifarData, run_dir: Path) -> None:
    path = run_dir / runs.CONFIG
    about = _about(data)
    if has_checkpoint(run_dir):
        check_run(config, data, run_dir)
    elif path.exists() and (Config.load(path) != config or load_json(run_dir / "data.json", BROKEN_RUN) != about):
        # Before the first checkpoint, e.g. where an option was refused, any other run may have the folder, but not
        # the order that was recovered for this one.
        (run_dir / "recovery.json").unlink(missing_ok=True)
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    replace_text(run_dir / "data.json", json.dumps(about) + "\n")
    config.save(path)


def check_run(config: Config, data: CifarData, run_dir: Path) -> None:
    """Raise ValueError where a run that has a checkpoint has another configuration or other data."""
    check_data(data, run_dir)
    runs.check_config(config, Config.load, run_dir)


def check_data(data: CifarData, run_dir: Path) -> None:
    """Raise ValueError where a run was trained on other data."""
    runs.check_data(_about(data), run_dir, {"content": "on other images of the same number"})


def _about(data: CifarData) -> dict[str, str]:
    return {"summary": data.summary(), "content": data.fingerprint()}
