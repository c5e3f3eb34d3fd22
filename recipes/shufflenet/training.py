"""Training: SGD, both published schedules, moving average of weights, exact resume, one or several processes."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from timm.scheduler import MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn

from kaleido_audio.nn import param_groups
from recipes.common import runs
from recipes.common.files import (
    BROKEN_CHECKPOINT,
    has_checkpoint,
    load_checkpoint,
    naming,
    replace_text,
    save_checkpoint,
    sole_trainer,
)
from recipes.common.processes import Processes
from recipes.shufflenet.config import Config
from recipes.shufflenet.data import EpochBatches, ImageData, Images, loader
from recipes.shufflenet.model import ShuffleNet

SAVE_EVERY = 1000
"""Updates between checkpoints within an epoch; there is one at its end in any case."""

_EVALUATION_BATCH = 256


def build(config: Config, num_classes: int) -> ShuffleNet:
    """An untrained network; its initial weights depend on ``config.seed`` alone."""
    torch.manual_seed(config.seed)
    return ShuffleNet(
        config.width,
        mixing=config.mixing,
        position=None if config.position == "default" else config.position,
        k_init=config.k_init,
        stage2=config.stage2,
        num_classes=num_classes,
        permutation_seed=config.seed,
    )


def groups_of(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Optimizer groups: K-matrices, with their own rate; what has no weight decay; weights, which have.

    No decay have K-matrices, batch normalisation, biases and depthwise convolutions, as in the authors' code.

    >>> [(group["name"], len(group["params"])) for group in groups_of(build(Config(mixing="k-odo"), 10), Config())]
    [('k_matrices', 64), ('no_decay', 115), ('rest', 34)]
    """
    depthwise = {
        id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.weight.shape[1] == 1
    }
    groups = param_groups(
        model, config.peak_lr, k_lr_multiplier=config.k_lr_multiplier, weight_decay=config.weight_decay
    )
    *others, rest = groups
    no_decay = [p for p in rest["params"] if p.ndim <= 1 or id(p) in depthwise]
    decay = [p for p in rest["params"] if p.ndim > 1 and id(p) not in depthwise]
    return [
        *others,
        {**rest, "name": "no_decay", "params": no_decay, "weight_decay": 0.0},
        {**rest, "params": decay},
    ]


