"""Compiles the CUDA kernels into one shared library: ``python cuda/build.py [--output FILE]``.

As the CPU library it is written against LibTorch's stable ABI. The CUDA runtime is linked into it, so that it needs
nothing but the driver and torch. No GPU is needed to build it.

Environment variables, beside those of ``cpu/build.py``:
    KALEIDO_CUDA: 0 builds nothing; 1 makes a failure an error. Else the library is built where there is nvcc and a
        torch with CUDA, and a failure is a warning.
    KALEIDO_CUDA_ARCHITECTURES: compute capabilities to compile for, e.g. ``90`` or ``80,90``; PTX of the last one
        serves newer GPUs. All of `ARCHITECTURES` that nvcc knows by default.
    KALEIDO_PTXAS_REPORT: a file for what the assembler says about registers and spills.
    NVCC: the compiler; else it is looked for in CUDA_HOME, in PATH and in /usr/local/cuda.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
if str(SOURCE.parent) not in sys.path:
    sys.path.insert(0, str(SOURCE.parent))

from cpu.build import (  # noqa: E402
    BuildError,
    build_if_possible,
    find_compiler,
    find_torch,
    link,
    named_program,
    read_switch,
    read_words,
    run,
)

LIBRARY = "kaleido_audio/ops/kaleido_audio_cuda.so"
ARCHITECTURES = ("80", "90", "100")
# Those that take longest first.
UNITS = ("kernels_c64.cu", "kernels_c128.cu", "clusters.cu", "kernels_f32.cu", "kernels_f64.cu", "ops.cu")
# Below this compute capability nvcc writes the same PTX for all, except of the unit whose kernels know of clusters. PTX
# takes about half of the time of a unit, so that it is written once.
SAME_PTX_BELOW = 100
CLUSTERS = "clusters.cu"

COMPILE_FLAGS = [
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    "--extended-lambda",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-Xptxas=-v",
    "-Xfatbin=-compress-all",
]
HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections"]
LINK_FLAGS = ["-shared", "-cudart", "static", "-ltorch"]
LINKER_FLAGS = ["--gc-sections", "--no-as-needed", "--exclude-libs=ALL", "-s"]


def find_nvcc() -> Path | None:
    """The CUDA compiler: NVCC, else that of CUDA_HOME, the first in PATH, and that of /usr/local/cuda."""
    named = os.environ.get("NVCC")
    if named:
        return Path(named_program("NVCC", named, "CUDA's nvcc"))
    home = os.environ.get("CUDA_HOME")
    for candidate in (home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = candidate and shutil.which(candidate)
        if found:
            return Path(found)
    return None


def torch_cuda(torch: Path) -> str | None:
    """The CUDA version that a torch package was built with, e.g. "13.0"; None without CUDA."""
    found = re.search(r"^cuda\b[^=]*= '([\d.]+)'", (torch / "version.py").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else None


def capability(number: str) -> int:
    """Ten times a compute capability, e.g. 90 for "90a"."""
    return int(re.sub(r"\D", "", number))


def architectures(nvcc: Path) -> list[str]:
    """The compute capabilities to compile for, in rising order."""
    known = set(re.findall(r"compute_(\w+)", run([str(nvcc), "--list-gpu-arch"])))
    named = os.environ.get("KALEIDO_CUDA_ARCHITECTURES", "")
    chosen = [part for part in re.split(r"[\s,;]+", named.replace(".", "")) if part]
    unknown = [part for part in chosen if part not in known]
    if unknown:
        raise BuildError(
            f"{nvcc} does not compile for KALEIDO_CUDA_ARCHITECTURES={named!r}: it knows {', '.join(sorted(known))}",
            "choose among those, e.g. KALEIDO_CUDA_ARCHITECTURES=80,90",
        )
    found = chosen or [part for part in ARCHITECTURES if part in known]
    if not found:
        raise BuildError(f"{nvcc} knows none of {', '.join(ARCHITECTURES)}", "install CUDA 12 or newer")
    return sorted(found, key=capability)


def code_flags(unit: str, chosen: list[str]) -> list[str]:
    """nvcc's flags for what code a unit gets: for each of the chosen compute capabilities, and PTX of the last one."""
    codes: dict[str, list[str]] = {}  # for each PTX that is written
    for number in chosen:
        shared = unit != CLUSTERS and capability(number) < SAME_PTX_BELOW
        written = chosen[0] if shared else number
        codes.setdefault(written, []).append(f"sm_{number}")
    codes[written].append(f"compute_{written}")
    return [f"-gencode=arch=compute_{written},code=[{','.join(code)}]" for written, code in codes.items()]


