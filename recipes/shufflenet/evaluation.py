"""The accuracy of a trained run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.files import BROKEN_CHECKPOINT, load_checkpoint, naming, replace_text
from recipes.common.processes import Processes
from recipes.shufflenet.config import Config
from recipes.shufflenet.counts import count_multiply_adds, count_parameters
from recipes.shufflenet.data import EpochBatches, ImageData
from recipes.shufflenet.model import ShuffleNet
from recipes.shufflenet.training import build, check_data, measure


@dataclass(frozen=True)
class Result:
    """What ``result.json`` of a run holds; accuracies are those of val, in percent.

    Attributes:
        data: title of the data set, which says whether it is ImageNet.
        epochs: that were made; no whole number in the middle of one.
        parameters, multiply_adds: of the network; the latter for one image of the run's size.
        train_top1: in the last epoch that is over, of random crops.
        top1, top5: of the last weights.
        ema_top1, ema_top5: of the moving average of weights.
        seconds: of training.
    """

    data: str
    epochs: float
    parameters: int
    multiply_adds: int
    train_top1: float
    top1: float
    top5: float
    ema_top1: float
    ema_top5: float
    seconds: float

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        with naming(path, "remove it to evaluate again"):
            return cls(**json.loads(path.read_text(encoding="utf-8")))


def load_model(config: Config, num_classes: int, run_dir: Path, *, average: bool = False) -> ShuffleNet:
    """The network of the last checkpoint, in evaluation mode on the CPU.

    Args:
        config: of the run.
        num_classes: outputs.
        run_dir: its folder.
        average: the moving average of weights instead of the last ones.

    Raises:
        ValueError: there is no checkpoint.
    """
    return _network(config, num_classes, _checkpoint(run_dir), "ema" if average else "model", run_dir)


def _path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.pt"


def _checkpoint(run_dir: Path) -> dict[str, Any]:
    if not _path(run_dir).is_file():
        raise ValueError(f"{_path(run_dir)} is missing: train first")
    state: dict[str, Any] = load_checkpoint(_path(run_dir))
    return state


def _network(config: Config, num_classes: int, state: dict[str, Any], which: str, run_dir: Path) -> ShuffleNet:
    model = build(config, num_classes)
    with naming(_path(run_dir), BROKEN_CHECKPOINT):
        model.load_state_dict(state[which])
    return model.eval()


def evaluate(config: Config, data: ImageData, run_dir: Path, *, accelerator: str = "auto", workers: int = 0) -> Result:
    """Classify val with the last weights and with their moving average; writes ``result.json``.

    Args:
        config: of the run.
        data: it was trained on.
        run_dir: its folder.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        workers: processes that read images.

    Raises:
        ValueError: there is no finished epoch, or the run was trained on other data.
    """
    check_data(data, run_dir)
    processes = Processes(accelerator)
    # Evaluation is for one process, also when torchrun started several for the training.
    processes.rank, processes.world = 0, 1
    state = _checkpoint(run_dir)
    last, average = (
        _network(config, len(data.classes), state, which, run_dir).to(processes.device) for which in ("model", "ema")
    )
    with naming(_path(run_dir), BROKEN_CHECKPOINT):
        # Of the weights themselves: history.json knows of whole epochs only, and a kill may have left it behind.
        history, update, seconds = state["history"], state["update"], state["seconds"]
    if not history:
        raise ValueError(f"{run_dir}: no epoch of this run is finished: train on")
    # However many processes trained it, an epoch had as many updates.
    an_epoch = len(EpochBatches(len(data.train), config.batch_size, seed=config.seed, epoch=0))
    _, top1, top5 = measure(last, config, data, processes, workers)
    _, ema_top1, ema_top5 = measure(average, config, data, processes, workers)
    result = Result(
        data=data.title,
        epochs=update / an_epoch if update % an_epoch else len(history),
        parameters=count_parameters(last),
        multiply_adds=count_multiply_adds(last, config.image_size),
        train_top1=history[-1]["train_top1"],
        top1=top1,
        top5=top5,
        ema_top1=ema_top1,
        ema_top5=ema_top5,
        seconds=sum(line["seconds"] for line in history) + seconds,
    )
    result.save(run_dir / "result.json")
    return result
