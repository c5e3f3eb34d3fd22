"""Compiles the CPU kernels into one shared library: ``python cpu/build.py [--output FILE]``.

The library is written against LibTorch's stable ABI and holds no Python symbol, so that one file serves every torch
from 2.11 on and every Python. Only torch's headers and libtorch.so are needed, and they are found without importing
torch: pip builds in an environment of its own, where torch cannot be imported but lies on the same disk.

Environment variables:
    KALEIDO_NATIVE: 0 builds nothing, silently; 1 makes a failure an error; else a failure is a warning.
    KALEIDO_TORCH_DIR: the folder of the torch package, which holds ``include`` and ``lib``.
    CXX: the compiler.
    KALEIDO_CXXFLAGS, KALEIDO_LDFLAGS: flags to add. With -DKALEIDO_ONLY_BASELINE there is one set of kernels, for the
        processor that a -march beside it names, and the others' compile time is saved.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
LIBRARY = "kaleido_audio/ops/kaleido_audio_cpu.so"
OLDEST_TORCH = (2, 11)

COMPILE_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-plt",
    "-ffunction-sections",
    "-fdata-sections",
    # The stable ABI of torch 2.10: without it a build on a newer torch does not load on an older one.
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
LINK_FLAGS = ["-shared", "-Wl,--gc-sections", "-Wl,--no-as-needed", "-ltorch"]
X86_FLAGS = {
    "baseline": ["-march=x86-64-v2"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}


class BuildError(Exception):
    """Why the library was not built, and what to do about it."""

    def __init__(self, why: str, what_to_do: str) -> None:
        super().__init__(why)
        self.why = why
        self.what_to_do = what_to_do


def read_words(variable: str) -> list[str]:
    """The words of an environment variable, quoted as in a shell."""
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BuildError(f"{variable}={text!r} is not quoted as in a shell: {error}", f"correct {variable}") from None


def named_program(variable: str, name: str, what: str) -> str:
    """The path of the program that an environment variable names, or a `BuildError`."""
    found = shutil.which(name)
    if found is None:
        reason = "is no executable file" if Path(name).exists() else "does not exist"
        raise BuildError(f"{variable} names {name!r}, which {reason}", f"set {variable} to {what}, or unset it")
    return found


def find_compiler() -> list[str]:
    """The command that compiles C++: CXX, else the first of c++, g++ and clang++ that exists."""
    named = read_words("CXX")
    if named:
        named_program("CXX", named[0], "a C++ compiler")
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise BuildError(
        "there is no C++ compiler: c++, g++ and clang++ were looked for",
        "install one (Debian and Ubuntu: the package g++) or name one in CXX",
    )


def find_torch() -> Path:
    """The folder of the newest enough torch package, which holds ``include`` and ``lib``."""
    named = os.environ.get("KALEIDO_TORCH_DIR")
    if named:
        candidates = [Path(named).absolute()]
    else:
        spec = importlib.util.find_spec("torch")
        candidates = [Path(folder) for folder in (spec.submodule_search_locations or [] if spec else [])]
        # The environment that pip installs into, seen from the one that it builds in.
        folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
        folders += [site.getusersitepackages()] if site.ENABLE_USER_SITE is not False else []
        candidates += [Path(folder) / "torch" for folder in folders]
    oldest = ".".join(map(str, OLDEST_TORCH))
    for folder in candidates:
        if not (folder / "lib" / "libtorch.so").is_file():
            continue
        header = folder / "include" / "torch" / "headeronly" / "version.h"
        text = header.read_text(encoding="utf-8") if header.is_file() else ""
        version = tuple(map(int, re.findall(r"define TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", text)))
        if version < OLDEST_TORCH:
            found = ".".join(map(str, version)) or "one without the headers of the stable ABI"
            raise BuildError(f"torch {oldest} or newer is needed, {folder} is {found}", "upgrade torch")
        return folder
    places = "".join(f"\n  {folder}" for folder in dict.fromkeys(candidates))
    raise BuildError(
        f"torch was looked for and not found at{places}",
        f"install torch {oldest} or newer before this package; where it lies elsewhere (uv and build work in an\n"
        "environment far from the one they install into), turn build isolation off, or name the folder of the torch\n"
        "package in KALEIDO_TORCH_DIR",
    )


def run(command: list[str]) -> str:
    """Run a compiler in the folder above the sources and return what it printed, or raise `BuildError`."""
    # English messages, and paths relative to the sources: neither belongs to this machine.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        result = subprocess.run(command, cwd=SOURCE.parent, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error.strerror}", "name another compiler") from None
    output = (result.stdout + result.stderr).strip()
    if result.returncode:
        lines = output.splitlines()
        shown = "\n".join(lines[:40] + ["..."] * (len(lines) > 40))
        raise BuildError(
            f"the compiler failed:\n{shlex.join(command)}\n{shown}",
            "use GCC 11 or newer or Clang 12 or newer, for example by CXX; if yours is, report this",
        )
    return output


def link(command: list[str], output: Path) -> None:
    """Run a linker's command, but for its ``-o``, and put the library at ``output`` in one step.

    Programs that have the old library loaded keep it.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    library = output.with_name(f".{os.getpid()}.{output.name}")
    try:
        _show(run([*command, "-o", str(library)]))
        if not library.is_file():
            raise BuildError(
                f"{command[0]} ended without an error and wrote no library: it is no compiler", "name another compiler"
            )
        library.replace(output)
    finally:
        library.unlink(missing_ok=True)


