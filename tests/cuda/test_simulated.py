"""The CUDA kernels without a GPU: their sources, compiled as C++, every thread of a grid run in turn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kaleido_audio.ops import native

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "cuda"
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-U_FORTIFY_SOURCE"]
# Without clusters of blocks; with much less shared memory, for which some sizes are enough; and with clusters.
GPUS = {"sm_80": "", "sm_86": "not values or 9-2 or 10-2 or 11-1", "sm_90": ""}
UNITS = ("ops", "clusters", "kernels_f32", "kernels_f64", "kernels_c64", "kernels_c128")


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("g++")  # the fibers of simulator.h and _Float16 want GCC
    if found is None:
        pytest.skip("there is no g++")
    if not (SOURCES / "ops.cu").is_file():
        pytest.skip("the kernels' sources are not beside the tests")
    return found


@pytest.mark.parametrize("program", ["check_multiply", "check_backward", "check_spectrum"])
def test_simulated_kernels_agree_with_the_definition(program: str, compiler: str, tmp_path: Path) -> None:
    binary = tmp_path / program
    subprocess.run([compiler, *FLAGS, str(HERE / f"{program}.cpp"), "-o", str(binary)], check=True)
    result = subprocess.run([str(binary)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def library(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operators of ``cuda/ops.cu``, with all their launches, on tensors of the processor."""
    folder, package = tmp_path_factory.mktemp("simulated"), Path(torch.__file__).parent
    flags = [*FLAGS, "-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [
        "-isystem",
        str(package / "include"),
        "-I",
        str(HERE / "simulated"),
        "-x",
        "c++",
        "-DKALEIDO_CUDA_ARCHITECTURES=80:90",
    ]

    def compile_unit(unit: str) -> None:
        subprocess.run(
            [compiler, *flags, "-c", str(SOURCES / f"{unit}.cu"), "-o", str(folder / f"{unit}.o")], check=True
        )

    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_unit, UNITS))
    output = folder / "simulated.so"
    objects = [str(folder / f"{unit}.o") for unit in UNITS]
    link = ["-shared", f"-L{package / 'lib'}", "-Wl,--no-as-needed", "-ltorch"]
    subprocess.run([compiler, *objects, *link, "-o", str(output)], check=True)
    return output


@pytest.fixture(scope="module")
def runs(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[subprocess.Popen, Path]]]:
    """The tests for GPUs on simulated ones, side by side: the process of each and what it prints."""
    folder, started = tmp_path_factory.mktemp("runs"), {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_gpu.py")]
    environment = {**os.environ, "KALEIDO_CUDA_LIBRARY": str(library), "OMP_NUM_THREADS": "1"}
    for gpu, selected in GPUS.items():
        with (folder / gpu).open("w") as printed:
            process = subprocess.Popen(
                [*command, "-k", selected],
                stdout=printed,
                stderr=subprocess.STDOUT,
                env={**environment, "KALEIDO_SIMULATED_GPU": gpu},
                cwd=HERE.parent.parent,
            )
        started[gpu] = process, folder / gpu
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.skipif("cpu" not in native._devices, reason="the package was built without native kernels")
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA loads no CUDA kernels")
@pytest.mark.parametrize("gpu", GPUS)
def test_the_tests_for_gpus_pass_on_a_simulated_one(gpu: str, runs: dict[str, tuple[subprocess.Popen, Path]]) -> None:
    process, printed = runs[gpu]
    process.wait()
    assert process.returncode == 0, printed.read_text()
    assert " passed" in printed.read_text()
