"""Installing where there is no compiler, and the other ways in which the kernels cannot be built.

    pytest tests/packaging/no_compiler.py

Each installation is by pip from the sdist, without build isolation: setuptools 77 or newer has to be installed. Named
so that the tests of the checkout, which may have an older one, leave it alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE_TWICE = """
import warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import kaleido_audio
    for _ in range(2):
        assert kaleido_audio.ops.backend(torch.zeros(3)) == "reference"
        y = kaleido_audio.KMatrix(4)(torch.ones(4))
        assert torch.allclose(y.norm(), torch.tensor(2.0))
print(kaleido_audio.__file__)
for w in caught:
    print(w.category.__name__, w.message)
"""


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != "CXX" and not name.startswith("KALEIDO_")}
    return subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy, so that nothing is left in the checkout.
    copy = tmp_path_factory.mktemp("source") / "kaleido_audio"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "data", "demo", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    result = run([sys.executable, "-c", code], copy)
    assert result.returncode == 0, result.stdout + result.stderr
    [archive] = (copy / "dist").iterdir()
    return archive


@pytest.fixture
def nothing_on_path(tmp_path: Path) -> str:
    folder = tmp_path / "empty"
    folder.mkdir()
    return str(folder)


def install(sdist: Path, target: Path, **environment: str) -> subprocess.CompletedProcess:
    pip = [sys.executable, "-m", "pip", "install", "--verbose", "--no-build-isolation", "--no-deps", "--no-cache-dir"]
    # Where there is nvcc, it would compile for minutes what these tests do not look at.
    return run([*pip, "--target", str(target), str(sdist)], target.parent, **{"KALEIDO_CUDA": "0", **environment})


def assert_works_on_the_reference_path(target: Path) -> list[str]:
    """Use the package twice; the warnings that it gave."""
    assert not list(target.rglob("*.so"))
    [wheel] = target.glob("*.dist-info/WHEEL")
    assert "Tag: py3-none-any" in wheel.read_text()
    result = run([sys.executable, "-c", USE_TWICE], target, PYTHONPATH=str(target))
    assert result.returncode == 0, result.stderr
    place, *given = result.stdout.splitlines()
    assert Path(place).is_relative_to(target)
    return given


def test_sdist_holds_what_the_kernels_are_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kinds = (".cpp", ".cu", ".cuh", ".h", ".py")
    folders = (ROOT / "cpu", ROOT / "cuda")
    sources = {p.relative_to(ROOT).as_posix() for folder in folders for p in folder.iterdir() if p.suffix in kinds}
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "kaleido_audio/py.typed"} | sources <= names
    assert not [name for name in names if name.endswith((".so", ".o"))]
    # Tests need the checkout around them; setuptools would take along those that lie at the top.
    assert not [name for name in names if name.startswith("tests")]


def test_without_a_compiler_it_installs_and_says_so_once(sdist: Path, tmp_path: Path, nothing_on_path: str) -> None:
    result = install(sdist, tmp_path / "target", PATH=nothing_on_path)
    assert result.returncode == 0, result.stderr
    output = result.stdout + result.stderr
    assert output.count("WITHOUT its native kernels") == 1
    assert "there is no C++ compiler" in output
    given = assert_works_on_the_reference_path(tmp_path / "target")
    assert [line.partition(" ")[0] for line in given if "native kernels" in line] == ["UserWarning"], given


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("CXX", "false", "the compiler failed"),
        ("CXX", "no-such-compiler -O2", "CXX names 'no-such-compiler', which does not exist"),
        ("CXX", f"'{ROOT / 'setup.py'}'", "which is no executable file"),
        ("CXX", '"g++', "is not quoted as in a shell: No closing quotation"),
        ("CXX", "true", "true ended without an error and wrote no library"),
        ("KALEIDO_CXXFLAGS", "'-O2", 'KALEIDO_CXXFLAGS="\'-O2" is not quoted as in a shell'),
        ("KALEIDO_TORCH_DIR", "no/such/folder", "torch was looked for and not found"),
    ],
)
def test_what_fails_is_told_and_the_package_installed(
    sdist: Path, tmp_path: Path, name: str, value: str, why: str
) -> None:
    result = install(sdist, tmp_path / "target", **{name: value})
    assert result.returncode == 0, result.stderr
    assert why in result.stdout + result.stderr
    assert_works_on_the_reference_path(tmp_path / "target")


def test_the_cuda_kernels_need_those_of_the_processor(sdist: Path, tmp_path: Path) -> None:
    result = install(sdist, tmp_path / "target", CXX="false", KALEIDO_CUDA="1")
    assert result.returncode != 0
    assert "they need the native kernels for the processor" in result.stdout + result.stderr
    result = install(sdist, tmp_path / "target", CXX="false", KALEIDO_CUDA="")
    assert result.returncode == 0, result.stderr
    assert "CUDA kernels" not in result.stdout + result.stderr
    assert_works_on_the_reference_path(tmp_path / "target")


def test_insisting_on_cuda_without_nvcc_is_an_error(sdist: Path, tmp_path: Path) -> None:
    baseline = {"KALEIDO_CXXFLAGS": "-O0 -DKALEIDO_ONLY_BASELINE"}
    result = install(sdist, tmp_path / "target", KALEIDO_CUDA="1", NVCC="no-such-nvcc", **baseline)
    assert result.returncode != 0
    assert "NVCC names 'no-such-nvcc'" in result.stdout + result.stderr


def test_an_older_torch_is_named(sdist: Path, tmp_path: Path) -> None:
    for path, text in {
        "lib/libtorch.so": "",
        "include/torch/headeronly/version.h": "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 9\n",
    }.items():
        (tmp_path / "torch" / path).parent.mkdir(parents=True)
        (tmp_path / "torch" / path).write_text(text)
    result = install(sdist, tmp_path / "target", KALEIDO_TORCH_DIR=str(tmp_path / "torch"), CXX="true")
    assert result.returncode == 0, result.stderr
    assert "torch 2.11 or newer is needed" in result.stdout + result.stderr


def test_on_purpose_it_is_silent(sdist: Path, tmp_path: Path) -> None:
    result = install(sdist, tmp_path / "target", KALEIDO_NATIVE="0")
    assert result.returncode == 0, result.stderr
    assert "native kernels" not in result.stdout + result.stderr
    assert_works_on_the_reference_path(tmp_path / "target")


def test_insisting_makes_it_an_error(sdist: Path, tmp_path: Path, nothing_on_path: str) -> None:
    result = install(sdist, tmp_path / "target", KALEIDO_NATIVE="1", PATH=nothing_on_path)
    assert result.returncode != 0
    assert "there is no C++ compiler" in result.stdout + result.stderr
    assert not (tmp_path / "target").exists()
