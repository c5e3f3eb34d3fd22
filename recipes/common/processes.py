"""Trainings by several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Processes:
    """This process among those of a training: by itself, or one that torchrun started.

    Args:
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """

    def __init__(self, accelerator: str) -> None:
        if accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError(f"--accelerator gpu: torch {torch.__version__} finds no CUDA device on this machine")
        gpu = accelerator != "cpu" and torch.cuda.is_available()
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
        self._parallel: list[DistributedDataParallel] = []

    @contextmanager
    def joined(self) -> Iterator[None]:
        """The process group, for as long as the block lasts."""
        if self.world == 1:
            yield
            return
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            # A reducer that outlives the group is the one to free it, and waits with Python's lock held for gloo's
            # threads, which may want that lock to free a tensor (torch 2.11: a finished training that never ends).
            for model in self._parallel:
                del model.reducer, model.logger
            self._parallel.clear()
            dist.destroy_process_group()

    def parallel(self, model: nn.Module) -> nn.Module:
        """What to train in the place of ``model`` while the processes are joined: gradients are averaged over them."""
        if self.world == 1:
            return model
        wrapped = DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        self._parallel.append(wrapped)
        return wrapped

    def summed(self, *values: float) -> list[float]:
        """Each number summed over all processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]


def check_single_process() -> None:
    """Raise ValueError if torchrun started several processes, for what is done by one.

    Raises:
        ValueError: it did.
    """
    world = Processes("cpu").world
    if world > 1:
        raise ValueError(
            f"expected one process, got {world}: compare trains one run after another by itself; give torchrun the "
            "train command for each run, in the folder where compare looks for it, and then compare without torchrun"
        )
