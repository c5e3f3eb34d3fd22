"""The machine a benchmark ran on: its name, its vector width and its clock."""

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

# A multiplication waits for the one before it, for 3 cycles on every x86-64 processor of the last fifteen years.
_CHAIN = 32
_REPEATS = 4000
CYCLES_PER_CALL = 3 * _CHAIN * _REPEATS
_SOURCE = f"""
unsigned long long multiply_in_a_chain(unsigned long long x, long repeats) {{
  for (long i = 0; i < repeats; ++i) __asm__ volatile("{"imul %0, %0; " * _CHAIN}" : "+r"(x));
  return x;
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


def clock() -> Callable[[], object] | None:
    """Something that takes `CYCLES_PER_CALL` cycles of this core; None without a C compiler or on other processors."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "chain.c"), Path(folder, "chain.so")
        source.write_text(_SOURCE, encoding="utf-8")
        command = [compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        function = ctypes.CDLL(str(library)).multiply_in_a_chain
    function.argtypes = [ctypes.c_ulonglong, ctypes.c_long]
    function.restype = ctypes.c_ulonglong
    return lambda: function(3, _REPEATS)


def butterfly_operations(n: int, lanes: int) -> float:
    """Vector multiplications and fused multiply-adds of a real BB* of size n: 4 n log2 n / lanes.

    2 log2 n stages, n outputs each, two products an output.

    >>> butterfly_operations(512, 16)
    1152.0
    """
    return 4 * n * (n.bit_length() - 1) / lanes
