"""The machine a benchmark ran on: its name, its vector width and its rate of arithmetic."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from kaleido_audio import ops

LANES = {"avx512": 16, "avx2": 8, "baseline": 4}

_MARCH = {"avx512": "x86-64-v4", "avx2": "x86-64-v3", "baseline": "x86-64-v2"}

# Enough chains of multiply-adds, each waiting for itself, to keep every unit of a processor busy.
_CHAINS = 10
_REPEATS = 20000
MULTIPLY_ADDS_PER_CALL = _CHAINS * _REPEATS
_NAMES = [f"v{i}" for i in range(_CHAINS)]
_SOURCE = f"""
typedef float V __attribute__((vector_size(4 * LANES)));
void multiply_and_add(long repeats, float x) {{
  V a = (V){{}} + x, {", ".join(f"{v} = a" for v in _NAMES)};
  for (long i = 0; i < repeats; ++i) {{
    {" ".join(f"{v} = {v} * a + a;" for v in _NAMES)}
    {" ".join(f'__asm__ volatile("" : "+v"({v}));' for v in _NAMES)}
  }}
}}
"""


def capability() -> str:
    """The instructions of the native CPU kernels: "avx512", "avx2" or "baseline"; without kernels, torch's own."""
    ask = getattr(ops, "cpu_capability", None)
    own = ask() if ask is not None else None
    return str(own) if own in LANES else torch_capability()


def torch_capability() -> str:
    """The widest instructions that torch found on this processor, in the same words."""
    found = torch.backends.cpu.get_cpu_capability().lower()
    return found if found in LANES else "baseline"


def environment(device: torch.device) -> dict[str, Any]:
    """What a number needs beside it to mean something."""
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device.type,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "capability": capability(),
        "torch_capability": torch_capability(),
        "backend": ops.backend(torch.empty(1, device=device)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "matmul_precision": torch.get_float32_matmul_precision(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        result["gpu"] = properties.name
        result["gpu_gib"] = round(properties.total_memory / 2**30, 1)
        result["cuda"] = torch.version.cuda
    return result


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                family = _cpuinfo_field("cpu family")
                return f"{model} (family {family})" if family else model
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpuinfo_field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.partition(":")[0].strip() == name:
            return line.partition(":")[2].strip()
    return ""


def multiply_adds(capability: str) -> Callable[[], object] | None:
    """Something that does `MULTIPLY_ADDS_PER_CALL` multiply-adds of vectors, as fast as this core can.

    Args:
        capability: the instructions: "avx512", "avx2" or "baseline".

    Returns:
        None without a C compiler and on processors other than x86-64.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "rate.c"), Path(folder, "rate.so")
        source.write_text(_SOURCE, encoding="utf-8")
        flags = ["-O2", f"-march={_MARCH[capability]}", f"-DLANES={LANES[capability]}", "-ffp-contract=fast"]
        command = [compiler, *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        function = ctypes.CDLL(str(library)).multiply_and_add
    function.argtypes = [ctypes.c_long, ctypes.c_float]
    function.restype = None
    return lambda: function(_REPEATS, 0.5)


def butterfly_operations(n: int, lanes: int) -> float:
    """Vector multiplications and fused multiply-adds of a real BB* of size n: 4 n log2 n / lanes.

    2 log2 n stages, n outputs each, two products an output.

    >>> butterfly_operations(512, 16)
    1152.0
    """
    return 4 * n * (n.bit_length() - 1) / lanes
