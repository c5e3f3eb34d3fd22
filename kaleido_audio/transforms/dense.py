"""A transform as a real matrix: what a K-matrix in a spectrogram becomes where a model is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseTransform(nn.Module):
    """Real and imaginary parts of a complex linear map of real vectors, in real arithmetic.

    `kaleido_audio.nn.to_dense` puts it in the place of the K-matrix of a spectrogram: ONNX and most runtimes know
    matrices, and neither complex numbers nor the operators of this package.

    Args:
        matrix: ``(n_freqs, n)``, complex or real.

    The parameter ``weight`` is ``(2 * n_freqs, n)``: the rows of the real part, then those of the imaginary part.

    Shape:
        ``forward(x)``: ``(..., n)`` to two tensors ``(..., n_freqs)``.

    >>> DenseTransform(torch.tensor([[1 + 2j, 3.0]]))(torch.tensor([1.0, 1.0]))
    (tensor([4.], grad_fn=<SplitBackward0>), tensor([2.], grad_fn=<SplitBackward0>))
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        imaginary = matrix.imag if matrix.is_complex() else torch.zeros_like(matrix)
        self.weight = nn.Parameter(torch.cat([matrix.real, imaginary]).detach())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part."""
        real, imaginary = nn.functional.linear(x, self.weight).chunk(2, -1)
        return real, imaginary

    def extra_repr(self) -> str:
        """Sizes."""
        rows, n = self.weight.shape
        return f"n={n}, n_freqs={rows // 2}"
