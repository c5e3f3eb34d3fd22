"""The accuracy of a trained run, and how near its map of the pixels came to undoing the permutation."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from recipes.cifar.config import Config
from recipes.cifar.counts import count_parameters
from recipes.cifar.data import CifarData
from recipes.cifar.model import Classifier, build
from recipes.cifar.recovery import Recovery, score
from recipes.cifar.training import check_data, measure, permutation_of, recovered_order
from recipes.common.files import BROKEN_CHECKPOINT, load_checkpoint, naming, replace_text
from recipes.common.processes import Processes


@dataclass(frozen=True)
class Result:
    """What ``result.json`` of a run holds.

    Attributes:
        data: title of the data set, which says whether it is a stand-in.
        epochs: that were made.
        parameters: of the model.
        train_accuracy: of the last epoch, on augmented images, in percent.
        valid_accuracy, test_accuracy: after the last epoch, in percent.
        neighbours: of the recovered order, see `recipes.cifar.recovery.Score`; None in supervised mode.
        recovery_seconds: that the first stage took; None in supervised mode.
        seconds: of training.
    """

    data: str
    epochs: int
    parameters: int
    train_accuracy: float
    valid_accuracy: float
    test_accuracy: float
    neighbours: float | None
    recovery_seconds: float | None
    seconds: float

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        with naming(path, "remove it to evaluate again"):
            return cls(**json.loads(path.read_text(encoding="utf-8")))


def load_model(config: Config, run_dir: Path) -> Classifier:
    """The model after the last epoch, in evaluation mode on the CPU.

    Raises:
        ValueError: there is no checkpoint.
    """
    return _load(config, run_dir)[0]


def _load(config: Config, run_dir: Path) -> tuple[Classifier, list[dict[str, float]]]:
    """The model, and the history that belongs to it: a kill may have left history.json behind."""
    path = run_dir / "checkpoints" / "last.pt"
    if not path.is_file():
        raise ValueError(f"{path} is missing: train first")
    model = build(config, recovered_order(config, run_dir))
    state = load_checkpoint(path)
    with naming(path, BROKEN_CHECKPOINT):
        model.load_state_dict(state["model"])
        return model.eval(), state["history"]


def evaluate(config: Config, data: CifarData, run_dir: Path, *, accelerator: str = "auto") -> Result:
    """Classify valid and test with the model after the last epoch; writes ``result.json``.

    Args:
        config: of the run.
        data: it was trained on.
        run_dir: its folder.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.

    Raises:
        ValueError: there is no checkpoint, or the run was trained on other data.
    """
    check_data(data, run_dir)
    processes = Processes(accelerator)
    # Evaluation is for one process, also when torchrun started several for the training.
    processes.rank, processes.world = 0, 1
    model, history = _load(config, run_dir)
    model.to(processes.device)
    neighbours, recovery_seconds = None, None
    if config.recovery != "none":
        found = Recovery.load(run_dir / "recovery.json")
        neighbours, recovery_seconds = score(found.order, permutation_of(config)).neighbours, found.seconds
    result = Result(
        data=data.title,
        epochs=len(history),
        parameters=count_parameters(model),
        train_accuracy=history[-1]["train_accuracy"],
        valid_accuracy=measure(model, config, data, data.valid, processes)[1],
        test_accuracy=measure(model, config, data, data.test, processes)[1],
        neighbours=neighbours,
        recovery_seconds=recovery_seconds,
        seconds=sum(line["seconds"] for line in history),
    )
    result.save(run_dir / "result.json")
    return result
