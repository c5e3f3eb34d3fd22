"""What pyproject.toml cannot say: the wheel holds native libraries, which belong to no Python version."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def builder(folder: str) -> ModuleType:
    """``build.py`` of a folder, by its place: other packages are named cuda too."""
    spec = importlib.util.spec_from_file_location(
        f"kaleido_build_{folder}", Path(__file__).parent / folder / "build.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cpu, cuda = builder("cpu"), builder("cuda")


class BuildNative(build_ext):
    """Builds the libraries, or goes on as if there had never been any."""

    def get_ext_filename(self, fullname: str) -> str:
        """One name for all: the libraries are loaded by torch, not imported by Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def run(self) -> None:
        """Compile into the build folder, or for an editable install into the checkout."""
        outputs = {extension.name: Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions}
        # The CUDA library adds to the operators that the CPU library defines.
        built = {name_of(cpu.LIBRARY): cpu.build_if_possible(outputs[name_of(cpu.LIBRARY)])}
        others = built[name_of(cpu.LIBRARY)]
        built[name_of(cuda.LIBRARY)] = cuda.build_if_wanted(outputs[name_of(cuda.LIBRARY)], beside_cpu=others)
        self.extensions = self.distribution.ext_modules = [e for e in self.extensions if built.get(e.name)]


class Wheel(bdist_wheel):
    """A wheel for every Python: of this platform with the library, of any without it."""

    # Known only once the build has run, which is after setuptools sets it.
    root_is_pure = property(lambda self: not self.distribution.has_ext_modules(), lambda self, value: None)

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-linux_x86_64 or the like, or py3-none-any."""
        return "py3", "none", super().get_tag()[2]


def name_of(library: str) -> str:
    """The dotted name of a library."""
    return library.removesuffix(".so").replace("/", ".")


def extension(library: str, *folders: str) -> Extension:
    """A library with the files it is made of, relative as setuptools wants them: what the sdist takes along."""
    files = sorted(path.as_posix() for folder in folders for path in Path(folder).iterdir() if path.is_file())
    sources = [file for file in files if file.endswith((".cpp", ".cu"))]
    return Extension(name_of(library), sources, depends=[file for file in files if file not in sources])


setup(
    ext_modules=[extension(cpu.LIBRARY, "cpu"), extension(cuda.LIBRARY, "cuda")],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
