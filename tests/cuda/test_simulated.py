"""The CUDA kernels' maths without a GPU: the same headers, compiled as C++, every thread of a grid run in turn."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-U_FORTIFY_SOURCE"]


@pytest.mark.parametrize("program", ["check_multiply", "check_backward", "check_spectrum"])
def test_simulated_kernels_agree_with_the_definition(program: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")  # the fibers of simulator.h and _Float16 want GCC
    if compiler is None:
        pytest.skip("there is no g++")
    sources = HERE.parent.parent / "cuda" / "multiply.h"
    if not sources.is_file():
        pytest.skip("the kernels' sources are not beside the tests")
    binary = tmp_path / program
    subprocess.run([compiler, *FLAGS, str(HERE / f"{program}.cpp"), "-o", str(binary)], check=True)
    result = subprocess.run([str(binary)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
