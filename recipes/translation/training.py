"""Training: label smoothing, inverse square root schedule, checkpoints, exact resume, one or several processes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

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
from recipes.translation.config import Config
from recipes.translation.data import Data, Pairs, batches, endless_batches, padded
from recipes.translation.model import EOS, PAD, Translator

_RECORDED = ("update", "valid_loss", "seconds")
"""What the evaluation and the figure need to know of a checkpoint."""

_DIGESTS = {
    "subwords": "with other subwords of the same number",
    "content": "on other sentences of the same number",
}


def smoothed_loss(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy with label smoothing and without, both summed over the subwords that are no padding.

    Args:
        logits: ``(N, T, vocabulary)``.
        target: ``(N, T)``.
        smoothing: share of the target that is spread evenly over the vocabulary.
    """
    log_p = logits.log_softmax(-1)
    present = target != PAD
    plain = -(log_p.gather(-1, target[..., None]).squeeze(-1) * present).sum()
    if not smoothing:
        return plain, plain.detach()
    spread = -(log_p.mean(-1) * present).sum()
    return (1 - smoothing) * plain + smoothing * spread, plain.detach()


def learning_rate(update: int, config: Config) -> float:
    """Of the update of that number, from 1: linear from 1e-7 to ``lr`` in ``warmup`` updates, then with 1/sqrt.

    >>> config = Config(lr=1e-3, warmup=100)
    >>> learning_rate(100, config), learning_rate(400, config)
    (0.001, 0.0005)
    """
    if update < config.warmup:
        return 1e-7 + (config.lr - 1e-7) * update / config.warmup
    return config.lr * math.sqrt(config.warmup / update)


def build(config: Config, data: Data) -> Translator:
    """An untrained model; its initial weights depend on ``config.seed`` alone."""
    torch.manual_seed(config.seed)
    return Translator(config, len(data.source), len(data.target))


def shifted(target: Tensor) -> Tensor:
    """What the decoder sees: `EOS`, then all but the last."""
    return torch.cat([torch.full_like(target[:, :1], EOS), target[:, :-1]], dim=1)


def fitting(pairs: Pairs, max_length: int) -> np.ndarray:
    """Indices of pairs with neither side longer than that.

    Raises:
        ValueError: none fits.
    """
    kept = np.flatnonzero(lengths(pairs) <= max_length)
    if not len(kept):
        raise ValueError(f"all pairs of train are longer than max_length = {max_length} subwords")
    return kept


def left_out(pairs: Pairs, max_length: int) -> int:
    """How many pairs have a side longer than that."""
    return int((lengths(pairs) > max_length).sum())


def lengths(pairs: Pairs) -> np.ndarray:
    """The longer side of every pair."""
    sides = ([len(sentence) for sentence in side] for side in (pairs.source, pairs.target))
    return np.maximum(*map(np.array, sides))


