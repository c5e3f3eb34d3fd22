"""K-matrices stacked: the linear layer with which the authors counted their parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaleido_audio import KMatrix
from kaleido_audio.nn import StructuredLinear


class StackedKLinear(StructuredLinear):
    """A linear layer of K-matrices of the size of its input, one below the other until they have enough rows.

    N is the next power of two of ``in_features``; every K-matrix is a BB* of size N with ``4 N log2 N`` parameters,
    and the last one is cut. `kaleido_audio.nn.KLinear` takes one K-matrix of the longer side instead: where there
    are more outputs than inputs it has more parameters, 40,960 in place of 36,864 for 512 to 1024.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector, drawn as in `torch.nn.Linear`.
        init: of the K-matrices, as `KMatrix` takes it.
        device: of the parameters.
        dtype: real type of the parameters, float32 by default.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: a shape that does not fit, with what was expected.

    Source: the ``nstack`` of the class Butterfly in the authors' code (HazyResearch/butterfly).

    >>> layer = StackedKLinear(512, 1024)
    >>> layer(torch.zeros(3, 512)).shape, sum(p.numel() for p in layer.parameters()) - 1024
    (torch.Size([3, 1024]), 36864)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        init: str = "orthogonal",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        size = 1 << (in_features - 1).bit_length()
        rows = [min(size, out_features - first) for first in range(0, out_features, size)]
        # The operator wants as many rows as columns at most, and cuts; a shorter input counts as padded.
        self.kmatrices = nn.ModuleList(KMatrix(in_features, out_features=row, init=init) for row in rows)
        self.kmatrices.to(device=device, dtype=dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        parts = [kmatrix(x) for kmatrix in self.kmatrices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