def scheduler(optimizer: torch.optim.Optimizer, config: Config, updates_an_epoch: int) -> Scheduler:
    """The learning rate before every update, each group's as a multiple of its own peak.

    ``"authors"``: times 0.1 when 30, 60 and 80 of 90 epochs are over, scaled to other numbers of epochs. ``"zhang"``:
    linear to 0. Both begin with ``warmup_epochs`` from 0, which the further course does not wait for.

    Args:
        optimizer: whose groups have their peak rates.
        config: its ``schedule``, ``epochs`` and ``warmup_epochs``.
        updates_an_epoch: of this data set.
    """
    total, warmup = config.epochs * updates_an_epoch, config.warmup_epochs * updates_an_epoch
    if config.schedule == "zhang":
        return PolyLRScheduler(optimizer, t_initial=total, power=1.0, warmup_t=warmup, t_in_epochs=False)
    # timm compares its milestones with the number of the update plus one.
    steps = [total * epochs // 90 + 1 for epochs in (30, 60, 80)]
    return MultiStepLRScheduler(
        optimizer, decay_t=steps, decay_rate=0.1, warmup_t=warmup, warmup_prefix=False, t_in_epochs=False
    )


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images have their label first, and how many among the first five, ``(2,)``.

    >>> logits = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]).expand(3, 7)
    >>> hits(logits, torch.tensor([0, 4, 5])).tolist()
    [1, 2]
    """
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([first[:, 0].sum(), first.sum()])


@torch.no_grad()
def measure(model: nn.Module, config: Config, data: ImageData, processes: Processes, workers: int) -> list[float]:
    """Cross-entropy in nats, top-1 and top-5 in percent on val, shared out over the processes.

    Args:
        model: left in evaluation mode.
        config: its ``image_size``.
        data: whose val is classified.
        processes: this one among them all.
        workers: processes that read images.
    """
    model.eval()
    indices = list(range(len(data.val)))[processes.rank :: processes.world]
    images = Images(data.val, config.image_size, augment=False)
    totals = torch.zeros(3, dtype=torch.float64, device=processes.device)
    batches = [indices[i : i + _EVALUATION_BATCH] for i in range(0, len(indices), _EVALUATION_BATCH)]
    for x, labels in loader(images, workers=workers, batch_sampler=batches):
        x, labels = x.to(processes.device, non_blocking=True), labels.to(processes.device, non_blocking=True)
        logits = model(x)
        totals[0] += F.cross_entropy(logits, labels, reduction="sum")
        totals[1:] += hits(logits, labels)
    loss, top1, top5 = processes.summed(*totals.tolist())
    return [loss / len(data.val), 100 * top1 / len(data.val), 100 * top5 / len(data.val)]


class Trainer:
    """One training.

    Args:
        config: of the run.
        data: what it learns from.
        run_dir: receives config.json, history.json and checkpoints/.
        processes: this one among them all.
        workers: processes that read images for each of them; the outcome does not depend on it.
        save_every: updates between checkpoints within an epoch.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        run_dir: Path,
        processes: Processes,
        *,
        workers: int,
        save_every: int = SAVE_EVERY,
    ) -> None:
        self.config = config
        self.data = data
        self.run_dir = run_dir
        self.processes = processes
        self.workers = workers
        self.save_every = save_every
        self.model = build(config, len(data.classes)).to(processes.device)
        self.parallel = processes.parallel(self.model)
        self.average = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True)
        self.optimizer = torch.optim.SGD(groups_of(self.model, config), lr=config.peak_lr, momentum=0.9)
        self.updates_an_epoch = len(self._batches(0))
        self.schedule = scheduler(self.optimizer, config, self.updates_an_epoch)
        self.update = 0
        self.history: list[dict[str, float]] = []
        # Of the epoch that is going on: loss, top-1 hits and images of this process; seconds.
        self.sums, self.seconds = torch.zeros(3, dtype=torch.float64, device=processes.device), 0.0
        self._resume()

    @property
    def checkpoint(self) -> Path:
        """The state from which the training resumes, and which is evaluated."""
        return self.run_dir / "checkpoints" / "last.pt"

    def fit(self, *, progress: bool = True, stop_at: int | None = None) -> None:
        """Train until all epochs are over, or until ``stop_at`` updates, as an interruption would."""
        total = self.config.epochs * self.updates_an_epoch
        stop_at = total if stop_at is None else min(stop_at, total)
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            disable=not progress or self.processes.rank > 0,
        )  # fmt: skip
        with bar:
            task = bar.add_task("Updates", total=total, completed=self.update, note=self._note())
            while self.update < stop_at:
                epoch, done = divmod(self.update, self.updates_an_epoch)
                self.parallel.train()
                config, began = self.config, time.monotonic()
                images = Images(
                    self.data.train, config.image_size, augment=True, min_area=config.min_area,
                    seed=config.seed, epoch=epoch,
                )  # fmt: skip
                batches = self._batches(epoch).batches[done : done + stop_at - self.update]
                for x, labels in loader(images, workers=self.workers, batch_sampler=batches):
                    self._step(x, labels)
                    bar.advance(task)
                    if self.update % self.save_every == 0 and self.update % self.updates_an_epoch:
                        self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                        self._save()
                self.seconds += time.monotonic() - began
                if self.update % self.updates_an_epoch == 0:
                    self._record()
                    bar.update(task, note=self._note())

    def _batches(self, epoch: int) -> EpochBatches:
        config, processes = self.config, self.processes
        return EpochBatches(
            len(self.data.train), config.batch_size // processes.world, seed=config.seed, epoch=epoch,
            rank=processes.rank, world=processes.world,
        )  # fmt: skip

    def _step(self, x: Tensor, labels: Tensor) -> None:
        device = self.processes.device
        x, labels = x.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        self.schedule.step_update(self.update)
        logits = self.parallel(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.update += 1
        self.average.update(self.model, step=self.update)
        with torch.no_grad():
            self.sums += torch.stack(
                [loss * len(labels), hits(logits, labels)[0], torch.tensor(len(labels), device=device)]
            )

    def _record(self) -> None:
        """Accuracy on val, a line of the history and a checkpoint."""
        loss, right, count = self.processes.summed(*self.sums.tolist())
        self._check_finite(loss)
        if self.processes.world > 1:
            # Every process has statistics of its own images: what is measured is what the first one saves.
            for model in (self.model, self.average.module):
                distribute_bn(model, self.processes.world)
        val_loss, top1, top5 = measure(self.model, self.config, self.data, self.processes, self.workers)
        self._check_finite(val_loss)
        _, ema_top1, _ = measure(self.average.module, self.config, self.data, self.processes, self.workers)
        self.history.append(
            {
                "epoch": self.update // self.updates_an_epoch,
                "train_loss": loss / count,
                "train_top1": 100 * right / count,
                "val_loss": val_loss,
                "val_top1": top1,
                "val_top5": top5,
                "ema_top1": ema_top1,
                "lr": self.optimizer.param_groups[-1]["lr"],
                "seconds": self.seconds,
            }
        )
        self.sums.zero_()
        self.seconds = 0.0
        self._save()

    def _check_finite(self, loss: float) -> None:
        if loss != loss or loss in (float("inf"), float("-inf")):
            epoch = (self.update - 1) // self.updates_an_epoch + 1
            raise RuntimeError(
                f"{self.run_dir}: the loss is not finite in epoch {epoch}; the last checkpoint is from before it. "
                "Train in another folder with a smaller --lr or --k-lr-multiplier, or with more --warmup-epochs"
            )

    def _note(self) -> str:
        return f"val top-1 {self.history[-1]['val_top1']:.1f} %" if self.history else ""

    def _save(self) -> None:
        """The state of the training; the sums of every process are put together in it."""
        sums = self.processes.summed(*self.sums.tolist())
        self._check_finite(sums[0])
        if self.processes.rank == 0:
            state = {
                "update": self.update,
                "model": self.model.state_dict(),
                "ema": self.average.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "history": self.history,
                "sums": sums,
                "seconds": self.seconds,
            }
            save_checkpoint(state, self.checkpoint)
            self._save_history()
        if self.processes.world > 1:
            dist.barrier()

    def _save_history(self) -> None:
        replace_text(self.run_dir / "history.json", json.dumps(self.history, indent=1) + "\n")

    def _resume(self) -> None:
        if self.checkpoint.exists():
            state = load_checkpoint(self.checkpoint, self.processes.device)
            with naming(self.checkpoint, BROKEN_CHECKPOINT):
                self.model.load_state_dict(state["model"])
                self.average.module.load_state_dict(state["ema"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.update, self.history, self.seconds = state["update"], state["history"], state["seconds"]
                sums = torch.tensor(state["sums"], dtype=torch.float64, device=self.processes.device)
            if self.processes.rank == 0:
                self.sums += sums
                # A kill after the checkpoint may have left it behind, and a finished training writes it no more.
                self._save_history()


def train(
    config: Config,
    data: ImageData,
    run_dir: Path,
    *,
    accelerator: str = "auto",
    workers: int = 0,
    progress: bool = True,
    stop_at: int | None = None,
    save_every: int = SAVE_EVERY,
) -> bool:
    """Train, or resume from the last checkpoint in ``run_dir``.

    Under torchrun, every process calls this and has its share of each batch, with batch statistics of its own, as is
    usual.

    Args:
        config: of the run; must equal the one in ``run_dir`` if there is one.
        data: what it learns from.
        run_dir: receives config.json, data.json, history.json and checkpoints/.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        workers: processes that read images, for each process that trains; 0 reads in that one.
        progress: show a progress bar.
        stop_at: updates after which to stop, as an interruption would.
        save_every: updates between checkpoints within an epoch.

    Returns:
        whether this is the first, or only, process: the one that goes on to evaluate.

    Raises:
        ValueError: ``run_dir`` holds another run, another process trains in it, or batches cannot be shared evenly.
        RuntimeError: the loss is no longer finite.
    """
    processes = Processes(accelerator)
    if config.batch_size % processes.world:
        raise ValueError(
            f"expected a batch size that {processes.world} processes can share evenly, got {config.batch_size}"
        )
    with ExitStack() as stack:
        if processes.rank == 0:
            stack.enter_context(sole_trainer(run_dir))
            _prepare_run_dir(config, data, run_dir)
        stack.enter_context(processes.joined())
        trainer = Trainer(config, data, run_dir, processes, workers=workers, save_every=save_every)
        trainer.fit(progress=progress, stop_at=stop_at)
    return processes.rank == 0


def _prepare_run_dir(config: Config, data: ImageData, run_dir: Path) -> None:
    # Before the first checkpoint, e.g. where an option was refused, any other run may have the folder.
    if has_checkpoint(run_dir):
        check_run(config, data, run_dir)
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    replace_text(run_dir / runs.DATA, json.dumps(_about(data)) + "\n")
    config.save(run_dir / runs.CONFIG)


def check_run(config: Config, data: ImageData, run_dir: Path) -> None:
    """Raise ValueError where a run that has a checkpoint has another configuration or other data."""
    check_data(data, run_dir)
    runs.check_config(config, Config.load, run_dir)


def check_data(data: ImageData, run_dir: Path) -> None:
    """Raise ValueError where a run was trained on other data."""
    digests = {"content": "on other images of the same number", "files": "on other images of the same names"}
    runs.check_data(_about(data), run_dir, digests)


def _about(data: ImageData) -> dict[str, str]:
    return {"summary": data.summary(), "content": data.fingerprint(), "files": data.sizes_fingerprint()}