def host_compiler(folder: Path) -> list[str]:
    """nvcc's flags for the C++ compiler that CXX names; a command of several words is put into a script there."""
    if not read_words("CXX"):
        return []
    words = find_compiler()
    if len(words) == 1:
        return ["-ccbin", words[0]]
    script = folder / "host-compiler"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return ["-ccbin", str(script)]


def build(output: Path) -> None:
    """Compile the library into ``output``, or raise `BuildError` and leave ``output`` as it was."""
    nvcc, torch = find_nvcc(), find_torch()
    if nvcc is None:
        raise BuildError(
            "there is no nvcc: NVCC, CUDA_HOME, PATH and /usr/local/cuda were looked at",
            "install the CUDA toolkit, or name its nvcc in NVCC",
        )
    version = re.search(r"release (\d+)\.", run([str(nvcc), "--version"]))
    cuda = torch_cuda(torch)
    if cuda is None:
        raise BuildError(f"the torch in {torch} was built without CUDA", "install a torch with CUDA")
    if version is None or int(version.group(1)) > int(cuda.split(".")[0]):
        raise BuildError(
            f"{nvcc} is of CUDA {version.group(1) if version else 'unknown'} and torch of CUDA {cuda}: the library "
            "might ask for a newer driver than torch does",
            f"name an nvcc of CUDA {cuda} in NVCC or CUDA_HOME",
        )
    chosen = architectures(nvcc)
    with tempfile.TemporaryDirectory(prefix="kaleido_audio-") as folder:
        # By another name, because nvcc divides the words that it hands on at spaces and commas.
        here = Path(folder, "torch")
        here.symlink_to(torch)
        flags = [*COMPILE_FLAGS, "-isystem", str(here / "include"), f"-DKALEIDO_CUDA_ARCHITECTURES={':'.join(chosen)}"]
        flags += [f"-Xcompiler={flag}" for flag in [*HOST_FLAGS, f"-ffile-prefix-map={here}=torch"]]
        objects = [str(Path(folder, f"{unit}.o")) for unit in UNITS]
        command = [str(nvcc), *host_compiler(Path(folder))]

        def compile_unit(unit: str, object_file: str) -> str:
            return run([*command, *flags, *code_flags(unit, chosen), "-c", f"{SOURCE.name}/{unit}", "-o", object_file])

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            printed = list(pool.map(compile_unit, UNITS, objects))
        link([*command, *objects, f"-L{here / 'lib'}", *LINK_FLAGS, *(f"-Xlinker={f}" for f in LINKER_FLAGS)], output)
    report = os.environ.get("KALEIDO_PTXAS_REPORT")
    if report:
        Path(report).parent.mkdir(parents=True, exist_ok=True)
        Path(report).write_text("\n".join(printed) + "\n", encoding="utf-8")


def build_if_wanted(output: Path, *, beside_cpu: bool = True) -> bool:
    """Build the library as KALEIDO_CUDA says, and tell whether it is there.

    Args:
        output: the library; an old one is gone where there is no new one.
        beside_cpu: whether there is the CPU library, which it needs.
    """
    if not beside_cpu:
        if read_switch("KALEIDO_CUDA") == "1":
            raise SystemExit(
                "kaleido_audio: the CUDA kernels could not be built (KALEIDO_CUDA=1 makes this an error)\n"
                "why: they need the native kernels for the processor, and those were not built\n"
                "what to do: see above, or leave KALEIDO_NATIVE=0 out"
            )
        output.unlink(missing_ok=True)
        return False
    try:
        possible = find_nvcc() is not None and torch_cuda(find_torch()) is not None
    except BuildError:
        possible = True  # and fails in `build`, which says why
    if read_switch("KALEIDO_CUDA") == "" and (read_switch("KALEIDO_NATIVE") == "0" or not possible):
        output.unlink(missing_ok=True)
        return False
    return build_if_possible(output, build, "KALEIDO_CUDA", "CUDA kernels")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels.")
    parser.add_argument(
        "--output", type=Path, default=SOURCE.parent / LIBRARY, help="the library (default: the checkout's)"
    )
    if not build_if_wanted(parser.parse_args().output):
        print("no CUDA library: KALEIDO_CUDA=1 makes this an error and says why", file=sys.stderr)


if __name__ == "__main__":
    main()
