"""What pyproject.toml cannot say: the wheel holds one native library, which belongs to no Python version."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

spec = importlib.util.spec_from_file_location("kaleido_native", Path(__file__).parent / "cpu" / "build.py")
assert spec is not None and spec.loader is not None
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


class BuildNative(build_ext):
    """Builds the library, or goes on as if there had never been one."""

    def get_ext_filename(self, fullname: str) -> str:
        """One name for all: the library is loaded by torch, not imported by Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def run(self) -> None:
        """Compile into the build folder, or for an editable install into the checkout."""
        [extension] = self.extensions
        if not native.build_if_possible(Path(self.get_ext_fullpath(extension.name))):
            self.extensions = self.distribution.ext_modules = []


class Wheel(bdist_wheel):
    """A wheel for every Python: of this platform with the library, of any without it."""

    # Known only once the build has run, which is after setuptools sets it.
    root_is_pure = property(lambda self: not self.distribution.has_ext_modules(), lambda self, value: None)

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-linux_x86_64 or the like, or py3-none-any."""
        return "py3", "none", super().get_tag()[2]


def sources(*patterns: str) -> list[str]:
    """Relative paths, as setuptools wants them; also what the sdist takes along."""
    return sorted(path.as_posix() for pattern in patterns for path in Path("cpu").glob(pattern))


setup(
    ext_modules=[
        Extension(
            native.LIBRARY.removesuffix(".so").replace("/", "."),
            sources=sources("*.cpp"),
            depends=sources("*.h", "build.py"),
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
