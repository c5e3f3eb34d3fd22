"""How the CUDA library is built, with a stand-in for nvcc."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "cuda" / "build.py"
NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.0"; exit ;;
  --list-gpu-arch) echo compute_90; exit ;;
esac
echo "$@" >> "$NVCC_LOG"
while [ $# -gt 0 ]; do
  if [ "$1" = -ccbin ]; then "$2" of-ccbin >> "$NVCC_LOG" || exit 1; fi
  if [ "$1" = -o ]; then : > "$2"; fi
  shift
done
"""


def make_program(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    torch = tmp_path / "tor, ch"  # which nvcc would divide
    for path, text in {
        "lib/libtorch.so": "",
        "include/torch/headeronly/version.h": "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n",
        "version.py": "cuda: Optional[str] = '13.0'\n",
    }.items():
        (torch / path).parent.mkdir(parents=True, exist_ok=True)
        (torch / path).write_text(text, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != "CXX" and not name.startswith("KALEIDO_")}
    return {
        **kept,
        "KALEIDO_TORCH_DIR": str(torch),
        "KALEIDO_CUDA": "1",
        "NVCC": str(make_program(tmp_path / "nvcc", NVCC)),
        "NVCC_LOG": str(tmp_path / "log"),
    }


def build(environment: dict[str, str], folder: Path) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Its end, and the lines of the stand-in's log."""
    command = [sys.executable, str(BUILD), "--output", str(folder / "library.so")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = folder / "log"
    return result, log.read_text(encoding="utf-8").splitlines() if log.is_file() else []


def test_no_word_is_divided(environment: dict[str, str], tmp_path: Path) -> None:
    result, log = build(environment, tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(log) == 7 and (tmp_path / "library.so").is_file()  # six units and the link
    assert not any("tor, ch" in line or "-ccbin" in line for line in log)


def test_a_compiler_of_several_words_compiles_and_links(environment: dict[str, str], tmp_path: Path) -> None:
    launcher = make_program(tmp_path / "launcher", '#!/bin/sh\necho launched "$@"\n')
    result, log = build({**environment, "CXX": f"{launcher} 'g++ 13' -m64"}, tmp_path)
    assert result.returncode == 0, result.stderr
    assert log.count("launched g++ 13 -m64 of-ccbin") == 7


def test_a_compiler_that_does_not_exist_is_named_before_anything_is_compiled(
    environment: dict[str, str], tmp_path: Path
) -> None:
    result, log = build({**environment, "CXX": "no-such-compiler"}, tmp_path)
    assert result.returncode != 0 and "CXX names 'no-such-compiler', which does not exist" in result.stderr
    assert not log


def build_without_the_cpu_library(environment: dict[str, str], library: Path) -> subprocess.CompletedProcess:
    library.write_text("an old one", encoding="utf-8")
    code = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('build', {str(BUILD)!r})\n"
        "build = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(build)\n"
        f"assert not build.build_if_wanted(pathlib.Path({str(library)!r}), beside_cpu=False)\n"
    )
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_without_the_cpu_library_there_is_no_old_one_either(environment: dict[str, str], tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    result = build_without_the_cpu_library({**environment, "KALEIDO_CUDA": ""}, library)
    assert result.returncode == 0, result.stderr
    assert not library.exists()
    result = build_without_the_cpu_library(environment, library)
    assert result.returncode == 1 and "they need the native kernels for the processor" in result.stderr
