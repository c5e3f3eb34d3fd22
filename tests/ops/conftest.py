"""Which kernels a test runs on."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from kaleido_audio import ops
from kaleido_audio.ops import native

NATIVE = ops.cpu_capability() is not None
needs_native = pytest.mark.skipif(not NATIVE, reason="the package was built without native kernels")


def capabilities() -> list[str]:
    """Instruction sets of this processor for which there are kernels."""
    found = []
    for name in ("baseline", "avx2", "avx512"):
        with contextlib.suppress(RuntimeError):
            if NATIVE:
                with using(name):
                    found.append(name)
    return found


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Kernels of one instruction set for the duration of a block."""
    before = ops.cpu_capability()
    torch.ops.kaleido_audio.set_cpu_capability(name)
    try:
        yield
    finally:
        torch.ops.kaleido_audio.set_cpu_capability(before)


@pytest.fixture(params=capabilities() or [pytest.param("none", marks=needs_native)])
def capability(request) -> Iterator[str]:
    """Each instruction set in turn."""
    with using(request.param):
        yield request.param


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "reference"])
def path(request, monkeypatch) -> str:
    """The native kernels, and plain PyTorch."""
    if request.param == "reference":
        monkeypatch.setattr(native, "_devices", set())
        monkeypatch.setattr(native, "_ready", False)
    return request.param
