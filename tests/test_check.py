"""The check of an installation, on what is right and on what is made wrong."""

import os
import subprocess
import sys

import pytest
import torch

from kaleido_audio import check, ops
from kaleido_audio.ops.reference import power_spectrum_by_stages

native = pytest.mark.skipif(ops.cpu_capability() is None, reason="the package was built without native kernels")


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SIZES", (16,))
    monkeypatch.setattr(check, "SPECTRA", ((16, 12),))


@native
def test_the_kernels_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("  ok\n") == len(check.TYPES) + len(check.LIMITS)
    assert f"native kernels ({ops.cpu_capability()})" in printed and printed.endswith("All is right.\n")


@native
@pytest.mark.usefixtures("few_sizes")
@pytest.mark.parametrize(
    ("change", "verdict"),
    [(lambda y: y * (1 + 1e-4), "WRONG"), (lambda y: y + torch.nan, "WRONG"), (lambda y: y.detach() + y * 0, "WRONG")],
    ids=["values", "nan", "gradients"],
)
def test_what_is_wrong_is_told(change, verdict, monkeypatch, capsys) -> None:
    right = ops.butterfly_multiply
    monkeypatch.setattr(ops, "butterfly_multiply", lambda *args, **options: change(right(*args, **options)))
    assert check.main(["--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert printed.count(verdict) == len(check.TYPES) and printed.count("  ok\n") == len(check.LIMITS)
    assert "KALEIDO_BACKEND=reference" in printed and "All is right" not in printed


@native
@pytest.mark.usefixtures("few_sizes")
def test_gradients_that_change_are_told(monkeypatch, capsys) -> None:
    def unsteady(*args, **options):
        y = right(*args, **options)
        return y + (y - y.detach()) * torch.rand(()) * 1e-7

    right = ops.butterfly_multiply
    monkeypatch.setattr(ops, "butterfly_multiply", unsteady)
    assert check.main(["--device", "cpu"]) == 1
    assert "CHANGES from run to run" in capsys.readouterr().out


@native
@pytest.mark.usefixtures("few_sizes")
def test_an_error_is_told_and_the_rest_is_checked(monkeypatch, capsys) -> None:
    def failing(*args, **options):
        raise RuntimeError("an illegal memory access\nwas encountered")

    monkeypatch.setattr(ops, "butterfly_power_spectrum", failing)
    assert check.main(["--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILS: an illegal memory access\n") == len(check.LIMITS)
    assert printed.count("  ok\n") == len(check.TYPES)


@pytest.mark.usefixtures("few_sizes")
@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_the_filterbank(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definition in the place of the kernel, which GPUs alone have."""

    def log_filterbank(waveform, window, factors, rows, hop_length, fb, *, log_scale):
        return (
            log_scale * (power_spectrum_by_stages(waveform, window, factors, rows, hop_length) @ fb + 1e-6).log()
            + error
        )

    monkeypatch.setattr(ops, "butterfly_filterbank", log_filterbank)
    assert check.check_filterbank(torch.float32, torch.device("cpu")).is_right == (error == 0)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("KALEIDO_BACKEND", "reference", "KALEIDO_BACKEND=reference"), ("KALEIDO_CPU_LIBRARY", "no.so", "is no file")],
)
def test_without_kernels_it_says_why(name: str, value: str, reason: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "kaleido_audio.check", "--device", "cpu"]
    result = subprocess.run(command, env={**os.environ, name: value}, capture_output=True, text=True, check=True)
    assert "plain PyTorch" in result.stdout and reason in result.stdout
    assert result.stdout.endswith("There was nothing to check.\n")


def test_without_docstrings() -> None:
    command = [sys.executable, "-OO", "-m", "kaleido_audio.check", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "compares every operator" in result.stdout.lower()
