"""How long the networks take for an image, measured side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor, nn

from benchmarks.machine import environment
from benchmarks.report import hardware, ratio_text
from benchmarks.timing import Contestant, Measurement, Settings, measure
from kaleido_audio import KMatrix
from recipes.common.processes import Processes
from recipes.shufflenet.config import Config
from recipes.shufflenet.counts import count_multiply_adds, count_parameters
from recipes.shufflenet.training import build

BATCHES = (1, 32)


@dataclass(frozen=True)
class Latency:
    """One network at one batch size.

    Attributes:
        milliseconds: for one image, the median of all rounds.
        ratio: its time over the first network's in the same round, as text: median, and the range of rounds.
    """

    milliseconds: float
    ratio: str


def measure_latency(
    models: Mapping[str, nn.Module],
    image_size: int,
    *,
    batches: Sequence[int] = BATCHES,
    threads: int = 1,
    device: torch.device | str = "cpu",
    rounds: int = 15,
    seconds: float = 20.0,
    progress: bool = True,
) -> dict[tuple[str, int], Latency]:
    """Forward passes of random images in float32 without gradients, the networks taking turns.

    Args:
        models: by name, the one first with which the others are compared; measured is a copy of each, `for_inference`.
        image_size: height and width in pixels.
        batches: images in a forward pass.
        threads: of the CPU.
        device: to measure on.
        rounds: turns at most.
        seconds: for all turns of a batch size, but at least 5 turns.
        progress: show a progress bar.

    Returns:
        by name and batch size.
    """
    device = torch.device(device)
    settings = Settings(rounds=rounds, case_seconds=seconds, call_seconds=60.0)
    ready = {name: for_inference(model).to(device) for name, model in models.items()}
    found = {}
    with Progress(disable=not progress, transient=True) as bar:
        for batch in batches:
            task = bar.add_task(f"Latency, batch {batch}", total=None)
            x = torch.rand(batch, 3, image_size, image_size, device=device)
            contestants = {name: Contestant(_call(model, x), threads) for name, model in ready.items()}

            def on_round(done: int, total: int, task=task) -> None:  # type: ignore[no-untyped-def]
                bar.update(task, completed=done, total=total)

            timing = measure(contestants, settings, device, on_round)
            found.update({(name, batch): _latency(timing, name, next(iter(models)), batch) for name in models})
    return found


def for_inference(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, whose K-matrices have their coefficients ready instead of making them from angles.

    >>> from recipes.shufflenet.model import ShuffleNet
    >>> model = ShuffleNet(0.25, mixing="k-odo").eval()
    >>> image = torch.rand(1, 3, 64, 64)
    >>> torch.allclose(for_inference(model)(image), model(image), atol=1e-5)
    True
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, KMatrix) and child.constraint is not None:
                free = KMatrix(
                    child.in_features, out_features=child.out_features, width=child.width, expansion=child.expansion,
                    dtype=child.factors.dtype, init=child,
                )  # fmt: skip
                setattr(module, name, free.eval())
    return model


def _call(model: nn.Module, x: Tensor):  # type: ignore[no-untyped-def]
    @torch.inference_mode()
    def call() -> Tensor:
        return model(x)

    return call


def _latency(timing: Measurement, name: str, base: str, batch: int) -> Latency:
    time, ratio = timing.time(name), timing.ratio(name, base)
    assert time is not None and ratio is not None
    return Latency(1e3 * time.median / batch, "1x" if name == base else ratio_text(ratio))


def circumstances(image_size: int, threads: int, device: torch.device | str) -> str:
    """What the figures were measured with, in a sentence."""
    device = torch.device(device)
    about = environment(device)
    where = f"{threads} thread{'s' if threads > 1 else ''} of " if device.type == "cpu" else ""
    return (
        f"Latency: {image_size} x {image_size} pixels, float32, eager mode, networks in turns, "
        f"{where}{hardware(about)}; times the first network's in the same round, with the range of rounds."
    )


def latency_table(
    networks: Sequence[Config],
    image_size: int,
    *,
    threads: int = 1,
    accelerator: str = "auto",
    progress: bool = True,
) -> str:
    """Parameters, multiply-adds and latency of networks with random weights, as Markdown.

    Args:
        networks: of which width, mixing, position, k_init and stage2 count; compared with the first of their width.
        image_size: height and width in pixels.
        threads: of the CPU.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        progress: show a progress bar.
    """
    device = Processes(accelerator).device
    lines = [
        f"| width | mixing | stage 2 | parameters | multiply-adds | "
        f"{' | '.join(f'ms an image, batch {batch}' for batch in BATCHES)} |",
        "|---" * (5 + len(BATCHES)) + "|",
    ]
    for width in sorted({config.width for config in networks}):
        models = {
            f"{config.mixing} | {config.stage2}": build(config, 1000) for config in networks if config.width == width
        }
        found = measure_latency(models, image_size, threads=threads, device=device, progress=progress)
        for name, model in models.items():
            times = (found[name, batch] for batch in BATCHES)
            cells = [
                f"{width:g}",
                name,
                f"{count_parameters(model):,}",
                f"{count_multiply_adds(model, image_size) / 1e6:.1f} M",
                *(f"{time.milliseconds:.2f}: {time.ratio}" for time in times),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Random weights. {circumstances(image_size, threads, device)}"])