def _show(output: str) -> None:
    if output:
        print(output, file=sys.stderr)


def build(output: Path) -> None:
    """Compile the library into ``output``, or raise `BuildError` and leave ``output`` as it was."""
    platform = sysconfig.get_platform()
    if not platform.startswith("linux-"):
        raise BuildError(f"the kernels are for Linux, this is {platform}", "nothing: the package works without them")
    compiler = find_compiler()
    torch = find_torch()

    extra, more = read_words("KALEIDO_CXXFLAGS"), read_words("KALEIDO_LDFLAGS")
    # Messages of failed checks name their source file: not by its place on this machine.
    flags = [*COMPILE_FLAGS, f"-ffile-prefix-map={torch}=torch", "-isystem", str(torch / "include")]
    variants = X86_FLAGS if platform.endswith("x86_64") else {"baseline": []}
    if len(variants) == 1:
        flags.append("-DKALEIDO_ONLY_BASELINE")
    elif "-DKALEIDO_ONLY_BASELINE" in extra:
        variants = {"baseline": variants["baseline"]}
    # In order of rising demands: of an inline function that several objects hold, the linker keeps the first, and
    # that one has to run on every processor.
    units = [("ops.cpp", "ops", variants["baseline"])]
    units += [("kernels.cpp", isa, [f"-DKALEIDO_ISA={isa}", *isa_flags]) for isa, isa_flags in variants.items()]

    with tempfile.TemporaryDirectory(prefix="kaleido_audio-") as folder:
        objects = [str(Path(folder, f"{name}.o")) for _, name, _ in units]

        def compile_unit(unit: tuple[str, str, list[str]], object_file: str) -> None:
            source, _, unit_flags = unit
            _show(run([*compiler, *flags, *unit_flags, *extra, "-c", f"{SOURCE.name}/{source}", "-o", object_file]))

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            # The kernels of the widest vectors take longest: begun first, the rest fills the other cores meanwhile.
            list(pool.map(compile_unit, units[::-1], objects[::-1]))

        strip = [] if "-g" in extra else ["-Wl,-s"]
        link([*compiler, *extra, *objects, f"-L{torch / 'lib'}", *LINK_FLAGS, *strip, *more], output)


def build_if_possible(
    output: Path,
    build: Callable[[Path], object] = build,
    switch: str = "KALEIDO_NATIVE",
    what: str = "native kernels",
) -> bool:
    """Build the library ``output`` as an environment variable says, and tell whether it is there.

    Whatever ``output`` held before is gone when there is nothing new: an old library beside new Python code would
    be worse than none.

    Args:
        output: the library.
        build: compiles into ``output``, or raises `BuildError` and leaves ``output`` as it was.
        switch: the environment variable: 0 builds nothing, 1 makes a failure an error, else it is a warning.
        what: is in the library, for messages.
    """
    chosen = read_switch(switch)
    try:
        if chosen != "0":
            build(output)
            return True
    except BuildError as error:
        if chosen == "1":
            raise SystemExit(
                f"kaleido_audio: the {what} could not be built ({switch}=1 makes this an error)\n"
                f"why: {error.why}\nwhat to do: {error.what_to_do}"
            ) from None
        line = "*" * 100
        print(
            f"\n{line}\n"
            f"WARNING: kaleido_audio is installed WITHOUT its {what}. Everything works, but slower.\n"
            f"why: {error.why}\n"
            f"what to do: {error.what_to_do}; then install again.\n"
            f"{switch}=0 installs without them on purpose, {switch}=1 makes this an error.\n"
            f"{line}\n",
            file=sys.stderr,
            flush=True,
        )
    output.unlink(missing_ok=True)
    return False


def read_switch(name: str) -> str:
    """The environment variable of that name: "0", "1" or ""."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"kaleido_audio: expected {name}=0, {name}=1 or nothing, got {value!r}")
    return value


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile the CPU kernels.")
    parser.add_argument(
        "--output", type=Path, default=SOURCE.parent / LIBRARY, help="the library (default: the checkout's)"
    )
    build_if_possible(parser.parse_args().output)


if __name__ == "__main__":
    main()
