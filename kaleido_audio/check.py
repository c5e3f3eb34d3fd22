"""Which kernels run here, and whether they are right: ``python -m kaleido_audio.check``."""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import kaleido_audio
from kaleido_audio import ops
from kaleido_audio.ops import native
from kaleido_audio.ops.reference import multiply_by_stages, power_spectrum_by_stages

_DESCRIPTION = (
    "Compares every operator with its definition in plain PyTorch and float64, values and gradients, on the processor "
    "and on every GPU, for many vectors and for few. It takes some seconds, and prints what belongs into a report of a "
    "fault."
)
TYPES = (
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.complex64),
    (torch.complex64, torch.complex64),
    (torch.float64, torch.complex128),
    (torch.complex128, torch.complex128),
)
SIZES = (2, 64, 256, 512, 1024, 2048, 4096)
BYTES_ON_GPU = 1 << 24  # of many vectors: enough for several to a warp
SPECTRA = ((64, 50), (256, 256), (512, 400), (1024, 400), (1024, 1024))  # points, samples of a frame
LIMITS = {torch.float32: 3e-5, torch.float64: 5e-14}

Function = Callable[..., Tensor]
Case = tuple[Function, Function, tuple[Tensor, ...]]  # an operator, its definition, what both are called with


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        operator: and what it computes in.
        values: the largest difference, relative to the largest number that is right; infinity for a number that is
            none.
        gradients: the same of gradients; None where there are none.
        repeats: whether gradients have the same bits once more.
        limit: of both errors.
        failure: the error that it ended with, if it did.
    """

    operator: str
    values: float = 0.0
    gradients: float | None = None
    repeats: bool = True
    limit: float = 0.0
    failure: str = ""

    @property
    def is_right(self) -> bool:
        """Whether all is as it should be."""
        return not self.failure and self.repeats and max(self.values, self.gradients or 0.0) <= self.limit

    def __str__(self) -> str:
        if self.failure:
            return f"  {self.operator:<36} FAILS: {self.failure}"
        gradients = "-" if self.gradients is None else f"{self.gradients:.1e}"
        verdict = "ok" if self.is_right else "WRONG" if self.repeats else "CHANGES from run to run"
        return f"  {self.operator:<36} {self.values:>9.1e} {gradients:>9} {self.limit:>9.0e}  {verdict}"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude of ``expected``; infinity where one is no number.

    >>> relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
    0.25
    """
    error = (actual - expected).abs().max().item() / max(expected.abs().max().item(), 1e-300)
    return error if error < torch.inf else torch.inf


def compare(operator: str, cases: Iterator[Case]) -> Finding:
    """The worst of some cases of an operator, differentiated by all that it is called with."""
    worst, limit, repeats = [0.0, 0.0], 0.0, True
    try:
        for function, definition, inputs in cases:
            limit = LIMITS[inputs[0].dtype.to_real()]
            leaves = [x.detach().requires_grad_() for x in inputs]
            wide = [widened(x).requires_grad_() for x in inputs]
            got, expected = function(*leaves), definition(*wide)
            grad = torch.randn_like(got)
            grads = torch.autograd.grad(got, leaves, grad)
            again = torch.autograd.grad(function(*leaves), leaves, grad)
            wanted = torch.autograd.grad(expected, wide, grad.to(expected.dtype))
            errors = [relative_error(a, b) for a, b in zip(grads, wanted, strict=True)]
            worst = [max(worst[0], relative_error(got, expected)), max(worst[1], *errors)]
            repeats = repeats and all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    except RuntimeError as error:
        return Finding(operator, failure=first_line(error))
    return Finding(operator, worst[0], worst[1], repeats, limit)


