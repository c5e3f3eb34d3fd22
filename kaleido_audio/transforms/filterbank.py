"""A learnable filterbank."""

from __future__ import annotations

from torch import Tensor, nn

from kaleido_audio import functional as F


class Filterbank(nn.Module):
    """A learnable filterbank whose weights in use are never negative.

    `fb` is the parameter; what is used is `kaleido_audio.functional.nonnegative` of it: negative values
    count as zero, and the gradient lets a zero grow (a triangular filterbank is mostly zeros, which the
    gradient of relu would hold there). A step of an optimizer may leave values a little below zero in the
    parameter and so in ``state_dict()``, which a resumed training needs as they are; `weights` has zeros there,
    and is what to copy into a torchaudio module.

    Args:
        fb: filters as columns, ``(n_freqs, n_bands)``; not negative where learnable.
        learnable: parameter if True, else a buffer, which is used as it is if it has negative weights now.

    Shape:
        ``forward(specgram)``: ``(..., n_freqs, frames)`` to ``(..., n_bands, frames)``.

    Raises:
        ValueError: negative weights, or shapes that do not fit.

    >>> import torch
    >>> Filterbank(torch.ones(3, 2))(torch.ones(3, 5))[:, 0]
    tensor([3., 3.], grad_fn=<SelectBackward0>)
    """

    fb: Tensor

    def __init__(self, fb: Tensor, *, learnable: bool = True) -> None:
        super().__init__()
        if fb.ndim != 2:
            raise ValueError(f"expected fb of shape (n_freqs, n_bands), got {tuple(fb.shape)}")
        negative = bool((fb < 0).any())
        if learnable and negative:
            raise ValueError(
                "a learnable filterbank has no negative weights, and this fb has some: use fb.clamp(min=0), "
                "or leave 'filterbank' out of learnable"
            )
        self.learnable = learnable
        # Then negative weights are what a training has left, and count as zero in a fixed copy too.
        self.nonnegative = not negative
        if learnable:
            self.fb = nn.Parameter(fb.detach().clone())
        else:
            self.register_buffer("fb", fb.detach().clone())

    @property
    def weights(self) -> Tensor:
        """The weights in use, ``(n_freqs, n_bands)``."""
        return F.nonnegative(self.fb) if self.nonnegative else self.fb

    def forward(self, specgram: Tensor) -> Tensor:
        """Weighted sums of the frequencies."""
        return F.apply_filterbank(specgram, self.weights)

    def extra_repr(self) -> str:
        """Shape and whether it is learnable."""
        kind = "learnable" if self.learnable else "fixed"
        return f"n_freqs={self.fb.shape[0]}, n_bands={self.fb.shape[1]}, {kind}"
