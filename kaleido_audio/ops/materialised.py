"""Products by one dense matrix on a GPU's tensor cores: where they may round, and were measured to be faster.

Tensor cores take tf32, bfloat16 and float16, and never what was not asked for: tf32 only where PyTorch's own products
of float32 may use it (`torch.set_float32_matmul_precision`), the half types only under autocast.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

TABLE = Path(__file__).with_name("materialised.csv")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """From how many vectors on the dense product was faster, as ``python -m benchmarks.materialised`` measured it.

    Attributes:
        capability: compute capability of the GPU, e.g. "9.0".
        precision: "tf32" or "half".
        n: size of the factors.
        factors: how many of them; with more, the kernels take longer and the dense product does not.
        training: whether gradients of vectors and factors were measured too.
        vectors: the least number of vectors.
    """

    capability: str
    precision: str
    n: int
    factors: int
    training: bool
    vectors: int


def read_table(path: Path = TABLE) -> list[Row]:
    """The rows of a file that `write_table` wrote.

    Raises:
        ValueError: a file that is something else, with its name and line.
    """
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for record in reader:
            try:
                rows.append(
                    Row(
                        capability=record["capability"],
                        precision=record["precision"],
                        n=int(record["n"]),
                        factors=int(record["factors"]),
                        training=bool(int(record["training"])),
                        vectors=int(record["vectors"]),
                    )
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: expected a row of measurements ({error})") from error
    return rows


def write_table(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Write rows as CSV, for `read_table`."""
    names = [field.name for field in fields(Row)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([int(v) if isinstance(v, bool) else v for v in (getattr(row, name) for name in names)])


@functools.cache
def _least_vectors(capability: tuple[int, int], precision: str, n: int, factors: int, training: bool) -> int | None:
    """From how many vectors on the dense product is faster; None where it is not, or where nothing was measured."""
    name = f"{capability[0]}.{capability[1]}"
    least = [
        row.vectors
        for row in read_table()
        if (row.capability, row.precision, row.n, row.training) == (name, precision, n, training)
        and row.factors <= factors
    ]
    return min(least, default=None)


def precision(x: Tensor, factors: Tensor) -> str | None:
    """The type that a product of such operands on a GPU may be rounded to; None where it may not.

    >>> precision(torch.zeros(3, 4), torch.zeros(2, 2, 2, 4)) is None  # full precision is PyTorch's default
    True
    """
    if torch.is_autocast_enabled("cuda"):
        low = torch.get_autocast_dtype("cuda")
        fits = x.dtype in (torch.float32, low) and factors.dtype in (torch.float32, low)
        return "half" if fits and low in _HALF else None
    if x.dtype == factors.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return None


def is_faster(x: Tensor, factors: Tensor) -> bool:
    """Whether a dense product may take the place of the kernels and was measured to be faster than they are.

    Compiled and exported graphs keep the kernels: one graph serves batches of any size.
    """
    if not x.is_cuda or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    allowed = precision(x, factors)
    if allowed is None:
        return False
    training = torch.is_grad_enabled() and (x.requires_grad or factors.requires_grad)
    capability = torch.cuda.get_device_capability(x.device)
    least = _least_vectors(capability, allowed, factors.shape[-1], len(factors), training)
    return least is not None and x.numel() >= least * x.shape[-1]