class Trainer:
    """One training.

    Args:
        config: of the run.
        data: what it learns from.
        run_dir: receives config.json, history.json and checkpoints/.
        processes: this one among them all.
    """

    def __init__(self, config: Config, data: Data, run_dir: Path, processes: Processes) -> None:
        self.config = config
        self.data = data
        self.run_dir = run_dir
        self.processes = processes
        self.model = build(config, data).to(processes.device)
        self.parallel = processes.parallel(self.model)
        groups = param_groups(
            self.model, config.lr, k_lr_multiplier=config.k_lr_multiplier, weight_decay=config.weight_decay
        )
        # The multiplier of a group stays beside it: the schedule sets its rate at every update.
        self.optimizer = torch.optim.Adam(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-8)
        self.multipliers = [group["lr"] / config.lr for group in self.optimizer.param_groups]
        self.update = 0
        self.history: list[dict[str, float]] = []
        self._kept = fitting(data.splits["train"], config.max_length)
        self._resume()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.run_dir / "checkpoints"

    def fit(self, *, progress: bool = True, stop_at: int | None = None) -> None:
        """Train until all updates are made, or until ``stop_at`` of them, as an interruption would."""
        config, world = self.config, self.processes.world
        stop_at = config.updates if stop_at is None else min(stop_at, config.updates)
        train = self.data.splits["train"]
        order = endless_batches(
            lengths(train)[self._kept], config.batch_tokens, config.seed,
            rank=self.processes.rank, world=world, skip=self.update * config.accumulate,
        )  # fmt: skip
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            disable=not progress or self.processes.rank > 0,
        )  # fmt: skip
        sums, began = [0.0, 0.0], time.monotonic()
        with bar:
            task = bar.add_task("Updates", total=config.updates, completed=self.update, note=self._note())
            while self.update < stop_at:
                self.update += 1
                loss, count = self._step([self._kept[next(order)] for _ in range(config.accumulate)])
                sums = [sums[0] + loss, sums[1] + count]
                if self.update % config.save_every == 0 or self.update == config.updates:
                    self._record(sums, time.monotonic() - began)
                    sums, began = [0.0, 0.0], time.monotonic()
                bar.update(task, completed=self.update, note=self._note())

    def _step(self, parts: Sequence[np.ndarray]) -> tuple[float, float]:
        """One update; the loss of this process and its subwords."""
        config, processes = self.config, self.processes
        # Dropout depends on the update and the process alone, so that a resumed training repeats it.
        # Modulo what torch takes, which leaves different seeds different: the factors are odd.
        torch.manual_seed(((config.seed * 1_000_003 + self.update) * 4099 + processes.rank) % 2**64)
        self.parallel.train()
        pairs = self.data.splits["train"]
        targets = [padded([pairs.target[i] for i in part]).to(processes.device) for part in parts]
        count = float(sum(int((target != PAD).sum()) for target in targets))
        every = processes.summed(count)[0]
        total = 0.0
        for number, (part, target) in enumerate(zip(parts, targets, strict=True)):
            source = padded([pairs.source[i] for i in part]).to(processes.device)
            with ExitStack() as stack:
                if isinstance(self.parallel, DistributedDataParallel) and number + 1 < len(parts):
                    stack.enter_context(self.parallel.no_sync())
                smooth, plain = smoothed_loss(self.parallel(source, shifted(target)), target, config.label_smoothing)
                # Gradients of processes are averaged; the mean over all their subwords is meant.
                (smooth * (processes.world / every)).backward()
            total += float(plain)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        rate = learning_rate(self.update, config)
        for group, multiplier in zip(self.optimizer.param_groups, self.multipliers, strict=True):
            group["lr"] = rate * multiplier
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, count

    def _record(self, sums: Sequence[float], seconds: float) -> None:
        """Loss on valid, a line of the history and a checkpoint."""
        loss, count = self.processes.summed(*sums)
        line = {
            "update": self.update,
            "train_loss": loss / count,
            "valid_loss": self.validate(),
            "lr": learning_rate(self.update, self.config),
            "tokens": count,
            "seconds": seconds,
        }
        if not (math.isfinite(line["train_loss"]) and math.isfinite(line["valid_loss"])):
            raise RuntimeError(
                f"{self.run_dir}: the loss is not finite by update {self.update}; the last checkpoint is from before "
                "it. Train in another folder with a smaller --lr or --k-lr-multiplier, with more --warmup, or with "
                "--clip"
            )
        self.history.append(line)
        if self.processes.rank == 0:
            self._save()
        if self.processes.world > 1:
            dist.barrier()

    @torch.no_grad()
    def validate(self) -> float:
        """Cross-entropy of a subword of valid, in nats, without label smoothing."""
        pairs = self.data.splits["valid"]
        self.model.eval()
        total, count = 0.0, 0
        for number, batch in enumerate(batches(lengths(pairs), self.config.batch_tokens)):
            if number % self.processes.world == self.processes.rank:
                source, target = (padded([side[i] for i in batch]) for side in (pairs.source, pairs.target))
                source, target = source.to(self.processes.device), target.to(self.processes.device)
                total += float(smoothed_loss(self.model(source, shifted(target)), target, 0.0)[0])
                count += int((target != PAD).sum())
        total, every = self.processes.summed(total, count)
        return total / every

    def _note(self) -> str:
        return f"valid loss {self.history[-1]['valid_loss']:.3f}" if self.history else ""

    def _save(self) -> None:
        """A file of weights for the average; and the state from which the training resumes."""
        weights = self.checkpoints / f"update-{self.update:07d}.pt"
        save_checkpoint(self.model.state_dict(), weights)
        state = {"update": self.update, "optimizer": self.optimizer.state_dict(), "history": self.history}
        save_checkpoint(state | {"model": self.model.state_dict()}, self.checkpoints / "last.pt")
        self._save_history()
        for old in weight_files(self.run_dir)[: -self.config.average]:
            old.unlink()

    def _save_history(self) -> None:
        replace_text(self.run_dir / "history.json", json.dumps(self.history, indent=1) + "\n")

    def _resume(self) -> None:
        path = self.checkpoints / "last.pt"
        if path.exists():
            state = load_checkpoint(path, self.processes.device)
            with naming(path, BROKEN_CHECKPOINT):
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.update, self.history = state["update"], state["history"]
            if self.processes.rank == 0:
                # A kill after the checkpoint may have left it behind, and a finished training writes it no more.
                self._save_history()


