"""K-matrices of matrices whose structure can be read off: butterfly, circulant and Toeplitz matrices, permutations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kaleido_audio.exact import bit_reversal, low_rank
from kaleido_audio.exact.fourier import frequency_decimated, inverse_time_decimated
from kaleido_audio.exact.permutations import benes
from kaleido_audio.exact.self_sorting import self_sorting
from kaleido_audio.factors import balanced, embed_factors, identity_factors
from kaleido_audio.fit.hierarchical import butterfly_factor
from kaleido_audio.kmatrix import padded_size


def structured_candidates(target: Tensor, size: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Products of butterfly matrices that equal a target of known structure and are near to one that almost has it.

    A corner of a butterfly matrix, filled up with zeros, is the matrix between two diagonals of ones and zeros, and
    so a butterfly matrix again: corners of any shape are recovered as well as whole matrices.

    Args:
        target: ``(out_features, n)``, in float64 or complex128.
        size: of the factors, N.
        width: number of BB* products allowed.

    Yields:
        names and factors ``(F, log2 N, 2, N)`` with F <= 2 * width:

        * ``"B*"`` and ``"B"``: one butterfly matrix, see `butterfly_factor`;
        * ``"B* then bit reversal"``: as the Fourier transform in natural order, see `self_sorting`; the class of a B
          after a bit reversal, too;
        * ``"bit reversal then B*"``, width >= 2: the class of a bit reversal after a B, too;
        * ``"circulant"``, complex targets: the corner of a circulant matrix of size N. With N >= out_features + n - 1
          every Toeplitz matrix is one;
        * ``"permutation"``: one entry at most in every row and column;
        * ``"low rank"``: the nearest matrix of rank r, with r the power of two whose blocks fit, see `exact.low_rank`.
    """
    padded = target.new_zeros(size, size)
    padded[: target.shape[0], : target.shape[1]] = target
    identity = identity_factors(1, size, target.dtype).to(target.device)
    for increasing, name in ((False, "B*"), (True, "B")):
        factor = butterfly_factor(padded, increasing=increasing).unsqueeze(0)
        yield name, torch.cat([identity, factor] if increasing else [factor, identity])
    order = bit_reversal(size).to(target.device)
    yield "B* then bit reversal", self_sorting(butterfly_factor(padded[order], increasing=False))
    if width > 1:
        factor = butterfly_factor(padded[:, order], increasing=False).unsqueeze(0)
        yield "bit reversal then B*", torch.cat([benes(order.cpu()).to(target), factor, identity])
    if target.is_complex():
        yield "circulant", _circulant(target, size)
    entries = padded != 0
    if entries.sum(0).max() <= 1 and entries.sum(1).max() <= 1:
        yield "permutation", _scaled_permutation(padded)
    yield "low rank", _low_rank(target, size)


def _circulant(target: Tensor, size: int) -> Tensor:
    """The circulant matrix of that size whose corner is nearest to the target, F^-1 D F."""
    rows, columns = (torch.arange(n, device=target.device) for n in target.shape)
    lag = ((rows[:, None] - columns) % size).flatten()
    count = torch.zeros(size, dtype=target.real.dtype, device=target.device)
    count.index_add_(0, lag, torch.ones_like(lag, dtype=count.dtype))
    total = torch.zeros(size, dtype=target.dtype, device=target.device).index_add_(0, lag, target.flatten())
    # The factors below are F and N F^-1, both in bit-reversed order in between.
    spectrum = torch.fft.fft(total / count.clamp(min=1))[bit_reversal(size).to(target.device)] / size
    factors = torch.stack([frequency_decimated(size), inverse_time_decimated(size)]).to(target.device)
    factors[0, -1] *= spectrum
    return balanced(factors)


def _scaled_permutation(matrix: Tensor) -> Tensor:
    """A matrix with at most one entry in every row and column: a permutation, then a diagonal."""
    values, source = matrix.abs().max(dim=1)
    empty = values == 0
    unused = torch.ones_like(empty)
    unused[source[~empty]] = False
    source[empty] = unused.nonzero().flatten()  # the empty rows take the columns that no other row does
    factors = benes(source.cpu()).to(matrix)
    factors[1, -1] *= matrix.sum(dim=1)
    return factors


def _low_rank(target: Tensor, size: int) -> Tensor:
    """The matrix nearest to the target among those of a rank that one BB* of that size holds."""
    rank = size // padded_size(max(target.shape))
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    scale = s[:rank].sqrt()
    k = low_rank(u[:, :rank] * scale, vh[:rank].mT * scale)
    factors = embed_factors(k.factors.detach(), size).to(target.device)
    return balanced(factors)