def random_factors(n_factors: int, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of a size such that neither values nor gradients grow or shrink much."""
    return torch.randn(n_factors, n.bit_length() - 1, 2, n, dtype=dtype, device=device) * 0.7


def check_products(device: torch.device) -> Iterator[Finding]:
    """`kaleido_audio.ops.butterfly_multiply` for all types."""
    for of_x, of_factors in TYPES:
        cases = (
            product_case(torch.randn(vectors, n - n // 4, dtype=of_x, device=device), n_factors, n, of_factors)
            for n in SIZES
            for n_factors, vectors in ((2, 1), (2, many_vectors(n, of_factors, device)), (1, 7), (5, 7))
        )
        yield compare(f"product, {name_of(of_x)} x {name_of(of_factors)}", cases)


def many_vectors(n: int, of_factors: torch.dtype, device: torch.device) -> int:
    """As many as the kernels for many want."""
    return BYTES_ON_GPU // (n * of_factors.itemsize) if device.type == "cuda" else 40


def product_case(x: Tensor, n_factors: int, n: int, of_factors: torch.dtype) -> Case:
    """Of vectors shorter than n and results that are too."""
    out = n - n // 3
    return (
        lambda x, factors: ops.butterfly_multiply(x, factors, out_features=out, materialise=False),
        lambda x, factors: multiply_by_stages(x, factors)[..., :out],
        (x, random_factors(n_factors, n, of_factors, x.device)),
    )


def check_spectra(device: torch.device) -> Iterator[Finding]:
    """`kaleido_audio.ops.butterfly_power_spectrum`, and on a GPU `kaleido_audio.ops.butterfly_filterbank`."""
    for dtype in LIMITS:
        cases = (spectrum_case(n, length, rows, dtype) for n, length in SPECTRA for rows in rows_of_spectra(n, device))
        yield compare(f"power spectrum, {name_of(dtype)}", cases)
        if device.type == "cuda":
            yield check_filterbank(dtype, device)


def spectrum_case(n: int, length: int, rows: Tensor, dtype: torch.dtype) -> Case:
    """Of three waveforms of some sixty frames each."""
    hop = length // 3
    waveform = torch.randn(3, 20 * length + 7, dtype=dtype, device=rows.device)
    window = torch.rand(length, dtype=dtype, device=rows.device)
    return (
        partial(ops.butterfly_power_spectrum, rows=rows, hop_length=hop),
        partial(power_spectrum_by_stages, rows=rows, hop=hop),
        (waveform, window, random_factors(2, n, dtype.to_complex(), rows.device)),
    )


def rows_of_spectra(n: int, device: torch.device) -> tuple[Tensor, ...]:
    """Outputs that kernels treat differently: those of a Fourier transform in bit-reversed order, and any."""
    one_odd = torch.cat([torch.arange(0, n, 2), torch.tensor([1])])
    return one_odd.to(device), torch.randperm(n)[: n // 2 + 1].to(device)


def check_filterbank(dtype: torch.dtype, device: torch.device) -> Finding:
    """The kernel from the waveform to the logarithm, which has no gradients."""
    operator, worst = f"log filterbank, {name_of(dtype)}", 0.0
    try:
        for n, length in SPECTRA:
            for rows in rows_of_spectra(n, device):
                _, definition, inputs = spectrum_case(n, length, rows, dtype)
                fb = torch.rand(len(rows), 80, dtype=dtype, device=device)
                waveform, window, factors = inputs
                got = ops.butterfly_filterbank(waveform, window, factors, rows, length // 3, fb, log_scale=1.0)
                expected = (definition(*map(widened, inputs)) @ widened(fb) + 1e-6).log()
                worst = max(worst, relative_error(got, expected))
    except RuntimeError as error:
        return Finding(operator, failure=first_line(error))
    return Finding(operator, worst, limit=LIMITS[dtype])


def widened(x: Tensor) -> Tensor:
    """In double precision."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float64))


def first_line(error: Exception) -> str:
    """Of its text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def name_of(dtype: torch.dtype) -> str:
    """E.g. "float32"."""
    return str(dtype).removeprefix("torch.")


def describe(device: torch.device, backend: str) -> str:
    """The device, and what computes there.

    >>> describe(torch.device("cpu"), "reference").startswith("cpu: plain PyTorch")
    True
    """
    name, kernels = str(device), f"native kernels ({ops.cpu_capability()})"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name += f" ({torch.cuda.get_device_name(device)}, compute capability {major}.{minor})"
        kernels = "native kernels"
    if backend == "reference":
        why = native.reason_for_none(device.type) or "KALEIDO_BACKEND=reference"
        kernels = f"plain PyTorch, which is the definition, so that there is nothing to check ({why})"
    return f"{name}: {kernels}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if all is right."""
    parser = argparse.ArgumentParser(prog="python -m kaleido_audio.check", description=_DESCRIPTION)
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    known = [*devices, *(["cuda"] if len(devices) > 1 else [])]
    parser.add_argument("--device", action="append", choices=known, help="default: all of them")
    args = parser.parse_args(arguments)
    print(
        f"kaleido_audio {kaleido_audio.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    )
    findings = []
    torch.manual_seed(0)
    for device in map(torch.device, args.device or devices):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of missing kernels, `describe` says
            backend = ops.backend(torch.empty(0, device=device))
        print(f"\n{describe(device, backend)}")
        if backend == "reference":
            continue
        print(f"  {'largest error of':<36} {'values':>9} {'gradients':>9} {'limit':>9}")
        for check in (check_products, check_spectra):
            for finding in check(device):
                findings.append(finding)
                print(finding, flush=True)
    wrong = [finding.operator for finding in findings if not finding.is_right]
    if wrong:
        print(
            f"\nWrong: {'; '.join(wrong)}. Please report it with all of the above. Until it is mended, the environment "
            "variable KALEIDO_BACKEND=reference takes plain PyTorch in place of the kernels."
        )
    else:
        print("\nAll is right." if findings else "\nThere was nothing to check.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
