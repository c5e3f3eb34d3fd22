"""The accuracy of a trained run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from recipes.common.files import replace_text
from recipes.common.processes import Processes
from recipes.shufflenet.config import Config
from recipes.shufflenet.counts import count_multiply_adds, count_parameters
from recipes.shufflenet.data import ImageData
from recipes.shufflenet.model import ShuffleNet
from recipes.shufflenet.training import build, check_data, measure


@dataclass(frozen=True)
class Result:
    """What ``result.json`` of a run holds; accuracies are those of val, in percent.

    Attributes:
        data: title of the data set, which says whether it is ImageNet.
        epochs: that were made.
        parameters, multiply_adds: of the network; the latter for one image of the run's size.
        train_top1: in the last epoch, of random crops.
        top1, top5: after the last epoch.
        ema_top1, ema_top5: of the moving average of weights.
        seconds: of training.
    """

    data: str
    epochs: int
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
    path = run_dir / "checkpoints" / "last.pt"
    if not path.is_file():
        raise ValueError(f"{path} is missing: train first")
    model = build(config, num_classes)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["ema" if average else "model"])
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
    last, average = (
        load_model(config, len(data.classes), run_dir, average=average).to(processes.device)
        for average in (False, True)
    )
    history = json.loads((run_dir / "history.json").read_text(encoding="utf-8"))
    if not history:
        raise ValueError(f"{run_dir}: no epoch of this run is finished: train on")
    _, top1, top5 = measure(last, config, data, processes, workers)
    _, ema_top1, ema_top5 = measure(average, config, data, processes, workers)
    result = Result(
        data=data.title,
        epochs=len(history),
        parameters=count_parameters(last),
        multiply_adds=count_multiply_adds(last, config.image_size),
        train_top1=history[-1]["train_top1"],
        top1=top1,
        top5=top5,
        ema_top1=ema_top1,
        ema_top5=ema_top5,
        seconds=sum(line["seconds"] for line in history),
    )
    result.save(run_dir / "result.json")
    return result