def train(
    config: Config,
    data: Data,
    run_dir: Path,
    *,
    accelerator: str = "auto",
    progress: bool = True,
    stop_at: int | None = None,
) -> bool:
    """Train, or resume from the last checkpoint in ``run_dir``; `load_averaged` then gives the model.

    Under torchrun, every process calls this and the batches are shared out.

    Args:
        config: of the run; must equal the one in ``run_dir`` if there is one, but for more updates.
        data: what it learns from.
        run_dir: receives config.json, history.json and checkpoints/.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        progress: show a progress bar.
        stop_at: updates after which to stop, as an interruption would.

    Returns:
        whether this is the first, or only, process: the one that goes on to evaluate.

    Raises:
        ValueError: ``run_dir`` holds a run that this one does not continue, or another process trains in it.
    """
    processes = Processes(accelerator)
    with ExitStack() as stack:
        if processes.rank == 0:
            stack.enter_context(sole_trainer(run_dir))
            prepare_run_dir(config, data, run_dir)
            count, every = left_out(data.splits["train"], config.max_length), len(data.splits["train"])
            if progress and count:
                print(f"Left out of train: {count:,} of {every:,} pairs, longer than {config.max_length} subwords")
        stack.enter_context(processes.joined())
        Trainer(config, data, run_dir, processes).fit(progress=progress, stop_at=stop_at)
    return processes.rank == 0


def prepare_run_dir(config: Config, data: Data, run_dir: Path) -> None:
    """Create the folder of a run, or check that it belongs to the same one, which may be made longer.

    The schedule does not depend on the number of updates: a run with more of them goes on where the shorter one
    ended, and is then what it had been from the start. Before the first checkpoint, e.g. where an option was refused,
    any other run may have the folder.

    Raises:
        ValueError: it holds a run with another configuration or other data, or one that cannot be made longer.
    """
    if has_checkpoint(run_dir):
        check_run(config, data, run_dir)
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    replace_text(run_dir / runs.DATA, json.dumps(_about(data), indent=1) + "\n")
    config.save(run_dir / runs.CONFIG)


def check_run(config: Config, data: Data, run_dir: Path) -> None:
    """Raise ValueError where a run that has a checkpoint is another one, or cannot be made longer."""
    path = run_dir / runs.CONFIG
    check_data(data, run_dir)
    # The search has no part in the training.
    old = runs.check_config(config, Config.load, run_dir, changeable=("updates", "beam", "length_penalty"))
    if config.updates < old.updates:
        raise ValueError(f"{path} belongs to a run of {old.updates} updates: expected as many or more of them, "
                         f"got {config.updates}")  # fmt: skip
    if config.updates > old.updates and old.updates % config.save_every:
        raise ValueError(
            f"the run of {path} cannot be made longer: the checkpoint after its {old.updates} updates would not "
            f"be one of the longer run, which saves every {config.save_every}; give another folder"
        )


def check_data(data: Data, run_dir: Path) -> None:
    """Raise ValueError where a run was trained on other data, or with other subwords, as far as data.json tells."""
    runs.check_data(_about(data), run_dir, _DIGESTS)


def _about(data: Data) -> dict[str, Any]:
    return {
        "summary": data.summary(),
        "subwords": [data.source.fingerprint(), data.target.fingerprint()],
        "content": data.fingerprint(),
    }


def load_history(run_dir: Path) -> list[dict[str, float]]:
    """A line for every checkpoint.

    Raises:
        ValueError: history.json is missing or broken, or holds none.
    """
    remedy = "train the run again, which writes it from the checkpoint"
    return runs.load_history(run_dir / "history.json", _RECORDED, remedy)


def weight_files(run_dir: Path) -> list[Path]:
    """Weights of the last checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob("update-*.pt"))


def load_averaged(config: Config, data: Data, run_dir: Path) -> Translator:
    """The model with the mean of the last checkpoints' weights, in evaluation mode on the CPU.

    Raises:
        ValueError: there is no checkpoint.
    """
    paths = weight_files(run_dir)[-config.average :]
    if not paths:
        raise ValueError(f"{run_dir / 'checkpoints'} holds no checkpoint: train first")
    model, remedy = build(config, data), "remove the run's checkpoints to train again"
    sums: dict[str, Tensor] = {}
    for path in paths:
        weights = load_checkpoint(path, remedy=remedy)
        with naming(path, remedy):
            model.load_state_dict(weights)
            for name, value in weights.items():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    model.load_state_dict({name: (total / len(paths)).float() for name, total in sums.items()})
    return model.eval()
