"""What the trainings of several processes share."""

from __future__ import annotations

import gc
import socket
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn

from recipes.common.processes import Processes


def test_one_process_trains_the_model_itself() -> None:
    model = nn.Linear(2, 2)
    processes = Processes("cpu")
    with processes.joined():
        assert processes.parallel(model) is model
        assert processes.summed(1.5, 2.0) == [1.5, 2.0]


def test_nothing_but_the_group_frees_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port), ("RANK", 0), ("WORLD_SIZE", 1)):
        monkeypatch.setenv(name, str(value))
    processes = Processes("cpu")
    processes.world = 2  # a group of one, with all that several have
    with processes.joined():
        wrapped = processes.parallel(nn.Linear(2, 2))
        wrapped(torch.ones(3, 2)).sum().backward()
        reducer = weakref.ref(wrapped.reducer)
        assert processes.summed(1.5) == [1.5]
    gc.collect()
    assert reducer() is None and not dist.is_initialized()
